//! `docs/configuration.md`: made from the sections themselves, so that it cannot go stale.

use std::fmt::Write as _;

use super::{
    Config,
    section::{Entry, Load},
    sources::{Flag, PREFIX},
};

/// The reference of all keys as Markdown.
pub fn reference() -> String {
    let mut text = INTRODUCTION.to_owned();
    let production = entries(&Config::default());
    let dev = entries(&Config::dev());
    let mut heading = None;
    for (entry, dev) in production.iter().zip(&dev) {
        let section = section_of(&entry.key);
        if heading != Some(section) {
            let title = if section.is_empty() { "Top level".to_owned() } else { heading_of(section) };
            writes(&mut text, &format!("\n## {title}\n"));
            heading = Some(section);
        }
        writes(&mut text, &paragraph(entry, dev));
    }
    text
}

const INTRODUCTION: &str = "\
# Configuration

<!-- Made from gateway/src/config by its tests; `BLESS=1 cargo test -p tidegate-gateway reference` writes it. -->

A gateway reads, each over the one before:

1. its defaults, or the defaults of `--dev`;
2. the TOML file named by `--config` or `TIDEGATE__CONFIG`;
3. environment variables that begin with `TIDEGATE__`: the key in upper case, `__` between its parts;
4. flags.

A key that does not exist, in the file or in the environment, and a value that does not fit are errors: one line
that names the key, the value, where it came from and what was expected; exit code 2. `tidegate gateway --check`
loads everything and exits.

Lists of plain values are written in a variable with commas between them. An entry of a list of tables is reached
by its number, from 0 to 99: `TIDEGATE__AUTH__JWT__0__SECRET_FILE`. An empty variable counts as not set. Variables
are matched in lower case, so a namespace that is to be set by variables has a lower-case name.

Durations have units: `\"500ms\"`, `\"10s\"`, `\"5m\"`, `\"1h\"`, `\"1d\"`, also `\"1m30s\"`. Sizes are whole numbers of
bytes or have a binary unit: `65536`, `\"64KiB\"`, `\"1MiB\"`.

`[namespaces.default]` holds for channels whose namespace is not configured, and for those without one. Any other
namespace begins as a copy of it and changes what it names.
";

fn entries(config: &Config) -> Vec<Entry> {
    let mut entries = Vec::new();
    config.describe("", &[], None, &mut entries);
    entries
}

/// Everything before the last dot.
fn section_of(key: &str) -> &str {
    key.rsplit_once('.').map_or("", |(section, _)| section)
}

fn heading_of(section: &str) -> String {
    match section.strip_suffix("[N]") {
        Some(list) => format!("`[[{list}]]`"),
        None => format!("`[{section}]`"),
    }
}

fn paragraph(entry: &Entry, dev: &Entry) -> String {
    let mut text = format!("\n### `{}`\n\n", entry.key);
    let doc: Vec<_> = entry.doc.iter().map(|line| line.trim()).collect();
    writes(&mut text, &format!("{}\n\n", doc.join("\n")));
    writes(&mut text, &format!("- expects {}\n- default: {}\n", entry.expected, entry.default));
    if dev.default != entry.default {
        writes(&mut text, &format!("- with `--dev`: {}\n", dev.default));
    }
    writes(&mut text, &format!("- variable `{}`\n", variable_of(&entry.key)));
    if let Some(flag) = Flag::ALL.iter().find(|flag| flag.key() == entry.key) {
        writes(&mut text, &format!("- flag `{}`\n", flag.name()));
    }
    text
}

fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replace("[N]", "__N").replace('.', "__").to_uppercase())
}

/// Writing to a `String` cannot fail.
fn writes(text: &mut String, more: &str) {
    text.write_str(more).unwrap_or_default();
}
