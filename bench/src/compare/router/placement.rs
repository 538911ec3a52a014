//! What the router's example `placement` prints: the router's library is not linked here.

use crate::compare::launch::{Places, output_of};
use crate::compare::plan::Measure;
use crate::compare::rig::{MeasureError, Reading};

/// Its lines that stand in the table.
const LINES: [(Measure, &str); 3] = [
    (Measure::PlacementTime, "place_us_1000"),
    (Measure::PlacementBalance, "load_most"),
    (Measure::PlacementMoved, "moved_most"),
];

pub(in crate::compare) fn run(places: &Places) -> Result<Vec<Reading>, MeasureError> {
    let output = output_of(places, places.server_core, &places.placement, &[])?;
    let reading = |&(measure, name)| {
        let value = number(&output, name).ok_or(MeasureError::Placement { name })?;
        Ok(Reading::of(measure, value))
    };
    LINES.iter().map(reading).collect()
}

/// The number behind a name, alone on its line.
fn number(output: &str, name: &str) -> Option<f64> {
    output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_by_its_name() {
        let output = "place_us_1000 2.013\nplace_us_3 0.05\nload_most 1.25\n";
        assert_eq!(number(output, "place_us_3"), Some(0.05));
        assert_eq!(number(output, "load_most"), Some(1.25));
        assert_eq!(number(output, "moved_most"), None);
        assert_eq!(number(output, "place_us"), None);
    }
}
