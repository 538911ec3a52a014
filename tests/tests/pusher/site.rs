//! Gateways on one Redis, or one alone, with the app that the scripts use.

use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{Gateway, Inbox};

/// Nodes g1, g2, … with the app of `--dev`, ended when it is dropped. The gateways come first: they end before their Redis.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) inbox: Inbox,
    _redis: RedisServer,
}

impl Site {
    #[track_caller]
    pub(crate) fn start(gateways: usize) -> Self {
        let (redis, inbox) = (RedisServer::start(), Inbox::start());
        let config = config(&inbox);
        let start = |number| {
            let node = Gateway::builder().backplane(&redis.url()).node(&format!("g{number}"));
            node.config(&config).start()
        };
        Self { gateways: (1..=gateways).map(start).collect(), inbox, _redis: redis }
    }
}

/// The lease is short, so that nobody waits long for the dead to be gone. A crowd is larger than Pusher's 100 members.
/// Raw clients may publish, so that their messages are seen by pusher-js too.
fn config(inbox: &Inbox) -> String {
    format!(
        "\
[apps.1.limits]
presence_members = 1000
[[apps.1.webhooks]]
url = \"{}\"
[namespaces.default]
client_publish = \"anyone\"
[redis]
lease = \"3s\"
",
        inbox.url()
    )
}
