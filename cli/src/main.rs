//! The `tidegate` binary: reads the command line and calls the libraries. Nothing is decided here.

mod args;
mod check;
mod health;
mod hooks;
mod init;
mod plan;
mod relay;
mod serve;
mod token;
mod top;
mod upgrade;

use std::{
    io::Write as _,
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use args::{Args, CheckArgs, Command, DoctorArgs, GatewayArgs, HooksCommand, RouterArgs, StormArgs, TopArgs};
use clap::Parser as _;
use tidegate_bench::storm::{self, PublishLoad, StormOptions};
use tidegate_doctor::{Assessment, Deployment, Machine, Node, Options, Report, Role, Target};
use tidegate_gateway::{
    config::{Config, ConfigError},
    server::{self, Server, StartError},
};
use tidegate_ops::{
    children,
    config::{Loader, without_passwords},
    descriptors, log,
    service::{self, State},
};
use tidegate_router::{
    config as router,
    server::{Server as RouterServer, StartError as RouterStartError},
};
use tokio::signal::unix::{SignalKind, signal};

/// Unlike the system's allocator it gives memory of a connection storm back; see
/// `docs/adr/0004-allocator.md`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let outcome = match Args::parse().into_command() {
        Command::Gateway(args) => gateway(args),
        Command::Router(args) => run_router(args),
        Command::Serve(args) => {
            belong_to(None, false).and_then(|()| serve::run(&args)).map(|()| ExitCode::SUCCESS)
        }
        Command::Storm(args) => run_storm(&args),
        Command::Doctor(args) => doctor(args),
        Command::Plan(args) => plan::run(&args)
            .map(|plan| print!("{plan}"))
            .map_err(|error| Failure::start(&error))
            .map(|()| ExitCode::SUCCESS),
        Command::Check(args) => run_check(&args),
        Command::Init(args) => init::run(&args.directory)
            .map(|said| print!("{said}"))
            .map_err(|error| Failure::start(&error))
            .map(|()| ExitCode::SUCCESS),
        Command::Token(args) => token::run(&args)
            .map(|token| println!("{token}"))
            .map_err(|error| Failure::start(&error))
            .map(|()| ExitCode::SUCCESS),
        Command::Hooks(HooksCommand::Test(args)) => {
            hooks::test(&args).map_err(|error| Failure::start(&error)).map(|(told, code)| {
                print!("{told}");
                code
            })
        }
        Command::Top(args) => run_top(&args),
        Command::Upgrade(args) => upgrade::run(&args)
            .map(|said| print!("{said}"))
            .map_err(|error| Failure::run(&error))
            .map(|()| ExitCode::SUCCESS),
        Command::Healthcheck(args) => {
            health::run(&args).map_err(|error| Failure::run(&error)).map(|()| ExitCode::SUCCESS)
        }
    };
    match outcome {
        Ok(code) => code,
        Err(Failure { sentence, code }) => {
            eprintln!("tidegate: {}", without_passwords(&sentence));
            ExitCode::from(code)
        }
    }
}

/// What is told to the person at the terminal, and the exit code.
struct Failure {
    sentence: String,
    code: u8,
}

impl Failure {
    /// The command could not begin: a bad configuration.
    fn start(error: &dyn std::error::Error) -> Self {
        Self { sentence: error.to_string(), code: ConfigError::EXIT_CODE }
    }

    fn serve(error: &StartError) -> Self {
        Self { sentence: error.to_string(), code: error.exit_code() }
    }

    fn run(error: &dyn std::error::Error) -> Self {
        Self { sentence: error.to_string(), code: 1 }
    }
}

fn gateway(args: GatewayArgs) -> Result<ExitCode, Failure> {
    let (check, takes_over) = (args.check, args.take_over);
    belong_to(args.parent, takes_over)?;
    descriptors::raise_limit();
    let sources = args.into_sources();
    let config = Config::load(&sources).map_err(|error| Failure::start(&error))?;
    if check {
        server::check(&config).map_err(|error| Failure::start(&error))?;
        println!("the configuration is good");
        return Ok(ExitCode::SUCCESS);
    }
    let _logging = log::init(&config.log);
    let (dev, scheme) = (config.dev, if config.tls.is_on() { "https" } else { "http" });
    if dev && config.dev_anywhere {
        eprintln!(
            "tidegate: --dev-anywhere: whoever reaches {} may subscribe, and publish and read with the key `dev-key`. \
             For a trial only; for anything else: tidegate init",
            config.listen
        );
    }
    let bound = if takes_over { Server::take_over(config) } else { Server::bind(config) };
    let mut server = bound.map_err(|error| Failure::serve(&error))?;
    if let Ok(launch) = upgrade::launch() {
        server = server.upgradable(launch);
    }
    let server = server.reloading(Loader::new(move || Config::load(&sources)));
    let (public, internal) = (server.public_address(), server.internal_address());
    let greet = || {
        let mut greeting = format!("listening public={scheme}://{public} internal=http://{internal}\n");
        if dev {
            greeting += &format!(
                "\n  open     {scheme}://{public}/\n  console  {scheme}://{public}/console\n  publish  curl -H 'authorization: Bearer dev-key' -d 'hello' \
                 {scheme}://{public}/v1/channels/news/publish\n\n"
            );
        }
        announce(&greeting);
    };
    server.run(greet).map_err(|error| Failure::serve(&error))?;
    Ok(ExitCode::SUCCESS)
}

fn run_router(args: RouterArgs) -> Result<ExitCode, Failure> {
    let (check, takes_over) = (args.check, args.take_over);
    belong_to(args.parent, takes_over)?;
    descriptors::raise_limit();
    let sources = args.into_sources();
    let config = router::Config::load(&sources).map_err(|error| Failure::start(&error))?;
    if check {
        println!("the configuration is good");
        return Ok(ExitCode::SUCCESS);
    }
    let _logging = log::init(&config.log);
    let scheme = if config.tls.is_on() { "https" } else { "http" };
    let bound = if takes_over { RouterServer::take_over(config) } else { RouterServer::bind(config) };
    let mut server = bound.map_err(|error| router_failure(&error))?;
    if let Ok(launch) = upgrade::launch() {
        server = server.upgradable(launch);
    }
    let server = server.reloading(Loader::new(move || router::Config::load(&sources)));
    let (public, internal) = (server.public_address(), server.internal_address());
    let greet = || announce(&format!("listening public={scheme}://{public} internal=http://{internal}\n"));
    server.run(greet).map_err(|error| router_failure(&error))?;
    Ok(ExitCode::SUCCESS)
}

fn router_failure(error: &RouterStartError) -> Failure {
    if error.is_refusal() { Failure::start(error) } else { Failure::run(error) }
}

/// A child of `serve` ends with it. Any other process is the service manager's, if there is one.
fn belong_to(parent: Option<u32>, takes_over: bool) -> Result<(), Failure> {
    match parent {
        Some(parent) => children::end_with(parent, takes_over).map_err(|error| Failure::run(&error))?,
        None => service::begin(|name| std::env::var_os(name)),
    }
    Ok(())
}

/// Nobody may be reading: a closed pipe must not stop a server.
fn announce(greeting: &str) {
    service::tell(&[State::Ready, State::Status(greeting.lines().next().unwrap_or_default())]);
    if let Err(error) = std::io::stdout().write_all(greeting.as_bytes()) {
        eprintln!("tidegate: standard output is closed: {error}");
    }
}

fn run_storm(args: &StormArgs) -> Result<ExitCode, Failure> {
    let publish = match args.rate {
        Some(rate) => PublishLoad::PerSecond { rate: f64::from(rate.get()), publishers: 16 },
        None => closed_loop(args.in_flight.get()),
    };
    let options = StormOptions {
        url: args.url.clone(),
        connections: args.connections.get(),
        channels: args.channels.get(),
        publish,
        payload_bytes: args.payload.bytes(),
        duration: args.duration,
        token: args.token.clone(),
        stop: stop_on_signal()?,
        lines: true,
        via: relay::to(&args.url).map_err(|error| Failure::run(&error))?,
        api_key: Some(api_key(args.api_key_file.as_deref(), &args.api_key)?),
        metrics_urls: args.metrics.iter().cloned().collect(),
        ..StormOptions::default()
    };
    let report = storm::run(&options).map_err(|error| Failure::run(&error))?;
    if args.json {
        println!("{}", serde_json::to_string(&report).map_err(|error| Failure::run(&error))?);
    } else {
        println!("{report}");
    }
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Set by SIGTERM or SIGINT, so that the report is made. As process 1 of a container nothing else would end it. A second
/// signal does not wait for the report.
fn stop_on_signal() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.map_err(|error| Failure::run(&error))?;
    let listen = move || {
        runtime.block_on(async {
            let (Ok(mut term), Ok(mut int)) =
                (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
            else {
                return eprintln!("tidegate: signals cannot be caught: they end the storm without a report");
            };
            for is_first in [true, false] {
                tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
                match is_first {
                    true => told.store(true, Ordering::Relaxed),
                    false => std::process::exit(130),
                }
            }
        });
    };
    let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(listen);
    thread.map_err(|error| Failure::run(&error))?;
    Ok(stop)
}

/// The key in the file, if there is one.
fn api_key(file: Option<&Path>, key: &str) -> Result<String, Failure> {
    let Some(path) = file else { return Ok(key.to_owned()) };
    let text = std::fs::read_to_string(path).map_err(|error| Failure {
        sentence: format!("cannot read the API key in {}: {error}", path.display()),
        code: ConfigError::EXIT_CODE,
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn run_check(args: &CheckArgs) -> Result<ExitCode, Failure> {
    let relay = relay::to(&args.url).map_err(|error| Failure::run(&error))?;
    let received = check::run(args, api_key(args.api_key_file.as_deref(), "dev-key")?, relay)
        .map_err(|error| Failure::run(&error))?;
    println!("{} delivered all of {received} messages", args.url);
    Ok(ExitCode::SUCCESS)
}

fn run_top(args: &TopArgs) -> Result<ExitCode, Failure> {
    top::run(args).map_err(|error| Failure::run(&error))?;
    Ok(ExitCode::SUCCESS)
}

/// So many requests under way, over at most 16 connections.
fn closed_loop(in_flight: u32) -> PublishLoad {
    let publishers = in_flight.clamp(1, 16) as u16;
    PublishLoad::Closed { publishers, in_flight: in_flight.div_ceil(u32::from(publishers)) as u16 }
}

fn doctor(args: DoctorArgs) -> Result<ExitCode, Failure> {
    let target =
        args.url.as_deref().map(Target::parse).transpose().map_err(|error| Failure::start(&error))?;
    let role = if args.router { Role::Router { gateways: args.gateways.get() } } else { Role::Gateway };
    let wanted = args.connections.map(|connections| u64::from(connections.get()));
    let machine = Assessment::of(&Machine::this().facts(), Node { role, tls: args.tls }, wanted);
    let options =
        target.map(|target| Options { target, channel: args.channel, token: args.token, idle: args.idle });
    let report = Report { machine, deployment: options.as_ref().map(measure) };
    if args.json {
        println!("{}", serde_json::to_string(&report).map_err(|error| Failure::run(&error))?);
    } else {
        print!("{report}");
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[tokio::main(flavor = "current_thread")]
async fn measure(options: &Options) -> Deployment {
    Deployment::measure(options).await
}
