//! Figures that tests measure and do not assert.

use std::fs;
use std::path::Path;

use tidegate_testkit::target_directory;

/// Prints a line and keeps it in `target/e2e`, where `cargo xtask faults` finds it.
pub fn record(file: &str, line: &str) {
    println!("{line}");
    let path = target_directory().join(file);
    fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).expect("the target directory is writable");
    fs::write(path, format!("{line}\n")).expect("the target directory is writable");
}
