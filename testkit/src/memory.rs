//! What a process costs: memory and descriptors and CPU time, read from `/proc` (Linux).

use std::fs;

/// Clock ticks of `/proc/PID/stat` per second; fixed at 100 for user space on every Linux architecture in use.
const TICKS_PER_SECOND: f64 = 100.0;

/// Proportional set size in bytes: private pages plus the process's share of shared ones.
///
/// # Panics
/// When the process is gone or the platform has no `smaps_rollup`.
#[track_caller]
pub fn pss_bytes(pid: u32) -> u64 {
    let text = read(pid, "smaps_rollup");
    pss_in(&text).unwrap_or_else(|| panic!("no Pss line in /proc/{pid}/smaps_rollup"))
}

/// Open descriptors.
///
/// # Panics
/// When the process is gone.
#[track_caller]
pub fn descriptors(pid: u32) -> usize {
    let path = format!("/proc/{pid}/fd");
    match fs::read_dir(&path) {
        Ok(entries) => entries.count(),
        Err(error) => panic!("cannot list {path}: {error}"),
    }
}

/// CPU time used so far by all threads, in seconds, user and system.
///
/// # Panics
/// When the process is gone.
#[track_caller]
pub fn cpu_seconds(pid: u32) -> f64 {
    let text = read(pid, "stat");
    ticks_in(&text).unwrap_or_else(|| panic!("unreadable /proc/{pid}/stat: {text}")) / TICKS_PER_SECOND
}

#[track_caller]
fn read(pid: u32, file: &str) -> String {
    let path = format!("/proc/{pid}/{file}");
    match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => panic!("cannot read {path}: {error}"),
    }
}

fn pss_in(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Fields 14 and 15 (proc(5)); the name in field 2 may hold spaces, so counting starts behind its parenthesis.
fn ticks_in(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_texts_are_read() {
        assert_eq!(pss_in("Rss:  9 kB\nPss:              12 kB\nPss_Dirty: 1 kB\n"), Some(12 * 1024));
        assert_eq!(ticks_in("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0"), Some(42.0));
    }

    #[test]
    fn the_own_process_has_memory_and_descriptors() {
        let pid = std::process::id();
        assert!(pss_bytes(pid) > 64 * 1024);
        assert!(descriptors(pid) >= 3);
        assert!(cpu_seconds(pid) >= 0.0);
    }
}
