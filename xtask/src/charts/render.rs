//! Running Helm, and the objects in what it prints.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::output;

/// Names that are not the chart's, so that one is not taken for the other.
pub(crate) const RELEASE: &str = "edge";
pub(crate) const NAMESPACE: &str = "realtime";

/// One of the Helms, and the chart.
#[derive(Debug)]
pub(crate) struct Helm {
    pub(crate) program: PathBuf,
    pub(crate) chart: PathBuf,
}

/// Values of one rendering.
#[derive(Debug, Clone, Default)]
pub(crate) struct Given {
    pub(crate) files: Vec<PathBuf>,
    /// `a.b=1`, over the files.
    pub(crate) set: Vec<String>,
}

/// An object of Kubernetes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Object(pub(crate) Value);

impl Helm {
    pub(crate) fn lint(&self, given: &Given) -> Result<String> {
        output(
            Command::new(&self.program).args(["lint", "--strict"]).arg(&self.chart).args(given.arguments()),
        )
    }

    /// The text of all objects. An error holds what Helm said.
    pub(crate) fn template(&self, release: &str, namespace: &str, given: &Given) -> Result<String> {
        let mut helm = Command::new(&self.program);
        helm.args(["template", release, "--namespace", namespace]).arg(&self.chart).args(given.arguments());
        output(&mut helm)
    }

    pub(crate) fn objects(&self, given: &Given) -> Result<Vec<Object>> {
        objects(&self.template(RELEASE, NAMESPACE, given)?)
    }

    /// What is told after an installation.
    pub(crate) fn notes(&self, given: &Given) -> Result<String> {
        let mut helm = Command::new(&self.program);
        helm.args(["install", RELEASE, "--namespace", NAMESPACE, "--dry-run=client"]);
        let text = output(helm.arg(&self.chart).args(given.arguments()))?;
        let (_, notes) = text.split_once("NOTES:\n").context("the installation has no notes")?;
        Ok(notes.to_owned())
    }
}

impl Given {
    pub(crate) fn file(path: &Path) -> Self {
        Self { files: vec![path.to_owned()], set: Vec::new() }
    }

    pub(crate) fn with(mut self, set: &[&str]) -> Self {
        self.set.extend(set.iter().map(|value| (*value).to_owned()));
        self
    }

    fn arguments(&self) -> Vec<String> {
        let files = self.files.iter().map(|file| ["--values".to_owned(), file.display().to_string()]);
        let set = self.set.iter().map(|value| ["--set".to_owned(), value.clone()]);
        files.chain(set).flatten().collect()
    }
}

/// All documents that are not empty.
pub(crate) fn objects(text: &str) -> Result<Vec<Object>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).context("what was rendered is not YAML")?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).map(Object).collect())
}

impl Object {
    pub(crate) fn kind(&self) -> &str {
        self.text("/kind")
    }

    pub(crate) fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    pub(crate) fn api_version(&self) -> &str {
        self.text("/apiVersion")
    }

    /// `StatefulSet edge-tidegate-gateway`.
    pub(crate) fn id(&self) -> String {
        format!("{} {}", self.kind(), self.name())
    }

    /// The text at a JSON pointer; empty where there is none.
    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn at(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or(&Value::Null)
    }

    /// The specification of its pods, if it has some.
    pub(crate) fn pod(&self) -> Option<&Value> {
        match self.kind() {
            "Pod" => self.0.pointer("/spec"),
            "StatefulSet" | "Deployment" => self.0.pointer("/spec/template/spec"),
            _ => None,
        }
    }

    /// Whether Kubernetes itself has a schema for it.
    pub(crate) fn is_custom(&self) -> bool {
        ["monitoring.coreos.com/", "keda.sh/", "gateway.networking.k8s.io/"]
            .iter()
            .any(|group| self.api_version().starts_with(group))
    }
}
