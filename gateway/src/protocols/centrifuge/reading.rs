//! `presence`, `presence_stats` and `history`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tidegate_backplane::{BackplaneError, Channel, History, HistoryQuery, Member, Position, PositionError};
use tidegate_wire::centrifuge::{
    code::{Disconnect, ErrorCode},
    message::{
        ClientInfo, HistoryRequest, HistoryResult, PresenceResult, PresenceStatsResult, Publication, Reply,
    },
};

use super::{forms, place};
use crate::{
    config::{ClientRead, Namespace},
    node::{Node, roster::List},
    session::Ctx,
};

/// Publications that one answer holds at most, and their bytes. A client that pages takes an answer with fewer than it asked
/// for as the last, so the bytes are what a page of small messages never comes to.
const HISTORY_LIMIT: usize = 300;
const HISTORY_BYTES: usize = 1024 * 1024;

/// Members that one answer names; the counts are of all.
const MEMBERS_MAX: usize = 1000;

/// What a command asks of a channel's history.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    limit: usize,
    since: Option<Since>,
    reverse: bool,
}

#[derive(Debug, Clone, Copy)]
enum Since {
    Position(Position),
    /// Of whatever epoch the channel has.
    Offset(u64),
}

impl Ctx<'_> {
    /// The channel that a command asks about: one that the connection is in, or may be in, as far as its namespace lets it.
    fn readable(&mut self, id: u32, name: &str, readers: fn(&Namespace) -> ClientRead) -> Option<Channel> {
        if name.is_empty() {
            self.cut(Disconnect::BadRequest, &"a command without its channel");
            return None;
        }
        let own = self.key_of_own(name).map(|key| self.core.hub.channel(key).clone());
        let claims = self.open().and_then(|open| open.claims().cloned());
        let channel = match own.map_or_else(|| self.core.channel_for(name, claims.as_deref()), Ok) {
            Ok(channel) => channel,
            Err(refused) => {
                self.refuse_channel(id, name, refused);
                return None;
            }
        };
        let may_read = self.may_read(&channel, readers);
        if !may_read {
            self.deny_command(id, ErrorCode::PermissionDenied, &"its namespace does not allow that");
        }
        may_read.then_some(channel)
    }

    /// Reads something of a channel, answers, and goes on.
    fn read_and_answer<T: Send + 'static>(
        &mut self,
        reading: impl Future<Output = Result<T, BackplaneError>> + Send + 'static,
        answer: impl FnOnce(&mut Ctx<'_>, T) -> Result<Reply, ErrorCode> + Send + 'static,
        id: u32,
    ) {
        self.wait_for_answer();
        self.run(reading, move |ctx, result| {
            match result.map(|read| answer(ctx, read)) {
                Ok(Ok(reply)) => ctx.send_reply(Reply { id, ..reply }),
                Ok(Err(code)) => ctx.deny_command(id, code, &code.text()),
                Err(error) => ctx.deny_command(id, ErrorCode::Internal, &error),
            }
            ctx.go_on();
        });
    }

    /// Who is in a channel, or only how many.
    pub(super) fn read_presence(&mut self, id: u32, name: &str, only_counts: bool) {
        let Some(channel) = self.readable(id, name, |namespace| namespace.client_presence) else { return };
        let node = Arc::clone(&self.core.shared.node);
        let reading = async move { node.presence(&channel).await };
        let answer = move |_: &mut Ctx<'_>, list: Option<Arc<List>>| {
            let list = list.ok_or(ErrorCode::NotAvailable)?;
            Ok(match only_counts {
                true => Reply { presence_stats: Some(counts(&list.members)), ..Reply::default() },
                false => {
                    let presence = clients(list.members.iter().take(MEMBERS_MAX));
                    Reply { presence: Some(PresenceResult { presence }), ..Reply::default() }
                }
            })
        };
        self.read_and_answer(reading, answer, id);
    }

    pub(super) fn read_history_of(&mut self, id: u32, request: &HistoryRequest) {
        let readers = |namespace: &Namespace| namespace.client_history;
        let Some(channel) = self.readable(id, &request.channel, readers) else { return };
        if self.core.shared.node.namespaces().of(&channel).history().is_none() {
            return self.deny_command(id, ErrorCode::NotAvailable, &"its namespace keeps no history");
        }
        let wanted = match Wanted::of(request, HISTORY_LIMIT) {
            Ok(wanted) => wanted,
            Err(error) => return self.deny_command(id, ErrorCode::UnrecoverablePosition, &error),
        };
        let node = Arc::clone(&self.core.shared.node);
        let reading = async move { read_history(&node, &channel, wanted).await };
        let answer = move |ctx: &mut Ctx<'_>, history: History| {
            if !history.continuous {
                return Err(ErrorCode::UnrecoverablePosition);
            }
            let (epoch, offset) = history.top.map(|top| place::tell(ctx.core, top)).unwrap_or_default();
            let publications = publications(&history);
            Ok(Reply { history: Some(HistoryResult { publications, epoch, offset }), ..Reply::default() })
        };
        self.read_and_answer(reading, answer, id);
    }
}

impl Wanted {
    /// At most so many; a request without a limit says where the channel stands, one with a negative limit has none of its
    /// own. An epoch that cannot be one is an error.
    pub(super) fn of(request: &HistoryRequest, limit_max: usize) -> Result<Self, PositionError> {
        let since = match &request.since {
            None => None,
            Some(since) if since.epoch.is_empty() => Some(Since::Offset(since.offset)),
            Some(since) => {
                Some(Since::Position(Position { epoch: since.epoch.parse()?, offset: since.offset }))
            }
        };
        let limit = usize::try_from(request.limit).unwrap_or(limit_max).min(limit_max);
        Ok(Self { limit, since, reverse: request.reverse })
    }
}

/// What was read, in the protocol's words.
pub(super) fn publications(history: &History) -> Vec<Publication> {
    history.publications.iter().map(|it| forms::with_published(it, |it| it.into())).collect()
}

/// Reads a page in the protocol's terms: forwards from the oldest or after a position, backwards from the newest or before
/// one. The backplane reads forwards after a position, or the newest.
pub(super) async fn read_history(
    node: &Node,
    channel: &Channel,
    wanted: Wanted,
) -> Result<History, BackplaneError> {
    let Wanted { limit, since, reverse } = wanted;
    let page = |since, limit| HistoryQuery { since, limit, bytes: HISTORY_BYTES };
    let top = match since {
        Some(Since::Position(position)) if !reverse => {
            return node.history(channel, page(Some(position), limit)).await;
        }
        None if reverse || limit == 0 => {
            let mut newest = node.history(channel, page(None, limit)).await?;
            newest.publications.reverse();
            return Ok(newest);
        }
        _ => node.history(channel, page(None, 0)).await?,
    };
    let Some(Position { epoch, .. }) = top.top else {
        return Ok(History { continuous: since.is_none(), ..top });
    };
    let before = match since {
        None => None,
        Some(Since::Position(position)) if position.epoch != epoch => {
            return Ok(History { continuous: false, ..top });
        }
        Some(Since::Position(Position { offset, .. }) | Since::Offset(offset)) => Some(offset),
    };
    if !reverse {
        let offset = before.unwrap_or(0);
        let mut read = node.history(channel, page(Some(Position { epoch, offset }), limit)).await?;
        // The oldest that are kept, however old.
        read.continuous |= since.is_none();
        return Ok(read);
    }
    let before = before.unwrap_or(u64::MAX);
    let offset = before.saturating_sub(1).saturating_sub(limit as u64);
    let mut read = node.history(channel, page(Some(Position { epoch, offset }), limit)).await?;
    read.publications.retain(|it| it.position.is_some_and(|position| position.offset < before));
    read.publications.reverse();
    Ok(History { continuous: true, ..read })
}

/// Members by their connections.
pub(super) fn clients<'m>(members: impl Iterator<Item = &'m Arc<Member>>) -> BTreeMap<String, ClientInfo> {
    members.map(|member| (member.connection.to_string(), forms::client_info(member))).collect()
}

pub(super) fn counts(members: &[Arc<Member>]) -> PresenceStatsResult {
    let users: BTreeSet<&str> = members.iter().map(|member| &*member.user).collect();
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    PresenceStatsResult { num_clients: number(members.len()), num_users: number(users.len()) }
}
