//! Plain HTTP beside servers of it: an answer that carries nothing, and a publish to nobody. On one core, with the
//! client on another; then on both, with the client on one of them.

use std::path::{Path, PathBuf};

use crate::publish::{Pace, Publisher, Request};

use super::launch::{Launch, Places, Running, ServerError, free_address, launch, on_core, output_of, write};
use super::plan::{Measure, Scenario, Sizes};
use super::process::{family, pss_bytes};
use super::rig::{
    MeasureError, PUBLISHERS_IN_FLIGHT, Reading, Rig, Usage, Window, one_channel, publisher_of,
};
use super::servers::{Server, bun, start_gateway};

/// Requests a second while answers are timed: a rate that every server has to spare on one core.
const TIMED_PER_SECOND: f64 = 5_000.0;

/// What is asked of a server, and the measures that come of it.
struct Entry {
    request: Request,
    rate: [Measure; 2],
    cpu: [Measure; 2],
    mean: Measure,
    p99: Measure,
    worst: Measure,
    memory: Measure,
}

const ANSWER: Entry = Entry {
    request: Request::Livez,
    rate: [Measure::AnswerRate, Measure::AnswerRateTwo],
    cpu: [Measure::AnswerCpu, Measure::AnswerCpuTwo],
    mean: Measure::AnswerMean,
    p99: Measure::AnswerP99,
    worst: Measure::AnswerWorst,
    memory: Measure::AnswerMemory,
};

const POST: Entry = Entry {
    request: Request::Publish,
    rate: [Measure::PostRate, Measure::PostRateTwo],
    cpu: [Measure::PostCpu, Measure::PostCpuTwo],
    mean: Measure::PostMean,
    p99: Measure::PostP99,
    worst: Measure::PostWorst,
    memory: Measure::PostMemory,
};

/// Takes the readings of a scenario, each number of cores with a server of its own.
pub(super) fn run(
    scenario: Scenario,
    server: Server,
    places: &Places,
    sizes: &Sizes,
) -> Result<Vec<Reading>, MeasureError> {
    let entry = if scenario == Scenario::LedgerAnswer { &ANSWER } else { &POST };
    let mut readings = entry.on_one_core(&start(server, places, Some(places.server_core))?, sizes)?;
    readings.extend(entry.closed_loop(&start(server, places, None)?, sizes, 1)?);
    Ok(readings)
}

impl Entry {
    /// As many as it can, then a few whose answers are timed, then its memory.
    fn on_one_core(&self, running: &Running, sizes: &Sizes) -> Result<Vec<Reading>, MeasureError> {
        let mut readings = self.closed_loop(running, sizes, 0)?;
        let (mut rig, mut client) = (Rig::new()?, self.client(running, Pace::PerSecond(TIMED_PER_SECOND))?);
        rig.drive(&mut [&mut client], sizes.warmup)?;
        client.forget_answers();
        rig.drive(&mut [&mut client], sizes.window)?;
        let answers = &client.stats().answer_us;
        let memory: u64 = family(running.pid()).into_iter().map(pss_bytes).sum::<Result<_, _>>()?;
        readings.extend([
            Reading::of(self.mean, answers.mean()),
            Reading::of(self.p99, answers.value_at_quantile(0.99) as f64),
            Reading::of(self.worst, answers.max() as f64),
            Reading::of(self.memory, memory as f64 / f64::from(1 << 20)),
        ]);
        Ok(readings)
    }

    /// The next request with each answer.
    fn closed_loop(
        &self,
        running: &Running,
        sizes: &Sizes,
        cores: usize,
    ) -> Result<Vec<Reading>, MeasureError> {
        let (mut rig, mut client) = (Rig::new()?, self.client(running, Pace::Closed)?);
        rig.drive(&mut [&mut client], sizes.warmup)?;
        let (window, before) = (Window::begin(&family(running.pid()))?, client.stats().published);
        rig.drive(&mut [&mut client], sizes.window)?;
        let (usage, answered): (Usage, u64) = (window.usage()?, client.stats().published - before);
        // The note about a server that had less than its core is about one.
        let rate = usage.rate(self.rate[cores], answered);
        let server_busy = rate.server_busy.filter(|_| cores == 0);
        Ok(vec![Reading { server_busy, ..rate }, Reading::of(self.cpu[cores], usage.cpu_us(answered))])
    }

    fn client(&self, running: &Running, pace: Pace) -> Result<Publisher, MeasureError> {
        publisher_of(self.request, &running.target(), PUBLISHERS_IN_FLIGHT, pace, &one_channel())
    }
}

/// Starts a server on a core, or as it is meant to be run on all of them.
fn start(server: Server, places: &Places, core: Option<usize>) -> Result<Running, ServerError> {
    let address = free_address()?;
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    // This thread may have one core only.
    let processes =
        on_core(places, core, std::thread::available_parallelism)?.map_or(1, std::num::NonZero::get);
    let script = |name: &str| vec![name.to_owned(), host, port, processes.to_string()];
    let (program, arguments) = match server {
        Server::Bun => (bun(places), script("bun.ts")),
        Server::NodeHttp => (PathBuf::from("node"), script("http.mjs")),
        Server::GoHttp => {
            (build_go(places, "http", include_str!("../../peers/http.go"))?, vec![address.to_string()])
        }
        _ => return start_gateway(places, core, &[]),
    };
    launch(places, Launch { name: server.name(), program, arguments, environment: Vec::new(), address, core })
}

/// Go's standard library alone, so there is nothing to fetch. Go itself keeps what it has built.
pub(super) fn build_go(places: &Places, name: &str, source: &str) -> Result<PathBuf, ServerError> {
    let program = places.peers.join(format!("{name}-go"));
    let source = write(&places.peers, &format!("{name}.go"), source)?;
    let arguments = ["build", "-o", &program.to_string_lossy(), &source];
    output_of(places, places.client_core, Path::new("go"), &arguments)?;
    Ok(program)
}
