//! One view as plain text, for scripts and for a terminal that can do nothing; and numbers as both forms write them.

use std::fmt::Write as _;

use tidegate_gateway::console::view::{ChannelView, Counted, NodeView, View};

/// The whole view.
pub(super) fn render(view: &View) -> String {
    let mut out = String::with_capacity(4096);
    let mut line = |text: String| {
        // A `String` takes every write.
        let written = writeln!(out, "{}", text.trim_end());
        debug_assert!(written.is_ok());
    };
    line(view.sentence.clone());
    if let Some(advice) = advice(view) {
        line(advice);
    }
    line(String::new());
    for (name, value) in figures(view) {
        line(format!("{name:<22} {value}"));
    }
    line(String::new());
    line(format!(
        "{:<20} {:<10} {:>18} {:>20} {:>12} {:>8}  version",
        "node", "state", "connections", "fullest", "deliveries/s", "lag"
    ));
    for node in &view.nodes {
        line(node_line(node));
        node.notes.iter().for_each(|note| line(format!("  {note}")));
    }
    if view.nodes_more > 0 {
        line(format!("and {} more", view.nodes_more));
    }
    for (title, channels) in
        [("channels by subscribers", &view.by_subscribers), ("channels by deliveries", &view.by_rate)]
    {
        if !channels.is_empty() {
            line(String::new());
            line(format!(
                "{title:<40} {:>12} {:>14} {:>12}",
                "subscribers", "publications/s", "deliveries/s"
            ));
            channels.iter().for_each(|channel| line(channel_line(channel)));
        }
    }
    for (title, counted) in [("refused and dropped", &view.refusals), ("closed", &view.closes)] {
        if !counted.is_empty() {
            line(String::new());
            line(format!("{title:<44} {:>12} {:>12}  last on", "last minute", "15 minutes"));
            counted.iter().for_each(|counted| line(counted_line(counted)));
        }
    }
    out
}

/// What to do about the fullest resource.
pub(super) fn advice(view: &View) -> Option<String> {
    let ceiling = view.ceiling.as_ref()?;
    let resource = ceiling.resource.replace('_', " ");
    Some(format!("The next ceiling is {resource} on {}. {}", ceiling.node, ceiling.advice))
}

/// The sums, by their names.
pub(super) fn figures(view: &View) -> Vec<(&'static str, String)> {
    let (totals, sample) = (&view.totals, &view.sample);
    vec![
        ("nodes ready", format!("{} of {}", totals.ready, totals.nodes)),
        ("connections", format!("{} of {}", totals.connections, totals.capacity)),
        ("subscriptions", totals.subscriptions.to_string()),
        ("deliveries/s", rate(sample.deliveries)),
        ("publishes/s", rate(sample.publishes)),
        ("to write, p50, p99", format!("{}, {}", milliseconds(sample.p50_ms), milliseconds(sample.p99_ms))),
        ("opened/s, closed/s", format!("{}, {}", rate(sample.opened), rate(sample.closed))),
        ("refused/s, dropped/s", format!("{}, {}", rate(sample.refused), rate(totals.dropped))),
        ("waiting for clients", format!("{} bytes", totals.queued_bytes)),
        ("Redis lag", milliseconds(totals.redis_lag_ms)),
        ("webhooks waiting", format!("{} bytes", totals.webhook_queue_bytes)),
    ]
}

/// Name, state, connections, fullest resource, deliveries, lag, version.
pub(super) fn node_cells(node: &NodeView) -> [String; 7] {
    let fullest = node.saturation.first();
    [
        node.name.clone(),
        format!("{:?}", node.state).to_lowercase().replace("notready", "not ready"),
        format!("{} of {}", node.connections, node.capacity),
        fullest.map_or_else(
            || "–".to_owned(),
            |(name, share)| format!("{} {:.0} %", name.replace('_', " "), share * 100.0),
        ),
        rate(node.deliveries),
        milliseconds(node.redis_lag_ms),
        node.version.clone(),
    ]
}

fn node_line(node: &NodeView) -> String {
    let [name, state, connections, fullest, deliveries, lag, version] = node_cells(node);
    format!("{name:<20} {state:<10} {connections:>18} {fullest:>20} {deliveries:>12} {lag:>8}  {version}")
}

/// The name in its app.
pub(super) fn channel_name(channel: &ChannelView) -> String {
    match &channel.app {
        Some(app) => format!("{} (app {app})", channel.name),
        None => channel.name.clone(),
    }
}

fn channel_line(channel: &ChannelView) -> String {
    let (name, publications, deliveries) =
        (channel_name(channel), rate(channel.publications), rate(channel.deliveries));
    format!("{name:<40} {:>12} {publications:>14} {deliveries:>12}", channel.subscribers)
}

fn counted_line(counted: &Counted) -> String {
    let what = format!("{}: {}", counted.what, counted.reason.replace('_', " "));
    let (minute, quarter) = (counted.last_minute, counted.last_quarter);
    format!("{what:<44} {minute:>12.0} {quarter:>12.0}  {}, {} s ago", counted.node, counted.ago_s)
}

pub(super) fn rate(value: f64) -> String {
    if value == 0.0 || value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

pub(super) fn milliseconds(value: Option<f64>) -> String {
    match value {
        Some(value) if value < 10.0 => format!("{value:.2} ms"),
        Some(value) => format!("{value:.0} ms"),
        None => "–".to_owned(),
    }
}
