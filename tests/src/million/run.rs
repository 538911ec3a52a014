//! The whole of it: `serve`, the crowds, two publications, a live upgrade and a third one, and what was counted.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use std::{
    io::{BufRead as _, BufReader},
    sync::mpsc,
};

use anyhow::{Context as _, Result, bail, ensure};
use tidegate_testkit::{Process, Rest, Stop, eventually, memory, observe, pid_runs, redis::RedisServer};

use super::{
    crowd::PAYLOAD,
    plan::{Facts, Plan, available_bytes},
};

#[derive(Debug)]
pub struct Options {
    pub connections: u64,
    /// How long all of them are held before the first publication and the second.
    pub hold: Duration,
    pub tidegate: PathBuf,
    /// This program: it is the crowds, too.
    pub program: PathBuf,
}

/// All of a crowd are open by then, or the run has failed: at 2,000 handshakes a second on two shared cores, a million are
/// some 9 minutes.
const OPEN_MAX: Duration = Duration::from_secs(1_800);

/// A publication has reached everybody by then, or it was lost.
const REACH_MAX: Duration = Duration::from_secs(120);

const STOP_MAX: Duration = Duration::from_secs(120);

/// No rates: the clients are of this machine. The drain closes a million at once at the end.
const GATEWAYS: &str = "\
[limits]
handshakes_per_second = 0
[namespaces.default]
anonymous_subscribe = true
[drain]
settle = \"0s\"
period = \"2s\"
close_wait = \"2s\"
";

const ROUTER: &str = "\
[limits]
handshakes_per_second = 0
address_handshakes_per_second = 0
[drain]
settle = \"0s\"
period = \"1s\"
close_wait = \"1s\"
";

/// A crowd that runs.
struct Crowd {
    child: Child,
    _input: Option<ChildStdin>,
    clients: u64,
}

/// A line that a crowd has said. The last one of each is empty: it has ended.
struct Said {
    crowd: usize,
    line: String,
}

struct Site {
    serve: Process,
    public: SocketAddr,
    internal: String,
    _redis: RedisServer,
    _directory: tempfile::TempDir,
}

/// How an upgrade of all processes was.
struct Upgraded {
    took: Duration,
    /// The longest of them, with its unit.
    paused: String,
    /// User memory after it.
    user: u64,
}

/// What was counted; its text is the report.
#[derive(Debug, Default)]
struct Counted {
    open: u64,
    closed: u64,
    refused: u64,
    doubled: u64,
    reached: [u64; PUBLISHED],
}

/// Twice to the processes that have begun, and once to those that took their places.
const PUBLISHED: usize = 3;

/// Checks the machine, opens all, publishes twice, upgrades, publishes again, and gives the report. An error says what was not as it must be.
pub fn run(options: &Options) -> Result<String> {
    let plan = Plan::of(options.connections, Facts::of_this_machine())?;
    let before = available_bytes();
    let site = Site::start(options, plan)?;
    let (tell, said) = mpsc::channel();
    let begun = Instant::now();
    let mut crowds = Vec::new();
    for number in 0..plan.crowds as usize {
        crowds.push(start_crowd(options, plan, &site, number, &tell)?);
    }
    let mut open = vec![0; crowds.len()];
    wait_for(&said, OPEN_MAX, "a client is not open", crowds.len(), |said| {
        let count = said.line.strip_prefix("open ")?;
        open[said.crowd] = count.parse().ok()?;
        Some(())
    })?;
    let opened = begun.elapsed();
    let cpu_open = site.cpu_seconds();
    let mut times = Vec::new();
    for number in 0..PUBLISHED - 1 {
        observe(options.hold);
        times.push(publish(&site, &said, crowds.len(), number));
    }
    let (cpu, user) = (site.cpu_seconds(), site.user_bytes());
    let machine = before.saturating_sub(available_bytes());
    let upgraded = site.upgrade(options)?;
    times.push(publish(&site, &said, crowds.len(), PUBLISHED - 1));
    let counted = account(crowds, &said)?;
    let report = report(plan, options, opened, [cpu_open, cpu], &times, [user, machine], &upgraded, &counted);
    site.stop()?;
    let all = plan.connections;
    let is_whole = counted.open == all && counted.reached == [all; PUBLISHED];
    ensure!(is_whole && counted.doubled + counted.closed + counted.refused == 0, "{report}");
    Ok(report)
}

impl Site {
    fn start(options: &Options, plan: Plan) -> Result<Self> {
        let (redis, directory) = (RedisServer::start(), tempfile::tempdir()?);
        let (gateways, router) =
            (directory.path().join("gateways.toml"), directory.path().join("router.toml"));
        fs::write(&gateways, GATEWAYS)?;
        fs::write(&router, ROUTER)?;
        let mut command = Command::new(&options.tidegate);
        command.args([
            "serve",
            "--dev",
            "--listen",
            "127.0.0.1:0",
            "--internal",
            "127.0.0.1:0",
            "--shards",
            "1",
        ]);
        command.args(["--gateways", &plan.gateways.to_string(), "--backplane", &redis.url()]);
        command.arg("--config").arg(gateways).arg("--router-config").arg(router);
        let mut serve = Process::spawn("serve", command.env("TMPDIR", directory.path()));
        let public = serve.wait_line("serve listens", Duration::from_secs(120), |line| {
            line.strip_prefix("listening public=http://")?.split(' ').next()?.parse().ok()
        });
        let own = |line: &str| line.trim().strip_prefix("serve internal=").map(str::to_owned);
        let internal = serve.wait_line("serve's own port", Duration::from_secs(10), own);
        Ok(Self { serve, public, internal, _redis: redis, _directory: directory })
    }

    /// The gateways and the router.
    fn pids(&self) -> Vec<u32> {
        let task = self.serve.pid();
        let children = fs::read_to_string(format!("/proc/{task}/task/{task}/children")).unwrap_or_default();
        let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        // Those that have ended and were not waited for are listed, too.
        pids.filter(|&pid| pid_runs(pid)).collect()
    }

    fn cpu_seconds(&self) -> f64 {
        self.pids().into_iter().map(memory::cpu_seconds).sum()
    }

    fn user_bytes(&self) -> u64 {
        self.pids().into_iter().map(memory::pss_bytes).sum()
    }

    /// Has each process replaced under its connections.
    fn upgrade(&self, options: &Options) -> Result<Upgraded> {
        let (begun, before) = (Instant::now(), self.pids());
        let output = Command::new(&options.tidegate).arg("upgrade").arg(&self.internal).output()?;
        let (said, error) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "no upgrade: {error}");
        let took = begun.elapsed();
        let paused = said.rsplit_once(" for ").map(|(_, pause)| pause.trim().to_owned());
        eventually("those before have ended", STOP_MAX, || !before.iter().any(|&pid| pid_runs(pid)));
        Ok(Upgraded {
            took,
            paused: paused.context("it says how long it stood still")?,
            user: self.user_bytes(),
        })
    }

    fn stop(mut self) -> Result<()> {
        self.serve.signal(Stop::Terminate);
        let exit = self.serve.wait(STOP_MAX);
        ensure!(exit.code == Some(0), "serve did not end well: {exit}");
        Ok(())
    }
}

fn start_crowd(
    options: &Options,
    plan: Plan,
    site: &Site,
    number: usize,
    tell: &mpsc::Sender<Said>,
) -> Result<Crowd> {
    let clients = plan.clients_of(number as u64);
    let mut command = Command::new(&options.program);
    command.args(["--crowd", &number.to_string(), "--target", &site.public.to_string()]);
    command.args(["--connections", &clients.to_string()]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start a crowd")?;
    let (input, output) = (child.stdin.take(), child.stdout.take().context("its output is piped")?);
    let tell = tell.clone();
    thread::spawn(move || {
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        for line in lines.chain([String::new()]) {
            // The run may have ended.
            drop(tell.send(Said { crowd: number, line }));
        }
    });
    Ok(Crowd { child, _input: input, clients })
}

/// Waits until as many lines have come for which `take` gives something. A crowd that has ended says no more.
fn wait_for(
    said: &mpsc::Receiver<Said>,
    deadline: Duration,
    what: &str,
    lines: usize,
    mut take: impl FnMut(&Said) -> Option<()>,
) -> Result<()> {
    let ends = Instant::now() + deadline;
    let mut taken = 0;
    while taken < lines {
        match said.recv_timeout(ends.saturating_duration_since(Instant::now())) {
            Ok(Said { crowd, line }) if line.is_empty() => {
                bail!("{what}: the clients of process {crowd} have ended; what it says above is why")
            }
            Ok(said) => taken += usize::from(take(&said).is_some()),
            Err(_) => bail!("{what} after {} s ({taken} of {lines} crowds)", deadline.as_secs()),
        }
    }
    Ok(())
}

/// Publishes once. How long until the last client had it. An error says why some have not; the account says how many.
fn publish(site: &Site, said: &mpsc::Receiver<Said>, crowds: usize, number: usize) -> Result<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Rest::new(site.public).with_key("dev-key").publish("million", &format!("{PAYLOAD}{number}"));
    let mut last = now;
    let begin = format!("all {number} ");
    wait_for(said, REACH_MAX, "a publication has not reached everybody", crowds, |said| {
        let micros = said.line.strip_prefix(&begin)?.parse().ok()?;
        last = last.max(Duration::from_micros(micros));
        Some(())
    })?;
    Ok(last.saturating_sub(now))
}

/// Ends the crowds, and adds up what they have counted.
fn account(mut crowds: Vec<Crowd>, said: &mpsc::Receiver<Said>) -> Result<Counted> {
    crowds.iter_mut().for_each(|crowd| drop(crowd._input.take()));
    let mut counted = Counted::default();
    wait_for(said, STOP_MAX, "a crowd has not given its account", crowds.len(), |said| {
        let account = said.line.strip_prefix("end ")?;
        for (name, value) in account.split(' ').filter_map(|part| part.split_once('=')) {
            let number = || value.parse::<u64>().unwrap_or(0);
            match name {
                "open" => counted.open += number(),
                "closed" => counted.closed += number(),
                "refused" => counted.refused += number(),
                "doubled" => counted.doubled += number(),
                _ => {
                    let each = value.split(',').map(|count| count.parse::<u64>().unwrap_or(0));
                    counted.reached.iter_mut().zip(each).for_each(|(sum, count)| *sum += count);
                }
            }
        }
        Some(())
    })?;
    for crowd in &mut crowds {
        let status = crowd.child.wait()?;
        ensure!(status.success(), "a crowd of {} ended with {status}", crowd.clients);
    }
    Ok(counted)
}

fn told(time: &Result<Duration>) -> String {
    time.as_ref().map_or_else(ToString::to_string, |time| format!("{:.2} s", time.as_secs_f64()))
}

#[expect(clippy::too_many_arguments, reason = "the parts of one report")]
fn report(
    plan: Plan,
    options: &Options,
    opened: Duration,
    [cpu_open, cpu]: [f64; 2],
    times: &[Result<Duration>],
    [user, machine]: [u64; 2],
    upgraded: &Upgraded,
    counted: &Counted,
) -> String {
    let all = plan.connections;
    let each = |bytes: u64| bytes / all.max(1);
    let lines = [
        format!("connections        {} of {all} open at the end", counted.open),
        format!(
            "behind             1 port, {} gateways; {} processes of clients",
            plan.gateways, plan.crowds
        ),
        format!(
            "opened in          {:.1} s, {:.0} a second",
            opened.as_secs_f64(),
            all as f64 / opened.as_secs_f64()
        ),
        format!(
            "CPU of the server  {:.1} s to open ({:.0} µs each), {:.1} s until the end",
            cpu_open,
            cpu_open * 1e6 / all as f64,
            cpu
        ),
        format!(
            "held               {} s before the first publication and the second",
            options.hold.as_secs()
        ),
        format!(
            "deliveries         {}, {} and {} of {all}; {} doubled, {} closed, {} refused",
            counted.reached[0],
            counted.reached[1],
            counted.reached[2],
            counted.doubled,
            counted.closed,
            counted.refused
        ),
        format!("time to the last   {}", times.iter().map(told).collect::<Vec<_>>().join(", ")),
        format!(
            "upgraded live      {} gateways and the router in {:.1} s before the third publication; longest pause {}; user \
             memory {} MiB",
            plan.gateways,
            upgraded.took.as_secs_f64(),
            upgraded.paused,
            upgraded.user >> 20
        ),
        format!("user memory        {} MiB in gateways and router, {} B each", user >> 20, each(user)),
        format!(
            "machine memory     {} MiB with the clients' ends and all processes, {} B each",
            machine >> 20,
            each(machine)
        ),
    ];
    lines.join("\n")
}
