//! A third gateway is added under clients that recover, then all three are restarted, one after the other: how long until
//! none has more than its bound, and what it cost the clients.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client::{Fleet, Role};
use crate::publish::{Pace, Publisher};
use crate::target::Target;

use super::launch::{Places, Running, ServerError, environment, free_address, write};
use super::plan::{Measure, Sizes};
use super::rig::{MeasureError, Reading, Rig, publisher, stuck};
use super::scaling::{metric, wait_metric};
use super::servers::{launch_gateway_at, start_redis, start_router_with};

/// Of placement.
const BOUND: f64 = 1.25;

const GATEWAYS: usize = 3;

const ROUTERS: usize = 2;

/// Publications of the channel a second.
const PACE: Pace = Pace::PerSecond(2.0);

/// How often the gateways' loads are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// History that holds what is published in the longest run.
const CONFIG: &str = "[namespaces.kept]\nhistory_size = 5000\nhistory_age = \"1h\"\n";

const CHANNEL: &str = "kept:a";

/// Takes the readings.
pub(super) fn run(places: &Places, sizes: &Sizes) -> Result<Vec<Reading>, MeasureError> {
    let mut site = Site::start(places, sizes)?;
    let mut crowd = Crowd::open(&site, sizes)?;
    let (added, begun) = (site.join(2)?, Instant::now());
    let ends = begun + 2 * sizes.fill_period;
    let fill_time = crowd.balanced(&site, ends)?.map_or(f64::INFINITY, |at| (at - begun).as_secs_f64());
    crowd.drive(ends.saturating_duration_since(Instant::now()))?;
    let fill_balance = crowd.settled(&site)?;
    let taken = metric(added, "tidegate_connections_opened_total")?;
    let needless = crowd.fleet.stats().returned as f64 - taken;
    let fill_lost = crowd.faults();

    let begun = Instant::now();
    for index in (0..GATEWAYS).rev() {
        crowd.restart(&mut site, index)?;
    }
    let ends = Instant::now() + 2 * sizes.fill_period;
    let roll_time = crowd.balanced(&site, ends)?.map_or(f64::INFINITY, |at| (at - begun).as_secs_f64());
    crowd.drive(ends.saturating_duration_since(Instant::now()))?;
    let roll_balance = crowd.settled(&site)?;
    crowd.publisher.stop();
    crowd.rig.drain(&mut crowd.fleet, &mut crowd.publisher)?;
    Ok(vec![
        Reading::of(Measure::FillTime, fill_time),
        Reading::of(Measure::FillBalance, fill_balance),
        Reading::of(Measure::FillNeedless, needless),
        Reading::of(Measure::FillLost, fill_lost),
        Reading::of(Measure::RollTime, roll_time),
        Reading::of(Measure::RollBalance, roll_balance),
        Reading::of(Measure::RollLost, crowd.faults() + crowd.missing() - fill_lost),
    ])
}

/// Redis, gateways, two routers.
struct Site<'a> {
    places: &'a Places,
    redis: Running,
    gateways: [Option<Gateway>; GATEWAYS],
    routers: Vec<Running>,
    /// Internal ports of the routers.
    internals: Vec<SocketAddr>,
    drain_period: String,
    config: String,
}

struct Gateway {
    running: Running,
    internal: SocketAddr,
}

impl<'a> Site<'a> {
    /// With two of the three gateways.
    fn start(places: &'a Places, sizes: &Sizes) -> Result<Self, MeasureError> {
        let redis = start_redis(places, places.server_core)?;
        let mut site = Self {
            places,
            redis,
            gateways: Default::default(),
            routers: Vec::new(),
            internals: Vec::new(),
            drain_period: format!("{}s", sizes.drain_period.as_secs()),
            config: write(&places.logs.join("filling"), "gateway.toml", CONFIG)?,
        };
        let (url, period) = (site.url(), format!("{}s", sizes.fill_period.as_secs()));
        for _ in 0..ROUTERS {
            let addresses = [free_address()?, free_address()?];
            let more = ["--members", &url, "--key", "query:key"];
            let variables = [("TIDEGATE__FILL__PERIOD", &*period)];
            site.routers.push(start_router_with(places, places.server_core, addresses, &more, &variables)?);
            site.internals.push(addresses[1]);
        }
        (0..GATEWAYS - 1).try_for_each(|index| site.join(index).map(drop))?;
        Ok(site)
    }

    fn url(&self) -> String {
        format!("redis://{}", self.redis.address)
    }

    /// Starts a gateway, and waits until both routers know it. Gives its internal port.
    fn join(&mut self, index: usize) -> Result<SocketAddr, MeasureError> {
        let gateway = self.start_gateway(index)?;
        let internal = gateway.internal;
        self.gateways[index] = Some(gateway);
        let running = self.gateways.iter().flatten().count() as f64;
        let live = "tidegate_nodes{state=\"live\"}";
        self.internals.iter().try_for_each(|internal| wait_metric(*internal, live, running))?;
        Ok(internal)
    }

    fn start_gateway(&self, index: usize) -> Result<Gateway, ServerError> {
        let (internal, name, url) = (free_address()?, format!("gateway-{index}"), self.url());
        let more = ["--node", &name, "--backplane", &url, "--config", &self.config];
        let variables = [
            ("TIDEGATE__DRAIN__SETTLE", "5s"),
            ("TIDEGATE__DRAIN__PERIOD", &*self.drain_period),
            ("TIDEGATE__DRAIN__CLOSE_WAIT", "5s"),
        ];
        let program = self.places.tidegate.clone();
        let core = Some(self.places.server_core);
        let running =
            launch_gateway_at(self.places, program, core, internal, &more, environment(&variables))?;
        Ok(Gateway { running, internal })
    }

    /// Clients of each gateway.
    fn loads(&self) -> Result<Vec<f64>, MeasureError> {
        let each = self.gateways.iter().flatten();
        each.map(|gateway| metric(gateway.internal, "tidegate_subscriptions")).collect()
    }
}

/// The clients, and who publishes to them.
struct Crowd {
    rig: Rig,
    fleet: Fleet,
    publisher: Publisher,
    clients: u32,
}

impl Crowd {
    fn open(site: &Site<'_>, sizes: &Sizes) -> Result<Self, MeasureError> {
        let mut target = site.routers[0].target();
        target.addresses = site.routers.iter().map(|router| router.address).collect();
        let channels: Arc<[String]> =
            (0..sizes.fill_clients).map(|client| format!("{CHANNEL}&key={client}")).collect();
        let mut rig = Rig::new()?;
        let fleet = rig.open_over(&target, Role::SubscribeRecovering, sizes.fill_clients, &channels)?;
        let to = Target::of(site.routers[0].address);
        let publisher = publisher(&to, 1, PACE, &[CHANNEL.to_owned()].into())?;
        let mut crowd = Self { rig, fleet, publisher, clients: sizes.fill_clients };
        crowd.drive(sizes.warmup)?;
        Ok(crowd)
    }

    fn drive(&mut self, time: Duration) -> Result<(), MeasureError> {
        self.rig.drive(&mut [&mut self.fleet, &mut self.publisher], time)
    }

    /// How far the fullest is above the mean, and whether all clients are connected.
    fn balance(&self, site: &Site<'_>) -> Result<(f64, bool), MeasureError> {
        let loads = site.loads()?;
        let all = loads.iter().sum::<f64>() >= f64::from(self.clients) && self.fleet.open() == self.clients;
        let mean = f64::from(self.clients) / GATEWAYS as f64;
        Ok((loads.into_iter().fold(0.0, f64::max) / mean, all))
    }

    /// When the loads were within the bound. `None`: not before it `ends`. Who is on the way is none of the fullest's.
    fn balanced(&mut self, site: &Site<'_>, ends: Instant) -> Result<Option<Instant>, MeasureError> {
        while Instant::now() < ends {
            if self.balance(site)?.0 <= BOUND {
                return Ok(Some(Instant::now()));
            }
            self.drive(LOOK)?;
        }
        Ok(None)
    }

    /// The balance as soon as nobody is on the way.
    fn settled(&mut self, site: &Site<'_>) -> Result<f64, MeasureError> {
        let began = Instant::now();
        loop {
            if let (balance, true) = self.balance(site)? {
                return Ok(balance);
            }
            stuck(began, "coming back", self.fleet.open().into(), self.clients.into())?;
            self.drive(LOOK)?;
        }
    }

    /// Has a gateway drain and end, and come back under its name.
    fn restart(&mut self, site: &mut Site<'_>, index: usize) -> Result<(), MeasureError> {
        if let Some(mut gateway) = site.gateways[index].take() {
            gateway.running.terminate();
            let began = Instant::now();
            while !gateway.running.has_ended() {
                self.drive(LOOK)?;
                stuck(began, "a drain", self.fleet.open().into(), self.clients.into())?;
            }
        }
        site.join(index)?;
        self.settled(site).map(drop)
    }

    /// What clients missed, or got twice, or late.
    fn faults(&self) -> f64 {
        let order = self.fleet.stats().order;
        (order.lost + order.duplicated + order.misordered) as f64
    }

    /// What was accepted and has not come to the clients that are there.
    fn missing(&self) -> f64 {
        let streams = self.publisher.streams();
        self.fleet.missing_tail(streams, |stream, _| self.publisher.acknowledged(stream, 0)) as f64
    }
}
