//! The handlers of `docs/hooks.md`, run as they stand there: applications that gateways ask.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use tidegate_testkit::{DEADLINE, Process, Tool, cache_directory, eventually};

/// Signs what the handlers are asked.
pub const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// The block of the page in this language that begins with a file's name.
fn block(language: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/hooks.md");
    let page = fs::read_to_string(page).expect("the test's own files and programs");
    let (_, block) = page.split_once(&format!("```{language}\n")).unwrap_or_else(|| panic!("no {language}"));
    block.split_once("\n```").expect("the test's own files and programs").0.to_owned() + "\n"
}

/// A handler that listens; it ends with the value.
#[derive(Debug)]
pub struct Application {
    pub address: SocketAddr,
    _process: Process,
    _directory: tempfile::TempDir,
}

/// In which a handler is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Node,
    /// The handler of ten lines: it verifies nothing.
    ShortNode,
    Python,
    Go,
    Php,
}

impl Application {
    /// On any port.
    #[track_caller]
    pub fn start(language: Language) -> Self {
        Self::start_at(language, 0)
    }

    /// On a port, or any (0).
    #[track_caller]
    pub fn start_at(language: Language, port: u16) -> Self {
        let directory = tempfile::tempdir().expect("the test's own files and programs");
        let script = |name: &str, block: String| {
            let path = directory.path().join(name);
            fs::write(&path, block).expect("the test's own files and programs");
            path.to_str().expect("the test's own files and programs").to_owned()
        };
        let with = |tool: Tool| {
            let tool = tool.environment("HOOK_SECRET", SECRET).environment("PORT", port.to_string());
            listening(tool.spawn())
        };
        let (process, port) = match language {
            Language::Node => {
                let modules = cache_directory().join("node/node_modules");
                std::os::unix::fs::symlink(modules, directory.path().join("node_modules"))
                    .expect("the test's own files and programs");
                with(Tool::node(&script("hooks.mjs", block("js"))))
            }
            Language::ShortNode => with(Tool::node(&script("short.mjs", block("mjs")))),
            Language::Python => with(Tool::python(&script("hooks.py", block("python")))),
            Language::Go => {
                let source = script("hooks.go", block("go"));
                let program = directory.path().join("hooks");
                let mut build = Command::new("go");
                build.args(["build", "-o"]).arg(&program).arg(source).env("GO111MODULE", "off");
                let built = build
                    .env("GOCACHE", cache_directory().join("go"))
                    .output()
                    .expect("the test's own files and programs");
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
    #[must_use]
    pub fn config(&self, secret: &str) -> String {
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
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .expect("the test's own files and programs")
        .local_addr()
        .expect("the test's own files and programs")
        .port();
    let mut command = Command::new("php");
    command.args(["-S", &format!("127.0.0.1:{port}"), script]);
    command.env("HOOK_SECRET", SECRET).env("PHP_CLI_SERVER_WORKERS", "4");
    let process = Process::spawn("php hooks.php", &mut command);
    eventually("PHP listens", DEADLINE, || std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
    (process, port)
}

/// A client that is let in as `ada`.
pub const SESSION: &[(&str, &str)] = &[("cookie", "session=ada")];
