//! The families of the backplane, by its kind.

use std::{fmt, sync::Arc};

use tidegate_backplane::{
    LinkCounters, MemoryBackplane, REFUSALS, REPEATS, REPLACEMENTS, RedisBackplane, RedisCounters,
};
use tidegate_ops::metrics::{Collector, DescriptorEncoder, Page};

/// The families under `tidegate_backplane_`. The label `server` has the servers of the configuration, or of the
/// Cluster.
pub(crate) struct RedisCollector(pub(crate) Arc<RedisBackplane>);

/// What the memory of one node holds, and what it had to let go.
pub(crate) struct MemoryCollector(pub(crate) Arc<MemoryBackplane>);

impl Collector for RedisCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counters = self.0.counters();
        let mut page = Page::new(encoder);
        links(&mut page, &counters.links)?;
        let slots = counters.slots_nowhere as f64;
        page.gauge("backplane_slots_missing", "Slots of a Redis Cluster that no server holds.", slots)?;
        publications(&mut page, &counters)?;
        repairs(&mut page, &counters)?;
        presence(&mut page, &counters)
    }
}

impl Collector for MemoryCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counters = self.0.counters();
        let mut page = Page::new(encoder);
        let history = counters.history_bytes as f64;
        page.gauge("backplane_history_bytes", "What the histories of all channels take.", history)?;
        let keys = counters.idempotency_bytes as f64;
        page.gauge("backplane_idempotency_bytes", "What remembered idempotency keys take.", keys)?;
        let evicted = [("history", counters.history_evicted), ("idempotency", counters.idempotency_evicted)];
        let help = "Entries let go before their time, because a bound in bytes or number was reached.";
        page.counters_by("backplane_evicted", help, "entry", evicted)?;
        presence_subscriptions(&mut page, counters.presence_subscriptions)
    }
}

impl fmt::Debug for RedisCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisCollector")
    }
}

impl fmt::Debug for MemoryCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryCollector")
    }
}

fn links(page: &mut Page<'_>, links: &[LinkCounters]) -> fmt::Result {
    let each = |of: fn(&LinkCounters) -> u64| links.iter().map(move |link| (&*link.server, of(link)));
    let up: Vec<_> = links.iter().map(|link| (&*link.server, f64::from(u8::from(link.up)))).collect();
    page.gauges_by("backplane_connected", "1 while calls to the server may succeed.", "server", up)?;
    let writes = |link: &LinkCounters| f64::from(u8::from(link.takes_writes));
    let writes: Vec<_> = links.iter().map(|link| (&*link.server, writes(link))).collect();
    let help = "1 while the server takes writes: it has memory, disk and replicas for them.";
    page.gauges_by("backplane_writable", help, "server", writes)?;
    page.counters_by(
        "backplane_connects",
        "Times that the server was connected.",
        "server",
        each(|link| link.sessions),
    )?;
    page.counters_by(
        "backplane_connects_failed",
        "Attempts to connect that failed.",
        "server",
        each(|link| link.attempts_failed),
    )?;
    page.counters_by(
        "backplane_calls",
        "Commands that wait for an answer.",
        "server",
        each(|link| link.calls),
    )?;
    let waiting: Vec<_> = links.iter().map(|link| (&*link.server, link.calls_waiting as f64)).collect();
    page.gauges_by("backplane_queue_depth", "Commands that wait for their answers.", "server", waiting)?;
    let bytes: Vec<_> = links.iter().map(|link| (&*link.server, link.bytes_waiting as f64)).collect();
    let help = "What those take of the 16 MiB that may wait; more are refused.";
    page.gauges_by("backplane_queue_bytes", help, "server", bytes)?;
    let lag = |link: &LinkCounters| link.lag.filter(|_| link.up).map(|lag| lag.as_secs_f64());
    let lags: Vec<_> = links.iter().filter_map(|link| Some((&*link.server, lag(link)?))).collect();
    let help = "From publishing to receiving, of a probe that each node sends itself once a second.";
    page.gauges_by("backplane_lag_seconds", help, "server", lags)?;
    let sum = |of: fn(&LinkCounters) -> u64| links.iter().map(of).sum::<u64>();
    let failed = [
        ("away", sum(|link| link.calls_refused_away)),
        ("bound", sum(|link| link.calls_refused_bound)),
        ("not_replicated", sum(|link| link.calls_not_replicated)),
        ("unconfirmed", sum(|link| link.calls_unconfirmed)),
    ];
    page.counters_by("backplane_calls_failed", "Commands that failed, by reason.", "reason", failed)?;
    let refused = sums(&REFUSALS, links, |link| &link.refused);
    page.counters_by(
        "backplane_refused",
        "Commands that Redis refused, by what is lacking.",
        "lack",
        refused,
    )?;
    page.counter(
        "backplane_waits",
        "WAIT commands: each answers for all publications that were accepted before it was sent.",
        sum(|link| link.waits),
    )?;
    let subscribes = [
        ("bound", sum(|link| link.subscribes_refused_bound)),
        ("server", sum(|link| link.subscribes_refused_server)),
    ];
    page.counters_by("backplane_subscribes_failed", "Subscribe commands that failed.", "reason", subscribes)?;
    page.counter("backplane_probes_lost", "Probes that did not come back.", sum(|link| link.probes_lost))?;
    let replaced = sums(&REPLACEMENTS, links, |link| &link.replaced);
    page.counters_by("backplane_reconnects", "Connections given up, by reason.", "reason", replaced)?;
    let repeated = sums(&REPEATS, links, |link| &link.repeated);
    page.counters_by("backplane_calls_repeated", "Commands sent again, by refusal.", "refusal", repeated)
}

fn publications(page: &mut Page<'_>, counters: &RedisCounters) -> fmt::Result {
    let (operations, subscriptions) = (&counters.operations, &counters.subscriptions);
    let published = [("plain", operations.published_plain), ("script", operations.published_scripted)];
    page.counters_by("backplane_published", "Publications sent, by way.", "way", published)?;
    page.counter(
        "backplane_duplicates",
        "Publishes whose key was seen before.",
        operations.publish_duplicates,
    )?;
    page.counter("backplane_received", "Publications received.", subscriptions.received)?;
    let dropped = [
        ("no_room", subscriptions.dropped),
        ("unknown_channel", subscriptions.unknown_channel),
        ("already_handed", subscriptions.already_handed),
        ("version", subscriptions.undecodable.version),
        ("truncated", subscriptions.undecodable.truncated),
        ("malformed", subscriptions.undecodable.malformed),
    ];
    page.counters_by("backplane_dropped", "Publications received and let go, by reason.", "reason", dropped)?;
    page.counter(
        "backplane_put_off",
        "Publications let go and read from history later.",
        subscriptions.put_off,
    )?;
    page.gauge(
        "backplane_subscriptions",
        "Channels that are subscribed or should be.",
        subscriptions.wanted as f64,
    )?;
    page.gauge(
        "backplane_subscriptions_confirmed",
        "Channels whose subscription the server has confirmed.",
        subscriptions.confirmed as f64,
    )?;
    page.gauge(
        "backplane_held_bytes",
        "Publications that wait until a gap is repaired.",
        subscriptions.held_bytes as f64,
    )
}

fn repairs(page: &mut Page<'_>, counters: &RedisCounters) -> fmt::Result {
    let subscriptions = &counters.subscriptions;
    let (repairs, gaps) = (&subscriptions.repairs, &subscriptions.gaps);
    let begun = [
        ("reconnect", repairs.reconnect),
        ("overflow", repairs.overflow),
        ("hole", repairs.hole),
        ("check", repairs.check),
        ("epoch", repairs.epoch),
        ("rewritten", repairs.rewritten),
    ];
    page.counters_by("backplane_repairs", "Repairs from history, by what began them.", "cause", begun)?;
    page.counter("backplane_repaired", "Publications handed over from history.", subscriptions.repaired)?;
    let told = [
        ("reconnect", gaps.reconnect),
        ("overflow", gaps.overflow),
        ("hole", gaps.hole),
        ("unrecoverable", gaps.unrecoverable),
    ];
    page.counters_by("backplane_gaps", "Gaps told, by reason.", "reason", told)?;
    page.counter("backplane_resubscribed", "Subscriptions lost and made again.", subscriptions.resubscribed)?;
    let help = "The last loss of subscriptions: from the first that was gone to the last that was back.";
    let outage = subscriptions.outage.unwrap_or_default().as_secs_f64();
    page.gauge("backplane_resubscribe_seconds", help, outage)?;
    page.counter(
        "backplane_epochs_renounced",
        "Epochs ended because history had been rewritten.",
        counters.operations.epochs_renounced,
    )
}

fn presence(page: &mut Page<'_>, counters: &RedisCounters) -> fmt::Result {
    let operations = &counters.operations;
    presence_subscriptions(page, counters.presence_subscriptions)?;
    page.counter("backplane_leases_lapsed", "Times that this node's lease ended.", operations.leases_lapsed)?;
    page.counter(
        "backplane_instances_removed",
        "Dead nodes cleaned up after.",
        operations.instances_removed,
    )?;
    let batches = [
        ("written", operations.presence_written),
        ("settled", operations.presence_settled),
        ("server", operations.presence_failed),
        ("bound", operations.presence_refused),
    ];
    let help = "Batches of changes of presence, by result: server and bound were not written and are later.";
    page.counters_by("backplane_presence_batches", help, "result", batches)?;
    page.counter("backplane_presence_full", "Users refused by a channel's limit.", operations.presence_full)?;
    page.counter(
        "backplane_presence_cleared",
        "Channels cleared of what a dead node left there.",
        operations.presence_cleared,
    )?;
    page.counter(
        "backplane_transitions",
        "Beginnings and ends in channels told to this node.",
        operations.transitions,
    )?;
    page.counter(
        "backplane_wills_told",
        "Connections of dead nodes whose end this node told to hooks.",
        operations.wills_told,
    )?;
    page.counter(
        "backplane_wills_failed",
        "Batches of what is to be told of connections that were not written and are later.",
        operations.wills_failed,
    )?;
    page.counter("backplane_orders", "Orders received.", operations.orders_received)?;
    let skipped = [
        ("history", operations.history_undecodable),
        ("presence", operations.presence_undecodable),
        ("node", operations.records_undecodable),
        ("order", operations.orders_undecodable + operations.orders_unknown),
    ];
    page.counters_by(
        "backplane_undecodable",
        "Entries of another version or of others, skipped.",
        "entry",
        skipped,
    )
}

fn presence_subscriptions(page: &mut Page<'_>, subscriptions: u64) -> fmt::Result {
    let help = "Subscriptions of this node that are listed or counted in presence.";
    page.gauge("backplane_presence_subscriptions", help, subscriptions as f64)
}

/// One sum over all servers for each label.
fn sums<'a, const N: usize>(
    labels: &'a [&'static str; N],
    links: &'a [LinkCounters],
    of: fn(&LinkCounters) -> &[u64; N],
) -> impl Iterator<Item = (&'static str, u64)> + 'a {
    labels.iter().enumerate().map(move |(at, label)| (*label, links.iter().map(|link| of(link)[at]).sum()))
}
