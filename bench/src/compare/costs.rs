//! What was measured, written into the file that `tidegate plan` reckons with. Only the lines of measures that a run took are
//! written; the others stay.

use std::{fs, path::Path};

use super::plan::Measure;
use super::servers::Server;
use super::{CompareError, Results, RoundReading};

/// A line of the file, and how its value follows from the readings of a measure.
struct Cost {
    table: &'static str,
    key: &'static str,
    measure: Measure,
    of: Of,
}

#[derive(Debug, Clone, Copy)]
enum Of {
    /// The median, times this.
    Median(f64),
    /// The largest, which is what has to be there.
    Largest,
    /// The time that one takes of a core, in nanoseconds, from how many there were a second.
    EachOfRate,
    /// The time that a ping and its pong take, from the share of a core that all took.
    Heartbeat,
}

/// Microseconds of the tables are nanoseconds of the file.
const TIME: Of = Of::Median(1e3);

const fn cost(table: &'static str, key: &'static str, measure: Measure, of: Of) -> Cost {
    Cost { table, key, measure, of }
}

const COSTS: [Cost; 11] = [
    cost("gateway", "connection_user_bytes", Measure::Memory, Of::Largest),
    cost("gateway", "heartbeat_ns", Measure::IdleCpu, Of::Heartbeat),
    cost("gateway", "accept_ns", Measure::AcceptCpu, TIME),
    cost("gateway", "delivery_ns", Measure::FanoutCpu, TIME),
    cost("gateway", "publication_from_node_ns", Measure::RedisReceiveCpu, TIME),
    cost("gateway", "publication_from_node_batched_ns", Measure::RedisReceiveCpuLoaded, TIME),
    cost("gateway", "publication_over_rest_ns", Measure::PublishRate, Of::EachOfRate),
    cost("router", "pair_user_bytes", Measure::ProxyMemory, Of::Largest),
    cost("router", "handshake_ns", Measure::ProxyHandshakeCpu, TIME),
    cost("router", "message_ns", Measure::ProxyMessageCpu, TIME),
    cost("redis", "publications_per_second", Measure::RedisPublishRate, Of::Median(1.0)),
];

/// Writes the lines of what was measured. Whether there were any.
pub(super) fn update(results: &Results, path: &Path) -> Result<bool, CompareError> {
    let read = |source| CompareError::Read { path: path.to_owned(), source };
    let before = fs::read_to_string(path).map_err(read)?;
    let after = updated(&before, results);
    if after == before {
        return Ok(false);
    }
    fs::write(path, after).map_err(|source| CompareError::Write { path: path.to_owned(), source })?;
    Ok(true)
}

fn updated(file: &str, results: &Results) -> String {
    let mut table = "";
    let mut out = String::with_capacity(file.len());
    for line in file.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            table = name;
        }
        let key = line.split_once(" = ").map(|(key, _)| key);
        let of_line = COSTS.iter().find(|cost| cost.table == table && Some(cost.key) == key);
        match of_line.and_then(|cost| cost.value(results)) {
            Some(value) => {
                let date = &results.machine.date;
                out += &format!("{} = {value} # {date}, {}\n", key.unwrap_or_default(), results.command);
            }
            None => out += &format!("{line}\n"),
        }
    }
    out
}

impl Cost {
    /// `None`: it was not measured, or a round of it failed to give what it needs.
    fn value(&self, results: &Results) -> Option<u64> {
        let rounds = results.readings.get(&self.measure)?.get(&Server::Tidegate)?;
        let sizes = &results.sizes;
        let each = |round: &RoundReading| {
            let reading = round.reading;
            match self.of {
                Of::Median(factor) => Some(reading.value * factor),
                Of::Largest => Some(reading.value),
                // Per second of the CPU that the server had.
                Of::EachOfRate => Some(1e9 * reading.server_busy? / reading.value),
                Of::Heartbeat => {
                    let beats = f64::from(sizes.idle_connections) * reading.pings?;
                    Some(reading.value / 100.0 * sizes.idle.as_nanos() as f64 / beats)
                }
            }
        };
        let mut values: Vec<f64> = rounds.iter().filter_map(each).filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let at = if matches!(self.of, Of::Largest) { values.len().checked_sub(1)? } else { values.len() / 2 };
        values.get(at).map(|value| value.round().max(1.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use super::*;
    use crate::compare::plan::Sizes;
    use crate::compare::rig::Reading;
    use crate::compare::{Machine, Readings};

    fn results(measure: Measure, values: &[f64]) -> Results {
        let reading =
            |value| Reading { pings: Some(2.0), server_busy: Some(0.5), ..Reading::of(measure, value) };
        let rounds =
            values.iter().zip(1..).map(|(&value, round)| RoundReading { round, reading: reading(value) });
        Results {
            machine: Machine {
                cores: 2,
                processor: "a processor".to_owned(),
                kernel: "6.1".to_owned(),
                date: "2026-11-29".to_owned(),
                versions: BTreeMap::new(),
            },
            command: "cargo xtask bench".to_owned(),
            rounds: 3,
            sizes: Sizes::FULL,
            readings: Readings::from([(measure, BTreeMap::from([(Server::Tidegate, rounds.collect())]))]),
            failures: Vec::new(),
        }
    }

    #[track_caller]
    fn check(measure: Measure, values: &[f64], line: &str) {
        let file = include_str!("../../../doctor/src/plan/costs.toml");
        let updated = updated(file, &results(measure, values));
        let changed: Vec<&str> =
            updated.lines().filter(|line| !file.lines().any(|old| old == *line)).collect();
        assert_eq!(changed, [format!("{line} # 2026-11-29, cargo xtask bench")]);
        assert_eq!(updated.lines().count(), file.lines().count());
    }

    #[test]
    fn a_reading_takes_the_place_of_the_last_one() {
        check(Measure::AcceptCpu, &[22.5, 19.25, 21.0], "accept_ns = 21000");
        check(Measure::Memory, &[131.2, 148.0, 133.0], "connection_user_bytes = 148");
        // Half a core did 50,000 a second.
        check(Measure::PublishRate, &[50_000.0], "publication_over_rest_ns = 10000");
        // 0.6 % of 50 s are 0.3 s, for 30,000 pings.
        check(Measure::IdleCpu, &[0.6], "heartbeat_ns = 10000");
        check(Measure::RedisPublishRate, &[80_000.4], "publications_per_second = 80000");
        // In two tables there is a key that ends so.
        check(Measure::ProxyMessageCpu, &[8.0], "message_ns = 8000");
    }

    #[test]
    fn each_cost_has_a_line() {
        let file = include_str!("../../../doctor/src/plan/costs.toml");
        for cost in COSTS {
            let (_, table) = file.split_once(&format!("[{}]\n", cost.table)).unwrap();
            let table = table.split("\n[").next().unwrap();
            assert!(table.contains(&format!("\n{} = ", cost.key)), "{}.{}", cost.table, cost.key);
        }
    }
}
