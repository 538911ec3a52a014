//! The rows: faults × how is published × with history or without × replicas × what Redis keeps on its disk.

use std::collections::BTreeSet;

use tidegate_tests::cluster::publishers::Manner;

use crate::faults;
use crate::world::{self, World};

/// What Redis keeps over its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Keeps {
    /// All that it answered for: `appendfsync always`.
    Aof,
    /// A snapshot that was made before the fault: it comes back with older data.
    Rdb,
    Nothing,
}

/// What may take back what was accepted, which is then told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forgets {
    Never,
    /// A server ends, and does not keep everything.
    ByDisk,
    /// Another server takes over, and nobody waited until it had everything.
    ByReplica,
}

/// What happens, where, and what follows from it.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    pub(crate) begin: fn(&Row) -> World,
    pub(crate) happen: fn(&mut World, &crate::trial::Moment<'_>),
    pub(crate) forgets: Forgets,
    /// Nothing but Redis fails: no client is closed.
    pub(crate) spares_clients: bool,
    /// `redis.replicas = 1` is tried too.
    pub(crate) replicas: bool,
}

/// One row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) fault: &'static Fault,
    pub(crate) manner: Manner,
    pub(crate) history: bool,
    pub(crate) replicas: u8,
    pub(crate) keeps: Keeps,
    /// It runs in every test run.
    short: bool,
}

/// Where no server ends, what it keeps on its disk is never read: that column is left out.
const FAULT: Fault = Fault {
    name: "",
    begin: world::one_server,
    happen: faults::nothing,
    forgets: Forgets::Never,
    spares_clients: true,
    replicas: true,
};

#[rustfmt::skip]
static FAULTS: &[Fault] = &[
    Fault { name: "none", ..FAULT },
    Fault { name: "clients_cut_off_from_memory", begin: world::memory, happen: faults::clients_cut_off, spares_clients: false, replicas: false, ..FAULT },
    Fault { name: "gateway_killed", happen: faults::gateway_killed, spares_clients: false, ..FAULT },
    Fault { name: "killed_twice", happen: faults::killed_twice, forgets: Forgets::ByDisk, ..FAULT },
    Fault { name: "away_for_longer_than_the_lease", happen: faults::away_for_longer_than_the_lease, forgets: Forgets::ByDisk, ..FAULT },
    Fault { name: "one_of_three_killed", begin: world::three_servers, happen: faults::one_of_three_killed, forgets: Forgets::ByDisk, ..FAULT },
    Fault { name: "hung", happen: faults::hung, ..FAULT },
    Fault { name: "failed_over", begin: world::sentinel, happen: faults::failed_over, forgets: Forgets::ByReplica, ..FAULT },
    Fault { name: "hung_and_failed_over", begin: world::sentinel, happen: faults::hung_and_failed_over, forgets: Forgets::ByReplica, ..FAULT },
    Fault { name: "resharded", begin: world::cluster, happen: faults::resharded, ..FAULT },
    Fault { name: "master_of_a_cluster_killed", begin: world::cluster_with_replicas, happen: faults::master_of_a_cluster_killed, forgets: Forgets::ByReplica, ..FAULT },
    Fault { name: "out_of_memory", happen: faults::out_of_memory, ..FAULT },
    Fault { name: "snapshots_fail", begin: world::server_with_snapshots, happen: faults::snapshots_fail, ..FAULT },
    Fault { name: "slow", begin: world::behind_a_wire, happen: faults::slow, ..FAULT },
    Fault { name: "clock_jumps", begin: world::server_with_a_clock, happen: faults::clock_jumps, ..FAULT },
    Fault { name: "subscriber_cut_off_for_its_backlog", begin: world::server_with_little_room, happen: faults::subscriber_cut_off_for_its_backlog, ..FAULT },
    Fault { name: "password_rotated", begin: world::server_with_a_password, happen: faults::password_rotated, ..FAULT },
    Fault { name: "one_of_two_addresses_dead", begin: world::two_addresses, happen: faults::killed_twice, ..FAULT },
];

const MANNERS: [Manner; 3] = [Manner::PLAIN, Manner::FLIGHT, Manner::KEYED];
const KEEPS: [Keeps; 3] = [Keeps::Aof, Keeps::Rdb, Keeps::Nothing];

/// All of them, those of every test run first.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> =
        FAULTS.iter().enumerate().flat_map(|(number, fault)| rows_of(number, fault)).collect();
    rows.sort_by_key(|row| !row.short);
    rows
}

fn rows_of(number: usize, fault: &'static Fault) -> Vec<Row> {
    let keeps = if fault.forgets == Forgets::ByDisk { &KEEPS[..] } else { &KEEPS[..1] };
    let replicas = if fault.replicas { &[1, 0][..] } else { &[0] };
    let mut rows = Vec::new();
    for (at, &manner) in MANNERS.iter().enumerate() {
        for history in [true, false] {
            for &replicas in replicas {
                for &keeps in keeps {
                    rows.push(Row { fault, manner, history, replicas, keeps, short: false });
                }
            }
        }
        // One row for each manner or fewer, in which each value of the other columns comes up: with history and a
        // replica, without both, with one of them.
        let turn = (at + number) % MANNERS.len();
        let wanted = [(true, 1, Keeps::Aof), (false, 0, Keeps::Rdb), (true, 0, Keeps::Nothing)][turn];
        let wanted =
            (wanted.0, wanted.1.min(replicas[0]), if keeps.len() > 1 { wanted.2 } else { Keeps::Aof });
        if turn < 2 || keeps.len() > 1 {
            let mut of_manner = rows.iter_mut().filter(|row| row.manner == manner);
            let row = of_manner.find(|row| (row.history, row.replicas, row.keeps) == wanted);
            row.expect("every combination is there").short = true;
        }
    }
    rows
}

impl Row {
    pub(crate) fn name(&self) -> String {
        let long = if self.short { "" } else { "long::" };
        let Self { fault, manner, .. } = self;
        format!("{long}{}::{}::{}", fault.name, manner.name, self.rest("::"))
    }

    /// The columns after the first two.
    pub(crate) fn rest(&self, between: &str) -> String {
        let history = if self.history { "history" } else { "no_history" };
        let replicas = ["alone", "replica"][usize::from(self.replicas)];
        let keeps = match self.keeps {
            Keeps::Aof => "aof",
            Keeps::Rdb => "rdb",
            Keeps::Nothing => "kept_nothing",
        };
        [history, replicas, keeps].join(between)
    }

    /// Redis may lose what it accepted, which is told.
    pub(crate) fn forgets(&self) -> bool {
        match self.fault.forgets {
            Forgets::Never => false,
            Forgets::ByDisk => self.keeps != Keeps::Aof,
            Forgets::ByReplica => self.replicas == 0,
        }
    }

    /// What is published is written, and not only handed on.
    pub(crate) fn writes(&self) -> bool {
        self.history || self.manner.keyed
    }
}

pub(crate) fn covers_what_it_should() {
    let rows = rows();
    let names: BTreeSet<String> = rows.iter().map(Row::name).collect();
    assert_eq!(names.len(), rows.len(), "each row has a name of its own");
    let short = || rows.iter().filter(|row| row.short);
    assert!(short().count() <= 45, "{} rows at some 10 s are ten minutes of every test run", short().count());
    for fault in FAULTS {
        let of_fault = || short().filter(|row| std::ptr::eq(row.fault, fault));
        assert!(of_fault().any(|row| row.history) && of_fault().any(|row| !row.history), "{}", fault.name);
        let keeps: BTreeSet<Keeps> = of_fault().map(|row| row.keeps).collect();
        assert!(fault.forgets != Forgets::ByDisk || keeps.len() == KEEPS.len(), "{}: {keeps:?}", fault.name);
        assert!(!fault.replicas || of_fault().any(|row| row.replicas == 1), "{}", fault.name);
    }
    for manner in MANNERS {
        assert!(short().filter(|row| row.manner == manner).count() >= FAULTS.len() / 2, "{}", manner.name);
    }
}
