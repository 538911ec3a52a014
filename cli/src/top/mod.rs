//! `tidegate top`: the console of a cluster in a terminal, from the stream that the page reads.

mod screen;
mod stream;
mod text;

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tidegate_gateway::console::view::{Sample, View};
use tokio::time::{Instant, MissedTickBehavior};

use crate::args::TopArgs;
use stream::{Told, Views};

/// Rates need two reports, and nodes begin to report when somebody watches: the fourth view has them.
const SETTLED: usize = 4;
/// How often keys are looked for.
const KEYS_EVERY: Duration = Duration::from_millis(50);
const RECONNECT_EVERY: Duration = Duration::from_secs(1);
/// 15 minutes.
const SAMPLES_MAX: usize = 900;

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TopError {
    #[error(
        "{url} does not answer: {source}. It has to be the internal port of a gateway, by default http://127.0.0.1:9000"
    )]
    Unreachable { url: String, source: reqwest::Error },
    #[error("{url} has no console: it is not the internal port of a gateway, or that one is older")]
    NoConsole { url: String },
    #[error("{url} answers {status}: {detail}")]
    Refused { url: String, status: u16, detail: String },
    #[error("{url} ended the stream: the gateway is draining, or was restarted")]
    Ended { url: String },
    #[error("{url} sends what is no view: it is of another version than this `tidegate top`")]
    NoView { url: String },
    #[error("the terminal cannot be used: {0}. `tidegate top --once` needs none")]
    Terminal(#[from] io::Error),
}

/// What is on the screen.
#[derive(Debug, Default)]
struct Shown {
    view: Option<View>,
    samples: Vec<Sample>,
    /// Why nothing new comes.
    trouble: Option<String>,
}

/// Shows the cluster until `q`, or once.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(args: &TopArgs) -> Result<(), TopError> {
    let views = Views::open(&args.url).await?;
    if args.once || !io::stdout().is_terminal() {
        return once(views).await;
    }
    let mut terminal = ratatui::try_init()?;
    let outcome = watch(&args.url, views, &mut terminal).await;
    ratatui::try_restore()?;
    outcome
}

async fn once(mut views: Views) -> Result<(), TopError> {
    let mut number = 0;
    loop {
        if let Told::View(view) = views.next().await? {
            number += 1;
            if number == SETTLED {
                print!("{}", text::render(&view));
                return Ok(());
            }
        }
    }
}

async fn watch(url: &str, views: Views, terminal: &mut ratatui::DefaultTerminal) -> Result<(), TopError> {
    let mut shown = Shown::default();
    let mut views = Some(views);
    let mut ticks = tokio::time::interval(KEYS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut tried = Instant::now();
    loop {
        terminal.draw(|frame| screen::draw(frame, &shown))?;
        let told = tokio::select! {
            told = next(&mut views) => told,
            _ = ticks.tick() => {
                if is_quit_asked()? {
                    return Ok(());
                }
                if views.is_none() && tried.elapsed() >= RECONNECT_EVERY {
                    tried = Instant::now();
                    views = Views::open(url).await.inspect_err(|error| shown.trouble = Some(error.to_string())).ok();
                }
                continue;
            }
        };
        match told {
            Ok(told) => shown.take(told),
            Err(error) => {
                shown.trouble = Some(error.to_string());
                views = None;
            }
        }
    }
}

/// Never ready while there is no stream.
async fn next(views: &mut Option<Views>) -> Result<Told, TopError> {
    match views {
        Some(views) => views.next().await,
        None => std::future::pending().await,
    }
}

fn is_quit_asked() -> io::Result<bool> {
    while event::poll(Duration::ZERO)? {
        let Event::Key(key) = event::read()? else { continue };
        let is_interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
        let is_quit = matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) || is_interrupt;
        if key.kind == KeyEventKind::Press && is_quit {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Shown {
    fn take(&mut self, told: Told) {
        self.trouble = None;
        match told {
            Told::History(history) => self.samples = history.samples,
            Told::View(view) => {
                self.samples.push(view.sample);
                let more = self.samples.len().saturating_sub(SAMPLES_MAX);
                self.samples.drain(..more);
                self.view = Some(*view);
            }
        }
    }
}
