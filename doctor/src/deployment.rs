//! A running deployment as a client finds it: one step after the other, each a sentence and, where it failed, what to do.

mod answer;
mod clock;
mod connect;
mod hold;
mod request;
mod target;
mod trouble;
mod upgrade;

use std::time::{Duration, SystemTime};

use serde::Serialize;

use answer::Answer;
use connect::Route;
use hold::hold;
pub use target::{Target, TargetError};
use trouble::Trouble;
use upgrade::Socket;

/// No step but the idle one takes longer. A SYN that is lost is sent again after 1, 3, 7 and 15 s.
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_secs(20);

/// What to do at the URL.
#[derive(Debug, Clone)]
pub struct Options {
    pub target: Target,
    pub channel: String,
    pub token: Option<String>,
    /// For how long a silent connection is held, at most.
    pub idle: Option<Duration>,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Deployment {
    pub url: String,
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    pub name: StepName,
    pub outcome: Outcome,
    pub sentence: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// What was measured: how long a step took, by how much the clocks differ at least, after how much silence a
    /// connection was ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepName {
    Name,
    Connect,
    Tls,
    Request,
    Clock,
    Upgrade,
    Idle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Passed,
    Warned,
    Failed,
    /// It needs a step that failed, or was not asked for.
    Skipped,
}

impl Deployment {
    /// Goes through all steps; what needs a step that failed is skipped.
    pub async fn measure(options: &Options) -> Self {
        let mut steps = Vec::new();
        if let Some(route) = reach(&options.target, &mut steps).await
            && ask(&route, &mut steps).await
            && let Some(socket) = upgrade(&route, options, &mut steps).await
        {
            idle(socket, options.idle, &mut steps).await;
        }
        for name in StepName::ALL {
            if !steps.iter().any(|step| step.name == name) {
                steps.push(Step::skipped(name, "needs a step before it"));
            }
        }
        Self { url: options.target.to_string(), steps }
    }

    pub fn is_good(&self) -> bool {
        self.steps.iter().all(|step| step.outcome != Outcome::Failed)
    }
}

/// Name, TCP, TLS.
async fn reach(target: &Target, steps: &mut Vec<Step>) -> Option<Route> {
    let addresses = match connect::resolve(target).await {
        Ok(addresses) => addresses,
        Err(trouble) => return fail(steps, StepName::Name, &trouble),
    };
    let shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    let sentence = if shown == [target.host()] {
        format!("{} is an address", target.host())
    } else {
        format!("{} is {}", target.host(), shown.join(", "))
    };
    steps.push(Step::passed(StepName::Name, sentence));

    let (route, took) = match connect::tcp(target, &addresses).await {
        Ok(connected) => connected,
        Err(trouble) => return fail(steps, StepName::Connect, &trouble),
    };
    let sentence = format!("{} takes connections, in {}", route.address(), milliseconds(took));
    steps.push(Step::passed(StepName::Connect, sentence).measured(took));

    if !target.is_encrypted() {
        steps.push(Step::skipped(StepName::Tls, "not asked for by the URL"));
        return Some(route);
    }
    match route.open().await {
        Ok(opened) => {
            let sentence = format!("{}, certificate accepted for {}", opened.version, target.host());
            steps.push(Step::passed(StepName::Tls, sentence));
            Some(route)
        }
        Err(trouble) => fail(steps, StepName::Tls, &trouble),
    }
}

/// A plain request, and the clock by its answer. Says whether an upgrade is worth trying.
async fn ask(route: &Route, steps: &mut Vec<Step>) -> bool {
    let sent = SystemTime::now();
    let answer = match request::plain(route).await {
        Ok(answer) => answer,
        Err(trouble) => {
            fail::<()>(steps, StepName::Request, &trouble);
            return false;
        }
    };
    let received = SystemTime::now();
    let clock = clock::step(answer.date.as_deref(), sent, received);
    steps.push(plain_step(answer));
    steps.push(clock);
    true
}

/// Any answer that is not an error of the server's side shows that requests pass.
fn plain_step(answer: Answer) -> Step {
    let (path, status) = (request::PLAIN_PATH, answer.status);
    match &answer.problem {
        Some(problem) if status < 500 => Step::passed(
            StepName::Request,
            format!("GET {path} was answered {status} by Tidegate, as it should: {}", problem.detail),
        ),
        None if status < 500 => {
            let sentence = format!("GET {path} was answered {status}, and not by Tidegate");
            let advice = "what is in front keeps this path to itself, or this is another server".to_owned();
            Step {
                outcome: Outcome::Warned,
                advice: Some(advice),
                ..Step::passed(StepName::Request, sentence)
            }
        }
        _ => Step::failed(StepName::Request, &Trouble::refused(request::PLAIN_PATH, answer)),
    }
}

async fn upgrade(route: &Route, options: &Options, steps: &mut Vec<Step>) -> Option<Socket> {
    match upgrade::open(route, &options.channel, options.token.as_deref()).await {
        Ok((socket, took)) => {
            let sentence = format!(
                "/ws became a WebSocket, subscribed to {}, in {}",
                options.channel,
                milliseconds(took)
            );
            steps.push(Step::passed(StepName::Upgrade, sentence).measured(took));
            Some(socket)
        }
        Err(trouble) => fail(steps, StepName::Upgrade, &trouble),
    }
}

async fn idle(socket: Socket, bound: Option<Duration>, steps: &mut Vec<Step>) {
    steps.push(match bound {
        Some(bound) => hold(socket, bound).await.step(),
        None => {
            socket.close().await;
            Step::skipped(StepName::Idle, "not asked for (--idle)")
        }
    });
}

/// Always `None`, to leave with.
fn fail<T>(steps: &mut Vec<Step>, name: StepName, trouble: &Trouble) -> Option<T> {
    steps.push(Step::failed(name, trouble));
    None
}

impl Step {
    fn passed(name: StepName, sentence: String) -> Self {
        Self { name, outcome: Outcome::Passed, sentence, advice: None, seconds: None }
    }

    fn skipped(name: StepName, why: &str) -> Self {
        Self { outcome: Outcome::Skipped, ..Self::passed(name, why.to_owned()) }
    }

    fn failed(name: StepName, trouble: &Trouble) -> Self {
        Self {
            outcome: Outcome::Failed,
            advice: Some(trouble.advice()),
            ..Self::passed(name, trouble.to_string())
        }
    }

    fn measured(self, took: Duration) -> Self {
        Self { seconds: Some(took.as_secs_f64()), ..self }
    }
}

impl StepName {
    const ALL: [Self; 7] =
        [Self::Name, Self::Connect, Self::Tls, Self::Request, Self::Clock, Self::Upgrade, Self::Idle];

    pub fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Request => "request",
            Self::Clock => "clock",
            Self::Upgrade => "upgrade",
            Self::Idle => "idle",
        }
    }
}

fn milliseconds(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1e3)
}
