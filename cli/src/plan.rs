//! `tidegate plan`: from the command line to a plan.

use std::{fs, io, path::PathBuf};

use tidegate_doctor::{Costs, CostsError, MachineSize, Plan, Settings, Wanted};

use crate::args::PlanArgs;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    #[error("{}: {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {source}", .path.display())]
    Costs { path: PathBuf, source: CostsError },
}

pub(crate) fn run(args: &PlanArgs) -> Result<Plan, PlanError> {
    let costs = match &args.costs {
        None => Costs::measured(),
        Some(path) => {
            let text =
                fs::read_to_string(path).map_err(|source| PlanError::Read { path: path.clone(), source })?;
            Costs::parse(&text).map_err(|source| PlanError::Costs { path: path.clone(), source })?
        }
    };
    let wanted = Wanted {
        connections: args.connections,
        publications: args.message_rate,
        fan_out: args.fan_out,
        payload_bytes: args.payload_bytes,
        nodes: args.nodes.map(|nodes| nodes.get().into()),
        machine: MachineSize {
            cores: args.cores.get().into(),
            memory_bytes: u64::from(args.memory.get()) << 30,
            bits_per_second: u64::from(args.network.get()) * 1_000_000_000,
        },
        path: args.path,
        tls: args.tls,
        settings: Settings {
            heartbeat_interval: args.heartbeat,
            drain_period: args.drain_period,
            restarts_at_once: args.restarts_at_once.get().into(),
            ..Settings::default()
        },
        price: args.price,
    };
    Ok(Plan::of(wanted, &costs))
}
