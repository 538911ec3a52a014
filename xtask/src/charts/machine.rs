//! A directory that stands for the file system of a pod: what the chart renders is run by the real binary.
//!
//! ConfigMaps and Secrets become files below the directory, paths of the pod are written anew to lead there, and the
//! environment is what Kubernetes would give. Secrets that the chart only names get contents of their type.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::render::Object;
use super::rules::list;
use crate::command::{output, run};

/// Where the pods of the chart have their files.
const MOUNTS: &str = "/etc/tidegate";

/// Satisfies every secret of a gateway: at least 32 bytes.
pub(crate) const SECRET: &str = "a-secret-that-only-this-test-has-00000";

/// A pod that can be run here.
#[derive(Debug)]
pub(crate) struct Machine {
    directory: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Machine {
    /// Sets up the first container of a workload or pod in a directory that is made anew.
    pub(crate) fn new(directory: &Path, object: &Object, objects: &[Object]) -> Result<Self> {
        let pod = object.pod().context("it has no pods")?;
        let container = &pod["containers"][0];
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        let mut machine =
            Self { directory: directory.to_owned(), arguments: Vec::new(), environment: Vec::new() };
        for mount in list(&container["volumeMounts"]) {
            let volume = list(&pod["volumes"]).iter().find(|volume| volume["name"] == mount["name"]);
            let path = mount["mountPath"].as_str().unwrap_or_default();
            machine.mount(volume.context("a mount has a volume")?, path, objects)?;
        }
        for variable in list(&container["env"]) {
            let value = machine.value(variable, objects)?;
            machine.environment.push((text(&variable["name"]), value));
        }
        machine.arguments = list(&container["args"]).iter().map(|word| machine.local(&text(word))).collect();
        Ok(machine)
    }

    /// The binary with what the container has, and nothing of this process.
    pub(crate) fn command(&self, binary: &Path) -> Command {
        let mut command = Command::new(binary);
        command.env_clear().current_dir(&self.directory);
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// A path of the pod, as one of this machine.
    pub(crate) fn local(&self, text: &str) -> String {
        text.replace(MOUNTS, &self.directory.join("etc/tidegate").display().to_string())
    }

    fn mount(&self, volume: &Value, path: &str, objects: &[Object]) -> Result<()> {
        let directory = self.directory.join(path.trim_start_matches('/'));
        fs::create_dir_all(&directory)?;
        if let Some(name) = volume["configMap"]["name"].as_str() {
            match objects.iter().find(|object| object.kind() == "ConfigMap" && object.name() == name) {
                Some(map) => {
                    for (file, content) in map.at("/data").as_object().into_iter().flatten() {
                        fs::write(directory.join(file), self.local(&text(content)))?;
                    }
                }
                // The user's; of those there are only certificates.
                None if name.starts_with("existing-") => {
                    for item in list(&volume["configMap"]["items"]) {
                        certificate(&directory)?;
                        fs::rename(directory.join("tls.crt"), directory.join(text(&item["path"])))?;
                    }
                }
                None => bail!("there is no ConfigMap {name}"),
            }
        } else if let Some(name) = volume["secret"]["secretName"].as_str() {
            match list(&volume["secret"]["items"]) {
                [] => certificate(&directory)?,
                items => {
                    for item in items {
                        let file = directory.join(text(&item["path"]));
                        match text(&item["key"]).as_str() {
                            "ca.crt" => {
                                certificate(&directory)?;
                                fs::rename(directory.join("tls.crt"), file)?;
                            }
                            key => fs::write(file, secret(name, key, objects))?,
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// What a variable is in the container; earlier ones may be in it.
    fn value(&self, variable: &Value, objects: &[Object]) -> Result<String> {
        let from = &variable["valueFrom"];
        if let Some(field) = from["fieldRef"]["fieldPath"].as_str() {
            return Ok(match field {
                "metadata.name" => "pod-0".to_owned(),
                "status.podIP" => "127.0.0.1".to_owned(),
                _ => bail!("nobody knows the field {field}"),
            });
        }
        if let Some(key) = from["secretKeyRef"]["key"].as_str() {
            return Ok(secret(&text(&from["secretKeyRef"]["name"]), key, objects));
        }
        let mut value = text(&variable["value"]);
        for (name, known) in &self.environment {
            value = value.replace(&format!("$({name})"), known);
        }
        Ok(value)
    }
}

/// What the chart put into the Secret; else something that fits the name of the entry.
fn secret(name: &str, key: &str, objects: &[Object]) -> String {
    let made = objects.iter().find(|object| object.kind() == "Secret" && object.name() == name);
    match made.and_then(|object| object.at("/stringData")[key].as_str()) {
        Some(value) => value.to_owned(),
        None if key == "apps.toml" => format!("[apps.shop]\nkey = \"shop-key\"\nsecret = \"{SECRET}\"\n"),
        None if key == "url" => "redis://user:password@redis:6379".to_owned(),
        None => SECRET.to_owned(),
    }
}

/// A certificate with its key, as a Secret of type kubernetes.io/tls holds them.
fn certificate(directory: &Path) -> Result<()> {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]);
    openssl.args(["-subj", "/CN=edge.example.org", "-days", "2", "-keyout", "tls.key", "-out", "tls.crt"]);
    output(openssl.current_dir(directory)).map(drop)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// `tidegate … --check` with what the pods of one rendering have. It reads every file that the configuration names.
pub(crate) fn check(binary: &Path, directory: &Path, objects: &[Object]) -> Result<()> {
    for component in ["gateway", "router"] {
        if let Some((object, _)) = super::rules::workload(objects, component) {
            let machine = Machine::new(&directory.join(component), object, objects)?;
            output(machine.command(binary).arg("--check")).with_context(|| object.id())?;
        }
    }
    Ok(())
}

/// Whether the binary can be run at all.
pub(crate) fn expect_binary(binary: &Path) -> Result<()> {
    run(Command::new(binary).arg("--version"))
}
