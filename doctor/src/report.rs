//! What is told: as text for people, as JSON for programs.

use std::fmt;

use serde::Serialize;

use crate::{
    capacity::Assessment,
    deployment::{Deployment, Outcome},
    facts::Place,
    number::grouped,
    remedy::Remedy,
};

/// All that the command found out.
#[derive(Debug, Serialize)]
pub struct Report {
    pub machine: Assessment,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deployment: Option<Deployment>,
}

impl Report {
    /// The connections that were wanted fit, and no step of the deployment failed.
    pub fn is_good(&self) -> bool {
        self.machine.met != Some(false) && self.deployment.as_ref().is_none_or(Deployment::is_good)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Who asks about an address wants to know of that; what this machine allows comes after.
        if let Some(deployment) = &self.deployment {
            write!(f, "{deployment}\nthis machine\n")?;
        }
        fmt::Display::fmt(&self.machine, f)
    }
}

impl fmt::Display for Assessment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_verdict(f)?;
        self.fmt_limits(f)?;
        self.fmt_remedies(f)?;
        if !self.warnings.is_empty() {
            writeln!(f, "\nwarnings")?;
        }
        for warning in &self.warnings {
            writeln!(f, "  {}", warning.sentence)?;
            fmt_lines(f, warning.raise.as_slice())?;
        }
        if !self.unreadable.is_empty() {
            writeln!(f, "\nnot read, and not in the sums")?;
        }
        self.unreadable.iter().try_for_each(|unreadable| writeln!(f, "  {unreadable}"))?;
        // A container is not shown what the kernel has once for all, such as tcp_mem.
        if !self.unreadable.is_empty() && self.place != Place::Machine {
            writeln!(f, "  the host has limits that are not shown here: run `tidegate doctor` there too")?;
        }
        Ok(())
    }
}

impl Assessment {
    fn fmt_verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.connections, self.first) {
            (Some(connections), Some(first)) => writeln!(
                f,
                "this node can hold {} connections; the first limit is {}",
                grouped(connections),
                first.name()
            )?,
            _ => writeln!(
                f,
                "no limit of this machine could be read, so how many connections fit is not known"
            )?,
        }
        match (self.wanted, self.met) {
            (Some(wanted), Some(true)) => writeln!(f, "{} fit", grouped(wanted)),
            (Some(wanted), _) => writeln!(f, "{} do not fit", grouped(wanted)),
            (None, _) => Ok(()),
        }
    }

    fn fmt_limits(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.limits.is_empty() {
            writeln!(f, "\n  {:<13} {:>13}  why", "limit", "connections")?;
        }
        self.limits.iter().try_for_each(|limit| {
            writeln!(
                f,
                "  {:<13} {:>13}  {}",
                limit.resource.name(),
                grouped(limit.connections),
                limit.because
            )
        })
    }

    fn fmt_remedies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for limit in self.limits.iter().filter(|limit| !limit.raise.is_empty()) {
            writeln!(f, "\nto raise {}", limit.resource.name())?;
            fmt_lines(f, &limit.raise)?;
        }
        Ok(())
    }
}

fn fmt_lines(f: &mut fmt::Formatter<'_>, remedies: &[Remedy]) -> fmt::Result {
    remedies.iter().try_for_each(|remedy| writeln!(f, "    {}:\n        {}", remedy.at, remedy.line))
}

impl fmt::Display for Deployment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "deployment {}", self.url)?;
        for step in &self.steps {
            let mark = match step.outcome {
                Outcome::Passed => "ok",
                Outcome::Warned => "warning",
                Outcome::Failed => "FAILED",
                Outcome::Skipped => "-",
            };
            writeln!(f, "  {mark:<8} {:<8} {}", step.name.name(), step.sentence)?;
            if let Some(advice) = &step.advice {
                writeln!(f, "  {:<8} {:<8} {advice}", "", "")?;
            }
        }
        Ok(())
    }
}
