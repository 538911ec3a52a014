//! A presence channel during faults: who is connected, and whom each gateway lists.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use tempfile::NamedTempFile;
use tidegate_testkit::{Closed, Gateway, Received, WsClient, eventually, eventually_some, product_binary};

/// The lists of all gateways are right within this time after a fault.
pub const RIGHT_WITHIN: Duration = Duration::from_secs(10);

const CHANNEL: &str = "room:a";

/// That of [`super::site::CONFIG`].
const SECRET: &str = "a secret of the cluster tests, 32+";

/// Members, each a user of its own.
#[derive(Debug)]
pub struct Room {
    secret: NamedTempFile,
    members: Vec<Member>,
    joined: usize,
}

#[derive(Debug)]
struct Member {
    user: String,
    at: SocketAddr,
    client: WsClient,
}

impl Default for Room {
    fn default() -> Self {
        let secret = NamedTempFile::new().expect("a temporary file can be made");
        std::fs::write(secret.path(), SECRET).expect("it is writable");
        Self { secret, members: Vec::new(), joined: 0 }
    }
}

impl Room {
    /// A new user comes in at this address, which may be on its way up.
    #[track_caller]
    pub fn join(&mut self, at: SocketAddr) {
        self.joined += 1;
        let user = format!("u{}", self.joined);
        let path = format!("/ws?channel={CHANNEL}&envelope=json&key={user}&token={}", self.token(&user));
        let client = eventually_some(&format!("{user} comes in at {at}"), RIGHT_WITHIN, || {
            WsClient::try_connect(at, &path, &[]).ok()
        });
        self.members.push(Member { user, at, client });
    }

    /// The first one goes, without a word.
    pub fn leave(&mut self) {
        drop(self.members.remove(0));
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Takes out whoever was closed, and says where they were and how it ended.
    pub fn take_closed(&mut self) -> Vec<(SocketAddr, Closed)> {
        let mut ends = Vec::new();
        self.members.retain_mut(|member| {
            let end = closed(&mut member.client);
            ends.extend(end.clone().map(|end| (member.at, end)));
            end.is_none()
        });
        ends
    }

    /// Each gateway lists those who are connected, and nobody else.
    #[track_caller]
    pub fn judge<'a>(&self, gateways: impl IntoIterator<Item = &'a Gateway>) {
        let expected: BTreeSet<String> = self.members.iter().map(|member| member.user.clone()).collect();
        for gateway in gateways {
            let mut last = None;
            eventually(&format!("{} lists {expected:?}", gateway.public()), RIGHT_WITHIN, || {
                let listed = listed(gateway);
                if listed != last {
                    println!("{} lists {listed:?}", gateway.public());
                    last.clone_from(&listed);
                }
                listed.as_ref() == Some(&expected)
            });
        }
    }

    /// Signed by the product's own `tidegate token`.
    #[track_caller]
    fn token(&self, user: &str) -> String {
        let mut command = Command::new(product_binary());
        command
            .args(["token", "--sub", user, "--channel", "room:*", "--secret-file"])
            .arg(self.secret.path());
        let output = command.output().expect("the product can be run");
        assert!(output.status.success(), "tidegate token: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// Whom a gateway lists; `None` while it cannot.
fn listed(gateway: &Gateway) -> Option<BTreeSet<String>> {
    let answer = gateway.rest().get(&format!("/v1/channels/{CHANNEL}/presence"));
    let members = (answer.status == 200).then(|| answer.json()["members"].as_array().cloned())??;
    members.iter().map(|member| Some(member["user"].as_str()?.to_owned())).collect()
}

/// How the connection ended, if it did. What came is read.
fn closed(client: &mut WsClient) -> Option<Closed> {
    loop {
        match client.next(Duration::from_millis(1)) {
            Received::Closed(closed) => return Some(closed),
            Received::Nothing => return None,
            _ => {}
        }
    }
}
