//! `values.yaml` as a tree: each value with its default, what it takes, and the comment above it.
//!
//! The file is written by us, so that a reader of lines suffices for the comments: two spaces a level, a comment block
//! directly above its key. The defaults are read by a YAML parser.

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A value, or a group of values.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) key: String,
    /// The word in braces at the beginning of the comment.
    pub(crate) kind: Option<String>,
    pub(crate) text: String,
    pub(crate) default: Value,
    /// Not empty: a group. What a kind describes has no items of its own.
    pub(crate) items: Vec<Item>,
}

/// The top level of the file.
pub(crate) fn parse(text: &str) -> Result<Vec<Item>> {
    let defaults: Value = serde_saphyr::from_str(text).context("values.yaml is not YAML")?;
    let lines = keys(text);
    let items = group(&mut lines.as_slice(), 0, &defaults, "")?;
    Ok(items)
}

/// A line with a key, and the comment above it.
struct KeyLine {
    level: usize,
    key: String,
    comment: String,
}

fn keys(text: &str) -> Vec<KeyLine> {
    let mut found = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    for line in text.lines() {
        let content = line.trim_start();
        if let Some(words) = content.strip_prefix('#') {
            comment.push(words.trim());
            continue;
        }
        let name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.' || c == '-';
        let key = content.split_once(':').map(|(key, _)| key).filter(|key| key.chars().all(name));
        if let Some(key) = key.filter(|key| !key.is_empty() && !content.starts_with("- ")) {
            let level = (line.len() - content.len()) / 2;
            found.push(KeyLine { level, key: key.to_owned(), comment: comment.join(" ") });
        }
        comment.clear();
    }
    found
}

/// Takes the lines of one level and of those below it.
fn group(lines: &mut &[KeyLine], level: usize, defaults: &Value, path: &str) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    while let Some((line, rest)) = lines.split_first().filter(|(line, _)| line.level == level) {
        *lines = rest;
        let path = format!("{path}{}", line.key);
        let default =
            defaults.get(&line.key).with_context(|| format!("{path} is not where it seems"))?.clone();
        let (kind, text) = words(&line.comment);
        let below = match kind {
            // The kind describes the whole value; what stands below the key is its default.
            Some(_) => {
                skip(lines, level);
                Vec::new()
            }
            None => group(lines, level + 1, &default, &format!("{path}."))?,
        };
        let is_group = !below.is_empty();
        if !is_group && text.is_empty() {
            bail!("values.yaml does not say what {path} does");
        }
        if !is_group && kind.is_none() && (default.is_object() || default.is_array() || default.is_null()) {
            bail!("values.yaml does not say in braces what {path} takes");
        }
        items.push(Item {
            key: line.key.clone(),
            kind: kind.map(str::to_owned),
            text: text.to_owned(),
            default,
            items: below,
        });
    }
    match lines.first() {
        Some(line) if line.level > level => bail!("values.yaml: {} is indented too far", line.key),
        _ => Ok(items),
    }
}

fn skip(lines: &mut &[KeyLine], level: usize) {
    while let Some((_, rest)) = lines.split_first().filter(|(line, _)| line.level > level) {
        *lines = rest;
    }
}

fn words(comment: &str) -> (Option<&str>, &str) {
    let split = comment.strip_prefix('{').and_then(|rest| rest.split_once('}'));
    split.map_or((None, comment), |(kind, text)| (Some(kind), text.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_with_kinds_and_comments() {
        let text = "# Header.\n\n# What it is\n# for.\na:\n  # {count} Two.\n  b: 2\n  # {object} Three.\n  c:\n    d: 1\n# Text.\ne: \"\"\n";
        let items = parse(text).expect("a good file");
        assert_eq!(items.len(), 2);
        assert_eq!((items[0].text.as_str(), items[0].items.len()), ("What it is for.", 2));
        assert_eq!(items[0].items[0].kind.as_deref(), Some("count"));
        assert_eq!(items[0].items[0].default, 2);
        assert_eq!(items[0].items[1].default["d"], 1);
        assert_eq!(items[1].default, "");
    }

    #[test]
    fn a_value_that_nobody_describes_is_refused() {
        let check = |text: &str, expect: &str| {
            let error = parse(text).expect_err(text);
            assert!(error.to_string().contains(expect), "{error}");
        };
        check("a: 1\n", "does not say what a does");
        check("# A list.\na: []\n", "in braces what a takes");
        check("# A.\na:\n    b: 1\n", "");
    }
}
