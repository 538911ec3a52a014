//! The view on a terminal's screen.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Text},
    widgets::{Block, Borders, Paragraph, Row, Sparkline, Table, Wrap},
};
use tidegate_gateway::console::view::{ChannelView, Counted, NodeState, Sample, State, View};

use super::{
    Shown,
    text::{advice, channel_name, figures, milliseconds, node_cells, rate},
};

/// What the plots show: a name, a number of a sample, and how it is written.
type Plot = (&'static str, fn(&Sample) -> f64, fn(f64) -> String);

const PLOTS: [Plot; 4] = [
    ("connections", |sample| sample.connections as f64, |value| format!("{value:.0}")),
    ("deliveries/s", |sample| sample.deliveries, rate),
    ("p99 publish to write", |sample| sample.p99_ms.unwrap_or(0.0), |value| milliseconds(Some(value))),
    ("refused/s", |sample| sample.refused, rate),
];

const PLOTS_MS: u64 = 900_000;

/// A figure's name has 21 characters, and most values have 18 at most.
const FIGURE_WIDTH: u16 = 40;

/// Two tables have room beside each other from here on.
const BESIDE_MIN: u16 = 110;

fn figure_columns(width: u16) -> usize {
    usize::from((width / FIGURE_WIDTH).clamp(1, 3))
}

pub(super) fn draw(frame: &mut Frame<'_>, shown: &Shown) {
    let Some(view) = &shown.view else {
        let text = shown.trouble.as_deref().unwrap_or("Waiting for the first second.");
        return frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), frame.area());
    };
    let figures = figures(view);
    let columns = figure_columns(frame.area().width);
    let nodes_height = (view.nodes.len() as u16 + 2).clamp(3, 12);
    let [head, numbers, plots, nodes, rest, foot] = Layout::vertical([
        Constraint::Length(4),
        Constraint::Length(figures.len().div_ceil(columns) as u16),
        Constraint::Length(6),
        Constraint::Length(nodes_height),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_head(frame, head, view);
    draw_figures(frame, numbers, &figures, columns);
    draw_plots(frame, plots, &shown.samples, view.at_ms);
    draw_nodes(frame, nodes, view);
    let halves = [Constraint::Percentage(50), Constraint::Percentage(50)];
    let beside = frame.area().width >= BESIDE_MIN;
    let [channels, counted] =
        if beside { Layout::horizontal(halves) } else { Layout::vertical(halves) }.areas(rest);
    draw_channels(frame, channels, &view.by_rate, &view.by_subscribers);
    draw_counted(frame, counted, &view.refusals, &view.closes);
    let foot_text = match &shown.trouble {
        Some(trouble) => {
            Line::styled(trouble.as_str(), Style::new().fg(Color::Red).add_modifier(Modifier::BOLD))
        }
        None => {
            Line::styled(format!("served by {}   q: quit", view.served_by), Style::new().fg(Color::DarkGray))
        }
    };
    frame.render_widget(foot_text, foot);
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let color = match view.state {
        State::Good => Color::Green,
        State::Warning => Color::Yellow,
        State::Bad => Color::Red,
    };
    let style = Style::new().fg(color).add_modifier(Modifier::BOLD);
    let mut text = Text::from(Line::styled(view.sentence.as_str(), style));
    text.extend(advice(view).map(Line::from));
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
}

fn draw_figures(frame: &mut Frame<'_>, area: Rect, figures: &[(&'static str, String)], columns: usize) {
    let areas = Layout::horizontal(vec![Constraint::Ratio(1, columns as u32); columns]).split(area);
    let height = figures.len().div_ceil(columns);
    for (column, figures) in areas.iter().zip(figures.chunks(height)) {
        let lines = figures.iter().map(|(name, value)| Line::from(format!("{name:<21} {value}")));
        frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), *column);
    }
}

fn draw_plots(frame: &mut Frame<'_>, area: Rect, samples: &[Sample], now_ms: u64) {
    let columns = Layout::horizontal([Constraint::Ratio(1, 4); 4]).split(area);
    for (column, (name, of, write)) in columns.iter().zip(PLOTS) {
        let last = samples.last().map_or(0.0, of);
        let block = Block::new().borders(Borders::TOP).title(format!("{name} {}", write(last)));
        let data = points(samples, of, now_ms, column.width);
        frame.render_widget(
            Sparkline::default().block(block).data(data).style(Style::new().fg(Color::Cyan)),
            *column,
        );
    }
}

/// The largest sample of each column of the last 15 minutes, in thousandths: sparklines draw whole numbers.
fn points(samples: &[Sample], of: fn(&Sample) -> f64, now_ms: u64, width: u16) -> Vec<u64> {
    let width = usize::from(width.max(1));
    let mut points = vec![0; width];
    for sample in samples {
        let age = now_ms.saturating_sub(sample.at_ms).min(PLOTS_MS - 1);
        let column = width - 1 - (age as usize * width / PLOTS_MS as usize);
        points[column] = points[column].max((of(sample) * 1000.0) as u64);
    }
    points
}

fn draw_nodes(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let rows = view.nodes.iter().map(|node| {
        let color = match node.state {
            NodeState::Ready | NodeState::Asked => Color::Reset,
            NodeState::Draining | NodeState::Silent => Color::Yellow,
            NodeState::NotReady | NodeState::Lost => Color::Red,
            NodeState::Gone => Color::DarkGray,
        };
        let note = node.notes.first().cloned().unwrap_or_default();
        Row::new(node_cells(node).into_iter().chain([note])).style(Style::new().fg(color))
    });
    let widths = [18, 10, 18, 18, 12, 9, 9].map(Constraint::Length).into_iter().chain([Constraint::Fill(1)]);
    let heads = ["node", "state", "connections", "fullest", "deliveries/s", "lag", "version", ""];
    frame.render_widget(
        Table::new(rows, widths).header(Row::new(heads).style(head_style())).block(top()),
        area,
    );
}

fn draw_channels(frame: &mut Frame<'_>, area: Rect, by_rate: &[ChannelView], by_subscribers: &[ChannelView]) {
    let quiet = by_subscribers.iter().filter(|channel| channel.publications == 0.0);
    let rows = by_rate.iter().chain(quiet).map(|channel| {
        let numbers = [channel.subscribers.to_string(), rate(channel.publications), rate(channel.deliveries)];
        Row::new([channel_name(channel)].into_iter().chain(numbers))
    });
    let widths =
        [Constraint::Fill(1), Constraint::Length(12), Constraint::Length(10), Constraint::Length(12)];
    let heads = Row::new(["channel", "subscribers", "publ./s", "deliveries/s"]).style(head_style());
    frame.render_widget(Table::new(rows, widths).header(heads).block(top()), area);
}

fn draw_counted(frame: &mut Frame<'_>, area: Rect, refusals: &[Counted], closes: &[Counted]) {
    let rows = refusals.iter().chain(closes).map(|counted| {
        let what = format!("{}: {}", counted.what, counted.reason.replace('_', " "));
        Row::new([
            what,
            format!("{:.0}", counted.last_minute),
            format!("{:.0}", counted.last_quarter),
            counted.node.clone(),
        ])
    });
    let widths = [Constraint::Fill(1), Constraint::Length(9), Constraint::Length(9), Constraint::Length(14)];
    let heads = Row::new(["refused, dropped, closed", "1 min", "15 min", "last on"]).style(head_style());
    frame.render_widget(Table::new(rows, widths).header(heads).block(top()), area);
}

fn head_style() -> Style {
    Style::new().add_modifier(Modifier::UNDERLINED)
}

fn top() -> Block<'static> {
    Block::new().borders(Borders::TOP)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    #[test]
    fn columns_hold_the_largest_sample_of_their_time() {
        let sample = |at_ms, refused| Sample { at_ms, refused, ..Sample::default() };
        let samples = [sample(100_000, 2.0), sample(100_001, 3.0), sample(999_999, 1.5)];
        assert_eq!(points(&samples, |sample| sample.refused, 1_000_000, 3), [3000, 0, 1500]);
    }

    /// Whatever the size, it is drawn.
    #[test]
    fn a_view_is_drawn_on_any_terminal() {
        let view: View = serde_json::from_str(VIEW).unwrap();
        let shown = Shown { samples: vec![view.sample], view: Some(view), trouble: None };
        for (width, height) in [(1, 1), (40, 10), (80, 24), (200, 60)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| draw(frame, &shown)).unwrap();
            let text = terminal.backend().to_string();
            if (width, height) == (80, 24) {
                for part in ["nodes ready           1 of 1 ", "to write, p50, p99    –, –"] {
                    assert!(text.contains(part), "{part} in {text}");
                }
            }
            if (width, height) == (200, 60) {
                for part in ["The node is ready", "cpu 25 %", "room:a", "node limit", "q: quit"] {
                    assert!(text.contains(part), "{part} in {text}");
                }
            }
        }
    }

    const VIEW: &str = r#"{"at_ms":1,"served_by":"g1","state":"good","sentence":"The node is ready.","ceiling":
        {"resource":"cpu","node":"g1","share":0.25,"advice":"Add a node."},"totals":{"nodes":1,"ready":1,"connections":2,
        "capacity":10,"subscriptions":2,"bytes_sent":0,"received":0,"dropped":0,"queued_bytes":0,"webhook_queue_bytes":0,
        "webhook_failures":0,"redis_lag_ms":null},"sample":{"at_ms":1,"connections":2,"deliveries":0,"publishes":0,
        "opened":0,"closed":0,"refused":0,"p50_ms":null,"p99_ms":null},"nodes":[{"name":"g1","address":"a:1","zone":null,
        "version":"1","state":"ready","notes":[],"uptime_s":1,"connections":2,"capacity":10,"bound":64,"deliveries":0,
        "publishes":0,"saturation":[["cpu",0.25]],"redis_connected":null,"redis_lag_ms":null,"webhook_queue_bytes":0}],
        "nodes_more":0,"by_subscribers":[{"app":null,"name":"room:a","subscribers":2,"publications":0,"deliveries":0}],
        "by_rate":[],"refusals":[{"what":"connection refused","reason":"node_limit","meaning":null,"last_minute":1,
        "last_quarter":2,"node":"g1","ago_s":1}],"closes":[]}"#;
}
