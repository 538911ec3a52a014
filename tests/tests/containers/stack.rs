//! The compose file, run as a project of its own on ports that are free.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tidegate_testkit::{DEADLINE, Rest, SseClient, SseEvent, eventually_some};

use crate::docker::{docker, setting};

/// What differs from what a person runs: any free port in place of 8080.
const OVERRIDE: &str = "services:\n  router:\n    ports: !override [\"127.0.0.1:0:8080\"]\n  prometheus:\n    ports: !override [\"127.0.0.1:0:9090\"]\n";

/// The same of the file that has all of Tidegate in one container.
const SERVE_OVERRIDE: &str = "services:\n  tidegate:\n    ports: !override [\"127.0.0.1:0:8080\"]\n";

pub(crate) struct Stack {
    /// The compose file, and its service where clients connect.
    file: &'static str,
    front: &'static str,
    project: String,
    directory: TempDir,
    environment: Vec<(&'static str, String)>,
    secrets: PathBuf,
}

impl Stack {
    /// With the secrets of the repository, or those in a directory that only `user` may read.
    #[track_caller]
    pub(crate) fn new(name: &str, own: Option<(&Path, &str)>) -> Self {
        Self::of(("docker-compose.yml", OVERRIDE, "router"), name, own)
    }

    /// All in one container.
    #[track_caller]
    pub(crate) fn serve(name: &str) -> Self {
        Self::of(("docker-compose.serve.yml", SERVE_OVERRIDE, "tidegate"), name, None)
    }

    #[track_caller]
    fn of(
        (file, differs, front): (&'static str, &str, &'static str),
        name: &str,
        own: Option<(&Path, &str)>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("override.yml"), differs).unwrap();
        // The engine may raise no limit beyond the one that it has itself.
        let limits = fs::read_to_string("/proc/self/limits").unwrap();
        let open = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let hard = open.split_whitespace().nth(4).unwrap().parse().unwrap_or(65_536u64).min(65_536);
        // The image is there, and this Compose cannot build.
        let mut environment =
            vec![("TIDEGATE_NOFILE", hard.to_string()), ("TIDEGATE_PULL", "never".to_owned())];
        let mut secrets = root().join("deploy/compose/secrets");
        if let Some((path, user)) = own {
            secrets = path.to_owned();
            environment.push(("TIDEGATE_SECRETS", path.display().to_string()));
            environment.push(("TIDEGATE_USER", user.to_owned()));
        }
        Self {
            file,
            front,
            project: format!("{name}-{}", std::process::id()),
            directory,
            environment,
            secrets,
        }
    }

    /// `docker compose ARGUMENTS`, which must succeed.
    #[track_caller]
    pub(crate) fn compose(&self, arguments: &[&str]) -> String {
        let output = self.try_compose(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker compose {arguments:?}:\n{text}\n{errors}");
        text
    }

    fn try_compose(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(setting("TIDEGATE_COMPOSE"));
        command.args(["--project-name", &self.project, "--file"]).arg(root().join(self.file));
        command.arg("--file").arg(self.directory.path().join("override.yml"));
        command.arg("--project-directory").arg(root()).args(arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
        command.output().unwrap()
    }

    /// Waits until every service is healthy.
    #[track_caller]
    pub(crate) fn up(&self, arguments: &[&str]) {
        let up = ["up", "--detach", "--no-build", "--wait", "--wait-timeout", "180"];
        self.compose(&[&up[..], arguments].concat());
    }

    /// The containers of a service, running ones only.
    #[track_caller]
    pub(crate) fn containers(&self, service: &str) -> Vec<String> {
        let text = self.compose(&["ps", "--quiet", service]);
        text.lines().map(str::to_owned).collect()
    }

    #[track_caller]
    pub(crate) fn address(&self, service: &str, port: &str) -> SocketAddr {
        self.compose(&["port", service, port]).trim().parse().unwrap()
    }

    /// Where clients connect.
    #[track_caller]
    pub(crate) fn router(&self) -> SocketAddr {
        self.address(self.front, "8080")
    }

    /// The router with the key of the application.
    #[track_caller]
    pub(crate) fn rest(&self) -> Rest {
        let key = fs::read_to_string(self.secrets.join("api-key")).unwrap();
        Rest::new(self.router()).with_key(key.trim_end())
    }

    /// Waits until the gateways know of so many.
    #[track_caller]
    pub(crate) fn expect_nodes(&self, count: usize) {
        let rest = self.rest();
        eventually_some(&format!("{count} gateways are known"), DEADLINE * 2, || {
            let answer = rest.try_get("/v1/nodes").filter(|answer| answer.status == 200)?;
            let nodes: Vec<Value> = answer.json()["nodes"].as_array()?.clone();
            (nodes.iter().filter(|node| node["draining"] != true).count() == count).then_some(())
        });
    }

    pub(crate) fn network(&self) -> String {
        format!("{}_default", self.project)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self.try_compose(&["logs", "--no-color", "--tail", "60"]);
            eprintln!("{}", String::from_utf8_lossy(&logs.stdout));
        }
        // A test that fails already must not fail here again.
        self.try_compose(&["--profile", "*", "down", "--volumes", "--timeout", "1"]);
    }
}

/// Ends a container as a crash does. The engine would start it again at once; here it stays dead until it is told.
#[track_caller]
pub(crate) fn kill(container: &str) {
    docker(&["update", "--restart", "no", container]);
    docker(&["kill", container]);
}

/// The next message of an event stream; `None` when the stream ends or nothing comes.
pub(crate) fn message(stream: &mut SseClient, deadline: Duration) -> Option<SseEvent> {
    loop {
        match stream.next(deadline) {
            Ok(event) if event.event == "message" => return Some(event),
            Ok(event) if event.event != "disconnect" => {}
            Ok(_) | Err(_) => return None,
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}
