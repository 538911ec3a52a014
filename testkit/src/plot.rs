//! Plots of measurements for the documents: lines over time, as SVG.

use std::fmt::Write as _;

/// Points of a line, from left to right.
pub type Points = Vec<(f64, f64)>;

/// Lines over time.
#[derive(Debug)]
pub struct Plot {
    pub title: String,
    /// What is along the bottom, and its unit.
    pub x: &'static str,
    /// What is upwards, and its unit.
    pub y: &'static str,
    /// Where upwards begins.
    pub floor: f64,
    /// Each with its name, which may be empty where there is one.
    pub lines: Vec<(&'static str, Points)>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 50.0;
const COLOURS: [&str; 2] = ["#0b6bcb", "#c2410c"];

impl Plot {
    /// The picture as a file of SVG.
    #[must_use]
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.1);
        let x_most = nice(points().map(|point| point.0).fold(0.0, f64::max));
        let y_most = self.floor + nice(points().map(|point| point.1 - self.floor).fold(0.0, f64::max));
        let x = |value: f64| LEFT + value / x_most * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| {
            HEIGHT - BOTTOM - (value - self.floor) / (y_most - self.floor) * (HEIGHT - TOP - BOTTOM)
        };
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n<text x=\"{LEFT}\" y=\"22\" font-size=\"16\">{}</text>\n",
            self.title
        );
        for step in 0..=5 {
            let part = f64::from(step) / 5.0;
            let (at_x, at_y) = (x_most * part, self.floor + (y_most - self.floor) * part);
            _ = writeln!(svg, "<path d=\"M{LEFT} {0:.1}H{1}\" stroke=\"#ddd\"/>", y(at_y), WIDTH - RIGHT);
            _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y(at_y) + 4.0,
                short(at_y)
            );
            _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                x(at_x),
                HEIGHT - BOTTOM + 18.0,
                short(at_x)
            );
        }
        _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            HEIGHT - 12.0,
            self.x
        );
        _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"40\" fill=\"#555\">{}</text>", self.y);
        for (number, (name, points)) in self.lines.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let path: Vec<String> =
                points.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
            _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join(" ")
            );
            if name.is_empty() {
                continue;
            }
            let at = WIDTH - RIGHT - 230.0;
            let row = TOP - 8.0 + 18.0 * number as f64;
            _ = writeln!(
                svg,
                "<path d=\"M{at} {0}h24\" stroke=\"{colour}\" stroke-width=\"3\"/><text x=\"{1}\" y=\"{2}\">{name}</text>",
                row,
                at + 32.0,
                row + 4.0
            );
        }
        svg + "</svg>\n"
    }
}

/// The next number with one digit that is at least so much, in steps that five parts divide well.
fn nice(value: f64) -> f64 {
    let unit = 10f64.powf(value.max(1e-9).log10().floor());
    [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0]
        .iter()
        .map(|step| step * unit)
        .find(|most| *most >= value)
        .unwrap_or(10.0 * unit)
}

fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        value => format!("{value:.2}"),
    }
}
