//! A plan as text.

use std::fmt;

use super::{Fleet, Load, Path, Plan, Resource};
use crate::number::grouped;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wanted = &self.wanted;
        writeln!(
            f,
            "{} connections, {} publications/s of {} bytes to {} subscribers each: {} deliveries/s",
            grouped(wanted.connections),
            grouped(wanted.publications),
            grouped(wanted.payload_bytes),
            grouped(wanted.fan_out),
            grouped(self.deliveries),
        )?;
        writeln!(
            f,
            "\n{:<12}{:>9}  {:>14} {:>10} {:>11} {:>11} {:>10} {:>12}",
            "machines", "", "connections", "cores", "memory", "out", "in", "descriptors"
        )?;
        fmt_fleet(f, "gateways", &self.gateways)?;
        if let Some(routers) = &self.routers {
            fmt_fleet(f, "routers", routers)?;
        }
        writeln!(
            f,
            "{:<12}{:>9}  {:>14} {:>10} {:>11} {:>11}",
            "Redis",
            grouped(self.redis_servers),
            "",
            "",
            "",
            bits(self.redis_bits / self.redis_servers)
        )?;
        fmt_needs(f, "gateways", &self.gateways, wanted.nodes.is_some())?;
        if let Some(routers) = &self.routers {
            fmt_needs(f, "routers", routers, false)?;
        }
        self.fmt_heartbeats(f)?;
        self.fmt_changes(f)?;
        writeln!(f, "\nkernel settings of each machine")?;
        self.kernel.iter().try_for_each(|(name, value)| writeln!(f, "  {name} = {value}"))?;
        self.fmt_million(f)
    }
}

impl Plan {
    fn fmt_heartbeats(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let beats = &self.heartbeats;
        writeln!(
            f,
            "\nheartbeats every {} s, if no delivery spares one",
            self.wanted.settings.heartbeat_interval.as_secs_f64()
        )?;
        writeln!(
            f,
            "  {} pings/s, {} out and {} in, {} cores, of all gateways together",
            grouped(beats.per_second),
            bits(beats.bits_out),
            bits(beats.bits_in),
            millis(beats.cpu_millis),
        )?;
        writeln!(
            f,
            "  every {:.1} s they would fill 10 Gbit/s by themselves",
            beats.fills_ten_gigabit_at.as_secs_f64()
        )
    }

    fn fmt_changes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (storm, settings) = (&self.storm, &self.wanted.settings);
        writeln!(f, "\nwhen a gateway is lost")?;
        writeln!(
            f,
            "  {} clients come back, {} to each of the others: {:.1} s at {} handshakes/s, {} cores of each",
            grouped(storm.clients),
            grouped(storm.handshakes_per_node),
            storm.lasts.as_secs_f64(),
            grouped(settings.handshakes_per_second),
            millis(storm.cpu_millis),
        )?;
        writeln!(f, "\nrolling restart of all gateways, {} at once", settings.restarts_at_once)?;
        let seconds = self.roll.as_secs();
        writeln!(f, "  {} h {} min", seconds / 3600, seconds % 3600 / 60)
    }

    fn fmt_million(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millions = self.wanted.connections as f64 / 1e6;
        let all = |of: fn(&Load) -> u64| {
            let sum = |fleet: &Fleet| of(&fleet.each) * fleet.machines;
            (sum(&self.gateways) + self.routers.as_ref().map_or(0, sum)) as f64 / millions
        };
        writeln!(f, "\nper million connections")?;
        write!(
            f,
            "  {:.1} machines, {:.1} cores at work, {:.1} GiB, {} out",
            self.machines() as f64 / millions,
            all(|load| load.cpu_millis) / 1000.0,
            all(|load| load.memory_bytes) / (1u64 << 30) as f64,
            bits(all(|load| load.bits_out) as u64),
        )?;
        if let Some(price) = self.wanted.price {
            write!(f, ", {:.2} an hour", price * self.machines() as f64 / millions)?;
        }
        writeln!(f)
    }
}

fn fmt_fleet(f: &mut fmt::Formatter<'_>, name: &str, fleet: &Fleet) -> fmt::Result {
    let each = &fleet.each;
    writeln!(
        f,
        "{name:<12}{:>9}  {:>14} {:>10} {:>11} {:>11} {:>10} {:>12}",
        grouped(fleet.machines),
        grouped(each.connections),
        millis(each.cpu_millis),
        format!("{:.1} GiB", each.memory_bytes as f64 / (1u64 << 30) as f64),
        bits(each.bits_out),
        bits(each.bits_in),
        grouped(each.descriptors),
    )
}

/// Which resource decides, and how many machines each of them needs.
fn fmt_needs(f: &mut fmt::Formatter<'_>, name: &str, fleet: &Fleet, is_given: bool) -> fmt::Result {
    let needs: Vec<String> = fleet
        .needs
        .iter()
        .map(|(resource, machines)| format!("{} {}", resource.word(), grouped(*machines)))
        .collect();
    writeln!(f, "\n{name}, as each resource needs them: {}", needs.join(", "))?;
    let needed = fleet.needs.first().map_or(1, |(_, machines)| *machines);
    match is_given && fleet.machines <= needed {
        true => writeln!(
            f,
            "  {} are too few: none may be lost, or a machine is over its share",
            grouped(fleet.machines)
        ),
        false => Ok(()),
    }
}

impl Resource {
    fn word(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Memory => "memory",
            Self::Bandwidth => "bandwidth",
            Self::Descriptors => "descriptors",
            Self::Ports => "ports",
        }
    }
}

impl Path {
    /// As it is written on the command line.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "router" => Some(Self::Router),
            "direct" => Some(Self::Direct),
            _ => None,
        }
    }
}

fn bits(bits: u64) -> String {
    match bits {
        0..1_000_000_000 => format!("{:.1} Mbit/s", bits as f64 / 1e6),
        _ => format!("{:.1} Gbit/s", bits as f64 / 1e9),
    }
}

fn millis(millis: u64) -> String {
    format!("{:.1}", millis as f64 / 1000.0)
}
