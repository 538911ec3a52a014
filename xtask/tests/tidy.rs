//! Rules of the house that no compiler checks: first lines, sizes, arrows between crates, hosts and paths.
//!
//! The words that are looked for are put together from parts, so that this file passes its own rules.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of code in one file, without blank lines and comments. More is several files.
const CODE_LINES_MAX: usize = 600;

/// One thing that is wrong: where, and what.
#[derive(Debug, PartialEq, Eq)]
struct Finding(String);

// ---- the tree ----

#[test]
fn rust_files_keep_the_house_rules() {
    let sources: Vec<PathBuf> =
        files_of_the_tree().into_iter().filter(|path| has_extension(path, "rs")).collect();
    assert!(sources.len() > 20, "{} Rust files were looked at", sources.len());
    expect_none(sources.iter().flat_map(|path| rust_findings(path, &read(path))).collect());
}

#[test]
fn no_file_names_this_machine_or_a_registry() {
    let files = files_of_the_tree();
    let looked_at = files.iter().filter(|path| !has_name(path, "Cargo.lock"));
    expect_none(looked_at.flat_map(|path| place_findings(path, &read(path))).collect());
}

#[test]
fn crates_depend_only_downwards() {
    expect_none(ARROWS.iter().flat_map(|arrow| arrow_findings(arrow, &dependencies(arrow.of))).collect());
}

#[test]
fn crates_do_not_name_what_they_must_not_know() {
    let files = files_of_the_tree();
    let sources = files.iter().filter(|path| has_extension(path, "rs"));
    expect_none(sources.flat_map(|path| word_findings(path, &read(path))).collect());
}

#[test]
fn folders_of_the_gateway_import_in_no_circle() {
    let files = files_of_the_tree();
    let sources = files.iter().filter_map(|path| Some((path.strip_prefix("gateway/src").ok()?, path)));
    let imports = sources
        .filter(|(inside, _)| has_extension(inside, "rs"))
        .flat_map(|(inside, path)| imports_of(inside, &read(path)));
    let imports: BTreeSet<Import> = imports.collect();
    assert!(imports.len() > 20, "{} imports were found", imports.len());
    expect_none(circle_findings(&imports));
}

// ---- rules, as functions of text ----

fn rust_findings(path: &Path, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |what: String| findings.push(Finding(format!("{}: {what}", path.display())));
    if !text.starts_with("//! ") {
        find("does not begin with a //! line that says what lives there".to_owned());
    }
    let lines = code_of(text).count();
    if lines > CODE_LINES_MAX {
        find(format!("{lines} lines of code, {CODE_LINES_MAX} are the most"));
    }
    for word in [concat!("TO", "DO"), concat!("FIX", "ME")] {
        if text.contains(word) {
            find(format!("says {word}"));
        }
    }
    for word in [concat!("#[ig", "nore"), concat!("unimple", "mented!("), concat!("to", "do!(")] {
        if code_of(text).any(|line| line.contains(word)) {
            find(format!("has {word}"));
        }
    }
    findings
}

fn place_findings(path: &Path, text: &str) -> Vec<Finding> {
    let words = [
        concat!("index.crates", ".io"),
        concat!("static.crates", ".io"),
        concat!("registry.npm", "js.org"),
        concat!("pypi", ".org"),
        concat!("pythonhosted", ".org"),
        concat!("deb.debian", ".org"),
        concat!("arti", "factory"),
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
        concat!("/ho", "me/"),
        concat!("/tmp/", "wt"),
        concat!("/tmp/", "tgt"),
    ];
    let hits = words.into_iter().filter(|word| text.contains(word));
    hits.map(|word| Finding(format!("{}: names {word}", path.display()))).collect()
}

/// What the product's sources under a folder must not name, except in one place.
struct Absence {
    under: &'static str,
    except: &'static str,
    words: &'static [&'static str],
}

/// ARCHITECTURE.md, 'Invariants'. What belongs to a dependency is left to [`ARROWS`].
const ABSENCES: [Absence; 9] = [
    Absence {
        under: "wire/src",
        except: "-",
        words: &["std::net", "std::time", "std::thread", "std::fs", "std::env", "Instant::now", "SystemTime"],
    },
    Absence { under: "reactor/src", except: "-", words: &["Channel", "json", "websocket", "env::var"] },
    // Connections to Redis are made in one file.
    Absence {
        under: "backplane/src",
        except: "backplane/src/redis/links/dial.rs",
        words: &["TcpStream", "env::var"],
    },
    // What is written down for another process is made of its fields; no protocol is known.
    Absence { under: "backplane/src", except: "backplane/src/fields.rs", words: &["tidegate_wire"] },
    Absence { under: "ops/src", except: "ops/src/config", words: &["env::var"] },
    Absence { under: "gateway/src", except: "-", words: &["env::var"] },
    Absence { under: "router/src", except: "-", words: &["env::var"] },
    // Placement is the same everywhere and always.
    Absence {
        under: "router/src/placement",
        except: "-",
        words: &["f64", "f32", "Instant", "SystemTime", "std::net", "DefaultHasher", "RandomState"],
    },
    Absence { under: "bench/src", except: "-", words: &["tidegate_gateway"] },
];

/// Names that a product source must not hold; its tests may.
fn word_findings(path: &Path, text: &str) -> Vec<Finding> {
    if path.components().any(|part| part.as_os_str().to_string_lossy().contains("test")) {
        return Vec::new();
    }
    let product = product_of(text);
    let absences =
        ABSENCES.iter().filter(|rule| path.starts_with(rule.under) && !path.starts_with(rule.except));
    let words = absences
        .flat_map(|rule| rule.words)
        .filter(|word| code_of(product).any(|line| line.contains(**word)));
    words.map(|word| Finding(format!("{}: names {word}", path.display()))).collect()
}

/// A file without the tests at its end.
fn product_of(text: &str) -> &str {
    let mut marks = text.match_indices("#[cfg(test)]\nmod ");
    let tests = marks.find(|(at, _)| text[*at..].lines().nth(1).is_some_and(|line| line.ends_with('{')));
    &text[..tests.map_or(text.len(), |(at, _)| at)]
}

/// Lines that are neither blank nor comments.
fn code_of(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"))
}

// ---- circles ----

/// A folder or file at the top of the gateway's sources that imports another, and a file in which it does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Import {
    from: String,
    to: String,
    file: PathBuf,
}

/// What a file, named from the top of its crate's sources, imports from other folders, its tests left out.
fn imports_of(path: &Path, text: &str) -> Vec<Import> {
    let is_test = |part: &str| matches!(part, "tests" | "tests.rs" | "testing.rs" | "lib.rs");
    let mut parts = path.iter().map(|part| part.to_string_lossy());
    if parts.clone().any(|part| is_test(&part)) {
        return Vec::new();
    }
    let from = parts.next().unwrap_or_default().trim_end_matches(".rs").to_owned();
    let product = product_of(text);
    let code: String = code_of(product).flat_map(|line| [line, "\n"]).collect();
    let named = code.split("crate::").skip(1).flat_map(first_names);
    let to = named.filter(|to| *to != from).collect::<BTreeSet<String>>();
    to.into_iter().map(|to| Import { from: from.clone(), to, file: path.to_owned() }).collect()
}

/// The first names of `a::b` or `{a::{b, c}, d}`, with what follows `crate::`.
fn first_names(after: &str) -> Vec<String> {
    let word =
        |text: &str| text.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned);
    let Some(list) = after.strip_prefix('{') else { return word(after).into_iter().collect() };
    let mut depth = 0;
    let mut outer = String::new();
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            _ if depth == 0 => outer.push(c),
            _ => {}
        }
    }
    outer.split(',').filter_map(word).filter(|name| !name.is_empty()).collect()
}

/// Takes away, again and again, what imports nothing that is left; what stays is in a circle or above one, and of
/// that what nothing imports is taken away too.
fn circle_findings(imports: &BTreeSet<Import>) -> Vec<Finding> {
    let mut left: BTreeSet<Import> = imports.clone();
    loop {
        let from: BTreeSet<String> = left.iter().map(|import| import.from.clone()).collect();
        let to: BTreeSet<String> = left.iter().map(|import| import.to.clone()).collect();
        let before = left.len();
        left.retain(|import| from.contains(&import.to) && to.contains(&import.from));
        if left.len() == before {
            let lines = left
                .iter()
                .map(|Import { from, to, file }| format!("{from} imports {to} in {}", file.display()));
            return lines.map(|line| Finding(format!("a circle: {line}"))).collect();
        }
    }
}

// ---- arrows ----

/// What a crate must not reach, directly or through others, in what it ships (tests may use anything).
struct Arrow {
    of: &'static str,
    not: &'static [&'static str],
}

const ARROWS: [Arrow; 11] = [
    Arrow {
        of: "tidegate-wire",
        not: &[
            "mio", "tokio", "hyper", "axum", "rustix", "socket2", REACTOR, OPS, BACKPLANE, GATEWAY, BENCH,
            TESTKIT,
        ],
    },
    Arrow {
        of: REACTOR,
        not: &[
            "serde",
            "serde_json",
            "tokio",
            "hyper",
            "axum",
            "http",
            "httparse",
            WIRE,
            OPS,
            BACKPLANE,
            GATEWAY,
            BENCH,
            TESTKIT,
        ],
    },
    Arrow { of: OPS, not: &["clap", "tungstenite", BACKPLANE, GATEWAY, BENCH, TESTKIT] },
    Arrow { of: BACKPLANE, not: &["hyper", "axum", REACTOR, OPS, GATEWAY, BENCH, TESTKIT] },
    Arrow { of: GATEWAY, not: &["clap", "tungstenite", ROUTER, BENCH, TESTKIT] },
    Arrow { of: ROUTER, not: &["clap", "tungstenite", GATEWAY, BENCH, TESTKIT] },
    Arrow { of: DOCTOR, not: &["clap", REACTOR, BACKPLANE, GATEWAY, ROUTER, BENCH, TESTKIT] },
    Arrow { of: BENCH, not: &[BACKPLANE, REACTOR, OPS, GATEWAY, TESTKIT] },
    Arrow { of: CONSUMERS, not: &[BACKPLANE, GATEWAY, BENCH, TESTKIT] },
    Arrow { of: TESTKIT, not: &[WIRE, REACTOR, OPS, BACKPLANE, GATEWAY, BENCH] },
    Arrow { of: "tidegate", not: &["proptest", "tungstenite", TESTKIT] },
];

const WIRE: &str = "tidegate-wire";
const DOCTOR: &str = "tidegate-doctor";
const REACTOR: &str = "tidegate-reactor";
const OPS: &str = "tidegate-ops";
const BACKPLANE: &str = "tidegate-backplane";
const GATEWAY: &str = "tidegate-gateway";
const CONSUMERS: &str = "tidegate-consumers";
const ROUTER: &str = "tidegate-router";
const BENCH: &str = "tidegate-bench";
const TESTKIT: &str = "tidegate-testkit";

fn arrow_findings(arrow: &Arrow, reached: &BTreeSet<String>) -> Vec<Finding> {
    let hits = arrow.not.iter().filter(|name| reached.contains(**name));
    hits.map(|name| Finding(format!("{} reaches {name}", arrow.of))).collect()
}

/// Names of all crates that `package` reaches over ordinary dependencies on this platform.
fn dependencies(package: &str) -> BTreeSet<String> {
    let tree = [
        "tree",
        "--locked",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}",
        "--package",
        package,
    ];
    let text = lines_of(Command::new("cargo").args(tree));
    let names = text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned);
    names.filter(|name| name != package).collect()
}

// ---- the rules can fail ----

#[test]
fn each_rule_for_rust_files_can_fail() {
    let check = |text: &str, expect: usize| {
        assert_eq!(rust_findings(Path::new("a.rs"), text).len(), expect, "{text}")
    };
    check("//! Says what lives here.\nfn main() {}\n", 0);
    check("fn main() {}\n", 1);
    check(&format!("//! A.\n{}", "x();\n".repeat(600)), 0);
    check(&format!("//! A.\n{}", "x();\n".repeat(601)), 1);
    check(&format!("//! A.\n{}", "// why\n\n".repeat(601)), 0);
    check(concat!("//! A.\n// TO", "DO later\n"), 1);
    check(concat!("//! A.\n    #[ig", "nore = \"slow\"]\n"), 1);
}

#[test]
fn places_and_words_are_found() {
    let places = |text: &str| place_findings(Path::new("a"), text).len();
    assert_eq!(places("https://www.rfc-editor.org/rfc/rfc6455"), 0);
    assert_eq!(places(concat!("see https://registry.npm", "js.org/ws")), 1);
    assert_eq!(places(concat!("cd /wo", "rk/main")), 1);
    let words = |path: &str, text: &str| word_findings(Path::new(path), text).len();
    assert_eq!(words("wire/src/a.rs", "let now = Instant::now();"), 1);
    assert_eq!(words("wire/src/a.rs", "// Instant::now is not called"), 0);
    assert_eq!(words("wire/src/a.rs", "#[cfg(test)]\nmod tests {\nlet now = Instant::now();\n}"), 0);
    assert_eq!(words("wire/src/a/tests.rs", "let now = Instant::now();"), 0);
    assert_eq!(words("gateway/src/node.rs", "std::env::var_os(\"A\")"), 1);
    assert_eq!(words("ops/src/config/sources.rs", "std::env::vars()"), 0);
}

#[test]
fn a_circle_of_imports_is_found() {
    let imports = |files: &[(&str, &str)]| -> BTreeSet<Import> {
        files.iter().flat_map(|(path, text)| imports_of(Path::new(path), text)).collect()
    };
    let down = [
        ("a/x.rs", "use crate::{\n    b::{c, d},\n    c,\n};"),
        (
            "b.rs",
            "#[cfg(test)]\nmod tests;\nfn f() -> crate::c::T {}\n// crate::a\n#[cfg(test)]\nmod more {\nuse crate::a;\n}",
        ),
        ("b/tests.rs", "use crate::a;"),
    ];
    let found: Vec<(String, String)> =
        imports(&down).into_iter().map(|import| (import.from, import.to)).collect();
    let expect = [("a", "b"), ("a", "c"), ("b", "c")].map(|(from, to)| (from.to_owned(), to.to_owned()));
    assert_eq!(found, expect);
    assert_eq!(circle_findings(&imports(&down)), []);
    let circle = [
        ("a.rs", "use crate::b;"),
        ("b.rs", "use crate::c::X;"),
        ("c/d.rs", "use crate::{a::Y};"),
        ("z.rs", "use crate::a;"),
    ];
    assert_eq!(circle_findings(&imports(&circle)).len(), 3);
}

#[test]
fn an_arrow_that_points_upwards_is_found() {
    let reached = BTreeSet::from(["bytes".to_owned(), "tokio".to_owned()]);
    assert_eq!(arrow_findings(&ARROWS[0], &reached), [Finding("tidegate-wire reaches tokio".to_owned())]);
    assert!(dependencies(TESTKIT).contains("tungstenite"), "the tree is read");
}

// ---- helpers ----

/// A verdict without a test is a claim: docs/field-reports.md names a file for each row, and functions that are there.
#[test]
fn every_report_from_the_field_has_its_test() {
    let page = read(&root().join("docs/field-reports.md"));
    let rows: Vec<&str> =
        page.lines().filter(|line| line.starts_with("| ") && !line.contains("---")).collect();
    let tree = files_of_the_tree();
    let rust = tree.iter().filter(|path| has_extension(path, "rs"));
    let texts: String = rust.map(|path| read(&root().join(path))).collect();
    let (mut findings, mut last) = (Vec::new(), "");
    for row in rows.iter().filter(|row| !row.starts_with("| source |")) {
        let cells: Vec<&str> = row.trim_matches(['|', ' ']).split(" | ").collect();
        let &[_, _, verdict, test] = cells.as_slice() else {
            findings.push(format!("not source, essence, verdict, test: {row}"));
            continue;
        };
        if !verdict.starts_with("held") && !verdict.starts_with("mended") {
            findings.push(format!("neither held nor mended: {row}"));
        }
        last = if test == "as above" { last } else { test };
        let names: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        let is_there = |name: &&str| match name.ends_with(".rs") || name.ends_with(".mjs") {
            true => tree.iter().any(|path| path.ends_with(name)),
            false => texts.contains(&format!("fn {name}(")) || texts.contains(&format!("    {name}(")),
        };
        if names.is_empty() || !names.iter().all(is_there) {
            findings.push(format!("no such test: {test}"));
        }
    }
    let of_others = rows.iter().filter(|row| !row.contains("(our own trials)")).count();
    assert!(of_others > 20, "{of_others} reports of others");
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

/// Every file that is or would be committed.
fn files_of_the_tree() -> Vec<PathBuf> {
    let list = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let paths = lines_of(Command::new("git").args(list));
    paths.lines().map(PathBuf::from).filter(|path| root().join(path).is_file()).collect()
}

fn lines_of(command: &mut Command) -> String {
    let output = command.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Text of a file; empty for pictures and the like.
fn read(path: &Path) -> String {
    String::from_utf8(fs::read(root().join(path)).unwrap()).unwrap_or_default()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn has_name(path: &Path, name: &str) -> bool {
    path.file_name().is_some_and(|found| found == name)
}

#[track_caller]
fn expect_none(findings: Vec<Finding>) {
    let text: Vec<String> = findings.into_iter().map(|finding| finding.0).collect();
    assert!(text.is_empty(), "\n{}", text.join("\n"));
}
