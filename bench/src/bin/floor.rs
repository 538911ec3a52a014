//! `tidegate-floor ADDRESS`: the floor server of the comparison as a process.

use std::process::ExitCode;

fn main() -> ExitCode {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8090".to_owned());
    tidegate_bench::sys::raise_descriptor_limit();
    match std::net::TcpListener::bind(&address).and_then(tidegate_bench::floor::serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the floor server stopped at {address}: {error}");
            ExitCode::FAILURE
        }
    }
}
