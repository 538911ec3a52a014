//! The tables of values in the chart's README.

use anyhow::{Context, Result};
use serde_json::Value;

use super::values::Item;

const BEGIN: &str = "<!-- values:begin: from values.yaml, by `cargo xtask k8s` -->\n";
const END: &str = "<!-- values:end -->";

/// `page` with new tables between its marks.
pub(crate) fn readme(page: &str, items: &[Item]) -> Result<String> {
    let (before, rest) = page.split_once(BEGIN).context("README.md has no mark where the values begin")?;
    let (_, after) = rest.split_once(END).context("README.md has no mark where the values end")?;
    Ok(format!("{before}{BEGIN}{}{END}{after}", tables(items)))
}

/// First the values of the top level, then a table for each group.
fn tables(items: &[Item]) -> String {
    let mut text = String::new();
    let (groups, plain): (Vec<&Item>, Vec<&Item>) = items.iter().partition(|item| !item.items.is_empty());
    table(&mut text, plain.iter().map(|item| (item.key.clone(), *item)).collect());
    for group in groups {
        text.push_str(&format!("\n### `{}`\n", group.key));
        if !group.text.is_empty() {
            text.push_str(&format!("\n{}\n", group.text));
        }
        let mut rows = Vec::new();
        leaves(&group.items, &group.key, &mut rows);
        table(&mut text, rows);
    }
    text.push('\n');
    text
}

fn leaves<'a>(items: &'a [Item], path: &str, rows: &mut Vec<(String, &'a Item)>) {
    for item in items {
        let path = format!("{path}.{}", item.key);
        match item.items.as_slice() {
            [] => rows.push((path, item)),
            below => leaves(below, &path, rows),
        }
    }
}

fn table(text: &mut String, rows: Vec<(String, &Item)>) {
    text.push_str("\n| value | default | |\n| --- | --- | --- |\n");
    for (path, item) in rows {
        let words = item.text.replace('|', "\\|");
        let choice = item.kind.as_deref().and_then(|kind| kind.strip_prefix("one of: "));
        let choice = choice.map(|words| format!(" One of: {words}.")).unwrap_or_default();
        text.push_str(&format!("| `{path}` | {} | {words}{choice} |\n", default(&item.default)));
    }
}

/// Long defaults are in values.yaml.
fn default(value: &Value) -> String {
    match value.to_string() {
        text if text.len() > 48 => "see values.yaml".to_owned(),
        text => format!("`{text}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::values;

    #[test]
    fn what_is_around_the_tables_stays() {
        let items = values::parse("# A | B.\na: 1\n# Group.\ng:\n  # {one of: X, Y} C.\n  c: X\n")
            .expect("good values");
        let page = readme(&format!("top\n{BEGIN}old{END}\nbottom\n"), &items).expect("marks");
        assert!(page.starts_with("top\n") && page.ends_with("\nbottom\n") && !page.contains("old"), "{page}");
        assert!(page.contains("| `a` | `1` | A \\| B. |"), "{page}");
        assert!(
            page.contains("### `g`\n\nGroup.\n") && page.contains("| `g.c` | `\"X\"` | C. One of: X, Y. |"),
            "{page}"
        );
    }
}
