//! `docker` on the engine of `cargo xtask containers`, and containers that go when the test does.

use std::{
    net::SocketAddr,
    process::{Command, Output, Stdio},
    time::Duration,
};

use tidegate_testkit::eventually_some;

/// What the compose file calls the image that it builds.
pub(crate) const IMAGE: &str = "tidegate:local";

/// A container has answered its health check by then, also on a machine that is busy with other things.
pub(crate) const HEALTHY_MAX: Duration = Duration::from_secs(90);

#[track_caller]
pub(crate) fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `cargo xtask containers`"))
}

/// Runs `docker` to its end and gives the outcome.
#[track_caller]
pub(crate) fn try_docker(arguments: &[&str]) -> Output {
    let mut command = Command::new(setting("TIDEGATE_DOCKER"));
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Runs `docker`, which must succeed, and gives what it printed, without the line end.
#[track_caller]
pub(crate) fn docker(arguments: &[&str]) -> String {
    let output = try_docker(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    assert!(
        output.status.success(),
        "docker {arguments:?}: {}\n{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// A field of `docker inspect`, such as `.State.ExitCode`.
#[track_caller]
pub(crate) fn inspect(container: &str, field: &str) -> String {
    docker(&["inspect", "--format", &format!("{{{{{field}}}}}"), container])
}

/// Both streams of its log.
#[track_caller]
pub(crate) fn log(container: &str) -> String {
    let output = try_docker(&["logs", container]);
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[track_caller]
pub(crate) fn expect_health(container: &str, health: &str) {
    let what = format!("{container} is {health}");
    eventually_some(&what, HEALTHY_MAX, || {
        (inspect(container, ".State.Health.Status") == health).then_some(())
    });
}

/// A container of our image; removed on drop.
pub(crate) struct Container {
    id: String,
}

impl Container {
    /// `docker run --detach OPTIONS IMAGE ARGUMENTS`.
    #[track_caller]
    pub(crate) fn run(options: &[&str], arguments: &[&str]) -> Self {
        let id = docker(&[&["run", "--detach"], options, &[IMAGE], arguments].concat());
        Self { id }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Where a published port of it is on this machine.
    #[track_caller]
    pub(crate) fn address(&self, port: &str) -> SocketAddr {
        let text = docker(&["port", &self.id, port]);
        text.lines().next().unwrap().parse().unwrap()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the container ---\n{}", log(&self.id));
        }
        try_docker(&["rm", "--force", &self.id]);
    }
}
