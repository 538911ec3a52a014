//! CPU time of this process for each publication that it receives from Redis: `redis_receive URL [SECONDS]`. Publish at
//! the same time with `redis-benchmark -P 64 -c 1 PUBLISH 'tidegate:{bench}' ENVELOPE`, where the envelope is the bytes
//! 1 and 2 and a payload.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tidegate_backplane::{
    Backplane, Channel, Control, Gap, Intake, PresenceEvent, Publication, RedisBackplane, RedisOptions, Sink,
    Transition,
};

#[derive(Default)]
struct Counting {
    publications: AtomicU64,
    gaps: AtomicU64,
}

impl Sink for Counting {
    fn publication(&self, _: &Channel, _: Arc<Publication>) -> Intake {
        self.publications.fetch_add(1, Relaxed);
        Intake::Taken
    }

    fn gap(&self, _: &Channel, _: Gap) {
        self.gaps.fetch_add(1, Relaxed);
    }

    fn control(&self, _: Control) {}
    fn presence(&self, _: &Channel, _: Arc<PresenceEvent>) {}
    fn transition(&self, _: &Channel, _: Transition) {}
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("give a Redis URL")?.parse()?;
    let seconds = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let sink = Arc::<Counting>::default();
    let backplane = RedisBackplane::connect(RedisOptions::new(url, "example"), sink.clone()).await?;
    backplane.subscribe(&Channel::new("bench")?, 1).await?;
    let cpu_ns_before = cpu_ns()?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let cpu_ns = cpu_ns()? - cpu_ns_before;
    let (publications, gaps) = (sink.publications.load(Relaxed), sink.gaps.load(Relaxed));
    let each = cpu_ns as f64 / 1e3 / publications.max(1) as f64;
    println!("{publications} publications, {gaps} gaps, {each:.2} µs of CPU for each");
    backplane.close().await;
    Ok(())
}

/// Time on a CPU, of the one thread that there is (Linux).
fn cpu_ns() -> Result<u64, Box<dyn std::error::Error>> {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(statistics.split_whitespace().next().ok_or("no statistics")?.parse()?)
}
