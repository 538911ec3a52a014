//! The results as Markdown: medians, ranges, and the ratio to Bun taken round by round.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::measures::Measure;
use super::servers::Server;
use super::{CompareError, Machine, Results, RoundReading};

const BEGIN: &str = "<!-- bench:begin -->";
const END: &str = "<!-- bench:end -->";

/// What a new document says around the table.
const SKELETON: &str = include_str!("skeleton.md");

/// A client that used more of its core than this may have been the limit.
const CLIENT_BUSY: f64 = 0.95;

/// A server that got less of its core than this shared it with something else.
const SERVER_BUSY: f64 = 0.9;

/// How a measure is shown and judged.
struct Row {
    title: &'static str,
    unit: &'static str,
    decimals: usize,
    /// What the gateway must reach.
    bar: &'static str,
}

fn row(measure: Measure) -> Row {
    let (title, unit, decimals, bar) = match measure {
        Measure::Memory => ("user memory per idle connection, after the ramp", "B", 0, "≤ 600 B"),
        Measure::MemorySettled => ("the same, settled", "B", 0, "≤ 600 B"),
        Measure::FanoutCpu => ("CPU per delivery, 1 message in flight", "µs", 2, "≤ Bun"),
        Measure::FanoutRate => ("deliveries/s, 64 publishes in flight", "/s", 0, "≥ Bun"),
        Measure::AcceptCpu => ("CPU per accepted connection", "µs", 1, "≤ 1.5 × Bun"),
        Measure::PublishRate => ("REST publishes/s, no subscribers", "/s", 0, "≥ Bun"),
        Measure::EchoRate => ("echo round trips/s", "/s", 0, "≥ Bun"),
        Measure::Pause => ("longest wait of a bystander during a broadcast", "ms", 2, "≤ 20 ms"),
        Measure::IdleCpu => ("idle CPU with heartbeats", "% of a core", 2, "≤ 1 %"),
    };
    Row { title, unit, decimals, bar }
}

/// The part between the markers.
#[must_use]
pub fn render(results: &Results) -> String {
    let servers: Vec<Server> = Server::ALL
        .into_iter()
        .filter(|server| results.readings.values().any(|readings| readings.contains_key(server)))
        .collect();
    let names: String = servers.iter().map(|server| format!(" {} |", server.name())).collect();
    let mut lines = vec![
        describe(&results.machine),
        String::new(),
        format!("`{}`: medians of {} rounds, range in brackets.", results.command, results.rounds),
        String::new(),
        format!("| measure |{names} Tidegate / Bun | must |"),
        format!("| --- |{} --- | --- |", " ---: |".repeat(servers.len())),
    ];
    lines.extend(results.readings.iter().map(|(&measure, readings)| table_row(measure, readings, &servers)));
    lines.push(String::new());
    lines.extend(notes(results));
    lines.join("\n").trim_end().to_owned()
}

/// Replaces the marked part of a document, or makes a new document around it.
pub fn update_document(results: &Results, path: &Path) -> Result<(), CompareError> {
    let document = match fs::read_to_string(path) {
        Ok(document) => document,
        Err(error) if error.kind() == io::ErrorKind::NotFound => SKELETON.to_owned(),
        Err(source) => {
            return Err(CompareError::Read { path: path.to_owned(), source });
        }
    };
    let missing = |marker| CompareError::Marker { path: path.to_owned(), marker };
    let begin = document.find(BEGIN).ok_or(missing(BEGIN))? + BEGIN.len();
    let end = document[begin..].find(END).ok_or(missing(END))? + begin;
    let document = format!("{}\n\n{}\n\n{}", &document[..begin], render(results), &document[end..]);
    fs::write(path, document).map_err(|source| CompareError::Write { path: path.to_owned(), source })
}

fn table_row(measure: Measure, readings: &BTreeMap<Server, Vec<RoundReading>>, servers: &[Server]) -> String {
    let Row { title, unit, decimals, bar } = row(measure);
    let cells: String = servers
        .iter()
        .map(|server| format!(" {} |", readings.get(server).map_or("–".to_owned(), |of| cell(of, decimals))))
        .collect();
    let ratio = ratio(readings.get(&Server::Tidegate), readings.get(&Server::Bun));
    format!("| {title} ({unit}) |{cells} {ratio} | {bar} |")
}

fn describe(machine: &Machine) -> String {
    let Machine { cores, processor, kernel, date, versions } = machine;
    let versions: Vec<String> =
        versions.iter().map(|(server, version)| format!("{} {version}", server.name())).collect();
    format!("{cores} cores ({processor}), Linux {kernel}, {date}; {}.", versions.join(", "))
}

fn cell(readings: &[RoundReading], decimals: usize) -> String {
    let values = readings.iter().map(|round| round.reading.value);
    let Some((median, min, max)) = spread(values) else {
        return "–".to_owned();
    };
    let [median, min, max] = [median, min, max].map(|value| number(value, decimals));
    if min == max { median } else { format!("{median} ({min}–{max})") }
}

fn ratio(ours: Option<&Vec<RoundReading>>, theirs: Option<&Vec<RoundReading>>) -> String {
    let (Some(ours), Some(theirs)) = (ours, theirs) else {
        return "–".to_owned();
    };
    let of_round = |round| theirs.iter().find(|other| other.round == round);
    let ratios = ours.iter().filter_map(|our| Some(our.reading.value / of_round(our.round)?.reading.value));
    match spread(ratios.filter(|ratio| ratio.is_finite())) {
        Some((median, min, max)) => format!("{median:.2} ({min:.2}–{max:.2})"),
        None => "–".to_owned(),
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
fn notes(results: &Results) -> Vec<String> {
    let mut notes = Vec::new();
    for (&measure, by_server) in &results.readings {
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
                note += &format!(" undisturbed, the longest wait was {baseline:.2} ms;");
            }
            if !note.is_empty() {
                let note = note.trim_end_matches(';');
                notes.push(format!("- {}, {}:{note}.", server.name(), row(measure).title));
            }
        }
    }
    notes.extend(results.failures.iter().map(|failure| format!("- No result: {failure}.")));
    notes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::compare::Readings;
    use crate::compare::measures::{Reading, Sizes};
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
        let table = render(&results());
        assert!(table.contains("2 cores (a processor), Linux 6.1, 2026-11-22; Bun 1.4.5."), "{table}");
        let row = "| deliveries/s, 64 publishes in flight (/s) | 2,000,000 (1,000,000–3,000,000) | \
                   1,000,000 (1,000,000–2,000,000) | 1.50 (1.00–2.00) | ≥ Bun |";
        assert!(table.contains(row), "{table}");
        let note = "- Tidegate, deliveries/s, 64 publishes in flight: the client was at 97 % of its core; \
                    the server had 50 % of its core, 4,000,000 per CPU second.";
        assert!(table.contains(note), "{table}");
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
