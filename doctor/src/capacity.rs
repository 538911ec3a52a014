//! From facts to connections: what the machine holds, what is used up first, and what must change.

use serde::Serialize;

use crate::{
    facts::{Facts, Place, Unreadable},
    limit::{Limit, limits},
    node::{Node, Resource},
    remedy::raise,
    warning::{Warning, warnings},
};

/// What the facts come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Assessment {
    pub place: Place,
    /// `None` when no limit could be read.
    pub connections: Option<u64>,
    /// The resource that is used up first.
    pub first: Option<Resource>,
    pub wanted: Option<u64>,
    /// Whether `wanted` fits; absent when nothing is wanted. Where nothing could be read it does not.
    pub met: Option<bool>,
    /// Lowest first.
    pub limits: Vec<Limit>,
    pub warnings: Vec<Warning>,
    pub unreadable: Vec<Unreadable>,
}

impl Assessment {
    /// How many connections `node` can hold with these facts; with `wanted`, also what must change to hold so many.
    pub fn of(facts: &Facts, node: Node, wanted: Option<u64>) -> Self {
        let mut limits = limits(facts, node);
        limits.sort_by_key(|limit| (limit.connections, limit.resource));
        let first = limits.first();
        let (connections, resource) =
            (first.map(|limit| limit.connections), first.map(|limit| limit.resource));
        let target = wanted.or_else(|| next_step(&limits));
        for (at, limit) in limits.iter_mut().enumerate() {
            let in_the_way = match wanted {
                Some(wanted) => limit.connections < wanted,
                None => at == 0,
            };
            if let Some(target) = target.filter(|target| in_the_way && limit.connections < *target) {
                limit.raise = raise(limit.resource, target, facts, node);
            }
        }
        Self {
            place: facts.place,
            connections,
            first: resource,
            wanted,
            met: wanted.map(|wanted| connections.is_some_and(|connections| connections >= wanted)),
            warnings: warnings(facts, node, &limits, wanted),
            limits,
            unreadable: facts.unreadable(),
        }
    }
}

/// Where raising the first limit ends: at the next one that is higher.
fn next_step(limits: &[Limit]) -> Option<u64> {
    let first = limits.first()?.connections;
    let next = limits.iter().map(|limit| limit.connections).find(|connections| *connections > first);
    Some(next.unwrap_or(first.saturating_mul(2).max(1000)))
}
