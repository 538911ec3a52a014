//! Reads of a channel's history and of where it stands.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::{
    contract::Commands,
    counters::Tallies,
    envelope::{self, Place, Tag},
    names::Prefix,
    scripts::{self, Answer},
};
use crate::{BackplaneError, Channel, Epoch, History, HistoryQuery, Position, Publication};

/// Bytes after which an answer holds no further publication, each counted as 1,024 and its body. So an answer has at
/// most 1,024 publications, about 2 ms of the server's time, and about 1 MiB and the last body.
const PAGE_BYTES: usize = 1 << 20;

/// How often a history of several pages is begun again because it lost its beginning while it was read.
const ATTEMPTS: usize = 3;

/// Reads channels of one deployment.
#[derive(Clone)]
pub(crate) struct Reader {
    commands: Arc<dyn Commands>,
    prefix: Prefix,
    tallies: Arc<Tallies>,
}

/// Where a channel stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Position and tag of the newest publication; offset 0 and [`Tag::NONE`] in an epoch that has none yet.
    pub(crate) top: Place,
    /// The age of the channel's history, after which its state expires unless it is used.
    pub(crate) age: Duration,
}

/// A part of a channel's history.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Page {
    /// `None` for a channel without state; then nothing else is there.
    pub(crate) standing: Option<Standing>,
    /// As in [`History::continuous`], but for what could not be decoded.
    pub(crate) continuous: bool,
    /// Entries of another version or of somebody else: they are missing from `publications`.
    pub(crate) undecodable: usize,
    /// The tag that the stream has at the position after which was read; `None` when that entry is no longer there,
    /// or the position is of another epoch or above the top.
    pub(crate) since_tag: Option<Tag>,
    /// Oldest first. Fewer than asked for when they are many bytes: read on after [`last`](Self::last).
    pub(crate) publications: Vec<(Tag, Arc<Publication>)>,
    /// Offset of the last entry that was read, decoded or not; `None` when none was.
    pub(crate) last: Option<u64>,
    /// How long that entry is kept.
    pub(crate) left: Option<Duration>,
}

impl Reader {
    pub(crate) fn new(commands: Arc<dyn Commands>, prefix: Prefix, tallies: Arc<Tallies>) -> Self {
        Self { commands, prefix, tallies }
    }

    /// As [`Backplane::history`](crate::Backplane::history).
    pub(crate) async fn history(
        &self,
        channel: &Channel,
        query: HistoryQuery,
    ) -> Result<History, BackplaneError> {
        for _ in 0..ATTEMPTS {
            if let Some(history) = self.whole(channel, query).await? {
                return Ok(history);
            }
        }
        Err(BackplaneError::Unavailable("history was let go of faster than it could be read".into()))
    }

    /// Lets go of a channel's publications. Where it stands is kept elsewhere.
    pub(crate) async fn forget(&self, channel: &Channel) -> Result<(), BackplaneError> {
        let tag = channel.as_str();
        let stream = self.prefix.stream(tag);
        scripts::FORGET.call(&*self.commands, tag, &[stream.as_bytes()], &[]).await.map(|_| ())
    }

    /// One answer of the server: what came after a position, or the newest.
    pub(crate) async fn page(
        &self,
        channel: &Channel,
        since: Option<Position>,
        limit: usize,
    ) -> Result<Page, BackplaneError> {
        self.bounded(channel, HistoryQuery { since, limit, bytes: usize::MAX }).await
    }

    /// One answer of the server, which is no larger than the query allows.
    async fn bounded(&self, channel: &Channel, query: HistoryQuery) -> Result<Page, BackplaneError> {
        let HistoryQuery { since, limit, bytes } = query;
        let tag = channel.as_str();
        let (meta, stream) = (self.prefix.meta(tag), self.prefix.stream(tag));
        let epoch = since.map(|since| since.epoch.0.to_be_bytes());
        let epoch = epoch.as_ref().map_or(&[][..], |epoch| &epoch[..]);
        let offset = since.map_or(0, |since| since.offset).to_string();
        // Above any stream; numbers in Lua are exact up to 2^53.
        let limit = limit.min(u32::MAX as usize).to_string();
        let room = bytes.min(u32::MAX as usize).to_string();
        let bytes = PAGE_BYTES.to_string();
        let keys = [meta.as_bytes(), stream.as_bytes()];
        let args = [epoch, offset.as_bytes(), limit.as_bytes(), bytes.as_bytes(), room.as_bytes()];
        let answer = scripts::HISTORY.call(&*self.commands, tag, &keys, &args).await?;
        self.read_page(answer, since)
    }

    /// Where channels of one route stand, those that have state.
    pub(crate) async fn positions(
        &self,
        channels: &[&Channel],
    ) -> Result<Vec<Option<Standing>>, BackplaneError> {
        let Some(first) = channels.first() else { return Ok(Vec::new()) };
        let metas: Vec<_> = channels.iter().map(|channel| self.prefix.meta(channel.as_str())).collect();
        let keys: Vec<_> = metas.iter().map(String::as_bytes).collect();
        let mut answer = scripts::POSITIONS.call(&*self.commands, first.as_str(), &keys, &[]).await?;
        channels.iter().map(|_| read_standing(answer.list()?)).collect()
    }

    /// Counts as use of channels of one route, whose histories have these ages: their state does not expire.
    pub(crate) async fn renew(&self, channels: &[(&Channel, Duration)]) -> Result<(), BackplaneError> {
        let Some((first, _)) = channels.first() else { return Ok(()) };
        let metas: Vec<_> = channels.iter().map(|(channel, _)| self.prefix.meta(channel.as_str())).collect();
        let ages: Vec<_> = channels.iter().map(|(_, age)| age.as_millis().to_string()).collect();
        let [keys, args] =
            [&metas, &ages].map(|texts| texts.iter().map(String::as_bytes).collect::<Vec<_>>());
        scripts::RENEW.call(&*self.commands, first.as_str(), &keys, &args).await.map(|_| ())
    }

    /// Has the channel begin a new epoch unless `epoch` is over already; answers where it stands then.
    pub(crate) async fn renounce(
        &self,
        channel: &Channel,
        epoch: Epoch,
    ) -> Result<Option<Standing>, BackplaneError> {
        let tag = channel.as_str();
        let meta = self.prefix.meta(tag);
        let new = scripts::random_epoch()?;
        let args = [&epoch.0.to_be_bytes()[..], &new.0.to_be_bytes()[..]];
        let standing =
            read_standing(scripts::RENOUNCE.call(&*self.commands, tag, &[meta.as_bytes()], &args).await?)?;
        if standing.is_some_and(|standing| standing.top.position.epoch == new) {
            self.tallies.epochs_renounced.fetch_add(1, Relaxed);
        }
        Ok(standing)
    }

    /// All that a query asks for, up to where the channel stood at first. `None`: what was still to be read is gone.
    async fn whole(&self, channel: &Channel, query: HistoryQuery) -> Result<Option<History>, BackplaneError> {
        let first = self.bounded(channel, query).await?;
        let top = first.standing.map(|standing| standing.top.position);
        let mut undecodable = first.undecodable;
        let (left, continuous) = (first.left, first.continuous);
        let mut history = History { publications: Vec::new(), top, left, continuous };
        let (Some(top), Some(mut last)) = (top, first.last) else { return Ok(Some(history)) };
        history.publications.extend(first.publications.into_iter().map(|(_, publication)| publication));
        let mut left = query.limit.saturating_sub(history.publications.len());
        // A bounded read is one answer: whoever bounds it reads on by itself.
        let is_whole = query.bytes <= PAGE_BYTES;
        while last < top.offset && left > 0 && !is_whole {
            let since = Some(Position { offset: last, ..top });
            let page = self.page(channel, since, left).await?;
            let Some(read) = page.last.filter(|_| page.continuous) else { return Ok(None) };
            (last, history.left) = (read, page.left);
            undecodable += page.undecodable;
            let up_to_top = page.publications.into_iter().map(|(_, publication)| publication);
            let up_to_top = up_to_top.filter(|it| it.position.is_some_and(|at| at.offset <= top.offset));
            history.publications.extend(up_to_top);
            left = query.limit.saturating_sub(history.publications.len());
        }
        history.continuous &= query.since.is_none() || undecodable == 0;
        Ok(Some(history))
    }

    fn read_page(&self, mut answer: Answer, since: Option<Position>) -> Result<Page, BackplaneError> {
        if answer.is_empty() {
            return Ok(Page {
                standing: None,
                continuous: since.is_none(),
                undecodable: 0,
                since_tag: None,
                publications: Vec::new(),
                last: None,
                left: None,
            });
        }
        let standing = take_standing(&mut answer)?;
        let mut page = Page {
            standing: Some(standing),
            continuous: answer.flag()?,
            undecodable: 0,
            since_tag: answer.optional_word()?.map(Tag),
            publications: Vec::new(),
            last: None,
            left: None,
        };
        let mut entries = answer.list()?;
        let left = Duration::from_millis(answer.number()?);
        page.left = (!entries.is_empty()).then_some(left);
        while !entries.is_empty() {
            let offset = entries.number()?;
            let position = Position { offset, ..standing.top.position };
            page.last = Some(offset);
            match envelope::decode_body(position, entries.bytes()?) {
                Ok((tag, publication)) => page.publications.push((tag, Arc::new(publication))),
                Err(_) => {
                    self.tallies.history_undecodable.fetch_add(1, Relaxed);
                    page.undecodable += 1;
                }
            }
        }
        Ok(page)
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

fn read_standing(mut answer: Answer) -> Result<Option<Standing>, BackplaneError> {
    if answer.is_empty() {
        return Ok(None);
    }
    take_standing(&mut answer).map(Some)
}

fn take_standing(answer: &mut Answer) -> Result<Standing, BackplaneError> {
    let epoch = Epoch(answer.word()?);
    let offset = answer.number()?;
    let tag = Tag(answer.word()?);
    let age = Duration::from_millis(answer.number()?);
    Ok(Standing { top: Place { position: Position { epoch, offset }, tag }, age })
}
