//! The results as Markdown, a table for each group: medians, ranges, and comparisons taken round by round.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::plan::{Group, Measure};
use super::rows::{Against, Row, row};
use super::servers::Server;
use super::{CompareError, Machine, Results, RoundReading};

/// Where a group's table stands in a document.
fn markers(group: Group) -> [&'static str; 2] {
    match group {
        Group::Gateway => ["<!-- bench:begin -->", "<!-- bench:end -->"],
        Group::Redis => ["<!-- bench:redis:begin -->", "<!-- bench:redis:end -->"],
        Group::Router => ["<!-- bench:router:begin -->", "<!-- bench:router:end -->"],
        Group::Scaling => ["<!-- bench:scaling:begin -->", "<!-- bench:scaling:end -->"],
        Group::Pusher => ["<!-- bench:pusher:begin -->", "<!-- bench:pusher:end -->"],
        Group::Centrifuge => ["<!-- bench:centrifuge:begin -->", "<!-- bench:centrifuge:end -->"],
        Group::Ledger => ["<!-- bench:ledger:begin -->", "<!-- bench:ledger:end -->"],
        Group::Handover => ["<!-- bench:handover:begin -->", "<!-- bench:handover:end -->"],
        Group::Hooks => ["<!-- bench:hooks:begin -->", "<!-- bench:hooks:end -->"],
    }
}

/// What a new document says around the table.
const SKELETON: &str = include_str!("skeleton.md");

/// A client that used more of its core than this may have been the limit.
const CLIENT_BUSY: f64 = 0.95;

/// A server that got less of its core than this shared it with something else.
const SERVER_BUSY: f64 = 0.9;

/// All tables of a run, for a terminal.
#[must_use]
pub fn render_all(results: &Results) -> String {
    let tables: Vec<String> = groups(results).map(|group| render(results, group)).collect();
    tables.join("\n\n")
}

/// The part between a group's markers.
#[must_use]
pub fn render(results: &Results, group: Group) -> String {
    let rows = || results.readings.iter().filter(|(measure, _)| measure.group() == group);
    let servers: Vec<Server> = group
        .servers()
        .iter()
        .copied()
        .filter(|server| rows().any(|(_, readings)| readings.contains_key(server)))
        .collect();
    let names: String = servers.iter().map(|server| format!(" {} |", server.name())).collect();
    let compares = servers.contains(&Server::Tidegate);
    let (head, rule) = if compares { (" Tidegate against |", " --- |") } else { ("", "") };
    let mut lines = vec![
        describe(&results.machine, &servers),
        String::new(),
        format!("`{}`: medians of {} rounds, range in brackets.", results.command, results.rounds),
        String::new(),
        format!("| measure |{names}{head} must |"),
        format!("| --- |{}{rule} --- |", " ---: |".repeat(servers.len())),
    ];
    lines.extend(rows().map(|(&measure, readings)| table_row(measure, readings, &servers, compares)));
    lines.push(String::new());
    lines.extend(notes(results, group));
    lines.join("\n").trim_end().to_owned()
}

/// Groups that have a reading.
fn groups(results: &Results) -> impl Iterator<Item = Group> {
    let has = |group| results.readings.keys().any(|measure| measure.group() == group);
    Group::ALL.into_iter().filter(move |&group| has(group))
}

/// Replaces the marked parts of a document, or makes a new document around them.
pub fn update_document(results: &Results, path: &Path) -> Result<(), CompareError> {
    let document = match fs::read_to_string(path) {
        Ok(document) => document,
        Err(error) if error.kind() == io::ErrorKind::NotFound => SKELETON.to_owned(),
        Err(source) => {
            return Err(CompareError::Read { path: path.to_owned(), source });
        }
    };
    let document = groups(results).try_fold(document, |document, group| {
        replace(&document, markers(group), &render(results, group))
            .map_err(|marker| CompareError::Marker { path: path.to_owned(), marker })
    })?;
    fs::write(path, document).map_err(|source| CompareError::Write { path: path.to_owned(), source })
}

/// Puts a table between its markers; gives the marker that is missing.
fn replace(document: &str, [begin, end]: [&'static str; 2], table: &str) -> Result<String, &'static str> {
    let from = document.find(begin).ok_or(begin)? + begin.len();
    let to = document[from..].find(end).ok_or(end)? + from;
    Ok(format!("{}\n\n{table}\n\n{}", &document[..from], &document[to..]))
}

fn table_row(
    measure: Measure,
    readings: &BTreeMap<Server, Vec<RoundReading>>,
    servers: &[Server],
    compares: bool,
) -> String {
    let Row { title, unit, decimals, against, bar } = row(measure);
    let cells: String = servers
        .iter()
        .map(|server| format!(" {} |", readings.get(server).map_or("–".to_owned(), |of| cell(of, decimals))))
        .collect();
    let compared = if compares { format!(" {} |", comparison(against, readings)) } else { String::new() };
    format!("| {title} ({unit}) |{cells}{compared} {bar} |")
}

fn describe(machine: &Machine, servers: &[Server]) -> String {
    let Machine { cores, processor, kernel, date, versions } = machine;
    let versions: Vec<String> = versions
        .iter()
        .filter(|(server, _)| servers.contains(server))
        .map(|(server, version)| format!("; {} {version}", server.name()))
        .collect();
    format!("{cores} cores ({processor}), Linux {kernel}, {date}{}.", versions.concat())
}

fn cell(readings: &[RoundReading], decimals: usize) -> String {
    let values = readings.iter().map(|round| round.reading.value);
    let Some((median, min, max)) = spread(values) else {
        return "–".to_owned();
    };
    let [median, min, max] = [median, min, max].map(|value| number(value, decimals));
    if min == max { median } else { format!("{median} ({min}–{max})") }
}

fn comparison(against: Against, readings: &BTreeMap<Server, Vec<RoundReading>>) -> String {
    let (other, apply): (_, fn(f64, f64) -> f64) = match against {
        Against::Nothing => return "–".to_owned(),
        Against::Ratio(other) => (other, |ours, theirs| ours / theirs),
        Against::Difference(other) => (other, |ours, theirs| ours - theirs),
    };
    let (Some(ours), Some(theirs)) = (readings.get(&Server::Tidegate), readings.get(&other)) else {
        return "–".to_owned();
    };
    let of_round = |round| theirs.iter().find(|other| other.round == round);
    let values =
        ours.iter().filter_map(|our| Some(apply(our.reading.value, of_round(our.round)?.reading.value)));
    let Some((median, min, max)) = spread(values.filter(|value| value.is_finite())) else {
        return "–".to_owned();
    };
    let name = other.name();
    match against {
        Against::Difference(_) => format!("{median:+.0} ({min:+.0} to {max:+.0}) over {name}"),
        _ => format!("{median:.2} ({min:.2}–{max:.2}) × {name}"),
    }
}

/// Median, smallest and largest.
fn spread(values: impl Iterator<Item = f64>) -> Option<(f64, f64, f64)> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (&min, &max) = (values.first()?, values.last()?);
    let middle = values.len() / 2;
    let median = if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    };
    Some((median, min, max))
}

/// Thousands are grouped, so that 153000 and 1530000 are told apart at a glance.
fn number(value: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut out = String::new();
    if value < 0.0 {
        out.push('-');
    }
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out + fraction
}

/// What a reader must know to believe a number.
fn notes(results: &Results, group: Group) -> Vec<String> {
    let mut notes = Vec::new();
    for (&measure, by_server) in results.readings.iter().filter(|(measure, _)| measure.group() == group) {
        for (server, readings) in by_server {
            let mut note = String::new();
            let sum = |count: fn(&RoundReading) -> u64| readings.iter().map(count).sum::<u64>();
            let (lost, disorder) = (
                sum(|round| round.reading.order.lost),
                sum(|round| round.reading.order.duplicated + round.reading.order.misordered),
            );
            if lost + disorder > 0 {
                note += &format!(" lost {lost} messages and doubled or reordered {disorder};");
            }
            let busy = spread(readings.iter().filter_map(|round| round.reading.client_busy));
            if let Some((busy, ..)) = busy.filter(|(busy, ..)| *busy > CLIENT_BUSY) {
                note += &format!(" the client was at {:.0} % of its core;", busy * 100.0);
            }
            let server_busy = spread(readings.iter().filter_map(|round| round.reading.server_busy));
            if let Some((share, ..)) = server_busy.filter(|(share, ..)| *share < SERVER_BUSY) {
                let per_second = readings
                    .iter()
                    .filter_map(|round| Some(round.reading.value / round.reading.server_busy?));
                let per_second = spread(per_second).map_or(0.0, |(median, ..)| median);
                note += &format!(
                    " the server had {:.0} % of its core, {} per CPU second;",
                    share * 100.0,
                    number(per_second, 0)
                );
            }
            if let Some((pings, ..)) = spread(readings.iter().filter_map(|round| round.reading.pings)) {
                note += &format!(" {pings:.1} heartbeats per connection;");
            }
            if let Some((baseline, ..)) = spread(readings.iter().filter_map(|round| round.reading.baseline)) {
                let Row { unit, decimals, .. } = row(measure);
                note += &format!(" {} {unit} without it;", number(baseline, decimals));
            }
            if !note.is_empty() {
                let note = note.trim_end_matches(';');
                notes.push(format!("- {}, {}:{note}.", server.name(), row(measure).title));
            }
        }
    }
    let failures = results.failures.iter().filter(|failure| failure.group == group);
    notes.extend(failures.map(|failure| format!("- No result: {}.", failure.text)));
    notes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::compare::Readings;
    use crate::compare::plan::Sizes;
    use crate::compare::rig::Reading;
    use crate::order::OrderCounts;

    fn readings(measure: Measure, values: &[f64]) -> Vec<RoundReading> {
        let reading = |value| Reading {
            measure,
            value,
            client_busy: Some(0.97),
            server_busy: Some(0.5),
            pings: None,
            baseline: None,
            order: OrderCounts::default(),
        };
        values
            .iter()
            .zip(1..)
            .map(|(&value, round)| RoundReading { round, reading: reading(value) })
            .collect()
    }

    fn results() -> Results {
        let by_server = BTreeMap::from([
            (Server::Tidegate, readings(Measure::FanoutRate, &[2_000_000.0, 3_000_000.0, 1_000_000.0])),
            (Server::Bun, readings(Measure::FanoutRate, &[1_000_000.0, 2_000_000.0, 1_000_000.0])),
        ]);
        Results {
            machine: Machine {
                cores: 2,
                processor: "a processor".to_owned(),
                kernel: "6.1".to_owned(),
                date: "2026-11-22".to_owned(),
                versions: BTreeMap::from([(Server::Bun, "1.4.5".to_owned())]),
            },
            command: "cargo xtask bench".to_owned(),
            rounds: 3,
            sizes: Sizes::FULL,
            readings: Readings::from([(Measure::FanoutRate, by_server)]),
            failures: Vec::new(),
        }
    }

    #[test]
    fn a_row_has_medians_ranges_and_the_ratio_within_rounds() {
        let table = render(&results(), Group::Gateway);
        assert!(table.contains("2 cores (a processor), Linux 6.1, 2026-11-22; Bun 1.4.5."), "{table}");
        let row = "| deliveries/s, 64 publishes in flight (/s) | 2,000,000 (1,000,000–3,000,000) | \
                   1,000,000 (1,000,000–2,000,000) | 1.50 (1.00–2.00) × Bun | ≥ 2.4 × Bun |";
        assert!(table.contains(row), "{table}");
        let note = "- Tidegate, deliveries/s, 64 publishes in flight: the client was at 97 % of its core; \
                    the server had 50 % of its core, 4,000,000 per CPU second.";
        assert!(table.contains(note), "{table}");
    }

    #[test]
    fn a_difference_is_taken_within_rounds() {
        let by_server = BTreeMap::from([
            (Server::Tidegate, readings(Measure::RedisLatency, &[300.0, 900.0])),
            (Server::OneNode, readings(Measure::RedisLatency, &[100.0, 750.0])),
        ]);
        let against = row(Measure::RedisLatency).against;
        assert_eq!(comparison(against, &by_server), "+175 (+150 to +200) over one node");
        assert_eq!(comparison(Against::Ratio(Server::Bun), &by_server), "–");
    }

    #[test]
    fn a_new_document_has_a_place_for_every_group() {
        for group in Group::ALL {
            assert!(replace(SKELETON, markers(group), "table").is_ok(), "{group:?}");
        }
    }

    #[test]
    fn a_document_keeps_what_is_around_the_table() {
        let directory = std::env::temp_dir().join(format!("tidegate-table-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("benchmarks.md");
        update_document(&results(), &path).unwrap();
        let first = fs::read_to_string(&path).unwrap();
        assert!(first.contains("2,000,000"));
        fs::write(&path, first.replace("2,000,000", "gone") + "kept\n").unwrap();
        update_document(&results(), &path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), first + "kept\n");
        fs::write(&path, "no markers").unwrap();
        assert!(matches!(update_document(&results(), &path), Err(CompareError::Marker { .. })));
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn numbers_are_grouped() {
        for (value, decimals, text) in [
            (0.0, 0, "0"),
            (999.4, 0, "999"),
            (1_530_000.0, 0, "1,530,000"),
            (-1_234.5, 1, "-1,234.5"),
            (5.678, 2, "5.68"),
        ] {
            assert_eq!(number(value, decimals), text);
        }
    }
}
