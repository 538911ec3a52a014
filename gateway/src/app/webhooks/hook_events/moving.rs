//! What is to be told, for another process that tells it: events that wait, and of which connections there are wills.

use std::{collections::HashMap, sync::Arc};

use tidegate_ops::succession::UpgradeError;
use tidegate_wire::fields::{Malformed, Reader, Writer};

use super::{Forward, HookEvents, Queue};
use crate::{
    app::webhooks::{
        dialect::EventJson,
        queue::Moved,
        wills::{Standing, Ticket},
    },
    config::HookEvent,
    hooks::events::about,
};

/// Of connections that are there already, all of that was written down when they came.
const OTHER_EVENTS: &str = "its hooks are told `disconnected`, or `channel.occupied` and `channel.vacated` of other channels, than those of this process: a change of that needs a restart";

/// What a connection is, in the words of [`Standing`].
const AGAIN: u8 = 0;
const OPENING: u8 = 1;

impl HookEvents {
    pub(in crate::app::webhooks) fn queues(&self) -> impl Iterator<Item = &Arc<Queue>> {
        self.told.iter().flat_map(|told| &told.lanes)
    }

    /// Whether no will is on its way.
    pub(in crate::app::webhooks) fn is_quiet(&self) -> bool {
        self.wills.get().is_none_or(|wills| wills.is_quiet())
    }

    pub(in crate::app::webhooks) fn write(&self, out: &mut Writer) {
        out.text(&self.kept());
        let standings = |out: &mut Writer, standings: &HashMap<Box<str>, Standing>| {
            // An end that waits is in a queue.
            let kept = standings.iter().filter(|(_, standing)| !matches!(standing, Standing::Ending));
            out.list(kept.collect::<Vec<_>>().into_iter(), |out, (connection, standing)| {
                out.text(connection);
                match standing {
                    Standing::Again(again) => {
                        out.u8(AGAIN);
                        out.u32(*again);
                    }
                    Standing::Opening { connected, end } => {
                        out.u8(OPENING);
                        out.bytes(connected);
                        out.option(end.as_deref(), Writer::bytes);
                    }
                    Standing::Ending => {}
                }
            });
        };
        match self.wills.get() {
            Some(wills) => wills.with(|all| standings(out, all)),
            None => standings(out, &HashMap::new()),
        }
        out.list(self.told.iter(), |out, told| {
            out.text(&told.name);
            out.list(told.lanes.iter(), |out, queue| queue.write(out));
        });
    }

    /// Takes in what another process had to tell. What was for a hook that is gone is dropped, and the log says
    /// how much: a hook that is not configured has no counters.
    ///
    /// # Errors
    /// [`UpgradeError`]: it is of another form, or connections are kept otherwise.
    pub(in crate::app::webhooks) fn take_in<'a>(&self, fields: &mut Reader<'a>) -> Result<(), UpgradeError> {
        if fields.text()? != self.kept() {
            return Err(UpgradeError::NotHere(OTHER_EVENTS));
        }
        let standings = fields.list(|fields| {
            let connection: Box<str> = fields.text()?.into();
            let standing = match fields.u8()? {
                AGAIN => Standing::Again(fields.u32()?),
                OPENING => Standing::Opening {
                    connected: fields.bytes()?.into(),
                    end: fields.option(Reader::bytes)?.map(EventJson::from),
                },
                _ => return Err(Malformed),
            };
            Ok((connection, standing))
        })?;
        let read = |fields: &mut Reader<'a>| Ok((fields.text()?, fields.list(Moved::read_list)?));
        let told = fields.list(read)?;
        let connection_of = |moved: &Moved<'_>| about(moved.json).and_then(|(_, named)| named.connection);
        let mut applications = HashMap::<Box<str>, usize>::new();
        let ends = told.iter().flat_map(|(_, queues)| queues).flatten().filter(|moved| moved.is_end);
        ends.filter_map(connection_of)
            .for_each(|connection| *applications.entry(connection).or_default() += 1);
        let tickets: HashMap<_, _> = match self.wills.get() {
            Some(wills) => {
                wills.with(|all| {
                    all.extend(applications.keys().map(|connection| (connection.clone(), Standing::Ending)));
                });
                let ticket = |(connection, count): (Box<str>, usize)| {
                    let ticket = Ticket::new(wills, &connection, count);
                    (connection, ticket)
                };
                applications.into_iter().map(ticket).collect()
            }
            None => HashMap::new(),
        };
        for (name, queues) in told {
            let own = self.told.iter().find(|told| *told.name == *name);
            let waited: usize = queues.iter().map(Vec::len).sum();
            for moved in queues.into_iter().flatten() {
                let Some((_, named)) = about(moved.json) else { continue };
                let ticket = named.connection.as_ref().filter(|_| moved.is_end);
                let ticket = ticket.and_then(|connection| tickets.get(connection)).cloned();
                match own {
                    Some(own) => own.lane(&named.happened()).go_on(moved, ticket),
                    None => ticket.iter().for_each(Ticket::settle),
                }
            }
            if own.is_none() && waited > 0 {
                tracing::warn!(
                    hook = name,
                    events = waited,
                    "what it was not told yet is dropped: the configuration has it no more"
                );
            }
        }
        self.go_on(standings);
        Ok(())
    }

    /// Those whose wills were being written are told now: that is tried again by itself.
    fn go_on(&self, standings: Vec<(Box<str>, Standing)>) {
        let Some(wills) = self.wills.get() else { return };
        for (connection, standing) in standings {
            let is_opening = matches!(standing, Standing::Opening { .. });
            wills.with(|all| all.insert(connection.clone(), standing));
            if is_opening {
                self.will_is_kept(&connection);
            }
        }
    }

    /// Another process tells what is to be told from now on.
    pub(crate) fn forward(&self, forward: Forward) {
        // It is given once.
        let _first = self.forward.set(forward);
    }

    /// Tells what the process before has to be told of connections that stayed there.
    pub(crate) fn tell_of_before(&self, event: &[u8], is_end: bool) {
        let Some((kind, named)) = about(event) else { return };
        let (happened, json) = (named.happened(), EventJson::from(event));
        match (self.wills.get(), is_end, happened.connection) {
            (Some(wills), true, Some(connection)) => wills.with(|standings| {
                standings.insert(connection.into(), Standing::Ending);
                self.tell_end(wills, &happened, &json);
            }),
            _ => self.tell_json(kind, &happened, &json, None),
        }
    }

    /// What is kept of connections and channels for what is told of them.
    fn kept(&self) -> String {
        let is_told = |event| move |told: &&super::Told| told.entry.events.contains(&event);
        let counted = self
            .told
            .iter()
            .filter(|told| is_told(HookEvent::Occupied)(told) || is_told(HookEvent::Vacated)(told));
        let mut channels: Vec<&str> =
            counted.flat_map(|told| &told.entry.channels).map(|pattern| pattern.as_str()).collect();
        channels.sort_unstable();
        channels.dedup();
        format!("{} {}", self.takes(HookEvent::Disconnected, None), channels.join(" "))
    }
}
