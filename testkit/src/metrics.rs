//! A scraper for the Prometheus text format: what the operator's Prometheus would see.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::rest::Rest;

/// One scrape.
#[derive(Debug, Clone)]
pub struct Metrics {
    samples: Vec<Sample>,
}

/// One line of a scrape.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Metrics {
    /// Reads `/metrics` of an internal port.
    ///
    /// # Panics
    /// When it does not answer 200 or a line cannot be read.
    #[track_caller]
    pub fn scrape(internal: SocketAddr) -> Self {
        let answer = Rest::new(internal).get("/metrics");
        assert_eq!(answer.status, 200, "GET /metrics: {}", answer.text());
        Self::parse(&answer.text())
    }

    /// Reads `/metrics` over a connection that is kept, of a process that may be gone: `None` when it does not answer.
    ///
    /// # Panics
    /// When it answers something else.
    #[track_caller]
    pub fn try_read(internal: &Rest) -> Option<Self> {
        let answer = internal.try_get("/metrics")?;
        assert_eq!(answer.status, 200, "GET /metrics: {}", answer.text());
        Some(Self::parse(&answer.text()))
    }

    /// Reads exposition text.
    ///
    /// # Panics
    /// At a line that is no comment and no sample.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| match sample(line) {
            Some(sample) => sample,
            None => panic!("no metrics sample: {line}"),
        });
        Self { samples: samples.collect() }
    }

    /// The samples of `name` that carry all of `labels`.
    pub fn select(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|l| l == value))
        })
    }

    /// Their sum; 0 when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).map(|sample| sample.value).sum()
    }

    /// Value of `label` → sum of the samples of `name` that carry it.
    pub fn by_label(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for sample in self.select(name, &[]) {
            if let Some(value) = sample.labels.get(label) {
                *sums.entry(value.clone()).or_insert(0.0) += sample.value;
            }
        }
        sums
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.samples.iter().map(|sample| sample.name.as_str())
    }
}

/// `name{key="value",…} number [timestamp]`
fn sample(line: &str) -> Option<Sample> {
    let name_end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (key, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(key.trim().to_owned(), value);
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = rest.strip_prefix('}')?;
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// A label value up to its closing quote, with `\\`, `\"` and `\n` resolved, and what follows the quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP a things\n# TYPE a counter\n\
        a_total{code=\"1002\",kind=\"x\"} 2\na_total{code=\"1002\",kind=\"y\"} 3 1700000000\n\
        a_total{code=\"1009\"} 4\nbare 1.5e3\nodd{v=\"q\\\"},\\\\n\\n\"} +Inf\n# EOF\n";

    #[test]
    fn samples_are_selected_and_summed() {
        let metrics = Metrics::parse(TEXT);
        assert_eq!(metrics.sum("a_total", &[]), 9.0);
        assert_eq!(metrics.sum("a_total", &[("code", "1002")]), 5.0);
        assert_eq!(metrics.sum("a_total", &[("code", "1002"), ("kind", "y")]), 3.0);
        assert_eq!(metrics.sum("missing", &[]), 0.0);
        assert_eq!(metrics.sum("bare", &[]), 1500.0);
        assert_eq!(
            metrics.by_label("a_total", "code"),
            BTreeMap::from([("1002".into(), 5.0), ("1009".into(), 4.0)])
        );
    }

    #[test]
    fn escapes_in_labels_are_resolved() {
        let metrics = Metrics::parse(TEXT);
        let odd = metrics.select("odd", &[]).next().expect("one sample");
        assert_eq!(odd.labels.get("v").map(String::as_str), Some("q\"},\\n\n"));
        assert_eq!(odd.value, f64::INFINITY);
    }

    #[test]
    #[should_panic(expected = "no metrics sample: a{b=\"c} 1")]
    fn a_broken_line_is_named() {
        Metrics::parse("a{b=\"c} 1");
    }
}
