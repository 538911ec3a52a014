//! Plays attacks against a gateway of its own and prints what the others felt (`cargo xtask attack`).
//! The gateway's program is that of `TIDEGATE_BIN`, as in the tests.

use clap::{Parser, ValueEnum};
use tidegate_tests::attack::{Player, Row, TABLE_HEAD};

#[derive(Debug, Parser)]
#[command(name = "tidegate-attack", about = "What hostile clients do, and what the others feel of it")]
struct Arguments {
    /// Attacks to play; all unless given
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<Row>,
    /// Settings that the program is too old to know: they are left out
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    unknown: Vec<String>,
}

fn main() {
    let arguments = Arguments::parse();
    tidegate_testkit::net::raise_descriptor_limit();
    let rows = match arguments.only.as_slice() {
        [] => Row::value_variants(),
        only => only,
    };
    let player = Player { unknown: arguments.unknown };
    println!("{TABLE_HEAD}");
    for &row in rows {
        println!("{}", player.play(row).line(row));
    }
}
