//! What the operating system says of this process. From `/proc`, so on Linux; elsewhere the series are absent.

use std::fs;

/// One reading; a field that could not be read is `None`.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Process {
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) cpu_seconds: Option<f64>,
    pub(super) descriptors_open: Option<u64>,
    pub(super) descriptors_max: Option<u64>,
    pub(super) start_time_s: Option<f64>,
}

impl Process {
    pub(super) fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").ok();
        let fields = stat.as_deref().map(stat_fields).unwrap_or_default();
        let ticks =
            |index: usize| fields.get(index)?.parse::<f64>().ok().map(|ticks| ticks / ticks_per_second());
        let (virtual_bytes, resident_bytes) = memory();
        Self {
            resident_bytes,
            virtual_bytes,
            cpu_seconds: ticks(UTIME).zip(ticks(STIME)).map(|(user, system)| user + system),
            descriptors_open: descriptors_open(),
            descriptors_max: descriptors_max(),
            start_time_s: ticks(START_TIME).zip(boot_time_s()).map(|(start, boot)| boot + start),
        }
    }
}

// Places in /proc/PID/stat counted from the state, which is field 3 of proc_pid_stat(5).
const UTIME: usize = 14 - 3;
const STIME: usize = 15 - 3;
const START_TIME: usize = 22 - 3;

/// The fields after the command's name, which may itself hold spaces and brackets.
fn stat_fields(stat: &str) -> Vec<&str> {
    stat.rsplit_once(')').map(|(_, rest)| rest.split_ascii_whitespace().collect()).unwrap_or_default()
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

/// Virtual and resident bytes.
fn memory() -> (Option<u64>, Option<u64>) {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = statm.split_ascii_whitespace().map(|field| field.parse::<u64>().ok());
    let bytes =
        |pages: Option<Option<u64>>| pages.flatten().map(|pages| pages * rustix::param::page_size() as u64);
    let virtual_bytes = bytes(pages.next());
    (virtual_bytes, bytes(pages.next()))
}

/// Since Linux 6.2 the size of this directory is the number of descriptors; before, its entries are counted.
fn descriptors_open() -> Option<u64> {
    const DIRECTORY: &str = "/proc/self/fd";
    match fs::metadata(DIRECTORY).ok()?.len() {
        // Counting opens one more descriptor, for the directory itself.
        0 => Some((fs::read_dir(DIRECTORY).ok()?.count() as u64).saturating_sub(1)),
        number => Some(number),
    }
}

fn descriptors_max() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

fn boot_time_s() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 9000 1 1";
        let fields = stat_fields(stat);
        assert_eq!((fields[0], fields[UTIME], fields[STIME], fields[START_TIME]), ("S", "250", "50", "9000"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_readable() {
        let process = Process::read();
        assert!(process.resident_bytes.unwrap() > 100_000, "{process:?}");
        assert!(process.virtual_bytes >= process.resident_bytes, "{process:?}");
        assert!(process.cpu_seconds.is_some(), "{process:?}");
        let open = process.descriptors_open.unwrap();
        assert!(open >= 3 && open <= process.descriptors_max.unwrap_or(u64::MAX), "{process:?}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - process.start_time_s.unwrap();
        assert!((-5.0..86_400.0).contains(&age), "started {age} s ago");
    }
}
