//! What servers ask of raw WebSockets. A client with `envelope=json` is told that it was subscribed, or is no more; one with
//! verbatim payloads has no words for either.

use tidegate_backplane::Position;
use tidegate_wire::{frame::Opcode, raw};

use super::{commands::Commands, forms};
use crate::{
    metrics::Instructed,
    node::instruction::{Message, Since, What},
    session::Ctx,
};

/// What an ended subscription is told with: a status as in HTTP, and a sentence.
const UNSUBSCRIBED: (u16, &str) = (403, "unsubscribed by the application");

impl Ctx<'_> {
    pub(super) fn raw_instructed(&mut self, what: &What) -> Instructed {
        let done = match what {
            What::Subscribe { channel, since, .. } => self.subscribe_instructed(channel, since.as_ref()),
            What::Unsubscribe { channel } => self.unsubscribe_instructed(channel),
            What::Send(message) => {
                self.send_instructed(message);
                Ok(())
            }
            _ => return self.instructed(what),
        };
        done.err().unwrap_or(Instructed::Done)
    }

    fn subscribe_instructed(&mut self, name: &str, since: Option<&Since>) -> Result<(), Instructed> {
        let channel = self.instructed_channel(name)?;
        let position = |since: &Since| {
            let epoch = since.epoch.parse().map_err(|_| Instructed::Invalid)?;
            Ok(Position { epoch, offset: since.offset })
        };
        let since = since.map(position).transpose()?;
        let want = self.core.want(&channel, since, self.is_enveloped());
        let (attempt, confirmation) = self.begin_instructed(&channel, want, false)?;
        if let Some(open) = self.open_mut() {
            open.state_or_default::<Commands>().instructed.push(attempt.key);
        }
        let join = self.join_of(&channel);
        self.proceed(attempt, confirmation, join);
        Ok(())
    }

    fn unsubscribe_instructed(&mut self, name: &str) -> Result<(), Instructed> {
        let key = self.key_of_own(name).ok_or(Instructed::NotSubscribed)?;
        let (code, message) = UNSUBSCRIBED;
        self.take_instructed(key);
        self.end_command(key, &format!("{name}: {message} meanwhile"), 409);
        if self.is_enveloped() {
            let mut notice = Vec::new();
            raw::encode_unsubscribed(name, code, message, &mut notice);
            self.write_frame(Opcode::Text, &notice);
        }
        Ok(())
    }

    fn send_instructed(&mut self, message: &Message) {
        if self.is_enveloped() {
            let mut notice = Vec::new();
            raw::encode_message(message.event.as_deref(), &message.data, &mut notice);
            return self.write_frame(Opcode::Text, &notice);
        }
        self.write_frame(Opcode::Text, message.data.as_bytes());
    }

    pub(super) fn is_enveloped(&self) -> bool {
        self.open().is_some_and(|open| open.form.plain() == forms::ENVELOPED)
    }

    /// Whether a subscription that begins is one that a server has asked for.
    pub(super) fn take_instructed(&mut self, key: u32) -> bool {
        let Some(open) = self.open_mut() else { return false };
        let Some(commands) = open.state_mut::<Commands>() else { return false };
        let before = commands.instructed.len();
        commands.instructed.retain(|&own| own != key);
        let was = commands.instructed.len() < before;
        open.drop_empty_rare();
        was
    }
}
