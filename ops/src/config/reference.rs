//! The reference of all keys: made from the sections themselves, so that it cannot go stale.

use std::fmt::Write as _;

use super::{
    section::{Entry, Load},
    sources::{Flag, PREFIX},
};

/// All keys as Markdown, after an introduction. `dev` are the defaults of `--dev`, where they differ.
pub fn reference<C: Load>(introduction: &str, defaults: &C, dev: &C, flags: &[Flag]) -> String {
    let mut text = introduction.to_owned();
    let (defaults, dev) = (entries(defaults), entries(dev));
    let mut heading = None;
    for (entry, dev) in defaults.iter().zip(&dev) {
        let section = section_of(&entry.key);
        if heading != Some(section) {
            let title = if section.is_empty() { "Top level".to_owned() } else { heading_of(section) };
            writes(&mut text, &format!("\n## {title}\n"));
            heading = Some(section);
        }
        writes(&mut text, &paragraph(entry, dev, flags));
    }
    text
}

fn entries(config: &impl Load) -> Vec<Entry> {
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

fn paragraph(entry: &Entry, dev: &Entry, flags: &[Flag]) -> String {
    let mut text = format!("\n### `{}`\n\n", entry.key);
    let doc: Vec<_> = entry.doc.iter().map(|line| line.trim()).collect();
    writes(&mut text, &format!("{}\n\n", doc.join("\n")));
    writes(&mut text, &format!("- expects {}\n- default: {}\n", entry.expected, entry.default));
    if dev.default != entry.default {
        writes(&mut text, &format!("- with `--dev`: {}\n", dev.default));
    }
    writes(&mut text, &format!("- variable `{}`\n", variable_of(&entry.key)));
    if let Some(flag) = flags.iter().find(|flag| flag.key == entry.key) {
        writes(&mut text, &format!("- flag `{}`\n", flag.name));
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
