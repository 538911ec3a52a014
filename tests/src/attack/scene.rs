//! A gateway of one shard, with what an attack needs beside it.

use tidegate_testkit::redis::RedisServer;
use tidegate_testkit::{Gateway, GatewayBuilder, Rest};

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
        let gateways = vec![builder(config).start()];
        Self { gateways, redis: None }
    }

    /// Gateways on one Redis.
    #[track_caller]
    pub fn on_redis(gateways: usize, config: &str) -> Self {
        let redis = RedisServer::start();
        let start = |number| builder(config).backplane(&redis.url()).node(&format!("g{number}")).start();
        let gateways = (1..=gateways).map(start).collect();
        Self { gateways, redis: Some(redis) }
    }

    pub fn rest(&self) -> Rest {
        self.gateway().rest().with_key(KEY)
    }

    /// The one that is attacked.
    pub fn gateway(&self) -> &Gateway {
        &self.gateways[0]
    }
}

fn builder(config: &str) -> GatewayBuilder {
    let builder = Gateway::builder().production().argument("--shards").argument("1");
    builder.config(&format!("{OPEN}{config}"))
}
