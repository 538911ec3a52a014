//! A few gateways on one backplane.

use std::net::SocketAddr;

use tidegate_testkit::{DEADLINE, Gateway, GatewayBuilder, eventually};

/// `kept:` keeps more than any test publishes to a channel, `live:` nothing, `room:` its members; `local:` is
/// delivered on the node while Redis is away. Clients that do not read are not closed for it. The lease is short, so that nobody waits long for the dead to be gone.
/// The file may go on with keys of `[redis]`.
pub const CONFIG: &str = "\
[namespaces.kept]
history_size = 100000
history_age = \"1h\"
[namespaces.live]
history_size = 0
history_age = \"0s\"
[namespaces.local]
history_size = 0
history_age = \"0s\"
backplane_away = \"local\"
[namespaces.room]
presence = true
history_size = 100
history_age = \"10m\"
[[auth.jwt]]
algorithm = \"HS256\"
secret = \"a secret of the cluster tests, 32+\"
require_exp = false
[heartbeat]
interval = \"10m\"
[redis]
lease = \"3s\"
";

/// `{"sub":"ada","channels":["room:*"]}`, signed with the secret of [`CONFIG`]: only users are present.
pub const TOKEN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhZGEiLCJjaGFubmVscyI6WyJyb29tOioiXX0.ruWrsWM53PDDsh6Rs5l74RZQr_XByWDptnfkrSoZghw";

/// Gateways g1, g2, …, ended when it is dropped.
#[derive(Debug, Default)]
pub struct Site {
    pub gateways: Vec<Gateway>,
}

impl Site {
    #[track_caller]
    pub fn start(url: &str, gateways: usize) -> Self {
        Self { gateways: (1..=gateways).map(|number| node(url, number).start()).collect() }
    }

    /// Gateways that accept what is kept when so many replicas have it.
    #[track_caller]
    pub fn replicated(url: &str, gateways: usize, replicas: u8) -> Self {
        let config = format!("{CONFIG}replicas = {replicas}\n");
        let start = |number| node(url, number).config(&config).start();
        Self { gateways: (1..=gateways).map(start).collect() }
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.gateways.iter().map(Gateway::public).collect()
    }

    #[track_caller]
    pub fn eventually_ready(&self, ready: bool) {
        for gateway in &self.gateways {
            eventually_ready(gateway, ready);
        }
    }
}

/// Gateway number N, not yet started.
pub fn node(url: &str, number: usize) -> GatewayBuilder {
    Gateway::builder().backplane(url).node(&format!("g{number}")).config(CONFIG)
}

/// Waits for what `/readyz` says and gives its body.
#[track_caller]
pub fn eventually_ready(gateway: &Gateway, ready: bool) -> String {
    let rest = gateway.internal_rest();
    let status = if ready { 200 } else { 503 };
    let mut body = String::new();
    eventually(&format!("/readyz answers {status}"), DEADLINE, || {
        let answer = rest.get("/readyz");
        body = answer.text();
        answer.status == status
    });
    body
}
