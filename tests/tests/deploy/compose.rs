//! The compose file: Compose accepts it, it keeps the rules of the house, and what its services run is run here as
//! processes, on this machine's Redis.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::hmac;
use serde_json::Value;
use tempfile::TempDir;
use tidegate_testkit::{
    DEADLINE, Process, Rest, WsClient, eventually_some,
    net::{SocketOptions, connect, free_address},
};

use crate::{
    nodes::{listening, tidegate},
    tools::{read, root, run, tool},
};

/// What `docker compose config` makes of the file, all profiles on.
fn config() -> Value {
    config_of("docker-compose.yml")
}

/// All of Tidegate in one container.
const SERVE: &str = "docker-compose.serve.yml";

fn config_of(file: &str) -> Value {
    let arguments = ["--file", file, "--profile", "*", "config", "--format", "json"];
    let text = run(tool("docker-compose")
        .args(arguments)
        .env_remove("TIDEGATE_SECRETS")
        .env_remove("TIDEGATE_IMAGE"));
    serde_json::from_str(&text).unwrap()
}

fn services(config: &Value) -> impl Iterator<Item = (&str, &Value)> {
    config["services"].as_object().unwrap().iter().map(|(name, service)| (name.as_str(), service))
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().map(|list| list.iter().map(|text| text.as_str().unwrap()).collect()).unwrap_or_default()
}

#[test]
fn the_router_alone_is_published_and_everything_is_bound_to_loopback() {
    let configs = [config(), config_of(SERVE)];
    let mut published = Vec::new();
    for (name, service) in configs.iter().flat_map(services) {
        for port in service["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name}");
            published.push((
                name.to_owned(),
                port["published"].as_str().unwrap().to_owned(),
                texts(&service["profiles"]).join(","),
            ));
        }
    }
    let port = |name: &str, port: &str, profile: &str| (name.to_owned(), port.to_owned(), profile.to_owned());
    assert_eq!(
        published,
        [
            port("grafana", "3000", "observability"),
            port("prometheus", "9090", "observability"),
            port("router", "8080", ""),
            port("tidegate", "8080", ""),
        ]
    );
}

#[test]
fn every_service_is_locked_down() {
    let configs = [config(), config_of(SERVE)];
    for (name, service) in configs.iter().flat_map(services) {
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(texts(&service["cap_drop"]), ["ALL"], "{name}");
        assert_eq!(texts(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
        assert!(service["logging"]["options"]["max-size"].is_string(), "{name}: its log grows without end");
        // No registry has the image that is built here.
        let is_ours = service["image"] == "tidegate:local";
        assert!(!is_ours || service["pull_policy"] == "build", "{name}: {}", service["pull_policy"]);
        let health = &service["healthcheck"];
        assert!(health["test"].is_array() || health["disable"] == true, "{name} has no health check");
        let environment = service["environment"].to_string().to_lowercase();
        assert!(
            !environment.contains("password\":") && !environment.contains("key\":"),
            "{name}: {environment}"
        );
        let image = service["image"].as_str().unwrap();
        assert!(image.contains(':') && !image.ends_with(":latest"), "{name}: {image}");
    }
}

#[test]
fn gateways_can_be_scaled() {
    let gateway = &config()["services"]["gateway"];
    assert_eq!(gateway["scale"], 3);
    assert!(gateway["container_name"].is_null() && gateway["ports"].is_null(), "{gateway}");
    assert_eq!(gateway["ulimits"]["nofile"]["soft"], gateway["ulimits"]["nofile"]["hard"]);
}

#[test]
fn a_stop_is_longer_than_the_drain() {
    let (config, serve) = (config(), config_of(SERVE));
    for (config, name, file) in [
        (&config, "gateway", "deploy/compose/gateway.toml"),
        (&config, "router", "deploy/compose/router.toml"),
        (&serve, "tidegate", "deploy/compose/serve.toml"),
    ] {
        let text = read(file);
        let of = |key: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(&format!("{key} = "))).unwrap();
            seconds(value.trim_matches('"'))
        };
        let drain = of("settle") + of("period") + of("close_wait");
        let grace = seconds(config["services"][name]["stop_grace_period"].as_str().unwrap());
        assert!(grace >= drain + 10, "{name}: {grace} s for a drain of {drain} s");
    }
}

/// Every file that is mounted is in the repository, and where its reader looks for it.
#[test]
fn what_is_mounted_is_there() {
    let config = config();
    let bound =
        services(&config).flat_map(|(_, service)| service["volumes"].as_array().into_iter().flatten());
    let bound =
        bound.filter(|volume| volume["type"] == "bind").map(|volume| volume["source"].as_str().unwrap());
    let files =
        ["configs", "secrets"].into_iter().flat_map(|kind| config[kind].as_object().unwrap().values());
    let serve = config_of(SERVE);
    let of_serve =
        ["configs", "secrets"].into_iter().flat_map(|kind| serve[kind].as_object().unwrap().values());
    let files: Vec<&str> =
        files.chain(of_serve).map(|file| file["file"].as_str().unwrap()).chain(bound).collect();
    assert!(files.len() >= 8, "{files:?}");
    for file in files {
        assert!(Path::new(file).exists(), "{file}");
    }
    let provider = read("deploy/grafana/provisioning/dashboards/tidegate.yml");
    let dashboards = texts_of(&config["services"]["grafana"]["volumes"], "target");
    assert!(dashboards.iter().any(|target| provider.contains(target)), "{provider}");
    let source = read("deploy/grafana/provisioning/datasources/prometheus.yml");
    assert!(source.contains("http://prometheus:9090"), "{source}");
    let scraped = read("deploy/prometheus/prometheus.yml");
    for (name, port) in [("gateway", "9000"), ("router", "9080")] {
        assert!(scraped.contains(&format!("names: [{name}]")) && scraped.contains(&format!("port: {port}")));
        assert!(
            read(format!("deploy/compose/{name}.toml")).contains(&format!("internal = \"0.0.0.0:{port}\""))
        );
    }
}

#[test]
fn the_services_run_as_processes_and_deliver() {
    let stack = Stack::start();
    let rest = Rest::new(stack.router).with_key(stack.secret("api-key").trim_end());
    let nodes = eventually_some("three gateways are known", DEADLINE, || {
        let nodes = rest.get("/v1/nodes").json()["nodes"].as_array().map(Vec::len)?;
        (nodes == 3).then_some(nodes)
    });
    assert_eq!(nodes, 3);
    let mut client = WsClient::connect(stack.router, "/ws?channel=news");
    assert!(rest.publish("news", "hello").is_some(), "the channel has history");
    assert_eq!(client.expect_text(), "hello");
    assert_eq!(rest.without_key().post("/v1/channels/news/publish", "text/plain", "x").status, 401);
    stack.expect_app();
    let exit = stack.spawn("storm", &["--connections=10", "--channels=2", "--duration=1s"]).wait(DEADLINE);
    assert!(exit.stdout.contains("connections  10 of 10"), "{exit}");
}

/// The compose file's Redis, gateways and router, with its commands, configurations and secrets; only addresses and the
/// places of files are this machine's.
struct Stack {
    config: Value,
    directory: TempDir,
    redis: SocketAddr,
    router: SocketAddr,
    _processes: Vec<Process>,
}

impl Stack {
    #[track_caller]
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let nobody = free_address();
        let mut stack =
            Self { config: config(), directory, redis: nobody, router: nobody, _processes: Vec::new() };
        let redis = stack.start_redis();
        let gateways: Vec<Process> = (0..3).map(|_| stack.start_node("gateway").0).collect();
        let (router, public) = stack.start_node("router");
        stack.router = public;
        stack._processes = [redis, router].into_iter().chain(gateways).collect();
        stack
    }

    fn service(&self, name: &str) -> &Value {
        &self.config["services"][name]
    }

    fn secret(&self, name: &str) -> String {
        fs::read_to_string(self.config["secrets"][name]["file"].as_str().unwrap()).unwrap()
    }

    /// A text of the container as it has to be here.
    fn placed(&self, text: &str) -> String {
        let mut text = text.replace("redis:6379", &self.redis.to_string()).replace("$$", "$");
        for (name, secret) in self.config["secrets"].as_object().unwrap() {
            text = text.replace(&format!("/run/secrets/{name}"), secret["file"].as_str().unwrap());
        }
        text.replace("http://router:8080", &format!("http://{}", self.router))
    }

    /// With a port and a directory of its own, which are two more lines of its configuration.
    #[track_caller]
    fn start_redis(&mut self) -> Process {
        let service = self.service("redis").clone();
        let (entry, command) = (texts(&service["entrypoint"]), texts(&service["command"]));
        let data = self.directory.path().display().to_string();
        for _ in 0..5 {
            let address = free_address();
            let own = format!("dir {data}\nport {}\nbind 127.0.0.1\n", address.port());
            let script = self.placed(command[0]).replace("dir /data\n", &own);
            assert!(script.contains(&own), "{script}");
            let mut process = Process::spawn("redis", Command::new(entry[0]).args(&entry[1..]).arg(script));
            let is_up = eventually_some("Redis listens", DEADLINE, || match process.try_wait() {
                Some(_) => Some(false),
                None => connect(address, SocketOptions::default()).is_ok().then_some(true),
            });
            if is_up {
                self.redis = address;
                self.expect_healthy_redis(&service);
                return process;
            }
        }
        panic!("Redis does not start");
    }

    #[track_caller]
    fn expect_healthy_redis(&self, service: &Value) {
        let check = texts(&service["healthcheck"]["test"]);
        assert_eq!(check[0], "CMD-SHELL");
        let check =
            self.placed(check[1]).replace("redis-cli ", &format!("redis-cli -p {} ", self.redis.port()));
        run(Command::new("/bin/sh").args(["-c", &check]));
        let limits = "redis-cli -p PORT config get client-output-buffer-limit"
            .replace("PORT", &self.redis.port().to_string());
        let limits = run(Command::new("/bin/sh")
            .args(["-c", &limits])
            .env("REDISCLI_AUTH", self.secret("redis-password").trim_end()));
        assert!(limits.contains("pubsub 134217728 67108864 60"), "{limits}");
    }

    /// A gateway or router with the configuration of the service, and its public address.
    #[track_caller]
    fn start_node(&self, service: &str) -> (Process, SocketAddr) {
        let mounted = &self.service(service)["configs"][0];
        let source = self.config["configs"][mounted["source"].as_str().unwrap()]["file"].as_str().unwrap();
        let path = self.directory.path().join(format!("{service}.toml"));
        fs::write(&path, self.placed(&fs::read_to_string(source).unwrap())).unwrap();
        let command = texts(&self.service(service)["command"]);
        let target = mounted["target"].as_str().unwrap();
        let arguments: Vec<String> =
            command.iter().map(|word| word.replace(target, &path.display().to_string())).collect();
        assert!(command.contains(&target), "{command:?}");
        assert_eq!(run(tidegate().args(&arguments).arg("--check")), "the configuration is good\n");
        let mut process = Process::spawn(
            service,
            tidegate().args(&arguments).args(["--listen", "127.0.0.1:0", "--internal", "127.0.0.1:0"]),
        );
        let (public, internal) = process.wait_line("its addresses", DEADLINE, listening);
        let url = texts(&self.service(service)["healthcheck"]["test"])[3];
        let path = url.split_once("127.0.0.1").unwrap().1.split_once('/').unwrap().1;
        let ready = Rest::new(internal);
        eventually_some("it is ready", DEADLINE, || {
            (ready.get(&format!("/{path}")).status == 200).then_some(())
        });
        (process, public)
    }

    /// A client and a server of Pusher Channels meet in the app that the configuration has for them.
    #[track_caller]
    fn expect_app(&self) {
        let mut client = WsClient::connect(self.router, "/app/trial?protocol=7");
        assert_eq!(client.expect_json()["event"], "pusher:connection_established");
        client.send_text(r#"{"event":"pusher:subscribe","data":{"channel":"orders"}}"#);
        assert_eq!(client.expect_json()["event"], "pusher_internal:subscription_succeeded");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let path = "/apps/1/events";
        let query = format!(
            "auth_key=trial&auth_timestamp={now}&auth_version=1.0&channel=orders&data=hello&name=paid"
        );
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret("app-secret").trim_end().as_bytes());
        let signature = hmac::sign(&key, format!("POST\n{path}\n{query}").as_bytes());
        let signature: String = signature.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let answer = Rest::new(self.router).post(
            &format!("{path}?{query}&auth_signature={signature}"),
            "application/json",
            "",
        );
        assert_eq!(answer.status, 200, "{}", answer.text());
        let told = client.expect_json();
        assert_eq!((&told["event"], &told["data"]), (&"paid".into(), &"hello".into()), "{told}");
    }

    /// A service as a process, with some of its options replaced.
    fn spawn(&self, service: &str, options: &[&str]) -> Process {
        let command = texts(&self.service(service)["command"]);
        let mut words: Vec<String> = command.iter().map(|word| self.placed(word)).collect();
        for option in options {
            let name = option.split('=').next().unwrap();
            let word = words.iter_mut().find(|word| word.split('=').next() == Some(name)).unwrap();
            *word = (*option).to_owned();
        }
        Process::spawn(service, tidegate().args(words))
    }
}

fn texts_of<'a>(list: &'a Value, key: &str) -> Vec<&'a str> {
    list.as_array().unwrap().iter().filter_map(|item| item[key].as_str()).collect()
}

/// Of `40s` or `1m30s`.
fn seconds(text: &str) -> u64 {
    let (minutes, rest) = text.split_once('m').unwrap_or(("0", text));
    let seconds = rest.trim_end_matches('s').parse().unwrap_or(0);
    Duration::from_secs(minutes.parse::<u64>().unwrap() * 60 + seconds).as_secs()
}

#[test]
fn durations_are_read() {
    assert_eq!(["40s", "1m30s", "2m", "1m0s"].map(seconds), [40, 90, 120, 60]);
    assert!(PathBuf::from(root()).join("docker-compose.yml").is_file());
}
