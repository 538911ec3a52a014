//! `tidegate-bench`: runs the comparison and writes its table. `cargo xtask bench` calls it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use tidegate_bench::compare::launch::Places;
use tidegate_bench::compare::plan::{Group, Measure, Sizes};
use tidegate_bench::compare::servers::Server;
use tidegate_bench::compare::{CompareOptions, run, table};
use tidegate_bench::worker::{self, WorkerOptions};

/// Compares gateways and routers with their peers.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The gateway's binary.
    #[arg(long, default_value = "target/release/tidegate")]
    tidegate: PathBuf,
    /// The gateway's binary of another build, measured beside this one.
    #[arg(long)]
    before: Option<PathBuf>,
    /// One more argument for `tidegate gateway`; may be repeated.
    #[arg(long, allow_hyphen_values = true)]
    tidegate_arg: Vec<String>,
    /// The floor server's binary; beside this program unless given.
    #[arg(long)]
    floor: Option<PathBuf>,
    /// The router's example `placement`; in `examples` beside this program unless given.
    #[arg(long)]
    placement: Option<PathBuf>,
    /// Servers to measure; all but ws unless given.
    #[arg(long, value_delimiter = ',')]
    servers: Vec<Server>,
    /// Groups of measures to take; all unless given.
    #[arg(long, value_delimiter = ',')]
    group: Vec<Group>,
    /// Measures to take; all of the groups unless given.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Measure>,
    #[arg(long, default_value_t = 2)]
    rounds: u32,
    /// Small and short: shows that everything works. Writes no document and no costs.
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
    /// The file of costs that `tidegate plan` reckons with.
    #[arg(long, default_value = "doctor/src/plan/costs.toml")]
    costs: PathBuf,
    /// Leave the document and the costs alone.
    #[arg(long)]
    no_document: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Holds connections for the scaling table.
    #[command(hide = true)]
    Worker(WorkerOptions),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Worker(options)) = &arguments.command {
        return match worker::run(options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("tidegate-bench worker {}: {error}", options.index);
                ExitCode::FAILURE
            }
        };
    }
    match options(arguments).and_then(|options| Ok(run(&options)?)) {
        Ok(results) => {
            println!("{}", table::render_all(&results));
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
    let (servers, measures) = (servers(&arguments), measures(&arguments));
    let here = std::env::current_dir()?;
    // Servers run in the peers' directory, so every path of a program must be absolute.
    let absolute = |path: PathBuf| here.join(path);
    let floor = match arguments.floor {
        Some(floor) => floor,
        None => std::env::current_exe()?.with_file_name("tidegate-floor"),
    };
    let placement = match arguments.placement {
        Some(placement) => placement,
        None => std::env::current_exe()?.with_file_name("examples/placement"),
    };
    let one_core = std::thread::available_parallelism()?.get() == 1;
    let output = absolute(arguments.output);
    let keep_document = arguments.no_document || arguments.quick;
    Ok(CompareOptions {
        places: Places {
            tidegate: absolute(arguments.tidegate),
            before: arguments.before.map(absolute),
            tidegate_args: arguments.tidegate_arg,
            floor: absolute(floor),
            placement: absolute(placement),
            peers: absolute(arguments.peers),
            logs: output.join("logs"),
            server_core: arguments.server_core,
            client_core: if one_core { arguments.server_core } else { arguments.client_core },
        },
        servers,
        measures,
        rounds: arguments.rounds.max(1),
        sizes: if arguments.quick { Sizes::QUICK } else { Sizes::FULL },
        command,
        document: (!keep_document).then(|| absolute(arguments.document)),
        costs: (!keep_document).then(|| absolute(arguments.costs)),
        json: output.join("results.json"),
    })
}

fn measures(arguments: &Arguments) -> Vec<Measure> {
    let Arguments { only, group, .. } = arguments;
    let all = Measure::value_variants().iter().copied();
    all.filter(|measure| only.is_empty() || only.contains(measure))
        .filter(|measure| group.is_empty() || group.contains(&measure.group()))
        .collect()
}

/// Node `ws` is compared on request: four minutes of a run would be its own, and no bar refers to it.
fn servers(arguments: &Arguments) -> Vec<Server> {
    match arguments.servers.as_slice() {
        [] => Server::value_variants().iter().copied().filter(|&server| server != Server::Ws).collect(),
        given => given.to_vec(),
    }
}

/// The command as a reader would type it: what changes the numbers, and no paths of this machine.
fn command(arguments: &Arguments) -> String {
    let mut command = format!("cargo xtask bench --rounds {}", arguments.rounds);
    if !arguments.servers.is_empty() {
        command += &format!(" --servers {}", value_names(&arguments.servers));
    }
    if !arguments.group.is_empty() {
        command += &format!(" --group {}", value_names(&arguments.group));
    }
    if !arguments.only.is_empty() {
        command += &format!(" --only {}", value_names(&arguments.only));
    }
    if arguments.quick {
        command += " --quick";
    }
    if arguments.before.is_some() {
        command += " --before TIDEGATE";
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
