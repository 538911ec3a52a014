//! `k8s/`: a kustomize base rendered from the chart, and overlays as exact differences from it.
//!
//! An overlay is rendered from the chart as well, with further values. What the base does not have is a resource of the
//! overlay, what differs is a JSON patch (RFC 6902), what is missing is deleted: the overlay is what Helm renders, to
//! the last field, which a test asserts with kubectl.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};

use crate::charts::render::{Given, Helm, Object, objects};

pub(crate) const OVERLAYS: [&str; 2] = ["dev", "production"];

const MADE: &str = "# Made by `cargo xtask k8s` from charts/tidegate and k8s/values.\n";
const RELEASE: &str = "tidegate";
const NAMESPACE: &str = "tidegate";

/// Every file below `k8s/` but the values, by its path from there.
pub(crate) fn files(helm: &Helm, values: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let base = documents(&rendered(helm, values, None)?)?;
    let mut files = BTreeMap::new();
    let mut resources = Vec::new();
    for document in &base {
        resources.push(document.file());
        files.insert(Path::new("base").join(document.file()), format!("{MADE}{}", document.text));
    }
    files.insert("base/kustomization.yaml".into(), kustomization(&resources, &[]));
    for overlay in OVERLAYS {
        let documents = documents(&rendered(helm, values, Some(overlay))?)?;
        let directory = Path::new("overlays").join(overlay);
        for (path, text) in overlay_files(&base, &documents)? {
            files.insert(directory.join(path), text);
        }
    }
    Ok(files)
}

/// What the overlay, or the base, must be when kustomize has built it.
pub(crate) fn expected(helm: &Helm, values: &Path, overlay: Option<&str>) -> Result<Vec<Object>> {
    objects(&rendered(helm, values, overlay)?)
}

fn rendered(helm: &Helm, values: &Path, overlay: Option<&str>) -> Result<String> {
    let names = std::iter::once("base").chain(overlay);
    let files = names.map(|name| values.join(format!("{name}.yaml"))).collect();
    let text = helm.template(RELEASE, NAMESPACE, &Given { files, set: Vec::new() })?;
    // Whoever applies these files does not use Helm.
    let foreign = ["# Source: ", "helm.sh/chart: ", "app.kubernetes.io/managed-by: "];
    let lines = text.lines().filter(|line| !foreign.iter().any(|word| line.trim_start().starts_with(word)));
    Ok(lines.map(str::trim_end).collect::<Vec<_>>().join("\n"))
}

/// An object with the text that it was rendered as.
struct Document {
    object: Object,
    text: String,
}

impl Document {
    fn file(&self) -> String {
        format!("{}-{}.yaml", self.object.kind().to_lowercase(), self.object.name())
    }

    fn is(&self, other: &Self) -> bool {
        self.object.kind() == other.object.kind() && self.object.name() == other.object.name()
    }
}

fn documents(text: &str) -> Result<Vec<Document>> {
    let mut found = Vec::new();
    for part in format!("\n{text}").split("\n---\n") {
        for object in objects(part)? {
            found.push(Document { object, text: format!("{}\n", part.trim()) });
        }
    }
    found.sort_by_key(Document::file);
    Ok(found)
}

fn overlay_files(base: &[Document], overlay: &[Document]) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    let mut resources = vec!["../../base".to_owned()];
    let mut patches = Vec::new();
    for document in overlay {
        match base.iter().find(|other| other.is(document)) {
            None => {
                resources.push(document.file());
                files.push((document.file(), format!("{MADE}{}", document.text)));
            }
            Some(other) => {
                let mut operations = Vec::new();
                difference("", &other.object.0, &document.object.0, &mut operations);
                if !operations.is_empty() {
                    let file = format!("patch-{}", document.file().replace(".yaml", ".json"));
                    patches.push(format!(
                        "  - path: {file}\n    target:\n      kind: {}\n      name: {}\n",
                        document.object.kind(),
                        document.object.name()
                    ));
                    files.push((file, format!("{}\n", serde_json::to_string_pretty(&operations)?)));
                }
            }
        }
    }
    for gone in base.iter().filter(|document| !overlay.iter().any(|other| other.is(document))) {
        patches.push(format!(
            "  - patch: |\n      $patch: delete\n      apiVersion: {}\n      kind: {}\n      metadata:\n        name: {}\n        namespace: {NAMESPACE}\n",
            gone.object.api_version(),
            gone.object.kind(),
            gone.object.name()
        ));
    }
    files.push(("kustomization.yaml".to_owned(), kustomization(&resources, &patches)));
    Ok(files)
}

fn kustomization(resources: &[String], patches: &[String]) -> String {
    let mut text = format!("{MADE}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n");
    text.push_str(&format!("namespace: {NAMESPACE}\nresources:\n"));
    for resource in resources {
        text.push_str(&format!("  - {resource}\n"));
    }
    if !patches.is_empty() {
        text.push_str(&format!("patches:\n{}", patches.concat()));
    }
    text
}

/// The operations that make `after` of `before`. Lists of another length are replaced whole.
fn difference(path: &str, before: &Value, after: &Value, operations: &mut Vec<Value>) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in old {
                let path = format!("{path}/{}", escaped(key));
                match new.get(key) {
                    Some(other) => difference(&path, value, other, operations),
                    None => operations.push(json!({"op": "remove", "path": path})),
                }
            }
            for (key, value) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
                let path = format!("{path}/{}", escaped(key));
                operations.push(json!({"op": "add", "path": path, "value": value}));
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                difference(&format!("{path}/{index}"), old, new, operations);
            }
        }
        _ if before == after => {}
        _ => operations.push(json!({"op": "replace", "path": path, "value": after})),
    }
}

/// RFC 6901, section 3.
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_has_each_operation() {
        let before = json!({"a/b": 1, "gone": 2, "list": [1, 2], "same": {"x": [1]}, "other": [1]});
        let after = json!({"a/b": 3, "list": [1, 4], "same": {"x": [1]}, "other": [], "new": null});
        let mut operations = Vec::new();
        difference("", &before, &after, &mut operations);
        let expect = json!([
            {"op": "replace", "path": "/a~1b", "value": 3},
            {"op": "remove", "path": "/gone"},
            {"op": "replace", "path": "/list/1", "value": 4},
            {"op": "replace", "path": "/other", "value": []},
            {"op": "add", "path": "/new", "value": null},
        ]);
        assert_eq!(Value::Array(operations), expect);
    }

    #[test]
    fn an_overlay_adds_changes_and_deletes() {
        let object = |name: &str, replicas: u32| {
            format!("apiVersion: v1\nkind: K\nmetadata:\n  name: {name}\nspec: {replicas}")
        };
        let base = documents(&format!("---\n{}\n---\n{}", object("a", 1), object("b", 1))).expect("YAML");
        let overlay = documents(&format!("---\n{}\n---\n{}", object("a", 2), object("c", 1))).expect("YAML");
        let files: BTreeMap<String, String> =
            overlay_files(&base, &overlay).expect("files").into_iter().collect();
        assert!(files["k-c.yaml"].ends_with("name: c\nspec: 1\n"), "{files:?}");
        assert!(files["patch-k-a.json"].contains("\"value\": 2"), "{files:?}");
        let kustomization = &files["kustomization.yaml"];
        for line in
            ["  - ../../base\n  - k-c.yaml\n", "  - path: patch-k-a.json\n", "$patch: delete", "name: b\n"]
        {
            assert!(kustomization.contains(line), "{line} in {kustomization}");
        }
    }
}
