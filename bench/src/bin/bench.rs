//! `tidegate-bench`: runs the comparison and writes its table. `cargo xtask bench` calls it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use tidegate_bench::compare::measures::{Measure, Sizes};
use tidegate_bench::compare::servers::{Places, Server};
use tidegate_bench::compare::{CompareOptions, run, table};

/// Compares the gateway with the floor server, Bun and Node ws.
#[derive(Debug, Parser)]
struct Arguments {
    /// The gateway's binary.
    #[arg(long, default_value = "target/release/tidegate")]
    tidegate: PathBuf,
    /// One more argument for `tidegate gateway`; may be repeated.
    #[arg(long, allow_hyphen_values = true)]
    tidegate_arg: Vec<String>,
    /// The floor server's binary; beside this program unless given.
    #[arg(long)]
    floor: Option<PathBuf>,
    /// Servers to measure.
    #[arg(long, value_delimiter = ',', default_values = ["tidegate", "floor", "bun", "ws"])]
    servers: Vec<Server>,
    /// Measures to take; all unless given.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Measure>,
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Small and short: shows that everything works. Writes no document.
    #[arg(long)]
    quick: bool,
    /// Core of the servers.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// Core of the client.
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// Where the peers are installed.
    #[arg(long, default_value = ".cache/bench-peers")]
    peers: PathBuf,
    /// Where readings and logs go.
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
    /// The document that holds the table.
    #[arg(long, default_value = "docs/benchmarks.md")]
    document: PathBuf,
    /// Leave the document alone.
    #[arg(long)]
    no_document: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match options(arguments).and_then(|options| Ok(run(&options)?)) {
        Ok(results) => {
            println!("{}", table::render(&results));
            if results.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("tidegate-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(arguments: Arguments) -> Result<CompareOptions, Box<dyn std::error::Error>> {
    let command = command(&arguments);
    let here = std::env::current_dir()?;
    // Servers run in the peers' directory, so every path of a program must be absolute.
    let absolute = |path: PathBuf| here.join(path);
    let floor = match arguments.floor {
        Some(floor) => floor,
        None => std::env::current_exe()?.with_file_name("tidegate-floor"),
    };
    let one_core = std::thread::available_parallelism()?.get() == 1;
    let output = absolute(arguments.output);
    let keep_document = arguments.no_document || arguments.quick;
    Ok(CompareOptions {
        places: Places {
            tidegate: absolute(arguments.tidegate),
            tidegate_args: arguments.tidegate_arg,
            floor: absolute(floor),
            peers: absolute(arguments.peers),
            logs: output.join("logs"),
            server_core: arguments.server_core,
            client_core: if one_core { arguments.server_core } else { arguments.client_core },
        },
        servers: arguments.servers,
        measures: if arguments.only.is_empty() { Measure::value_variants().to_vec() } else { arguments.only },
        rounds: arguments.rounds.max(1),
        sizes: if arguments.quick { Sizes::QUICK } else { Sizes::FULL },
        command,
        document: (!keep_document).then(|| absolute(arguments.document)),
        json: output.join("results.json"),
    })
}

/// The command as a reader would type it: what changes the numbers, and no paths of this machine.
fn command(arguments: &Arguments) -> String {
    let mut command = format!("cargo xtask bench --rounds {}", arguments.rounds);
    if arguments.servers.len() < Server::ALL.len() {
        command += &format!(" --servers {}", value_names(&arguments.servers));
    }
    if !arguments.only.is_empty() {
        command += &format!(" --only {}", value_names(&arguments.only));
    }
    if arguments.quick {
        command += " --quick";
    }
    for argument in &arguments.tidegate_arg {
        command += &format!(" --tidegate-arg {argument}");
    }
    command
}

fn value_names(values: &[impl ValueEnum]) -> String {
    let values = values.iter().filter_map(ValueEnum::to_possible_value);
    let names: Vec<String> = values.map(|value| value.get_name().to_owned()).collect();
    names.join(",")
}
