//! A gateway of one shard, with what an attack needs beside it.

use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{Gateway, Rest};

/// Processes of one attack. The gateways come first: they end before their Redis.
#[derive(Debug)]
pub struct Scene {
    pub gateways: Vec<Gateway>,
    pub redis: Option<RedisServer>,
}

/// A node that is open to anonymous subscribers and has the limits of production. `/v1` has a key, and there is an app.
const OPEN: &str = r#"
[[auth.api_keys]]
name = "kit"
key = "attack-key-000000000001"
scopes = ["publish", "read", "admin"]
channels = ["*"]
[namespaces.default]
anonymous_subscribe = true
history_size = 100
history_age = "300s"
[namespaces.open]
client_publish = "anyone"
[apps.1]
key = "dev-key"
secret = "dev-secret"
"#;

/// The API key of [`OPEN`].
const KEY: &str = "attack-key-000000000001";

impl Scene {
    /// One gateway with production's limits.
    #[track_caller]
    pub fn open(config: &str) -> Self {
        Self::of(0, config, &[])
    }

    /// Gateways on one Redis.
    #[track_caller]
    pub fn on_redis(gateways: usize, config: &str) -> Self {
        Self::of(gateways, config, &[])
    }

    /// So many gateways on one Redis; with 0, one that needs none. `unknown` names settings of `config` that are left
    /// out, since the gateway's program is older than they are.
    #[track_caller]
    pub fn of(on_redis: usize, config: &str, unknown: &[String]) -> Self {
        let is_known = |line: &&str| {
            let key = line.split('=').next().unwrap_or_default().trim();
            !unknown.iter().any(|unknown| unknown == key)
        };
        let lines: Vec<&str> = OPEN.lines().chain(config.lines()).filter(is_known).collect();
        let config = lines.join("\n");
        let builder = || Gateway::builder().production().argument("--shards").argument("1").config(&config);
        let redis = (on_redis > 0).then(RedisServer::start);
        let gateways = match &redis {
            None => vec![builder().start()],
            Some(redis) => (1..=on_redis)
                .map(|number| builder().backplane(&redis.url()).node(&format!("g{number}")).start())
                .collect(),
        };
        Self { gateways, redis }
    }

    pub fn rest(&self) -> Rest {
        self.gateway().rest().with_key(KEY)
    }

    /// The one that is attacked.
    pub fn gateway(&self) -> &Gateway {
        &self.gateways[0]
    }
}
