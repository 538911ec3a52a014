//! Clients that cannot send over their connection: the first message comes with the request, and those of clients that send
//! commands by requests of their own come as orders, from whichever node had the request.

use aws_lc_rs::hmac::{self, HMAC_SHA256, Key};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use tidegate_reactor::ConnectionId;
use tidegate_wire::centrifuge::{
    Encoding,
    code::Disconnect,
    message::{Command, ConnectRequest},
};

use super::{Stage, forms::Carrier};
use crate::{
    problem::log_refusal,
    session::{Ctx, core::Core},
};

/// Who knows the session of a connection may send commands in its name. So it is the connection's name, which others are
/// told, with a proof that only this shard can make.
pub(super) struct Sessions {
    secret: Secret,
    key: Key,
}

type Secret = [u8; 32];

/// Ends the name in a session.
const NAME_END: char = '!';

/// Of the 32 bytes of a proof: nobody guesses 2^128.
const PROOF_BYTES: usize = 16;

impl Sessions {
    pub(super) fn new() -> Self {
        let mut secret = Secret::default();
        // Without randomness no process of ours starts: its name would be another's.
        getrandom::fill(&mut secret).expect("the system has random bytes");
        Self { key: Key::new(HMAC_SHA256, &secret), secret }
    }

    /// Those that this shard of another process has proved.
    pub(super) fn of(secret: &[u8]) -> Option<Self> {
        let secret = Secret::try_from(secret).ok()?;
        Some(Self { key: Key::new(HMAC_SHA256, &secret), secret })
    }

    /// What it proves with.
    pub(super) fn secret(&self) -> &[u8] {
        &self.secret
    }

    fn proof(&self, name: &str) -> String {
        let tag = hmac::sign(&self.key, name.as_bytes());
        URL_SAFE_NO_PAD.encode(&tag.as_ref()[..PROOF_BYTES])
    }

    fn is_proof(&self, name: &str, proof: &str) -> bool {
        let own = self.proof(name);
        own.len() == proof.len()
            && aws_lc_rs::constant_time::verify_slices_are_equal(own.as_bytes(), proof.as_bytes()).is_ok()
    }
}

/// The name and the proof of a session.
pub(super) fn split(session: &str) -> Option<(&str, &str)> {
    session.rsplit_once(NAME_END)
}

impl Core {
    /// What a connection is called by its client alone.
    pub(super) fn session_of(&self, id: ConnectionId) -> String {
        let name = self.connection_name(id);
        let proof = self.rooms.get::<Sessions>().proof(&name);
        format!("{name}{NAME_END}{proof}")
    }
}

impl Ctx<'_> {
    /// What came with the request, which a client of the WebSocket has no room for.
    pub(super) fn take_first(&mut self, first: Vec<u8>) {
        match self.carrier() {
            Some(carrier) if carrier.is_emulated() && !first.is_empty() => {
                self.take_frame(carrier.encoding(), &first, false);
            }
            // One that says nothing is anybody.
            Some(Carrier::UniLines | Carrier::UniEvents) if first.is_empty() => self.first_of_uni(b"{}"),
            Some(Carrier::UniLines | Carrier::UniEvents) => self.first_of_uni(&first),
            _ => {}
        }
    }

    /// The only message of a client that sends no commands; what it says later means nothing.
    pub(super) fn first_of_uni(&mut self, message: &[u8]) {
        if self.stage() != Some(Stage::New) {
            return;
        }
        match serde_json::from_slice::<ConnectRequest>(message) {
            Ok(request) => {
                let connect = Some(Box::new(request));
                self.run_command(Command { id: 1, connect, ..Command::default() });
            }
            Err(error) => self.cut(Disconnect::BadRequest, &error),
        }
    }

    /// A frame of a client that sends its commands by requests of their own.
    pub(super) fn take_emulated(&mut self, proof: &str, frame: &[u8]) {
        let name = self.core.connection_name(self.id);
        let Some(carrier) = self.carrier().filter(|carrier| carrier.is_emulated()) else { return };
        if !self.core.rooms.get::<Sessions>().is_proof(&name, proof) {
            return log_refusal("emulation", &"the session is not that of the connection");
        }
        self.core.metrics.messages_received.add(1);
        let encoding: Encoding = carrier.encoding();
        self.take_frame(encoding, frame, false);
    }
}
