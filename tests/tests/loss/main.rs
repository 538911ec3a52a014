//! The loss table: three gateways, 300 clients, publications on 100 channels, members of a presence channel, and a fault
//! in the midst. A row is a value of [`table`]; each is a test. Those whose names begin with `long::` take the whole
//! beyond ten minutes and run with `cargo xtask test --all`.

mod faults;
mod table;
mod trial;
mod world;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let row = |row: table::Row| {
        Trial::test(row.name(), move || {
            trial::run(&row);
            Ok(())
        })
    };
    let of_itself = Trial::test("the_table_covers_what_it_should", || {
        table::covers_what_it_should();
        Ok(())
    });
    let all = table::rows().into_iter().map(row).chain([of_itself]).collect();
    libtest_mimic::run(&Arguments::from_args(), all).exit_code()
}
