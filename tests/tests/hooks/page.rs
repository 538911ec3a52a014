//! The handlers of `docs/hooks.md`, each run as it stands there, and asked by a gateway.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tidegate_testkit::{DEADLINE, Gateway, Process, Tool, WsClient, cache_directory, eventually};

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// The block of the page in this language that begins with a file's name.
fn block(language: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/hooks.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, block) = page.split_once(&format!("```{language}\n")).unwrap_or_else(|| panic!("no {language}"));
    block.split_once("\n```").unwrap().0.to_owned() + "\n"
}

/// A handler that listens; it ends with the value.
pub(crate) struct Application {
    pub(crate) address: SocketAddr,
    _process: Process,
    _directory: tempfile::TempDir,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Language {
    Node,
    Python,
    Go,
    Php,
}

impl Application {
    pub(crate) fn start(language: Language) -> Self {
        Self::start_at(language, 0)
    }

    /// On a port, or any (0).
    pub(crate) fn start_at(language: Language, port: u16) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let script = |name: &str, block: String| {
            let path = directory.path().join(name);
            fs::write(&path, block).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let with = |tool: Tool| {
            let tool = tool.environment("HOOK_SECRET", SECRET).environment("PORT", port.to_string());
            listening(tool.spawn())
        };
        let (process, port) = match language {
            Language::Node => {
                let modules = cache_directory().join("node/node_modules");
                std::os::unix::fs::symlink(modules, directory.path().join("node_modules")).unwrap();
                with(Tool::node(&script("hooks.mjs", block("js"))))
            }
            Language::Python => with(Tool::python(&script("hooks.py", block("python")))),
            Language::Go => {
                let source = script("hooks.go", block("go"));
                let program = directory.path().join("hooks");
                let mut build = Command::new("go");
                build.args(["build", "-o"]).arg(&program).arg(source).env("GO111MODULE", "off");
                let built = build.env("GOCACHE", cache_directory().join("go")).output().unwrap();
                assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
                let mut run = Command::new(program);
                run.env("HOOK_SECRET", SECRET).env("PORT", port.to_string());
                listening(Process::spawn("go hooks.go", &mut run))
            }
            Language::Php => php(&script("hooks.php", block("php")), port),
        };
        Self { address: (Ipv4Addr::LOCALHOST, port).into(), _process: process, _directory: directory }
    }

    /// A gateway that asks it all, and tells it of connections.
    pub(crate) fn config(&self, secret: &str) -> String {
        format!(
            "[hooks.app]\nurl = \"http://{}/tidegate\"\nsecret = \"{secret}\"\ncookies = [\"session\"]\n\
             questions = [\"connect\", \"publish\", \"message\"]\nevents = [\"connected\", \"disconnected\"]\n\
             channels = [\"room:*\"]\ntimeout = \"30s\"\n",
            self.address
        )
    }
}

/// It says which port it took.
fn listening(mut process: Process) -> (Process, u16) {
    let port = |line: &str| line.strip_prefix("listening on ")?.trim().parse().ok();
    let port = process.wait_line("its port", DEADLINE, port);
    (process, port)
}

/// Its server does not say which port it took.
fn php(script: &str, port: u16) -> (Process, u16) {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap().local_addr().unwrap().port();
    let mut command = Command::new("php");
    command.args(["-S", &format!("127.0.0.1:{port}"), script]);
    command.env("HOOK_SECRET", SECRET).env("PHP_CLI_SERVER_WORKERS", "4");
    let process = Process::spawn("php hooks.php", &mut command);
    eventually("PHP listens", DEADLINE, || std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
    (process, port)
}

const SESSION: &[(&str, &str)] = &[("cookie", "session=ada")];

fn check(language: Language) {
    let application = Application::start(language);
    let gateway = Gateway::builder().config(&application.config(SECRET)).start();
    let path = "/ws?channel=room:1&envelope=json";
    let refused = WsClient::try_connect(gateway.public(), path, &[]).unwrap_err();
    assert_eq!(refused.status, 401, "{language:?}");
    let mut client = WsClient::try_connect(gateway.public(), path, SESSION).unwrap();
    client.send_text(r#"{"message":{"n":1},"id":1}"#);
    assert_eq!(client.expect_json(), json!({"ok": {"from": "ada", "echo": {"n": 1}}, "id": 1}), "{language:?}");
    client.send_text(r#"{"publish":{"channel":"room:1","data":"spam"},"id":2}"#);
    assert_eq!(client.expect_json()["error"]["code"], 403, "{language:?}");
    client.send_text(r#"{"publish":{"channel":"room:1","data":"hello"},"id":3}"#);
    let told = [client.expect_json(), client.expect_json()];
    assert!(told.iter().any(|told| told["data"] == "hello"), "{language:?}: {told:?}");
    assert!(told.iter().any(|told| told["ok"].is_object() && told["id"] == 3), "{language:?}: {told:?}");
    drop(client);
    let taken = [("hook", "app"), ("result", "taken")];
    gateway.eventually_metric("tidegate_hook_event_requests_total", &taken, |taken| taken == 2.0);
    // Who signs with another secret is nobody.
    let other = application.config("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    let gateway = Gateway::builder().config(&other).start();
    let refused = WsClient::try_connect(gateway.public(), path, SESSION).unwrap_err();
    assert_eq!(refused.status, 401, "{language:?}");
}

#[test]
fn the_handler_in_node() {
    check(Language::Node);
}

#[test]
fn the_handler_in_python() {
    check(Language::Python);
}

#[test]
fn the_handler_in_go() {
    check(Language::Go);
}

#[test]
fn the_handler_in_php() {
    check(Language::Php);
}
