//! Renders families: OpenMetrics text by prometheus-client, and from that the older Prometheus text.

use std::{
    fmt::{self, Write},
    sync::Arc,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::{Counters, Histogram, Label, Resource, process::Process};
use crate::log;

/// Everything as OpenMetrics text, the end mark included: the families of the process, and under the prefix `tidegate`
/// those of the collectors.
pub fn openmetrics(collectors: impl IntoIterator<Item = Arc<dyn Collector>>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ProcessCollector));
    let ours = registry.sub_registry_with_prefix("tidegate");
    ours.register_collector(Box::new(LogCollector));
    for collector in collectors {
        ours.register_collector(Box::new(Shared(collector)));
    }
    let mut text = String::with_capacity(16 * 1024);
    if text::encode(&mut text, &registry).is_err() {
        // A `String` takes every write; only a collector that gives up can end here.
        tracing::error!("a metrics collector failed; the exposition is incomplete");
    }
    text
}

/// Turns OpenMetrics text into the Prometheus format 0.0.4, which knows no `info`, no units and no end mark, and
/// wants a counter described under the name its samples have.
pub fn to_prometheus(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len() + 1024);
    let mut help = "";
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            for text in ["# HELP ", name, suffix, " ", help, "\n# TYPE ", name, suffix, " ", kind, "\n"] {
                out.push_str(text);
            }
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// The families of the process, under the names every Prometheus client library uses.
#[derive(Debug)]
struct ProcessCollector;

/// What the log counts.
#[derive(Debug)]
struct LogCollector;

/// A collector that the registry does not own.
#[derive(Debug)]
struct Shared(Arc<dyn Collector>);

/// One label and its value.
#[derive(Debug)]
struct Labelled<L>(L);

impl<L: Label> EncodeLabelSet for Labelled<L> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let mut label = encoder.encode_label();
        let mut key = label.encode_label_key()?;
        key.write_str(L::NAME)?;
        let mut value = key.encode_label_value()?;
        value.write_str(self.0.value())?;
        value.finish()
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let process = Process::read();
        let mut page = Page::new(encoder);
        if let Some(seconds) = process.cpu_seconds {
            page.counter_seconds("process_cpu", "User and system CPU time spent.", seconds)?;
        }
        let gauges = [
            (
                "process_resident_memory_bytes",
                "Resident memory.",
                process.resident_bytes.map(|bytes| bytes as f64),
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory.",
                process.virtual_bytes.map(|bytes| bytes as f64),
            ),
            ("process_open_fds", "Open descriptors.", process.descriptors_open.map(|number| number as f64)),
            ("process_max_fds", "Descriptors allowed.", process.descriptors_max.map(|number| number as f64)),
            ("process_start_time_seconds", "Start, in seconds since 1970.", process.start_time_s),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                page.gauge(name, help, value)?;
            }
        }
        Ok(())
    }
}

impl Collector for LogCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Log lines that were not written because too many waited for standard error.";
        Page::new(encoder).counter("log_lines_dropped", help, log::lines_dropped())
    }
}

impl Collector for Shared {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}

/// Writes families one below the other.
#[derive(Debug)]
pub struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl<'a> Page<'a> {
    pub fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self { encoder }
    }

    pub fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// A gauge with one value for each of some labels.
    pub fn gauges<L: Label>(&mut self, name: &str, help: &str, values: &[(L, f64)]) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (label, value) in values {
            family.encode_family(&Labelled(*label))?.encode_gauge(value)?;
        }
        Ok(())
    }

    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn counter_seconds(&mut self, name: &str, help: &str, seconds: f64) -> fmt::Result {
        let mut metric =
            self.encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, f64>(&seconds, None)
    }

    /// Every value of the label, also those that are 0: a series that appears with its first event has no rate.
    pub fn counters<'c, L: Label>(
        &mut self,
        name: &str,
        help: &str,
        groups: impl IntoIterator<Item = &'c Counters<L>>,
    ) -> fmt::Result {
        let mut totals = vec![0u64; L::ALL.len()];
        for group in groups {
            for label in L::ALL {
                totals[label.index()] += group.get(*label);
            }
        }
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for label in L::ALL {
            let set = Labelled(*label);
            family.encode_family(&set)?.encode_counter::<NoLabelSet, _, u64>(&totals[label.index()], None)?;
        }
        Ok(())
    }

    /// One sample for each value of a label that is known only at run time. The caller bounds how many there are.
    pub fn counters_by<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'v str, u64)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (value, total) in values {
            let set = [(label, value)];
            family.encode_family(&set)?.encode_counter::<NoLabelSet, _, u64>(&total, None)?;
        }
        Ok(())
    }

    /// The same for what goes up and down.
    pub fn gauges_by<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'v str, f64)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (value, now) in values {
            family.encode_family(&[(label, value)])?.encode_gauge(&now)?;
        }
        Ok(())
    }

    pub fn histogram<'h>(
        &mut self,
        name: &str,
        help: &str,
        group: impl Iterator<Item = &'h Histogram>,
        bounds: &'static [f64],
    ) -> fmt::Result {
        let total = Histogram::total(group, bounds);
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(total.sum_s, total.count, &total.buckets, None)
    }

    /// Every value of a label for each value of another that is known only at run time, of which the caller bounds how many
    /// there are.
    pub fn counters_of<'c, L: Label>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        groups: impl IntoIterator<Item = (&'c str, &'c Counters<L>)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (value, group) in groups {
            for own in L::ALL {
                let set = [(label, value), (L::NAME, own.value())];
                let total = group.get(*own);
                family.encode_family(&set)?.encode_counter::<NoLabelSet, _, u64>(&total, None)?;
            }
        }
        Ok(())
    }

    /// The same of histograms.
    pub fn histogram_of<'h>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        bounds: &'static [f64],
        groups: impl IntoIterator<Item = (&'h str, &'h Histogram)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (value, histogram) in groups {
            let total = Histogram::total(std::iter::once(histogram), bounds);
            let set = [(label, value)];
            let mut metric = family.encode_family(&set)?;
            metric.encode_histogram::<NoLabelSet>(total.sum_s, total.count, &total.buckets, None)?;
        }
        Ok(())
    }

    /// `tidegate_saturation`, from what [`Load::read`](super::Load::read) answers.
    pub fn saturation(&mut self, shares: &[(Resource, f64)]) -> fmt::Result {
        let help = "Share of a resource that is in use; 1 is the ceiling.";
        self.gauges("saturation", help, shares)
    }

    /// `tidegate_build_info`.
    pub fn build(&mut self) -> fmt::Result {
        let labels = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("os", std::env::consts::OS),
            ("arch", std::env::consts::ARCH),
        ];
        let help = "What is running; the value is always 1.";
        self.encoder.encode_descriptor("build", help, None, MetricType::Info)?.encode_info(&labels)
    }
}
