//! Panels of lines over one time axis, as SVG: enough to read a timeline, nothing more.

use std::fmt::Write as _;

/// Panels below each other, and what happened when.
#[derive(Debug)]
pub(crate) struct Plot {
    pub(crate) title: String,
    pub(crate) panels: Vec<Panel>,
    /// Seconds, and a few words.
    pub(crate) marks: Vec<(f64, String)>,
}

#[derive(Debug)]
pub(crate) struct Panel {
    /// What is drawn, with its unit.
    pub(crate) title: String,
    pub(crate) lines: Vec<Line>,
}

#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    /// Seconds and value. A line is broken where there is no value.
    pub(crate) points: Vec<(f64, Option<f64>)>,
}

const WIDTH: f64 = 1000.0;
/// Room for the title and the marks' words, which stand upright.
const TOP: f64 = 130.0;
/// From one line of text to the next.
const LINE: f64 = 14.0;
const LEFT: f64 = 70.0;
/// Room for the names of lines.
const RIGHT: f64 = 100.0;
const PANEL: f64 = 150.0;
const BETWEEN: f64 = 40.0;
const BOTTOM: f64 = 40.0;

/// Told apart with colour-blind eyes as well (Okabe and Ito, 2008).
const COLOURS: [&str; 5] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555"];

const TICKS: f64 = 5.0;

impl Plot {
    pub(crate) fn svg(&self) -> String {
        let panels = self.panels.len() as f64;
        let height = TOP + panels * PANEL + (panels - 1.0) * BETWEEN + BOTTOM;
        let seconds = self.seconds();
        let mut svg = String::new();
        put(
            &mut svg,
            format_args!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
                 font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>"
            ),
        );
        text(&mut svg, LEFT, 24.0, "start\" font-size=\"15", &self.title);
        for (index, panel) in (0u8..).zip(&self.panels) {
            let top = TOP + f64::from(index) * (PANEL + BETWEEN);
            panel.draw(&mut svg, top, seconds);
        }
        let bottom = height - BOTTOM;
        for tick in ticks(seconds) {
            text(&mut svg, x(tick, seconds), bottom + 16.0, "middle", &format!("{tick}"));
        }
        text(&mut svg, f64::midpoint(LEFT, WIDTH - RIGHT), bottom + 33.0, "middle", "time (s)");
        self.draw_marks(&mut svg, bottom, seconds);
        svg + "</svg>\n"
    }

    fn draw_marks(&self, svg: &mut String, bottom: f64, seconds: f64) {
        let top = TOP - 30.0;
        let mut words_x = 0.0;
        for (at, words) in &self.marks {
            let x = x(*at, seconds);
            // Words that would lie on those before move to the right, and their line with them.
            words_x = f64::max(x + 4.0, words_x + LINE);
            let (from, words) = (words_x - 4.0, escaped(words));
            put(
                svg,
                format_args!(
                    "<path d=\"M{from:.1} {top}L{x:.1} {TOP}V{bottom}\" stroke=\"#999999\" fill=\"none\" \
                     stroke-dasharray=\"3 3\"/>\n\
                     <text transform=\"translate({words_x:.1} {:.1}) rotate(-90)\" fill=\"#333333\">{words}</text>",
                    top - 4.0
                ),
            );
        }
    }

    /// The length of the time axis.
    fn seconds(&self) -> f64 {
        let lines = self.panels.iter().flat_map(|panel| &panel.lines);
        lines.flat_map(|line| &line.points).map(|point| point.0).fold(1.0, f64::max)
    }
}

impl Panel {
    fn draw(&self, svg: &mut String, top: f64, seconds: f64) {
        let values = self.lines.iter().flat_map(|line| &line.points).filter_map(|point| point.1);
        let most = values.fold(1.0, f64::max) * 1.05;
        let y = |value: f64| top + PANEL * (1.0 - value / most);
        let (right, bottom) = (WIDTH - RIGHT, top + PANEL);
        text(svg, LEFT, top - 8.0, "start\" font-weight=\"bold", &self.title);
        for tick in ticks(most) {
            let y = y(tick);
            put(svg, format_args!("<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#dddddd\"/>"));
            text(svg, LEFT - 8.0, y + 4.0, "end", &format!("{tick}"));
        }
        put(
            svg,
            format_args!("<path d=\"M{LEFT} {top}V{bottom}H{right}\" stroke=\"#000000\" fill=\"none\"/>"),
        );
        for (index, (line, colour)) in (0u8..).zip(self.lines.iter().zip(COLOURS.iter().cycle())) {
            let path = line.path(|at| x(at, seconds), y);
            put(
                svg,
                format_args!("<path d=\"{path}\" stroke=\"{colour}\" stroke-width=\"1.5\" fill=\"none\"/>"),
            );
            let (left, middle) = (right + 10.0, top + 12.0 + f64::from(index) * 16.0);
            put(
                svg,
                format_args!("<path d=\"M{left} {middle}h14\" stroke=\"{colour}\" stroke-width=\"3\"/>"),
            );
            text(svg, left + 19.0, middle + 4.0, "start", &line.name);
        }
    }
}

impl Line {
    fn path(&self, x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> String {
        let (mut path, mut pen_is_down) = (String::new(), false);
        for &(at, value) in &self.points {
            if let Some(value) = value {
                let command = if pen_is_down { 'L' } else { 'M' };
                write!(path, "{command}{:.1} {:.1}", x(at), y(value)).expect("a string takes everything");
            }
            pen_is_down = value.is_some();
        }
        path
    }
}

fn x(at: f64, seconds: f64) -> f64 {
    LEFT + (WIDTH - LEFT - RIGHT) * at / seconds
}

/// Round numbers from 0 to `most`, at most six: steps of 1, 2 or 5 times a power of ten.
fn ticks(most: f64) -> impl Iterator<Item = f64> {
    let least = (most / TICKS).max(1.0);
    let power = 10f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= least);
    let step = step.unwrap_or(least);
    (0u8..).map(move |number| f64::from(number) * step).take_while(move |tick| *tick <= most)
}

/// `anchor` may go on with attributes.
fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = escaped(words);
    put(svg, format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"));
}

fn put(svg: &mut String, element: std::fmt::Arguments<'_>) {
    writeln!(svg, "{element}").expect("a string takes everything");
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;")
}

#[test]
fn ticks_are_round_and_few() {
    let check = |most: f64, expect: &[f64]| assert_eq!(ticks(most).collect::<Vec<_>>(), expect, "{most}");
    check(1.0, &[0.0, 1.0]);
    check(36.0, &[0.0, 10.0, 20.0, 30.0]);
    check(875.0, &[0.0, 200.0, 400.0, 600.0, 800.0]);
}

#[test]
fn a_line_is_broken_where_a_value_is_missing() {
    let points = vec![(0.0, Some(1.0)), (1.0, Some(2.0)), (2.0, None), (3.0, Some(4.0))];
    let line = Line { name: "a < b".to_owned(), points };
    assert_eq!(line.path(|at| at, |value| value), "M0.0 1.0L1.0 2.0M3.0 4.0");
    let panel = Panel { title: "p".to_owned(), lines: vec![line] };
    let plot = Plot { title: "t".to_owned(), panels: vec![panel], marks: vec![(1.0, "stop".to_owned())] };
    let svg = plot.svg();
    assert!(svg.contains("a &lt; b") && svg.contains(">stop</text>"), "{svg}");
}
