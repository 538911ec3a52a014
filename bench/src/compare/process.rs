//! What the kernel says about a server process: its CPU time, its memory, its children.

use std::fs;
use std::path::PathBuf;

/// A reading of `/proc` that failed: the process is gone, or this is not Linux.
#[derive(Debug, thiserror::Error)]
#[error("{path} could not be read: the server is gone, or this system has no /proc")]
pub struct ProcessError {
    pub path: PathBuf,
    #[source]
    source: Option<std::io::Error>,
}

/// CPU time of all threads, user and system, in nanoseconds. `schedstat` counts exactly where `stat` counts
/// ticks of 10 ms. Threads that ended take their time with them; servers keep theirs.
pub fn cpu_ns(pid: u32) -> Result<u64, ProcessError> {
    let path = PathBuf::from(format!("/proc/{pid}/task"));
    let tasks =
        fs::read_dir(&path).map_err(|source| ProcessError { path: path.clone(), source: Some(source) })?;
    let mut sum = 0;
    for task in tasks.flatten() {
        // A thread may end between the listing and the read.
        let Ok(schedstat) = fs::read_to_string(task.path().join("schedstat")) else {
            continue;
        };
        sum += schedstat.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    if sum == 0 { Err(ProcessError { path, source: None }) } else { Ok(sum) }
}

/// Proportional set size in bytes: memory in user space, with shared pages divided among their users. What
/// the kernel holds per socket is not in it and is the same for every server.
pub fn pss_bytes(pid: u32) -> Result<u64, ProcessError> {
    let path = PathBuf::from(format!("/proc/{pid}/smaps_rollup"));
    let rollup = fs::read_to_string(&path)
        .map_err(|source| ProcessError { path: path.clone(), source: Some(source) })?;
    parse_pss(&rollup).ok_or(ProcessError { path, source: None })
}

/// A process and its children: a server that forks works in them.
#[must_use]
pub fn family(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let others = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let children = others.filter(|&other| {
        let stat = fs::read_to_string(format!("/proc/{other}/stat")).unwrap_or_default();
        parent_of(&stat) == Some(pid)
    });
    std::iter::once(pid).chain(children).collect()
}

/// The fourth field (proc(5)); the second, a name in brackets, may hold anything.
fn parent_of(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn parse_pss(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pss_is_read_from_a_rollup() {
        let rollup =
            "55d0-7ffe ---p 0 00:00 0 [rollup]\nRss:  2000 kB\nPss:                1432 kB\nPss_Anon: 7 kB\n";
        assert_eq!(parse_pss(rollup), Some(1_432 * 1_024));
        assert_eq!(parse_pss("Pss_Anon: 7 kB\n"), None);
    }

    #[test]
    fn a_parent_is_read_from_a_stat() {
        assert_eq!(parent_of("7 (a) S 9 (b)) S 41 7 7 0 -1"), Some(41));
        assert_eq!(parent_of("7 (a"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_cpu_time_and_memory() {
        let pid = std::process::id();
        assert!(cpu_ns(pid).is_ok_and(|ns| ns > 0));
        assert!(pss_bytes(pid).is_ok_and(|bytes| bytes > 100_000));
    }
}
