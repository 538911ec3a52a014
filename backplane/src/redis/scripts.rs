//! The Lua scripts, how they are called, and how their answers are read.

use std::{cell::RefCell, sync::LazyLock};

use redis::{Cmd, Value};

use super::contract::Commands;
use crate::{BackplaneError, Epoch};

/// What several scripts begin with.
const TIME: &str = include_str!("scripts/time.lua");
const AGE: &str = include_str!("scripts/age.lua");
const PRESENCE: &str = include_str!("scripts/presence.lua");

pub(crate) static PUBLISH: LazyLock<Script> =
    LazyLock::new(|| Script::new("publish", &[TIME, AGE, include_str!("scripts/publish.lua")]));
pub(crate) static HISTORY: LazyLock<Script> =
    LazyLock::new(|| Script::new("history", &[TIME, AGE, include_str!("scripts/history.lua")]));
pub(crate) static POSITIONS: LazyLock<Script> =
    LazyLock::new(|| Script::new("positions", &[include_str!("scripts/positions.lua")]));
pub(crate) static RENEW: LazyLock<Script> =
    LazyLock::new(|| Script::new("renew", &[include_str!("scripts/renew.lua")]));
pub(crate) static FORGET: LazyLock<Script> =
    LazyLock::new(|| Script::new("forget", &[include_str!("scripts/forget.lua")]));
pub(crate) static RENOUNCE: LazyLock<Script> =
    LazyLock::new(|| Script::new("renounce", &[include_str!("scripts/renounce.lua")]));
pub(crate) static ANNOUNCE: LazyLock<Script> =
    LazyLock::new(|| Script::new("announce", &[TIME, include_str!("scripts/announce.lua")]));
pub(crate) static RETIRE: LazyLock<Script> =
    LazyLock::new(|| Script::new("retire", &[include_str!("scripts/retire.lua")]));
pub(crate) static PRESENCE_CHANGE: LazyLock<Script> = LazyLock::new(|| {
    Script::new("presence_change", &[TIME, PRESENCE, include_str!("scripts/presence_change.lua")])
});
pub(crate) static PRESENCE_SETTLE: LazyLock<Script> = LazyLock::new(|| {
    Script::new("presence_settle", &[TIME, PRESENCE, include_str!("scripts/presence_settle.lua")])
});
pub(crate) static SUMS: LazyLock<Script> =
    LazyLock::new(|| Script::new("sums", &[include_str!("scripts/sums.lua")]));
pub(crate) static ROLL: LazyLock<Script> =
    LazyLock::new(|| Script::new("roll", &[include_str!("scripts/roll.lua")]));
pub(crate) static WILLS_CHANGE: LazyLock<Script> =
    LazyLock::new(|| Script::new("wills_change", &[include_str!("scripts/wills_change.lua")]));
pub(crate) static WILLS_TAKE: LazyLock<Script> =
    LazyLock::new(|| Script::new("wills_take", &[include_str!("scripts/wills_take.lua")]));
pub(crate) static WILLS_MOVE: LazyLock<Script> =
    LazyLock::new(|| Script::new("wills_move", &[include_str!("scripts/wills_move.lua")]));

/// What the servers are told before they are asked: a call for a script that a server does not know is sent twice, and
/// changes places with those that are under way.
pub(crate) fn codes() -> Vec<Box<str>> {
    let all = [
        &PUBLISH,
        &HISTORY,
        &POSITIONS,
        &RENEW,
        &FORGET,
        &RENOUNCE,
        &ANNOUNCE,
        &RETIRE,
        &PRESENCE_CHANGE,
        &PRESENCE_SETTLE,
        &ROLL,
        &SUMS,
        &WILLS_CHANGE,
        &WILLS_TAKE,
        &WILLS_MOVE,
    ];
    all.map(|script| script.code.as_str().into()).into()
}

/// A script and the digest by which the server knows it once it has seen it.
#[derive(Debug)]
pub(crate) struct Script {
    name: &'static str,
    code: String,
    sha1: String,
}

impl Script {
    fn new(name: &'static str, parts: &[&str]) -> Self {
        let code = parts.concat();
        let sha1 = redis::Script::new(&code).get_hash().to_owned();
        Self { name, code, sha1 }
    }

    /// Calls the script by its digest, and with its code if the server does not know it: it has restarted, or the
    /// slot has moved to it.
    pub(crate) async fn call(
        &self,
        commands: &dyn Commands,
        tag: &str,
        keys: &[&[u8]],
        args: &[&[u8]],
    ) -> Result<Answer, BackplaneError> {
        let by_digest = command("EVALSHA", &self.sha1, keys, args);
        let value = match commands.call(tag, by_digest).await {
            Err(BackplaneError::Refused(why)) if is_no_script(&why) => {
                commands.call(tag, command("EVAL", &self.code, keys, args)).await?
            }
            other => other?,
        };
        Answer::new(self.name, value)
    }

    /// Calls the script for each of several keys and arguments, in their order and with one round trip.
    pub(crate) async fn call_all(
        &self,
        commands: &dyn Commands,
        tag: &str,
        calls: &[KeysAndArgs<'_>],
    ) -> Vec<Result<Answer, BackplaneError>> {
        let by_digest = calls.iter().map(|(keys, args)| command("EVALSHA", &self.sha1, keys, args));
        let mut values = commands.call_all(tag, by_digest.collect()).await;
        let is_unknown =
            |value: &Result<_, _>| matches!(value, Err(BackplaneError::Refused(why)) if is_no_script(why));
        // The server came to know it in their midst: those before that would come behind the others.
        let known = values.iter().rposition(|value| !is_unknown(value)).map_or(0, |last| last + 1);
        for value in values[..known].iter_mut().filter(|value| is_unknown(value)) {
            *value = Err(BackplaneError::Unavailable("the server had forgotten its scripts".into()));
        }
        if known < values.len() {
            values.truncate(known);
            let with_code = calls[known..].iter().map(|(keys, args)| command("EVAL", &self.code, keys, args));
            values.extend(commands.call_all(tag, with_code.collect()).await);
        }
        values.into_iter().map(|value| Answer::new(self.name, value?)).collect()
    }
}

/// Of one call.
pub(crate) type KeysAndArgs<'a> = (Vec<&'a [u8]>, Vec<&'a [u8]>);

fn command(name: &str, script: &str, keys: &[&[u8]], args: &[&[u8]]) -> Cmd {
    // What the protocol puts around an argument is at most 16 bytes.
    let bytes: usize = keys.iter().chain(args).map(|part| part.len() + 16).sum();
    let mut command = Cmd::with_capacity(3 + keys.len() + args.len(), bytes + script.len() + 64);
    command.arg(name).arg(script).arg(keys.len());
    for part in keys.iter().chain(args) {
        command.arg(*part);
    }
    command
}

/// A refusal begins with the server's code.
fn is_no_script(why: &str) -> bool {
    why.starts_with("NOSCRIPT")
}

/// What a script returned, value by value.
#[derive(Debug)]
pub(crate) struct Answer {
    script: &'static str,
    values: std::vec::IntoIter<Value>,
}

impl Answer {
    pub(crate) fn new(script: &'static str, value: Value) -> Result<Self, BackplaneError> {
        match value {
            Value::Array(values) => Ok(Self { script, values: values.into_iter() }),
            _ => Err(unexpected(script)),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.values.len() == 0
    }

    pub(crate) fn number(&mut self) -> Result<u64, BackplaneError> {
        match self.values.next() {
            Some(Value::Int(number)) => u64::try_from(number).map_err(|_| unexpected(self.script)),
            _ => Err(unexpected(self.script)),
        }
    }

    pub(crate) fn flag(&mut self) -> Result<bool, BackplaneError> {
        self.number().map(|number| number != 0)
    }

    pub(crate) fn bytes(&mut self) -> Result<Vec<u8>, BackplaneError> {
        self.optional_bytes()?.ok_or_else(|| unexpected(self.script))
    }

    pub(crate) fn optional_bytes(&mut self) -> Result<Option<Vec<u8>>, BackplaneError> {
        match self.values.next() {
            Some(Value::BulkString(bytes)) => Ok(Some(bytes)),
            Some(Value::Nil) => Ok(None),
            _ => Err(unexpected(self.script)),
        }
    }

    /// Eight bytes: an epoch or a tag.
    pub(crate) fn word(&mut self) -> Result<u64, BackplaneError> {
        self.optional_word()?.ok_or_else(|| unexpected(self.script))
    }

    pub(crate) fn optional_word(&mut self) -> Result<Option<u64>, BackplaneError> {
        let Some(bytes) = self.optional_bytes()? else { return Ok(None) };
        let word = bytes.try_into().map_err(|_| unexpected(self.script))?;
        Ok(Some(u64::from_be_bytes(word)))
    }

    pub(crate) fn text(&mut self) -> Result<Box<str>, BackplaneError> {
        let text = String::from_utf8(self.bytes()?).map_err(|_| unexpected(self.script))?;
        Ok(text.into())
    }

    pub(crate) fn list(&mut self) -> Result<Self, BackplaneError> {
        match self.values.next() {
            Some(value) => Self::new(self.script, value),
            None => Err(unexpected(self.script)),
        }
    }
}

/// Somebody else's data under our names, or a server that is not one we know.
fn unexpected(script: &'static str) -> BackplaneError {
    let why =
        format!("the script {script} was answered in an unknown form; do others use the same key prefix?");
    BackplaneError::Refused(why.into())
}

/// Words that one system call draws. A publication with history takes two.
const WORDS_AT_ONCE: usize = 64;

thread_local! {
    /// What was drawn, and how many of its first words are not given out.
    static DRAWN: RefCell<([u8; 8 * WORDS_AT_ONCE], usize)> = const { RefCell::new(([0; 8 * WORDS_AT_ONCE], 0)) };
}

/// 64 random bits: among a million epochs, two are equal with a probability of 3 in 10^8.
pub(crate) fn random() -> Result<u64, BackplaneError> {
    DRAWN.with_borrow_mut(|(bytes, left)| {
        if *left == 0 {
            getrandom::fill(bytes)
                .map_err(|error| BackplaneError::Unavailable(format!("no randomness: {error}").into()))?;
            *left = WORDS_AT_ONCE;
        }
        *left -= 1;
        let (words, _) = bytes.as_chunks();
        Ok(u64::from_ne_bytes(words[*left]))
    })
}

pub(crate) fn random_epoch() -> Result<Epoch, BackplaneError> {
    random().map(Epoch)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn words_are_given_out_once() {
        let drawn: HashSet<u64> = (0..3 * WORDS_AT_ONCE).map(|_| random().expect("randomness")).collect();
        assert_eq!(drawn.len(), 3 * WORDS_AT_ONCE);
    }
}
