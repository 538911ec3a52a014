//! Publishes per second into a Redis that runs, without history, with 64 in flight: `redis_publish URL [SECONDS]`.
//! Compare with `redis-benchmark -P 64 -c 1 PUBLISH CHANNEL PAYLOAD` on the same server.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tidegate_backplane::{
    Backplane, Channel, NewPublication, Payload, RedisBackplane, RedisOptions, conformance::Recorder,
};

const IN_FLIGHT: usize = 64;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("give a Redis URL")?.parse()?;
    let seconds = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let backplane =
        RedisBackplane::connect(RedisOptions::new(url, "example"), Arc::<Recorder>::default()).await?;
    let publication = NewPublication {
        channel: Channel::new("bench")?,
        event: None,
        payload: Payload::Text("x".repeat(130).into()),
        history: None,
        idempotency_key: None,
        sender: None,
    };
    let (begin, until) = (Instant::now(), Duration::from_secs(seconds));
    let publish = |_| backplane.publish(publication.clone());
    let more = stream::repeat(()).take_while(|()| std::future::ready(begin.elapsed() < until));
    let accepted = more.map(publish).buffer_unordered(IN_FLIGHT);
    let accepted = accepted.fold(0_u64, async |count, published| count + u64::from(published.is_ok())).await;
    println!("{:.0} publishes/s", accepted as f64 / begin.elapsed().as_secs_f64());
    backplane.close().await;
    Ok(())
}
