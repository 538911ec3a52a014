//! Runs a script and reads what it reports: its cases, and the calls of SDKs that it made, which the migration page lists.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tidegate_testkit::{DEADLINE, Exit, Gateway, Process, Tool};

/// A script has a deadline of its own for each step, and says which one was too slow. This one is for scripts that hang.
const SCRIPT_DEADLINE: Duration = DEADLINE.saturating_mul(4);

/// Runs a script with the public addresses of the gateways and checks what it reports.
#[track_caller]
pub(crate) fn run(tool: Tool, name: &str, gateways: &[Gateway]) {
    finish(&mut start(tool, gateways), name);
}

#[track_caller]
pub(crate) fn start(tool: Tool, gateways: &[Gateway]) -> Process {
    let addresses: Vec<_> = gateways.iter().map(|gateway| format!("http://{}", gateway.public())).collect();
    tool.environment("GATEWAYS", addresses.join(",")).spawn()
}

/// Waits for the script's end. Every case must have passed, and the calls that it made are those that the page says.
#[track_caller]
pub(crate) fn finish(script: &mut Process, name: &str) {
    let exit = script.wait(SCRIPT_DEADLINE);
    let lines = lines(&exit);
    let cases: Vec<_> = lines.iter().filter(|line| !line["case"].is_null()).collect();
    assert!(!cases.is_empty(), "{name} ran no case: {exit}");
    for failed in cases.iter().filter(|case| case["ok"] != true) {
        eprintln!("{}\n{}", failed["case"], failed["error"].as_str().unwrap_or_default());
    }
    assert_eq!(exit.code, Some(0), "{name}: {exit}");
    let calls = lines.iter().find_map(|line| line["calls"].as_array());
    let calls: BTreeSet<String> =
        calls.into_iter().flatten().filter_map(|call| call.as_str().map(str::to_owned)).collect();
    let documented = documented();
    let unlisted: Vec<_> =
        calls.iter().filter(|call| !documented.iter().any(|(row, _)| row == *call)).collect();
    assert!(unlisted.is_empty(), "{name} made calls that {PAGE} does not list: {unlisted:?}");
    let missing: Vec<_> =
        documented.iter().filter(|(call, by)| by == name && !calls.contains(call)).collect();
    assert!(missing.is_empty(), "{PAGE} lists calls of {name} that it did not make: {missing:?}");
}

fn lines(exit: &Exit) -> Vec<Value> {
    exit.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

const PAGE: &str = "docs/migrate-from-pusher.md";

/// Calls and the script that makes them: rows of the page whose first cell is a call and whose last one is a script.
fn documented() -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(PAGE);
    let page = std::fs::read_to_string(&path).unwrap();
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| `")?.strip_suffix("` |")?.split('`').collect();
        Some((cells.first()?.to_string(), cells.last()?.to_string()))
    });
    let calls: Vec<_> =
        rows.filter(|(_, script)| script.ends_with(".cjs") || script.ends_with(".py")).collect();
    assert!(calls.len() > 10, "{} has a table of calls and scripts", path.display());
    calls
}
