//! The trial installation as processes of this machine: Redis, a gateway and a router with what the chart renders, and
//! then its `helm test`, which must pass, and must fail with a wrong key.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::machine::Machine;
use super::render::Object;
use super::rules::{list, workload};
use crate::command::output;

/// For broken runs; a process here is up within a second.
const DEADLINE: Duration = Duration::from_secs(60);

/// Another process may take a port between the look for a free one and its use.
const PORT_TRIES: u32 = 5;

/// A process that ends with its owner.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to end.
        self.0.kill().and_then(|()| self.0.wait()).map_or_else(|_| (), drop);
    }
}

/// Runs the objects of a rendering with the bundled Redis.
pub(crate) fn run(binary: &Path, directory: &Path, objects: &[Object]) -> Result<()> {
    let (_redis, redis) = redis(&directory.join("redis"), objects)?;
    let gateway = Machine::new(&directory.join("gateway"), named(objects, "gateway")?, objects)?;
    let mut command = gateway.command(binary);
    // Its pod has an address of its own and the name of Redis; here it gets free ports. Empty is not set: it then
    // advertises where it listens.
    command.env("TIDEGATE__BACKPLANE", &redis).env("TIDEGATE__ADVERTISE", "");
    let (_gateway, _) = listening(command)?;
    let router = Machine::new(&directory.join("router"), named(objects, "router")?, objects)?;
    let mut command = router.command(binary);
    command.env("TIDEGATE__MEMBERS", &redis);
    let (_router, public) = listening(command)?;
    let pod = objects.iter().find(|object| object.kind() == "Pod").context("there is no test")?;
    let machine = Machine::new(&directory.join("test"), pod, objects)?;
    let test = || {
        let words = list(pod.at("/spec/containers/0/args"));
        let words = words.iter().filter_map(serde_json::Value::as_str).map(|word| machine.local(word));
        let mut command = Command::new(binary);
        // The address of the Service is the router's.
        command.args(words.map(|word| if word.starts_with("http://") { public.clone() } else { word }));
        command
    };
    // The router takes clients when it has read the registry.
    let start = Instant::now();
    while let Err(error) = output(&mut test()) {
        if start.elapsed() > DEADLINE {
            return Err(error.context("helm test"));
        }
    }
    fs::write(directory.join("test/etc/tidegate/credentials/api-key"), "not-the-key-of-this-gateway")?;
    match output(&mut test()) {
        Err(error) if format!("{error:#}").contains("401") => Ok(()),
        Err(error) => Err(error.context("helm test with a wrong key says something else than 401")),
        Ok(text) => bail!("helm test passes with a wrong key: {text}"),
    }
}

fn named<'a>(objects: &'a [Object], component: &'static str) -> Result<&'a Object> {
    Ok(workload(objects, component).with_context(|| format!("there is no {component}"))?.0)
}

/// Starts the bundled Redis with its rendered command on a free port, and gives its URL.
fn redis(directory: &Path, objects: &[Object]) -> Result<(Server, String)> {
    let object = named(objects, "redis")?;
    let words = list(object.at("/spec/template/spec/containers/0/command"));
    let secret = object.at("/spec/template/spec/containers/0/env/0/valueFrom/secretKeyRef");
    let entry = secret["key"].as_str().context("the password is in a Secret")?;
    let is_the_secret = |object: &&Object| object.kind() == "Secret" && object.name() == secret["name"];
    let secret = objects.iter().find(is_the_secret).context("the Secret is rendered")?;
    let password =
        secret.at("/stringData")[entry].as_str().context("the Secret has the password")?.to_owned();
    fs::create_dir_all(directory)?;
    for _ in 0..PORT_TRIES {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
        let words = words.iter().filter_map(serde_json::Value::as_str).map(|word| match word {
            "6379" => port.clone(),
            "/data" => directory.display().to_string(),
            "$(REDISCLI_AUTH)" => password.clone(),
            word => word.to_owned(),
        });
        let words: Vec<String> = words.chain(["--bind".to_owned(), "127.0.0.1".to_owned()]).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        let (server, found) = await_line(command, "Ready to accept connections")?;
        if found.is_some() {
            return Ok((server, format!("redis://127.0.0.1:{port}")));
        }
    }
    bail!("redis-server did not start with its rendered command in {PORT_TRIES} tries: {words:?}")
}

/// Starts a gateway or router on free ports and gives the URL of its public one.
fn listening(mut command: Command) -> Result<(Server, String)> {
    command.env("TIDEGATE__LISTEN", "127.0.0.1:0").env("TIDEGATE__INTERNAL", "127.0.0.1:0");
    let (server, line) = await_line(command, "listening public=")?;
    let line = line.context("it ended before it listened")?;
    let url = line.split("public=").nth(1).and_then(|rest| rest.split_whitespace().next());
    Ok((server, url.context("its line has a URL")?.to_owned()))
}

/// Starts a program and waits for a line of its standard output; `None`: it ended without.
fn await_line(mut command: Command, wanted: &'static str) -> Result<(Server, Option<String>)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let stdout = child.stdout.take().context("the output is piped")?;
    let server = Server(child);
    let (found, line) = mpsc::channel();
    thread::spawn(move || {
        // Reads on to the end, so that the program never writes into a closed pipe.
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if line.contains(wanted) && found.send(line).is_err() {
                return;
            }
        }
    });
    match line.recv_timeout(DEADLINE) {
        Ok(line) => Ok((server, Some(line))),
        Err(mpsc::RecvTimeoutError::Disconnected) => Ok((server, None)),
        Err(mpsc::RecvTimeoutError::Timeout) => bail!("{command:?} did not say {wanted:?}"),
    }
}
