//! Clients that are not ours: Node, Python and Chromium, as `cargo xtask test` installs them under `.cache/`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Process, env_path};

/// A foreign program that runs one of the scripts in `tests/clients/`.
#[derive(Debug)]
pub struct Tool {
    name: String,
    command: Command,
}

impl Tool {
    /// Node with the packages pinned in `tests/clients/node/package.json`.
    ///
    /// # Panics
    /// When they are not installed, or others are.
    #[track_caller]
    pub fn node(script: &str) -> Self {
        let modules = installed("node/node_modules");
        let mut command = Command::new("node");
        command.arg(scripts_directory().join("node").join(script)).env("NODE_PATH", modules);
        Self { name: format!("node {script}"), command }
    }

    /// Python with the packages pinned in `tests/clients/python/requirements.txt`.
    ///
    /// # Panics
    /// When they are not installed, or others are.
    #[track_caller]
    pub fn python(script: &str) -> Self {
        let mut command = Command::new(installed("python/bin/python"));
        command.arg(scripts_directory().join("python").join(script));
        Self { name: format!("python {script}"), command }
    }

    /// A program of the Python environment (`schemathesis`).
    ///
    /// # Panics
    /// When it is not installed.
    #[track_caller]
    pub fn python_program(program: &str) -> Self {
        let command = Command::new(installed("python/bin").join(program));
        Self { name: program.to_owned(), command }
    }

    #[must_use]
    pub fn argument(mut self, argument: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    #[must_use]
    pub fn environment(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Where it runs, for programs that leave files behind.
    #[must_use]
    pub fn directory(mut self, path: &Path) -> Self {
        self.command.current_dir(path);
        self
    }

    /// The address as `http://…` in the variable that every script reads.
    #[must_use]
    pub fn gateway(self, address: SocketAddr) -> Self {
        self.environment("GATEWAY", format!("http://{address}"))
    }

    #[track_caller]
    pub fn spawn(mut self) -> Process {
        Process::spawn(&self.name, &mut self.command)
    }
}

/// Where `cargo xtask` installs what tests need: `TIDEGATE_CACHE`, else `.cache` at the root of the workspace.
pub fn cache_directory() -> PathBuf {
    env_path("TIDEGATE_CACHE").unwrap_or_else(|| workspace().join(".cache"))
}

/// Scripts that foreign clients run.
pub fn scripts_directory() -> PathBuf {
    workspace().join("tests/clients")
}

/// Where tests leave what a person may want to look at: `target/e2e`.
///
/// # Panics
/// When it cannot be made.
pub fn target_directory() -> PathBuf {
    let executable = std::env::current_exe().expect("a test knows its own executable");
    // …/target/PROFILE/deps/NAME
    let target = executable.ancestors().nth(3).map_or_else(|| workspace().join("target"), Path::to_path_buf);
    let directory = target.join("e2e");
    std::fs::create_dir_all(&directory).expect("the target directory is writable");
    directory
}

/// Chromium as Debian and most others install it.
///
/// # Panics
/// When there is none.
#[track_caller]
pub fn chromium_path() -> PathBuf {
    let search = env_path("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = std::env::split_paths(&search).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = names
        .iter()
        .flat_map(|name| directories.iter().map(move |path| path.join(name)))
        .find(|p| p.is_file());
    found.unwrap_or_else(|| panic!("no Chromium on PATH: run `cargo xtask test --only prepare`"))
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(1).map_or_else(PathBuf::new, Path::to_path_buf)
}

/// A part of an installation, in which are the packages that the scripts are for today: with those of an older list a
/// client would fail in ways that look like ours.
#[track_caller]
fn installed(relative: &str) -> PathBuf {
    let path = cache_directory().join(relative);
    assert!(path.exists(), "{} is missing: run `cargo xtask test --only prepare`", path.display());
    let language = relative.split('/').next().unwrap_or_default();
    let directory = cache_directory().join(language);
    assert!(
        is_current(&directory, &recipe(language)),
        "{} was installed from another list of packages: run `cargo xtask test --only prepare`",
        directory.display()
    );
    path
}

/// The lists that `cargo xtask test --only prepare` installs from, one after the other (`xtask/src/prepare.rs`).
fn recipe(language: &str) -> String {
    let lists: &[&str] = match language {
        "node" => &["package.json", "package-lock.json"],
        _ => &["requirements.txt"],
    };
    let read = |list| std::fs::read_to_string(scripts_directory().join(language).join(list));
    lists.iter().map(read).collect::<Result<_, _>>().unwrap_or_default()
}

fn is_current(directory: &Path, recipe: &str) -> bool {
    std::fs::read_to_string(directory.join("installed-for")).is_ok_and(|installed| installed == recipe)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{is_current, recipe};

    #[test]
    fn an_installation_of_another_list_is_not_current() {
        let directory = std::env::temp_dir().join(format!("testkit-installed-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        assert!(!is_current(&directory, &recipe("python")), "nothing is installed");
        for language in ["python", "node"] {
            assert!(!recipe(language).is_empty());
            std::fs::write(directory.join("installed-for"), recipe(language)).unwrap();
            assert!(is_current(&directory, &recipe(language)));
            std::fs::write(directory.join("installed-for"), recipe(language) + "one==1\n").unwrap();
            assert!(!is_current(&directory, &recipe(language)));
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
