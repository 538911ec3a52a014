//! The repository's files, and the programs that judge them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tidegate_testkit::target_directory;

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

#[track_caller]
pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A program of `tests/clients/deploy/requirements.txt`, as `cargo xtask test` installs it under `target/tools`.
#[track_caller]
pub(crate) fn tool(name: &str) -> Command {
    let target = target_directory().parent().map(Path::to_path_buf).unwrap();
    let candidates: [PathBuf; 2] = [target, root().join("target")];
    let found = candidates
        .iter()
        .map(|target| target.join("tools/deploy/bin").join(name))
        .find(|path| path.is_file());
    Command::new(found.unwrap_or_else(|| panic!("{name} is missing: run `cargo xtask test --only deploy`")))
}

/// Runs to the end and gives what it printed.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).current_dir(root()).output();
    let output =
        output.unwrap_or_else(|error| panic!("{command:?}: {error}; run `cargo xtask test --only prepare`"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}\n{errors}", output.status);
    text
}
