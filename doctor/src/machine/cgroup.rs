//! Limits of the control group that this process is in, version 2 and 1 (cgroups(7)).

use super::{Machine, malformed};
use crate::facts::{Fact, Unreadable, Why};

/// Version 1 without a limit reads as 2^63 less a page.
const UNLIMITED: u64 = 1 << 60;

/// Where a controller is mounted, and the group's path below.
struct Group {
    mount: &'static str,
    path: String,
}

/// The lowest limit on the way from the group to the root: a parent's limit holds for its children. In bytes.
pub(super) fn memory_limit(machine: &Machine) -> Fact<Option<u64>> {
    lowest(machine, "memory", |directory, version| match version {
        Version::Two => value_or_max(machine, &format!("{directory}/memory.max")),
        Version::One => {
            let limit = machine.number(&format!("{directory}/memory.limit_in_bytes"))?;
            Ok(Some(limit).filter(|limit| *limit < UNLIMITED))
        }
    })
}

/// The lowest quota, in thousandths of a core.
pub(super) fn cpu_quota_millis(machine: &Machine) -> Fact<Option<u64>> {
    lowest(machine, "cpu", |directory, version| match version {
        Version::Two => {
            let path = format!("{directory}/cpu.max");
            let text = machine.text(&path)?;
            let (quota, period) = text.trim().split_once(' ').ok_or_else(|| malformed(&path))?;
            if quota == "max" {
                return Ok(None);
            }
            millis(quota.parse().ok(), period.parse().ok()).map(Some).ok_or_else(|| malformed(&path))
        }
        Version::One => {
            let path = format!("{directory}/cpu.cfs_quota_us");
            // -1 is no quota.
            let quota = machine.text(&path)?.trim().parse::<i64>().map_err(|_| malformed(&path))?;
            let period = machine.number(&format!("{directory}/cpu.cfs_period_us"))?;
            let Ok(quota) = u64::try_from(quota) else { return Ok(None) };
            millis(Some(quota), Some(period)).map(Some).ok_or_else(|| malformed(&path))
        }
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

fn lowest(
    machine: &Machine,
    controller: &str,
    read: impl Fn(&str, Version) -> Fact<Option<u64>>,
) -> Fact<Option<u64>> {
    let (group, version) = group_of(machine, controller)?;
    let (mut lowest, mut readable, mut first_problem) = (None, false, None);
    for directory in ancestors(&group) {
        let found = match read(&directory, version) {
            Err(Unreadable { why: Why::Missing, .. }) if has_no_such_limit(machine, &directory, version) => {
                Ok(None)
            }
            found => found,
        };
        match found {
            Ok(limit) => {
                readable = true;
                lowest = lowest.into_iter().chain(limit).min();
            }
            Err(problem) => first_problem = first_problem.or(Some(problem)),
        }
    }
    match first_problem {
        // In a container without a namespace for groups the upper part of the path is not there.
        Some(problem) if !readable => Err(problem),
        _ => Ok(lowest),
    }
}

/// Version 1 names its controllers in `/proc/self/cgroup`; what is not named there is version 2's line, `0::/path`.
fn group_of(machine: &Machine, controller: &str) -> Fact<(Group, Version)> {
    const PATH: &str = "proc/self/cgroup";
    let text = machine.text(PATH)?;
    let lines = || text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    if let Some((_, path)) = lines().find(|(names, _)| names.split(',').any(|name| name == controller)) {
        let candidates: &[&str] = match controller {
            "memory" => &["sys/fs/cgroup/memory"],
            _ => &["sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"],
        };
        let mount = candidates.iter().find(|mount| machine.root.join(mount).exists());
        let mount =
            mount.ok_or_else(|| Unreadable { path: format!("/{}", candidates[0]), why: Why::Missing })?;
        return Ok((Group { mount, path: path.to_owned() }, Version::One));
    }
    let (_, path) = lines().find(|(names, _)| names.is_empty()).ok_or_else(|| malformed(PATH))?;
    Ok((Group { mount: "sys/fs/cgroup", path: path.to_owned() }, Version::Two))
}

/// The group's directory, its parent, and so on up to the mount.
fn ancestors(group: &Group) -> Vec<String> {
    let mut rest = group.path.trim_matches('/');
    let mut directories = Vec::new();
    while !rest.is_empty() {
        directories.push(format!("{}/{rest}", group.mount));
        rest = rest.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    directories.push(group.mount.to_owned());
    directories
}

/// A group of version 2 that is there, and whose controller is not turned on: its root never has limits, and other
/// groups only those that were asked for.
fn has_no_such_limit(machine: &Machine, directory: &str, version: Version) -> bool {
    version == Version::Two && machine.root.join(directory).join("cgroup.controllers").exists()
}

fn value_or_max(machine: &Machine, path: &str) -> Fact<Option<u64>> {
    let text = machine.text(path)?;
    match text.trim() {
        "max" => Ok(None),
        number => number.parse().map(Some).map_err(|_| malformed(path)),
    }
}

fn millis(quota: Option<u64>, period: Option<u64>) -> Option<u64> {
    quota?.checked_mul(1000)?.checked_div(period?)
}
