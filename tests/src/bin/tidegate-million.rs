//! Many live WebSockets on this machine behind one port, all reached by one broadcast (`cargo xtask million`).

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;
use tidegate_testkit::net::raise_descriptor_limit;
use tidegate_tests::million::{self, CrowdOptions, Options};

#[derive(Debug, Parser)]
#[command(name = "tidegate-million", about = "Many live WebSockets on this machine behind one port")]
struct Arguments {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    connections: u64,
    /// Seconds that they are held before the first publication and the second: two heartbeats
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    hold: u64,
    /// The tidegate binary
    #[arg(long, value_name = "FILE", required_unless_present = "crowd")]
    tidegate: Option<PathBuf>,
    /// Be a process full of clients, this one of them
    #[arg(long, hide = true, requires = "target")]
    crowd: Option<usize>,
    #[arg(long, hide = true)]
    target: Option<SocketAddr>,
}

fn main() -> ExitCode {
    raise_descriptor_limit();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("million: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if let (Some(number), Some(target)) = (arguments.crowd, arguments.target) {
        let clients = usize::try_from(arguments.connections)?;
        return million::crowd(CrowdOptions { target, clients, number });
    }
    let options = Options {
        connections: arguments.connections,
        hold: Duration::from_secs(arguments.hold),
        tidegate: arguments.tidegate.clone().context("--tidegate names the binary")?,
        program: std::env::current_exe()?,
    };
    println!("{}", million::run(&options)?);
    Ok(())
}
