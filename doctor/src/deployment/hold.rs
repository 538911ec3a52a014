//! A connection that says nothing of its own: how long what is in front lets it be.

use std::{
    io,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{
    Outcome, Step, StepName,
    connect::Stream,
    upgrade::{Frame, FrameError, Socket},
};

/// How a gateway keeps connections alive by default (`heartbeat.interval`).
const HEARTBEAT_S: u64 = 25;

/// What happened to it.
#[derive(Debug)]
pub(super) struct Held {
    open_for: Duration,
    /// Since anything moved in either direction.
    silent_for: Duration,
    heartbeats: u32,
    end: End,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The bound passed, and it is still open.
    Open,
    Closed {
        code: Option<u16>,
        reason: String,
    },
    /// The end of the stream without a close frame.
    Unannounced,
    Reset,
    Malformed,
}

/// Sends nothing but the answers to pings, as every WebSocket library does by itself.
pub(super) async fn hold<S: Stream>(mut socket: Socket<S>, bound: Duration) -> Held {
    let began = Instant::now();
    let (mut last, mut heartbeats) = (began, 0);
    let end = loop {
        let Ok(frame) = timeout(bound.saturating_sub(began.elapsed()), socket.next()).await else {
            break End::Open;
        };
        let answered = match &frame {
            Ok(Frame::Ping(payload)) => {
                heartbeats += 1;
                socket.pong(payload).await
            }
            Ok(Frame::Message | Frame::Pong) => Ok(()),
            Ok(Frame::Close { code, reason }) => break End::Closed { code: *code, reason: reason.clone() },
            Err(error) => break End::of(error),
        };
        if let Err(error) = answered {
            break End::of(&FrameError::Io(error));
        }
        last = Instant::now();
    };
    let held = Held { open_for: began.elapsed(), silent_for: last.elapsed(), heartbeats, end };
    if held.end == End::Open {
        socket.close().await;
    }
    held
}

impl End {
    fn of(error: &FrameError) -> Self {
        match error {
            FrameError::Malformed => Self::Malformed,
            FrameError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => Self::Unannounced,
            FrameError::Io(_) => Self::Reset,
        }
    }

    fn how(&self) -> String {
        match self {
            Self::Open => "still open".to_owned(),
            Self::Closed { code: None, .. } => "with a close frame without a code".to_owned(),
            Self::Closed { code: Some(code), reason } if reason.is_empty() => {
                format!("with close code {code}")
            }
            Self::Closed { code: Some(code), reason } => format!("with close code {code} ({reason})"),
            Self::Unannounced => "by the end of the stream, without a close frame".to_owned(),
            Self::Reset => "by a reset".to_owned(),
            Self::Malformed => "by a frame that is not of WebSocket".to_owned(),
        }
    }

    /// Whether the gateway itself ended it: what is in front does not write close frames.
    fn is_said(&self) -> bool {
        matches!(self, Self::Closed { .. })
    }
}

impl Held {
    pub(super) fn step(&self) -> Step {
        let (open, silent) = (self.open_for.as_secs_f64(), self.silent_for.as_secs_f64());
        if self.end == End::Open {
            let sentence = match self.heartbeats {
                0 => format!("still open after {open:.1} s of silence"),
                pings => {
                    format!("still open after {open:.1} s, in which the gateway sent {pings} heartbeats")
                }
            };
            return Step::passed(StepName::Idle, sentence);
        }
        let sentence = format!(
            "was ended after {open:.1} s, the last {silent:.1} s of them silent, {}; the gateway had sent {} heartbeats",
            self.end.how(),
            self.heartbeats
        );
        let advice = if self.end.is_said() {
            "the gateway closed it: docs/protocols.md has the codes".to_owned()
        } else {
            format!(
                "something in front ends silent connections: raise its timeout above {HEARTBEAT_S} s (nginx proxy_read_timeout, \
                 HAProxy timeout tunnel, a cloud balancer's idle timeout), or set heartbeat.interval of the gateways below it"
            )
        };
        Step {
            outcome: Outcome::Failed,
            advice: Some(advice),
            seconds: Some(silent),
            ..Step::passed(StepName::Idle, sentence)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Longer than any test may take: what ends a connection here is what the server does.
    const BOUND: Duration = Duration::from_secs(600);

    /// The server sends this, reads one frame of so many bytes if any, and leaves.
    async fn check(sent: &[u8], answer_bytes: usize, end: End, heartbeats: u32) {
        let (client, mut server) = tokio::io::duplex(1024);
        let serve = async {
            server.write_all(sent).await.unwrap();
            server.read_exact(&mut vec![0; answer_bytes]).await.unwrap();
            drop(server);
        };
        let (held, ()) = tokio::join!(hold(Socket::over(client), BOUND), serve);
        assert_eq!((&held.end, held.heartbeats), (&end, heartbeats));
        let step = held.step();
        assert_eq!((step.outcome, step.advice.is_some()), (Outcome::Failed, true), "{step:?}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn every_way_to_end() {
        check(b"", 0, End::Unannounced, 0).await;
        // A ping is answered with a masked pong of the same payload: 2, 4 and 2 bytes.
        check(b"\x89\x02hi", 8, End::Unannounced, 1).await;
        check(b"\x81\x03abc", 0, End::Unannounced, 0).await;
        let closed = |code, reason: &str| End::Closed { code, reason: reason.to_owned() };
        check(b"\x88\x06\x03\xf4gone", 0, closed(Some(1012), "gone"), 0).await;
        check(b"\x88\x00", 0, closed(None, ""), 0).await;
        check(b"\xff\xff", 0, End::Malformed, 0).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_stays_open_passes() {
        let (client, mut server) = tokio::io::duplex(1024);
        let held = hold(Socket::over(client), Duration::from_millis(10));
        let answer = async {
            // The close frame, and its answer.
            server.read_exact(&mut [0; 8]).await.unwrap();
            server.write_all(b"\x88\x02\x03\xe8").await.unwrap();
        };
        let (held, ()) = tokio::join!(held, answer);
        assert_eq!((held.end.how().as_str(), held.step().outcome), ("still open", Outcome::Passed));
    }
}
