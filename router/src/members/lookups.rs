//! Looking up many names at once, beside the rounds: a name server that is silent about one name holds up no other, and
//! what is known is used meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    pin::Pin,
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::names::{NameError, Names};

/// What names were last found to stand for.
pub(super) struct Lookups<V> {
    names: Names,
    look: Look<V>,
    found: BTreeMap<Box<str>, V>,
    /// Names whose lookups run.
    asked: BTreeSet<Box<str>>,
    running: JoinSet<(Box<str>, Result<V, NameError>)>,
}

/// Looks up one name.
pub(super) type Look<V> = fn(Names, Box<str>) -> Lookup<V>;

pub(super) type Lookup<V> = Pin<Box<dyn Future<Output = Result<V, NameError>> + Send>>;

/// Lookups under way at once. Each is a few packets.
const AT_ONCE: usize = 64;

/// A round waits so long for answers: a name server that is well has given them by then.
const PATIENCE: Duration = Duration::from_millis(500);

/// The same while a name is among them for which nothing is known.
const PATIENCE_UNKNOWN: Duration = Duration::from_secs(1);

impl<V: Send + 'static> Lookups<V> {
    pub(super) fn new(names: Names, look: Look<V>) -> Self {
        let (found, asked, running) = (BTreeMap::new(), BTreeSet::new(), JoinSet::new());
        Self { names, look, found, asked, running }
    }

    /// Looks names up again, and forgets all others. What is not answered within a round's patience stays as it was and
    /// is taken in by a later round; an error says that something did.
    pub(super) async fn refresh(&mut self, wanted: BTreeSet<Box<str>>) -> Result<(), NameError> {
        self.found.retain(|name, _| wanted.contains(name));
        let (mut unknown, mut known) = (Vec::new(), Vec::new());
        for name in wanted.iter().filter(|name| !self.asked.contains(*name)) {
            if self.found.contains_key(name) { known.push(name.clone()) } else { unknown.push(name.clone()) }
        }
        let mut waiting = unknown.into_iter().chain(known);
        let (begin, mut outcome) = (Instant::now(), Ok(()));
        loop {
            while self.running.len() < AT_ONCE {
                let Some(name) = waiting.next() else { break };
                self.ask(name);
            }
            let lacks = self.asked.iter().any(|name| wanted.contains(name) && !self.found.contains_key(name));
            let patience = if lacks { PATIENCE_UNKNOWN } else { PATIENCE };
            match timeout_at(begin + patience, self.running.join_next()).await {
                Ok(Some(Ok((name, answer)))) => outcome = self.take(name, answer, &wanted).and(outcome),
                // A lookup that panicked is not repeated.
                Ok(Some(Err(_))) => {}
                Ok(None) => return outcome,
                Err(_) => return outcome.and(Err(NameError::Slow(self.running.len()))),
            }
        }
    }

    /// What a name was last found to stand for.
    pub(super) fn get(&self, name: &str) -> Option<&V> {
        self.found.get(name)
    }

    fn ask(&mut self, name: Box<str>) {
        let lookup = (self.look)(self.names.clone(), name.clone());
        self.asked.insert(name.clone());
        self.running.spawn(async move { (name, lookup.await) });
    }

    fn take(
        &mut self,
        name: Box<str>,
        answer: Result<V, NameError>,
        wanted: &BTreeSet<Box<str>>,
    ) -> Result<(), NameError> {
        self.asked.remove(&name);
        let value = answer?;
        if wanted.contains(&name) {
            self.found.insert(name, value);
        }
        Ok(())
    }
}

impl<V> fmt::Debug for Lookups<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookups").field("asked", &self.asked).finish_non_exhaustive()
    }
}
