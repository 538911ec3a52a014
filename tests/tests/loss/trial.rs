//! Runs one row, and judges what clients, history and presence lists have at its end.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tidegate_testkit::{Closed, DEADLINE, Rest, eventually};
use tidegate_tests::cluster::figures::record;
use tidegate_tests::cluster::fleet::Fleet;
use tidegate_tests::cluster::ledger::Verdict;
use tidegate_tests::cluster::publishers::{Progress, Publishers};
use tidegate_tests::cluster::room::Room;
use tidegate_tests::cluster::site::Site;

use crate::table::Row;

const CLIENTS: usize = 300;
const CHANNELS: usize = 100;
/// How long is published when nothing is in the way.
const PUBLISHING: Duration = Duration::from_millis(6_400);
/// To each channel, and one more at the end: 5,000 a second in flights, 2,000 one by one.
const IN_FLIGHTS: u32 = 20 * 16;
const ONE_BY_ONE: u32 = 128;

/// Members of the presence channel at each gateway.
const MEMBERS_EACH: usize = 2;

/// What a fault sees of the trial that it happens in.
#[derive(Debug)]
pub(crate) struct Moment<'a> {
    pub(crate) row: &'a Row,
    pub(crate) clients: usize,
    pub(crate) members: usize,
    publications: usize,
    progress: &'a Progress,
}

/// What came out.
struct Outcome {
    publications: usize,
    repeated: usize,
    let_go: usize,
    verdict: Verdict,
    /// Publications that were accepted and that history does not have at the end.
    taken_back: usize,
    missing_though_kept: usize,
    /// Ends of members of the presence channel whose gateway is still there.
    members_closed: Vec<(SocketAddr, Closed)>,
    seconds: f64,
}

impl Moment<'_> {
    #[track_caller]
    pub(crate) fn eventually(&self, percent: usize) {
        self.progress.eventually(percent);
    }

    /// Waits until so much is through, or publishers that repeat have done so a few times: they wait for the end of the
    /// fault.
    #[track_caller]
    pub(crate) fn eventually_repeated_or(&self, percent: usize) {
        let (begin, total) = (self.repeated(), self.publications);
        eventually(&format!("{percent} % or repeated"), DEADLINE, || {
            (self.accepted() + self.let_go()) * 100 >= total * percent || self.repeated() > begin + 50
        });
    }

    pub(crate) fn accepted(&self) -> usize {
        self.progress.accepted()
    }

    pub(crate) fn repeated(&self) -> usize {
        self.progress.repeated()
    }

    pub(crate) fn let_go(&self) -> usize {
        self.progress.let_go()
    }
}

pub(crate) fn run(row: &Row) {
    let start = Instant::now();
    let mut world = (row.fault.begin)(row);
    let namespace = if row.history { "kept" } else { "live" };
    let channels: Vec<String> = (0..CHANNELS).map(|number| format!("{namespace}:{number}")).collect();
    let doors = world.doors.clone();
    let rounds = if row.manner.flight > 1 { IN_FLIGHTS } else { ONE_BY_ONE };
    let per_channel = rounds + 1;
    let fleet = Fleet::start(&doors, &channels, CLIENTS / doors.len(), row.history, per_channel);
    let mut room = Room::default();
    for gateway in &world.site.gateways {
        (0..MEMBERS_EACH).for_each(|_| room.join(gateway.public()));
    }
    let gateways = world.site.addresses();
    let publishers = Publishers {
        gateways: &gateways,
        channels: &channels,
        per_channel,
        round: PUBLISHING / rounds,
        manner: row.manner,
    };
    let mut members_closed = Vec::new();
    let progress = publishers.run(|progress| {
        progress.eventually(10);
        world.snapshot(row);
        // What a snapshot has is not the truth any more.
        room.leave();
        room.join(gateways[gateways.len() - 1]);
        let publications = CHANNELS * per_channel as usize;
        let moment = Moment { row, clients: CLIENTS, members: room.len(), publications, progress };
        (row.fault.happen)(&mut world, &moment);
        world.site.eventually_ready(true);
        room.join(gateways[0]);
        members_closed = judge_room(&mut room, &world.site);
    });
    fleet.eventually_finished();
    let excused = progress.excused();
    let (verdict, missing) = fleet.judge(&excused);
    let mut taken_back =
        if row.history { taken_back(&world.site, &channels, per_channel) } else { BTreeSet::new() };
    taken_back
        .retain(|(channel, number)| !excused.get(channel).is_some_and(|numbers| numbers.contains(number)));
    let outcome = Outcome {
        publications: progress.accepted(),
        repeated: progress.repeated(),
        let_go: progress.let_go(),
        verdict,
        taken_back: taken_back.len(),
        missing_though_kept: missing.difference(&taken_back).count(),
        members_closed,
        seconds: start.elapsed().as_secs_f64(),
    };
    outcome.keep(row);
    outcome.assert(row);
}

/// Gives those that were closed though their gateway is there.
#[track_caller]
fn judge_room(room: &mut Room, site: &Site) -> Vec<(SocketAddr, Closed)> {
    let mut closed = room.take_closed();
    room.judge(&site.gateways);
    closed.extend(room.take_closed());
    let addresses = site.addresses();
    closed.retain(|(at, _)| addresses.contains(at));
    closed
}

/// What history does not have, by channel and number.
fn taken_back(site: &Site, channels: &[String], per_channel: u32) -> BTreeSet<(String, u32)> {
    let rest = Rest::new(site.addresses()[0]).with_key("dev-key");
    let missing = channels.iter().flat_map(|channel| {
        let history = rest.get(&format!("/v1/channels/{channel}/history?limit=1000")).json();
        let publications = history["publications"].as_array().map(Vec::as_slice).unwrap_or_default();
        let number = |publication: &Value| publication["data"].as_str()?.parse().ok();
        let kept: BTreeSet<u32> = publications.iter().filter_map(number).collect();
        let missing = (0..per_channel).filter(move |number| !kept.contains(number));
        missing.map(|number| (channel.clone(), number))
    });
    missing.collect()
}

impl Outcome {
    /// Prints the row, and keeps it for `cargo xtask faults`.
    fn keep(&self, row: &Row) {
        let Self { publications, repeated, let_go, verdict, taken_back, seconds, .. } = self;
        let Verdict { lost, silent, duplicated, misordered, gaps, closes } = verdict;
        let (fault, manner) = (row.fault.name.replace('_', " "), row.manner.name);
        let line = format!(
            "| {fault} | {manner} | {} | {publications} | {repeated} | {let_go} | {taken_back} | {lost} | {silent} \
             | {duplicated} | {misordered} | {gaps} | {closes} | {seconds:.1} |",
            row.rest(", ").replace('_', " "),
        );
        record(&format!("loss-table/{}-{manner}-{}.md", row.fault.name, row.rest("-")), &line);
    }

    fn assert(&self, row: &Row) {
        let Verdict { lost, silent, duplicated, misordered, closes, .. } = self.verdict;
        assert_eq!(misordered, 0, "in order");
        assert_eq!(silent, 0, "whoever misses something was told so, at that place");
        // A Redis that lost its data has forgotten keys as well: what is repeated then may come twice.
        if !(row.forgets() && row.manner.keyed) {
            assert_eq!(duplicated, 0, "once");
        }
        assert!(self.members_closed.is_empty(), "closed without need: {:?}", self.members_closed);
        if row.fault.spares_clients {
            assert_eq!(closes, 0, "no client is closed for what Redis does");
        }
        if row.history {
            assert_eq!(self.missing_though_kept, 0, "every client has what history has");
            if !row.forgets() {
                assert_eq!((self.taken_back, lost), (0, 0), "history has everything");
            }
        }
    }
}
