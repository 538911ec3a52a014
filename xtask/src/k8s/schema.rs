//! `values.schema.json` from the tree of values: no name that the tree does not have is accepted anywhere.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::reference::{self, GATEWAY_OWN, ROUTER_OWN};
use super::values::Item;

/// The pages of the two configurations.
pub(crate) struct Pages {
    pub(crate) gateway: String,
    pub(crate) router: String,
}

pub(crate) fn schema(items: &[Item], pages: &Pages) -> Result<Value> {
    let mut schema = group(items, pages)?;
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("Values of the chart tidegate. Made by `cargo xtask k8s` from values.yaml.");
    Ok(schema)
}

fn group(items: &[Item], pages: &Pages) -> Result<Value> {
    let mut properties = Map::new();
    for item in items {
        let mut schema = match item.items.as_slice() {
            [] => leaf(item, pages).with_context(|| format!("the kind of {}", item.key))?,
            items => group(items, pages)?,
        };
        if !item.text.is_empty() {
            schema["description"] = json!(item.text);
        }
        properties.insert(item.key.clone(), schema);
    }
    Ok(json!({"type": "object", "additionalProperties": false, "properties": properties}))
}

fn leaf(item: &Item, pages: &Pages) -> Result<Value> {
    let Some(kind) = item.kind.as_deref() else { return inferred(&item.default) };
    if let Some(words) = kind.strip_prefix("one of: ") {
        let words: Vec<&str> = words.split(", ").map(|word| word.trim_matches('"')).collect();
        return Ok(json!({"enum": words}));
    }
    // Objects of Kubernetes: what is below these fields is its own matter.
    if let Some(names) = kind.strip_prefix("fields: ") {
        return Ok(fields(names));
    }
    if let Some(names) = kind.strip_prefix("list of: ") {
        return Ok(json!({"type": "array", "items": fields(names)}));
    }
    Ok(match kind {
        "any" => json!({"type": "object"}),
        "objects" => json!({"type": "array", "items": {"type": "object"}}),
        "templates" => json!({"type": "array", "items": {"type": ["object", "string"]}}),
        "map" => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        "strings" => json!({"type": "array", "items": {"type": "string", "minLength": 1}}),
        "positive" => integer(1, None),
        "percent" => integer(0, Some(100)),
        "port" => integer(1, Some(65535)),
        "duration" => reference::duration(),
        // A number of pods, or a part of them.
        "share" => json!({"type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9]+%$"}),
        "share or null" => {
            json!({"type": ["integer", "string", "null"], "minimum": 0, "pattern": "^[0-9]+%$"})
        }
        // 0 stands for none.
        "node port" => json!({"type": "integer", "minimum": 0, "maximum": 65535}),
        "memory" => json!({"type": "string", "pattern": "^[0-9]+(kb|mb|gb)$"}),
        "grace" => json!({"type": ["integer", "null"], "minimum": 1}),
        "probe" => strict(&[
            ("initialDelaySeconds", integer(0, None)),
            ("periodSeconds", integer(1, None)),
            ("timeoutSeconds", integer(1, None)),
            ("failureThreshold", integer(1, None)),
            ("successThreshold", integer(1, None)),
        ]),
        "resources" => {
            let amounts = json!({"type": "object", "additionalProperties": {"type": ["string", "number"], "minimum": 0, "pattern": "^[0-9.]+[A-Za-z]*$"}});
            strict(&[("requests", amounts.clone()), ("limits", amounts)])
        }
        "spread" => {
            let policy = json!({"enum": ["Honor", "Ignore"]});
            let constraint = strict(&[
                ("maxSkew", integer(1, None)),
                ("minDomains", integer(1, None)),
                ("topologyKey", json!({"type": "string", "minLength": 1})),
                ("whenUnsatisfiable", json!({"enum": ["DoNotSchedule", "ScheduleAnyway"]})),
                ("nodeAffinityPolicy", policy.clone()),
                ("nodeTaintsPolicy", policy),
            ]);
            json!({"type": "array", "items": constraint})
        }
        "gateway config" => reference::schema(&pages.gateway, GATEWAY_OWN)?,
        "router config" => reference::schema(&pages.router, ROUTER_OWN)?,
        _ => bail!("nobody knows {kind:?}"),
    })
}

/// An object with no other fields than these, of any kind.
fn fields(names: &str) -> Value {
    strict(&names.split(", ").map(|name| (name, json!({}))).collect::<Vec<_>>())
}

/// The type of a default says it all. No number of ours may be negative.
fn inferred(default: &Value) -> Result<Value> {
    Ok(match default {
        Value::Bool(_) => json!({"type": "boolean"}),
        Value::Number(_) => integer(0, None),
        Value::String(_) => json!({"type": "string"}),
        _ => bail!("a list, a map or null says nothing of its kind"),
    })
}

fn integer(least: u32, most: Option<u32>) -> Value {
    match most {
        None => json!({"type": "integer", "minimum": least}),
        Some(most) => json!({"type": "integer", "minimum": least, "maximum": most}),
    }
}

fn strict(properties: &[(&str, Value)]) -> Value {
    let properties: Map<String, Value> =
        properties.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({"type": "object", "additionalProperties": false, "properties": properties})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::values;

    fn of(text: &str) -> Result<Value> {
        let pages = Pages { gateway: String::new(), router: String::new() };
        schema(&values::parse(text)?, &pages)
    }

    #[test]
    fn every_group_is_closed() {
        let schema =
            of("a:\n  # Number.\n  b: 1\n  # {one of: \"\", X} Word.\n  c: \"\"\n").expect("good values");
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["a"]["additionalProperties"], false);
        assert_eq!(schema["properties"]["a"]["properties"]["b"]["minimum"], 0);
        assert_eq!(schema["properties"]["a"]["properties"]["c"]["enum"], json!(["", "X"]));
    }

    #[test]
    fn objects_of_kubernetes_have_their_fields() {
        let schema = of("# {list of: name, value} Variables.\na: []\n").expect("good values");
        let items = &schema["properties"]["a"]["items"];
        assert_eq!(
            (&items["properties"]["value"], &items["additionalProperties"]),
            (&json!({}), &json!(false))
        );
    }

    #[test]
    fn a_kind_that_nobody_knows_is_refused() {
        let error = of("# {zebra} Stripes.\na: 1\n").expect_err("no such kind");
        assert!(format!("{error:#}").contains("zebra"), "{error:#}");
    }
}
