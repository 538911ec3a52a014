//! A presence channel during a fault: who is connected, and whom each gateway lists.

use std::time::Duration;

use tidegate_testkit::{Closed, Gateway, Received, WsClient, eventually, eventually_some};

use crate::site::TOKEN;

/// The lists of all gateways are right within this time after a fault.
const RIGHT_WITHIN: Duration = Duration::from_secs(10);

const CHANNEL: &str = "room:a";

/// Members, with the gateway that each is at.
#[derive(Debug)]
pub(crate) struct Room {
    members: Vec<(usize, WsClient)>,
}

impl Room {
    /// Two at each gateway.
    #[track_caller]
    pub(crate) fn start(gateways: &[Gateway]) -> Self {
        let mut room = Self { members: Vec::new() };
        for at in 0..gateways.len() {
            room.join(gateways, at);
            room.join(gateways, at);
        }
        room
    }

    #[track_caller]
    pub(crate) fn join(&mut self, gateways: &[Gateway], at: usize) {
        let path = format!("/ws?channel={CHANNEL}&envelope=json&token={TOKEN}");
        // The server that its channel lives on may be on the way up.
        let member = eventually_some("a member comes in", RIGHT_WITHIN, || {
            WsClient::try_connect(gateways[at].public(), &path, &[]).ok()
        });
        self.members.push((at, member));
    }

    /// The first one goes, without a word.
    pub(crate) fn leave(&mut self) {
        drop(self.members.remove(0));
    }

    /// Each gateway lists those who are connected, and nobody of a gateway that is still there was closed.
    #[track_caller]
    pub(crate) fn judge(mut self, gateways: &[Gateway]) {
        self.members.retain(|(at, _)| *at < gateways.len());
        for gateway in gateways {
            let (expected, at) = (self.members.len(), gateway.public());
            eventually(&format!("{at} lists {expected} members"), RIGHT_WITHIN, || {
                present(gateway) == Some(expected)
            });
        }
        for (at, member) in &mut self.members {
            let closed = closed(member);
            assert_eq!(closed, None, "a member at gateway {at} was closed without need");
        }
    }
}

fn present(gateway: &Gateway) -> Option<usize> {
    let answer = gateway.rest().get(&format!("/v1/channels/{CHANNEL}/presence"));
    (answer.status == 200).then(|| answer.json()["members"].as_array().map_or(0, Vec::len))
}

/// How the connection ended, if it did.
fn closed(member: &mut WsClient) -> Option<Closed> {
    loop {
        match member.next(Duration::from_millis(1)) {
            Received::Closed(closed) => return Some(closed),
            Received::Nothing => return None,
            _ => {}
        }
    }
}
