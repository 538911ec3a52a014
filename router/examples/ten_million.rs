//! Ten million keys on 500 nodes, with the placement that routers use: the loss of a node and of a zone, a roll, and 50 nodes
//! more. `cargo xtask ten-million` runs it, and writes the tables and plots of `docs/ten-million.md`.
//!
//! It prints a table in Markdown. An argument is the directory for the plots; a second one is the number of keys, for a
//! smaller run.

use std::{env, fs, num::NonZeroU32, path::Path};

use tidegate_router::placement::{LoadFactor, Member, View};
use tidegate_testkit::plot::{Plot, Points};

const NODES: usize = 500;
const ZONES: usize = 3;
const ADDED: usize = 50;
/// Nodes that are restarted together.
const AT_ONCE: usize = 25;
/// What a node lets in (`limits.handshakes_per_second`), and a second's part of what `fill.period` moves.
const HANDSHAKES_PER_SECOND: u64 = 2_000;
const FILL_PERIOD_S: f64 = 60.0;
const DRAIN_PERIOD_S: u64 = 30;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let keys = arguments.get(1).and_then(|keys| keys.parse().ok()).unwrap_or(10_000_000);
    let mut site = Site::new(keys);
    let rows = [site.loss_of_node(), site.loss_of_zone()];
    let (roll, roll_line) = site.roll();
    let (out, out_line, out_herd) = site.scale_out();
    println!(
        "| what happens | clients moved | of all | max / mean at the worst | max / mean at the end | to one node in a second, most |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    println!("| {keys} keys on {NODES} nodes | | | | {} | |", ratio(site.base));
    for row in rows.iter().chain([&roll, &out]) {
        println!("{}", row.line(keys));
    }
    if let Some(directory) = arguments.first() {
        let directory = Path::new(directory);
        let balance = Plot {
            title: "Fullest node, in multiples of the mean".to_owned(),
            x: "minutes",
            y: "max / mean",
            floor: 1.0,
            lines: vec![("roll, 25 nodes at once", roll_line), ("50 nodes more", out_line)],
        };
        let herd = Plot {
            title: "Handshakes of one of 50 new nodes".to_owned(),
            x: "minutes",
            y: "a second, most of any node",
            floor: 0.0,
            lines: vec![("filled with a period of 60 s", out_herd)],
        };
        for (name, plot) in [("ten-million-balance.svg", balance), ("ten-million-herd.svg", herd)] {
            fs::write(directory.join(name), plot.svg()).expect("the directory is writable");
        }
    }
}

/// Where every client is.
struct Site {
    members: Vec<Member>,
    /// By index in `members`, whose order is the view's.
    view: View,
    loads: Vec<u64>,
    on: Vec<u16>,
    base: f64,
}

/// A line of the table.
struct Row {
    what: String,
    moved: u64,
    worst: f64,
    end: f64,
    herd: u64,
}

impl Row {
    fn line(&self, keys: usize) -> String {
        let part = self.moved as f64 * 100.0 / keys as f64;
        let (worst, end) = (ratio(self.worst), ratio(self.end));
        format!("| {} | {} | {part:.1} % | {worst} | {end} | {} |", self.what, self.moved, self.herd)
    }
}

fn member(number: usize, draining: bool) -> Member {
    Member {
        name: format!("gateway-{number:03}").into(),
        address: "10.0.0.1:8000".into(),
        weight: NonZeroU32::new(40_000).expect("not zero"),
        draining,
    }
}

fn key(client: usize) -> [u8; 8] {
    (client as u64).to_le_bytes()
}

impl Site {
    fn new(keys: usize) -> Self {
        let members: Vec<Member> = (0..NODES).map(|number| member(number, false)).collect();
        let view = View::new(members.iter().cloned());
        let mut site = Self { members, view, loads: vec![0; NODES], on: vec![0; keys], base: 0.0 };
        for client in 0..keys {
            let node = site.place(client);
            site.on[client] = node as u16;
            site.loads[node] += 1;
        }
        site.base = site.fullest();
        site
    }

    /// As a router places a client that comes now.
    fn place(&self, client: usize) -> usize {
        let placed = self.view.place(&key(client), LoadFactor::DEFAULT, |index| self.loads[index]);
        index_of(placed.expect("nodes live"))
    }

    fn set(&mut self, draining: impl Fn(usize) -> bool) {
        for (number, member) in self.members.iter_mut().enumerate() {
            member.draining = draining(number);
        }
        self.view = View::new(self.members.iter().cloned());
    }

    /// Of the nodes that live, the fullest by their mean.
    fn fullest(&self) -> f64 {
        let live: Vec<u64> = self.view.live().map(|index| self.loads[index]).collect();
        let most = live.iter().max().copied().unwrap_or(0);
        most as f64 * live.len() as f64 / live.iter().sum::<u64>().max(1) as f64
    }

    /// Clients of nodes that are gone come to others; how many, and how many of them the busiest node got.
    fn flee(&mut self, is_gone: impl Fn(usize) -> bool) -> (u64, u64) {
        let (mut moved, mut came) = (0, vec![0u64; self.members.len()]);
        for client in 0..self.on.len() {
            let from = usize::from(self.on[client]);
            if is_gone(from) {
                self.loads[from] -= 1;
                let to = self.place(client);
                self.loads[to] += 1;
                self.on[client] = to as u16;
                came[to] += 1;
                moved += 1;
            }
        }
        (moved, came.into_iter().max().unwrap_or(0))
    }

    fn loss(&mut self, what: &str, is_gone: impl Fn(usize) -> bool + Copy) -> Row {
        let before = (self.on.clone(), self.loads.clone());
        self.set(is_gone);
        let (moved, came) = self.flee(is_gone);
        let fullest = self.fullest();
        (self.on, self.loads) = before;
        self.set(|_| false);
        let what = format!(
            "{what}; at {HANDSHAKES_PER_SECOND}/s {:.1} s",
            came as f64 / HANDSHAKES_PER_SECOND as f64
        );
        Row { what, moved, worst: fullest, end: fullest, herd: came.min(HANDSHAKES_PER_SECOND) }
    }

    fn loss_of_node(&mut self) -> Row {
        self.loss("a node is lost", |number| number == 7)
    }

    fn loss_of_zone(&mut self) -> Row {
        self.loss("one of three zones is lost", |number| number % ZONES == 1)
    }

    /// The first choice of every client.
    fn firsts(&self) -> Vec<u16> {
        let free = |client: usize| {
            index_of(self.view.place(&key(client), LoadFactor::DEFAULT, |_| 0).expect("nodes live")) as u16
        };
        (0..self.on.len()).map(free).collect()
    }

    /// Clients whose first choice is among these, and that are elsewhere, come home, a part of them each second. Points
    /// are minutes and the fullest node; the last number is the most that came to one node in one second.
    fn fill(
        &mut self,
        firsts: &[u16],
        takes: impl Fn(usize) -> bool,
        from_s: f64,
        seen: &mut Seen,
    ) -> (u64, f64) {
        let mut away: Vec<u32> = (0..self.on.len())
            .filter(|&client| takes(usize::from(firsts[client])) && self.on[client] != firsts[client])
            .map(|client| client as u32)
            .collect();
        // In the order of their keys' hashes, which is any order.
        away.sort_unstable_by_key(|client| client.wrapping_mul(2_654_435_761));
        let (mut moved, mut second) = (0, from_s);
        while !away.is_empty() {
            let part = ((away.len() as f64 / FILL_PERIOD_S).ceil() as usize).min(away.len());
            let mut came = vec![0u64; self.members.len()];
            for client in away.split_off(away.len() - part) {
                let (client, to) = (client as usize, usize::from(firsts[client as usize]));
                // What routers do: a node that has nine tenths of its share takes no more.
                let mean = self.on.len() as f64 / self.view.live().count() as f64;
                if self.loads[to] as f64 >= 0.9 * mean
                    || (self.loads[usize::from(self.on[client])] as f64) <= mean
                {
                    continue;
                }
                self.loads[usize::from(self.on[client])] -= 1;
                self.loads[to] += 1;
                self.on[client] = to as u16;
                came[to] += 1;
                moved += 1;
            }
            second += 1.0;
            seen.at(second, self.fullest(), came.into_iter().max().unwrap_or(0));
        }
        (moved, second)
    }

    /// 25 nodes at once drain, come back under their names, and are filled.
    fn roll(&mut self) -> (Row, Points) {
        let before = (self.on.clone(), self.loads.clone());
        let firsts = self.firsts();
        let (mut seen, mut moved, mut second) = (Seen::default(), 0, 0.0);
        seen.at(0.0, self.fullest(), 0);
        for batch in 0..NODES.div_ceil(AT_ONCE) {
            let is_gone = move |number: usize| number / AT_ONCE == batch;
            self.set(is_gone);
            let (fled, came) = self.flee(is_gone);
            second += DRAIN_PERIOD_S as f64 + 10.0;
            seen.at(second, self.fullest(), came.div_ceil(DRAIN_PERIOD_S));
            self.set(|_| false);
            let (filled, until) = self.fill(&firsts, is_gone, second, &mut seen);
            (moved, second) = (moved + fled + filled, until);
        }
        let row =
            seen.row(format!("a roll, {AT_ONCE} at once, {:.0} min", second / 60.0), moved, self.fullest());
        (self.on, self.loads) = before;
        (row, seen.balance)
    }

    fn scale_out(&mut self) -> (Row, Points, Points) {
        self.members.extend((NODES..NODES + ADDED).map(|number| member(number, false)));
        self.loads.resize(NODES + ADDED, 0);
        self.set(|_| false);
        let firsts = self.firsts();
        let mut seen = Seen::default();
        seen.at(0.0, self.fullest(), 0);
        let (moved, second) = self.fill(&firsts, |number| number >= NODES, 0.0, &mut seen);
        let row = seen.row(format!("{ADDED} nodes more, {:.0} min", second / 60.0), moved, self.fullest());
        (row, seen.balance, seen.herds)
    }
}

/// What was seen over time, in minutes.
#[derive(Default)]
struct Seen {
    balance: Points,
    herds: Points,
}

impl Seen {
    fn at(&mut self, second: f64, fullest: f64, herd: u64) {
        self.balance.push((second / 60.0, fullest));
        self.herds.push((second / 60.0, herd as f64));
    }

    fn row(&self, what: String, moved: u64, end: f64) -> Row {
        let most = |points: &[(f64, f64)]| points.iter().map(|point| point.1).fold(0.0, f64::max);
        Row { what, moved, worst: most(&self.balance), end, herd: most(&self.herds) as u64 }
    }
}

fn index_of(member: &Member) -> usize {
    member.name.trim_start_matches("gateway-").parse().expect("a number")
}

fn ratio(value: f64) -> String {
    format!("{value:.3}")
}
