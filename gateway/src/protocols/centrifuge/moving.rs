//! What another process has to know of a Centrifugo client to go on with it: how far it has come, when its ping is due,
//! which subscriptions the server has made, and which end by themselves. With a client that sends its commands by requests of
//! their own goes what its shard proves sessions with.

use tidegate_reactor::Tick;
use tidegate_wire::fields::{Malformed, Reader, Writer};

use super::{Client, STAGE_BITS, Stage, commands::Waits, emulation::Sessions, forms::Carrier, heartbeat};
use crate::session::{Open, core::Core, moving::Granted, protocol::Stays};

/// Of this form.
const VERSION: u8 = 2;

/// Times are ticks that are left.
#[derive(Debug, PartialEq, Eq)]
struct Own<'a> {
    /// Whether it has said who it is.
    is_connected: bool,
    /// Until it is closed because it has not.
    stale: Option<u32>,
    /// Until the next ping, or the end of the time for its answer.
    beat: u32,
    of_server: Vec<&'a str>,
    granted: Vec<Granted<'a>>,
    secret: Option<&'a [u8]>,
}

pub(super) fn hand_on(core: &Core, open: &Open, now: Tick, out: &mut Writer) -> Result<(), Stays> {
    let stage = Stage::of(open);
    // It is closed in a moment, by its client or here.
    if stage == Stage::Refused {
        return Err(Stays::Ever);
    }
    let idle = Client::default();
    let client = open.state::<Client>().unwrap_or(&idle);
    let is_emulated = Carrier::of(open.form).is_emulated();
    let left = |due: Tick| due.0.saturating_sub(now.0);
    let own = Own {
        is_connected: stage == Stage::Connected,
        stale: client.stale.map(left),
        beat: heartbeat::due(open).map_or(0, left),
        of_server: client.of_server.iter().map(|&key| core.hub.channel(key).as_str()).collect(),
        granted: client.grants.moving(core, now),
        secret: is_emulated.then(|| core.rooms.get::<Sessions>().secret()),
    };
    own.write(out);
    let is_idle = stage != Stage::Connecting
        && client.waits == Waits::Nothing
        && client.parked.is_empty()
        && client.subscribing.is_empty()
        && client.entering.is_none()
        && client.request.is_none();
    Stays::unless(is_idle)
}

pub(super) fn understands(own: &[u8]) -> bool {
    Own::parse(own).is_ok()
}

pub(super) fn go_on(core: &mut Core, open: &mut Open, now: Tick, own: &[u8]) {
    let Ok(own) = Own::parse(own) else { return };
    if let Some(sessions) = own.secret.and_then(Sessions::of) {
        *core.rooms.get_mut::<Sessions>() = sessions;
    }
    let at = |ticks: u32| Tick(now.0.saturating_add(ticks));
    open.tag = match own.is_connected {
        true => at(own.beat).0 << STAGE_BITS | Stage::Connected as u32,
        false => Stage::New as u32,
    };
    // Dropped by the core where nothing is in it.
    let client = open.state_or_default::<Client>();
    client.stale = own.stale.map(at);
    client.of_server = own.of_server.iter().filter_map(|channel| core.hub.key_of(channel)).collect();
    client.grants.go_on(core, now, &own.granted);
}

impl<'a> Own<'a> {
    fn write(&self, out: &mut Writer) {
        out.u8(VERSION);
        out.bool(self.is_connected);
        out.option(self.stale, Writer::u32);
        out.u32(self.beat);
        out.list(self.of_server.iter(), |out, channel| out.text(channel));
        Granted::write_list(&self.granted, out);
        out.option(self.secret, Writer::bytes);
    }

    fn parse(own: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Reader::new(own);
        if fields.u8()? != VERSION {
            return Err(Malformed);
        }
        let own = Self {
            is_connected: fields.bool()?,
            stale: fields.option(Reader::u32)?,
            beat: fields.u32()?,
            of_server: fields.list(Reader::text)?,
            granted: Granted::read_list(&mut fields)?,
            secret: fields.option(Reader::bytes)?,
        };
        fields.end().map(|()| own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(own: &Own<'_>) {
        let mut out = Writer::default();
        own.write(&mut out);
        let written = out.into_bytes();
        assert_eq!(Own::parse(&written).as_ref(), Ok(own));
        let later = [&[VERSION + 1], &written[1..]].concat();
        assert_eq!(Own::parse(&later), Err(Malformed), "of another version");
        for end in 0..written.len() {
            assert_eq!(Own::parse(&written[..end]), Err(Malformed), "{end} bytes of {}", written.len());
        }
        assert_eq!(Own::parse(&[&written[..], &[0]].concat()), Err(Malformed), "with a byte more");
    }

    #[test]
    fn what_is_written_is_read() {
        check(&Own {
            is_connected: false,
            stale: Some(100),
            beat: 0,
            of_server: vec![],
            granted: vec![],
            secret: None,
        });
        let granted = vec![
            Granted { channel: "vault:a", ticks: 6000, is_asked: false },
            Granted { channel: "shop!vault:b", ticks: 1, is_asked: true },
        ];
        let of_server = vec!["news:server", "shop!plain:server"];
        let secret = Some(b"secret".as_slice());
        check(&Own { is_connected: true, stale: None, beat: 250, of_server, granted, secret });
    }
}
