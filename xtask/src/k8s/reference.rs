//! The keys of a configuration file, from its reference in `docs/`, as a JSON Schema.
//!
//! The reference is made from the sections of the binary, so that a key that it does not have is no value of the chart.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// What the chart writes itself, or what must not be in a ConfigMap.
pub(crate) const GATEWAY_OWN: &[&str] = &[
    "listen",
    "internal",
    "node",
    "advertise",
    "backplane",
    "reuse_port",
    "dev",
    "tls.directory",
    "tls.certificate_file",
    "tls.key_file",
    "redis.password_file",
    "redis.ca_file",
    "apps_file",
    "auth.jwt[N].secret",
    "auth.api_keys[N].key",
    "apps.ID.secret",
    "apps.ID.previous_secret",
    "consumers.streams[N].url",
    "consumers.outboxes[N].url",
];
pub(crate) const ROUTER_OWN: &[&str] = &[
    "listen",
    "internal",
    "members",
    "reuse_port",
    "tls.directory",
    "tls.certificate_file",
    "tls.key_file",
    "redis.password_file",
    "redis.ca_file",
];

/// The keys of `page` but for `own`. The drain is required, because the chart computes with it.
pub(crate) fn schema(page: &str, own: &[&str]) -> Result<Value> {
    let mut root = table();
    for entry in page.split("\n### `").skip(1) {
        let (key, rest) = entry.split_once('`').context("a key ends with a backtick")?;
        if own.contains(&key) {
            continue;
        }
        let expects = rest.lines().find_map(|line| line.strip_prefix("- expects "));
        let expects = expects.with_context(|| format!("{key} does not say what it expects"))?;
        let text = rest.trim_start().split("\n\n").next().unwrap_or_default().replace('\n', " ");
        let mut leaf = value(expects);
        leaf.insert("description".to_owned(), json!(text));
        insert(&mut root, key, Value::Object(leaf));
    }
    if let Some(drain) = root.pointer_mut("/properties/drain") {
        drain["required"] = json!(["settle", "period", "close_wait"]);
    }
    Ok(root)
}

fn table() -> Value {
    json!({"type": "object", "additionalProperties": false, "properties": {}})
}

/// Puts `leaf` at `auth.jwt[N].kid` or `namespaces.NAME.presence`, with the tables on the way.
fn insert(root: &mut Value, key: &str, leaf: Value) {
    let segments: Vec<&str> = key.split('.').collect();
    let mut at = root;
    let mut leaf = Some(leaf);
    for (index, segment) in segments.iter().enumerate() {
        let last = index + 1 == segments.len();
        // NAME of a namespace, ID of an app.
        if segment.chars().all(|c| c.is_ascii_uppercase()) {
            if !at["additionalProperties"].is_object() {
                at["additionalProperties"] = table();
            }
            at = &mut at["additionalProperties"];
            continue;
        }
        let name = segment.trim_end_matches("[N]");
        let slot = &mut at["properties"][name];
        if last {
            *slot = leaf.take().unwrap_or_default();
            return;
        }
        let is_list = name.len() < segment.len();
        if slot.is_null() {
            *slot = if is_list { json!({"type": "array", "items": table()}) } else { table() };
        }
        at = if is_list { &mut slot["items"] } else { slot };
    }
}

/// The schema of what the reference says is expected.
fn value(expects: &str) -> Map<String, Value> {
    let schema = if expects == "true or false" {
        json!({"type": "boolean"})
    } else if let Some((least, most)) = range(expects, "a whole number from ") {
        json!({"type": "integer", "minimum": least, "maximum": most})
    } else if let Some((least, most)) = range(expects, "a port from ") {
        json!({"type": "integer", "minimum": least, "maximum": most})
    } else if let Some((least, most)) = range(expects, "a number from ") {
        json!({"type": "number", "minimum": least, "maximum": most})
    } else if expects.starts_with("a duration") {
        duration()
    } else if expects.starts_with("a size in bytes") {
        json!({"type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9]+(KiB|MiB|GiB)?$"})
    } else if let Some(words) = expects.strip_prefix("a list of ").and_then(choices) {
        json!({"type": "array", "items": {"enum": words}})
    } else if expects.starts_with("a list") {
        json!({"type": "array", "items": {"type": "string", "minLength": 1}})
    } else if let Some(words) =
        choices(expects).filter(|words| words.iter().any(|word| word.contains("NAME")))
    {
        json!({"type": "string", "pattern": format!("^({})$", words.join("|").replace("NAME", ".+"))})
    } else if let Some(words) = choices(expects) {
        json!({"enum": words})
    } else if expects.starts_with("a SHA-256 digest") {
        json!({"type": "string", "pattern": "^[0-9a-fA-F]{64}$"})
    } else {
        json!({"type": "string", "minLength": 1})
    };
    schema.as_object().cloned().unwrap_or_default()
}

pub(crate) fn duration() -> Value {
    json!({"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$"})
}

/// `a whole number from 1 to 64` → 1, 64; what follows the numbers does not matter.
fn range(expects: &str, begin: &str) -> Option<(u64, u64)> {
    let mut words = expects.strip_prefix(begin)?.split(' ');
    let least = words.next()?.parse().ok()?;
    let most = words.nth(1)?.parse().ok()?;
    Some((least, most))
}

/// `"never", "token" or "anyone"` → the three words; `None` for anything else.
fn choices(expects: &str) -> Option<Vec<&str>> {
    let parts = expects.split('"').collect::<Vec<_>>();
    let between = parts.iter().step_by(2);
    let plain = between.clone().all(|gap| matches!(*gap, "" | ", " | " or "));
    (plain && parts.len() > 2).then(|| parts.iter().skip(1).step_by(2).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_tables_lists_and_names() {
        let page = "# Page\n\n### `listen`\n\nOwn.\n\n- expects an address\n\n### `auth.jwt[N].leeway`\n\nHow far\nclocks differ.\n\n- expects a duration such as \"10s\"\n\n### `namespaces.NAME.size`\n\nKept.\n\n- expects a whole number from 0 to 9\n";
        let schema = schema(page, &["listen"]).expect("a good page");
        assert!(schema.pointer("/properties/listen").is_none());
        let leeway =
            schema.pointer("/properties/auth/properties/jwt/items/properties/leeway").expect("a key");
        assert_eq!(leeway["description"], "How far clocks differ.");
        let size =
            schema.pointer("/properties/namespaces/additionalProperties/properties/size").expect("a key");
        assert_eq!((&size["minimum"], &size["maximum"]), (&json!(0), &json!(9)));
    }

    #[test]
    fn what_is_expected_becomes_a_type() {
        let check =
            |expects: &str, schema: Value| assert_eq!(Value::Object(value(expects)), schema, "{expects}");
        check("true or false", json!({"type": "boolean"}));
        check("\"1.2\" or \"1.3\"", json!({"enum": ["1.2", "1.3"]}));
        check("\"query:NAME\" or \"path\"", json!({"type": "string", "pattern": "^(query:.+|path)$"}));
        check(
            "a list of \"publish\", \"read\"",
            json!({"type": "array", "items": {"enum": ["publish", "read"]}}),
        );
        check("a number from 1 to 100 with", json!({"type": "number", "minimum": 1, "maximum": 100}));
        check("a path such as \"/readyz\"", json!({"type": "string", "minLength": 1}));
    }
}
