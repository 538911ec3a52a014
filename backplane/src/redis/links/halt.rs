//! Connections of a session that stand still while another process may go on with them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::watch;

use super::dial::{Connection, Stream};
use super::wire::Inbound;

/// Has the connections of a session stand still.
#[derive(Debug)]
pub(super) struct Halt {
    /// Odd while they are to stand still; even while they go on.
    turn: watch::Sender<u32>,
    stood: watch::Sender<Vec<Arc<Stood>>>,
}

/// Which connection of a session, in the order in which they are handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Feed,
    Commands,
    Vital,
    Replicated,
}

/// A connection that stands still: all that was begun to be written is written, and what was asked is answered.
#[derive(Debug)]
pub(super) struct Stood {
    turn: u32,
    pub(super) part: Part,
    /// The same socket once more.
    pub(super) socket: io::Result<OwnedFd>,
    /// Received, and not taken: the beginning of a value.
    pub(super) received: Vec<u8>,
    /// What the probe of the feed is sent through.
    pub(super) probe: Option<Box<str>>,
}

impl Default for Halt {
    fn default() -> Self {
        Self { turn: watch::Sender::new(0), stood: watch::Sender::new(Vec::new()) }
    }
}

impl Halt {
    /// Each connection stands when it is at rest. Who waits for something to write is to be woken.
    pub(super) fn begin(&self) {
        self.turn.send_modify(|turn| *turn += 1 - *turn % 2);
    }

    /// They go on.
    pub(super) fn end(&self) {
        self.stood.send_replace(Vec::new());
        self.turn.send_modify(|turn| *turn += *turn % 2);
    }

    pub(super) fn is_wanted(&self) -> bool {
        !self.turn.borrow().is_multiple_of(2)
    }

    /// When so many connections stand: those, in their order.
    pub(super) async fn all_stood(&self, number: usize) -> Vec<Arc<Stood>> {
        let turn = *self.turn.borrow();
        let of_turn = |all: &[Arc<Stood>]| -> Vec<_> {
            all.iter().filter(|stood| stood.turn == turn).cloned().collect()
        };
        let mut stood = self.stood.subscribe();
        // The sender lives as long as this.
        let all = stood.wait_for(|all| of_turn(all).len() == number).await;
        let mut all = all.map(|all| of_turn(&all)).unwrap_or_default();
        all.sort_by_key(|stood| stood.part);
        all
    }

    /// In a connection's task: stands still until all may go on.
    pub(super) async fn stand(
        &self,
        part: Part,
        stream: &dyn Stream,
        inbound: &Inbound,
        probe: Option<Box<str>>,
    ) {
        let mut turns = self.turn.subscribe();
        let turn = *turns.borrow_and_update();
        if turn.is_multiple_of(2) {
            return;
        }
        let received = inbound.received().to_vec();
        let stood = Stood { turn, part, socket: stream.socket(), received, probe };
        self.stood.send_modify(|all| all.push(Arc::new(stood)));
        // As above.
        drop(turns.wait_for(|now| *now != turn).await);
    }
}

impl Connection {
    /// One that stood still in another process.
    pub(super) fn going_on(stream: Box<dyn Stream>, received: &[u8]) -> Self {
        Self { stream, inbound: Inbound::of(received) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use fastrand::Rng;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::Notify;
    use tokio::task::yield_now;
    use tokio::time::Instant;

    use super::super::dial::stream_of;
    use super::super::driver::{Side, Signals, drive};
    use super::super::wire::Frame;
    use super::*;
    use crate::redis::error::Trouble;
    use crate::redis::url::Server;

    const MESSAGES: u32 = 500;

    /// Takes numbers down.
    struct Reader(Vec<u32>);

    impl Side for Reader {
        fn outgoing(&mut self, spent: Vec<u8>) -> Vec<u8> {
            spent
        }

        fn arrived(&mut self, inbound: &mut Inbound) -> Result<(), Trouble> {
            let number = |frame: Frame<'_>| match frame {
                Frame::Message { payload, .. } => std::str::from_utf8(payload).unwrap().parse().unwrap(),
                Frame::Value(_) => panic!("it is no message"),
            };
            while let Some(number) = inbound.take(number)? {
                self.0.push(number);
            }
            Ok(())
        }

        fn is_at_rest(&self) -> bool {
            true
        }

        fn due_at(&self) -> Instant {
            Instant::now() + Duration::from_secs(3600)
        }

        fn due(&mut self, _: Instant) -> Result<(), Trouble> {
            Ok(())
        }
    }

    async fn send(mut stream: TcpStream, mut random: Rng) {
        let message = |number: u32| {
            let number = number.to_string();
            format!(">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n${}\r\n{number}\r\n", number.len())
        };
        let bytes: String = (0..MESSAGES).map(message).collect();
        let mut rest = bytes.as_bytes();
        while !rest.is_empty() {
            let (part, after) = rest.split_at(random.usize(1..=rest.len().min(100)));
            stream.write_all(part).await.unwrap();
            rest = after;
            yield_now().await;
        }
    }

    /// One process after the other reads a connection, and some of them only begin to hand it on.
    async fn hand_on(seed: u64) {
        let mut random = Rng::with_seed(seed);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server { host: address.ip().to_string().into(), port: address.port() };
        let stream = TcpStream::connect(address).await.unwrap();
        let sending = tokio::spawn(send(listener.accept().await.unwrap().0, random.fork()));
        let mut connection = Connection { stream: Box::new(stream), inbound: Inbound::default() };
        let mut reader = Reader(Vec::new());
        loop {
            let (halt, filled) = (Halt::default(), Notify::new());
            let signals = Signals { filled: &filled, halt: &halt, part: Part::Feed };
            let stood = async {
                loop {
                    for _ in 0..random.usize(..20) {
                        yield_now().await;
                    }
                    halt.begin();
                    filled.notify_one();
                    let stood = halt.all_stood(1).await.remove(0);
                    if random.bool() {
                        return stood;
                    }
                    halt.end();
                }
            };
            let stood = tokio::select! {
                // The server has sent all, and ended.
                trouble = drive(connection, signals, &mut reader) => {
                    assert!(matches!(trouble, Trouble::Closed), "seed {seed}: {trouble}");
                    break;
                }
                stood = stood => stood,
            };
            let socket = stood.socket.as_ref().unwrap().try_clone().unwrap();
            connection = Connection::going_on(stream_of(socket, &server).unwrap(), &stood.received);
        }
        sending.await.unwrap();
        assert!(reader.0.iter().copied().eq(0..MESSAGES), "seed {seed}: {:?}", reader.0);
    }

    #[tokio::test]
    async fn what_arrives_is_taken_once_and_in_order() {
        for seed in 0..100 {
            hand_on(seed).await;
        }
    }
}
