//! A node with very many subscriptions: what they cost Redis while nothing happens, and how soon they are back.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::compare::launch::{Places, Running};
use crate::compare::plan::{Measure, Sizes};
use crate::compare::rig::{MeasureError, Reading, stuck};
use crate::compare::servers::{launch_gateway, redis_at, start_redis};
use crate::http;
use crate::target::Target;

use super::wire::{Posts, Redis};

/// As many as one connection may have.
const CHANNELS_EACH: u32 = 100;

/// Nobody here answers pings.
const HEARTBEAT: (&str, &str) = ("TIDEGATE__HEARTBEAT__INTERVAL", "1h");

/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// Idle subscriptions without history, then with one publication kept in each channel; then Redis is killed and another
/// one, which is empty, takes its place.
pub(super) fn run(places: &Places, sizes: &Sizes) -> Result<Vec<Reading>, MeasureError> {
    let mut readings = Vec::new();
    for (history, measure) in [("0", Measure::RedisIdleCommands), ("10", Measure::RedisIdleScripts)] {
        let redis = start_redis(places, places.client_core)?;
        let url = format!("redis://{}", redis.address);
        let environment = [
            HEARTBEAT,
            ("TIDEGATE__LIMITS__ANONYMOUS_SUBSCRIPTIONS", "100"),
            ("TIDEGATE__NAMESPACES__DEFAULT__HISTORY_SIZE", history),
            ("TIDEGATE__NAMESPACES__DEFAULT__HISTORY_AGE", if history == "0" { "0s" } else { "1h" }),
        ];
        let environment =
            environment.map(|(name, value): (&'static str, &str)| (name, value.to_owned())).into();
        let node = launch_gateway(
            places,
            places.tidegate.clone(),
            places.server_core,
            &["--backplane", &url],
            environment,
        )?;
        let clients = open(&node.target(), sizes.idle_channels)?;
        until_subscribed(&redis, sizes.idle_channels)?;
        if history != "0" {
            publish_to_all(&node.target(), sizes.idle_channels)?;
        }
        std::thread::sleep(sizes.settle);
        readings.push(Reading::of(measure, idle_rate(&redis, measure, sizes)?));
        if history != "0" {
            readings.push(Reading::of(Measure::RedisBack, back(places, redis, sizes)?));
        }
        drop(clients);
    }
    Ok(readings)
}

/// Seconds from the moment at which the new server listens to the last subscription there.
fn back(places: &Places, redis: Running, sizes: &Sizes) -> Result<f64, MeasureError> {
    let address = redis.address;
    drop(redis);
    let redis = redis_at(places, places.client_core, address)?;
    let began = Instant::now();
    until_subscribed(&redis, sizes.idle_channels)?;
    Ok(began.elapsed().as_secs_f64())
}

fn idle_rate(redis: &Running, measure: Measure, sizes: &Sizes) -> Result<f64, MeasureError> {
    let mut client = Redis::connect(redis.address)?;
    let mut count = || match measure {
        Measure::RedisIdleScripts => client.info("commandstats", "cmdstat_evalsha:calls="),
        _ => client.info("stats", "total_commands_processed:"),
    };
    let (began, before) = (Instant::now(), count()?);
    std::thread::sleep(sizes.idle);
    Ok((count()? - before) as f64 / began.elapsed().as_secs_f64())
}

fn until_subscribed(redis: &Running, channels: u32) -> Result<(), MeasureError> {
    let (mut client, began) = (Redis::connect(redis.address)?, Instant::now());
    loop {
        let there = client.info("stats", "pubsub_channels:")?;
        if there >= u64::from(channels) {
            return Ok(());
        }
        stuck(began, "subscribing", there, channels.into())?;
        std::thread::sleep(LOOK);
    }
}

fn open(target: &Target, channels: u32) -> Result<Vec<TcpStream>, MeasureError> {
    (0..channels / CHANNELS_EACH).map(|connection| open_one(target, connection)).collect()
}

fn open_one(target: &Target, connection: u32) -> Result<TcpStream, MeasureError> {
    let channels: Vec<String> = names(connection).map(|name| format!("channel={name}")).collect();
    let request = format!(
        "GET /ws?{}&envelope=json HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\n\r\n",
        channels.join("&"),
        target.authority,
        http::WEBSOCKET_KEY
    );
    let mut stream = TcpStream::connect(target.address)?;
    stream.write_all(request.as_bytes())?;
    let mut head = [0; 12];
    stream.read_exact(&mut head)?;
    if head.ends_with(b"101") {
        Ok(stream)
    } else {
        Err(MeasureError::Loop(std::io::Error::other(String::from_utf8_lossy(&head).into_owned())))
    }
}

fn publish_to_all(target: &Target, channels: u32) -> Result<(), MeasureError> {
    let mut posts = Posts::connect(target)?;
    for connection in 0..channels / CHANNELS_EACH {
        let names: Vec<String> = names(connection).collect();
        let request = posts.request("/v1/publish", &json!({ "channels": names, "data": "0" }));
        posts.post(&request)?;
    }
    Ok(())
}

fn names(connection: u32) -> impl Iterator<Item = String> {
    (0..CHANNELS_EACH).map(move |nth| format!("idle-{}", connection * CHANNELS_EACH + nth))
}
