//! The step `charts` of `cargo xtask test`: the chart and `k8s/`, held against real tools and the real binary.

mod live;
mod machine;
mod refusals;
pub(crate) mod render;
mod rules;
pub(crate) mod tools;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command::output;
use crate::k8s;
use crate::workspace::Workspace;
use render::{Given, Helm, Object, objects};
use tools::Tools;

/// The oldest Kubernetes of Chart.yaml's `kubeVersion`, and the newest that has schemas.
const KUBERNETES: [&str; 2] = ["1.27", "1.37"];

/// Values that a plain installation needs, for what is tried on top of them.
pub(crate) const TRIAL: &str = "trial.yaml";

/// What a check has at hand.
struct Site<'a> {
    workspace: &'a Workspace,
    tools: Tools,
    helm4: Helm,
    helm3: Helm,
    binary: PathBuf,
    scratch: PathBuf,
}

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    if !tools::RUN_HERE {
        println!("skipped: the programs that this step installs are for Linux on x86-64");
        return Ok(());
    }
    let site = Site::new(workspace)?;
    machine::expect_binary(&site.binary)?;
    k8s::check(workspace, &site.tools)?;
    let mut all = Vec::new();
    for file in site.matrix()? {
        all.extend(site.rendering(&file).with_context(|| format!("with {}", file.display()))?);
    }
    site.kubernetes_accepts(&all)?;
    site.custom_resources_are_valid(&all)?;
    site.rules_and_dashboards_are_whole(&all)?;
    println!("{} objects are valid for Kubernetes {}", all.len(), KUBERNETES.join(" and "));
    refusals::check(&site.helm4, &site.helm3, &site.values(TRIAL))?;
    site.a_gateway_release_leaves_routers_alone()?;
    site.kustomize_builds_what_helm_renders()?;
    site.a_mirror_serves_every_image()?;
    let trial = site.helm4.objects(&Given::file(&site.values(TRIAL)))?;
    live::run(&site.binary, &site.scratch.join("live"), &trial)?;
    println!("the trial installation runs, and its test passes");
    Ok(())
}

impl<'a> Site<'a> {
    fn new(workspace: &'a Workspace) -> Result<Self> {
        let tools = Tools::install(workspace)?;
        let chart = workspace.root.join("charts/tidegate");
        let scratch = workspace.target.join("charts");
        fs::create_dir_all(&scratch)?;
        Ok(Self {
            workspace,
            helm4: Helm { program: tools.helm4.clone(), chart: chart.clone() },
            helm3: Helm { program: tools.helm3.clone(), chart },
            binary: workspace.product(),
            scratch,
            tools,
        })
    }

    fn values(&self, name: &str) -> PathBuf {
        self.workspace.root.join("charts/tidegate/ci").join(name)
    }

    fn matrix(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.workspace.root.join("charts/tidegate/ci"))?;
        let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        files.sort();
        Ok(files)
    }

    /// One file of the matrix: both Helms like it and agree, the objects keep the rules, the binary takes the settings.
    fn rendering(&self, file: &Path) -> Result<Vec<Object>> {
        let given = Given::file(file);
        let found = self.helm4.objects(&given)?;
        if self.helm3.objects(&given)? != found {
            bail!("Helm 3 and Helm 4 render different objects");
        }
        for helm in [&self.helm3, &self.helm4] {
            helm.lint(&given)?;
        }
        if !self.helm4.notes(&given)?.contains("/v1/channels/news/publish") {
            bail!("the notes do not say how to publish");
        }
        let findings = rules::findings(&found);
        if !findings.is_empty() {
            bail!("{}", findings.join("\n"));
        }
        machine::check(&self.binary, &self.scratch, &found)?;
        println!("{}: {} objects", file.file_name().unwrap_or_default().to_string_lossy(), found.len());
        Ok(found)
    }

    /// Objects that Kubernetes has a schema for, without the many that are in several renderings.
    fn kubernetes_accepts(&self, all: &[Object]) -> Result<()> {
        let mut text = String::new();
        for (index, object) in all.iter().enumerate().filter(|(_, object)| !object.is_custom()) {
            if !all[..index].contains(object) {
                text.push_str(&format!("---\n{}\n", object.0));
            }
        }
        let file = self.scratch.join("objects.yaml");
        fs::write(&file, text)?;
        let mut validate = Command::new(&self.tools.kubernetes_validate);
        validate.args(KUBERNETES.iter().flat_map(|version| ["-k", version]));
        let said = output(validate.args(["--strict", "--quiet"]).arg(&file))?;
        if said.trim().is_empty() { Ok(()) } else { bail!("kubernetes-validate: {said}") }
    }

    fn custom_resources_are_valid(&self, all: &[Object]) -> Result<()> {
        let custom: Vec<&Value> =
            all.iter().filter(|object| object.is_custom()).map(|object| &object.0).collect();
        let kinds = ["PodMonitor", "ServiceMonitor", "PrometheusRule", "ScaledObject", "HTTPRoute"];
        if let Some(kind) = kinds.iter().find(|kind| !custom.iter().any(|object| object["kind"] == **kind)) {
            bail!("no file of the matrix renders a {kind}");
        }
        let file = self.scratch.join("custom.json");
        fs::write(&file, serde_json::to_vec(&custom)?)?;
        let mut node = Command::new("node");
        node.arg(self.tools.node.join("custom.mjs")).arg(&file).stdin(Stdio::null()).stderr(Stdio::inherit());
        let said = node.output()?;
        let text = String::from_utf8_lossy(&said.stdout);
        if said.status.success() && text.is_empty() { Ok(()) } else { bail!("{}: {text}", said.status) }
    }

    /// What came through the templates is what Prometheus and Grafana get elsewhere.
    fn rules_and_dashboards_are_whole(&self, all: &[Object]) -> Result<()> {
        let deploy = self.workspace.root.join("deploy");
        let rules: Value = serde_saphyr::from_str(&fs::read_to_string(deploy.join("prometheus/rules.yml"))?)?;
        let specifications = all.iter().filter(|object| object.kind() == "PrometheusRule");
        if !specifications.map(|object| object.at("/spec")).any(|spec| *spec == rules) {
            bail!("no PrometheusRule has the rules of deploy/prometheus");
        }
        let maps = all.iter().filter(|object| object.name().ends_with("-dashboards"));
        let dashboards: Vec<_> = maps.filter_map(|map| map.at("/data").as_object()).flatten().collect();
        if dashboards.is_empty() {
            bail!("no ConfigMap has dashboards");
        }
        for (file, text) in dashboards {
            let rendered: Value = serde_json::from_str(text.as_str().unwrap_or_default())?;
            let source = fs::read_to_string(deploy.join("grafana").join(file))?;
            if rendered != serde_json::from_str::<Value>(&source)? {
                bail!("{file} is not what is in deploy/grafana");
            }
        }
        Ok(())
    }

    /// Routers hold the clients of all gateways: another image or configuration of gateways must not restart them, but
    /// a configuration of their own must.
    fn a_gateway_release_leaves_routers_alone(&self) -> Result<()> {
        let pods = |set: &[&str], component| -> Result<Value> {
            let found = self.helm4.objects(&Given::file(&self.values(TRIAL)).with(set))?;
            let (object, _) = rules::workload(&found, component).context("there is a workload")?;
            Ok(object.at("/spec/template").clone())
        };
        let release = ["gateway.image.tag=9.9.9", "gateway.config.limits.subscriptions=7"];
        if pods(&release, "router")? != pods(&[], "router")? {
            bail!("a release of gateways restarts the routers");
        }
        for (component, set) in [("gateway", "gateway.config.shards=3"), ("router", "router.config.shards=3")]
        {
            if pods(&[set], component)? == pods(&[], component)? {
                bail!("{set} does not restart the pods that read it");
            }
        }
        Ok(())
    }

    /// The base and the overlays are what Helm renders with the same values.
    fn kustomize_builds_what_helm_renders(&self) -> Result<()> {
        let directory = self.workspace.root.join("k8s");
        for overlay in std::iter::once(None).chain(k8s::tree::OVERLAYS.map(Some)) {
            let path = overlay.map_or("base".to_owned(), |name| format!("overlays/{name}"));
            let mut built = objects(&output(
                Command::new(&self.tools.kubectl).arg("kustomize").arg(directory.join(&path)),
            )?)?;
            let mut wanted = k8s::tree::expected(&self.helm4, &directory.join("values"), overlay)?;
            built.sort_by_key(Object::id);
            wanted.sort_by_key(Object::id);
            if built != wanted {
                let differs = built.iter().zip(&wanted).find(|(left, right)| left != right);
                bail!("k8s/{path} is not what Helm renders; first: {:?}", differs.map(|(left, _)| left.id()));
            }
            let findings = rules::findings(&built);
            if !findings.is_empty() {
                bail!("k8s/{path}: {}", findings.join("\n"));
            }
            if let Some(overlay) = overlay {
                self.the_guide_makes_every_secret(overlay, &built)?;
            }
            println!("k8s/{path}: {} objects", built.len());
        }
        Ok(())
    }

    /// `global.imageRegistry` is read for each container, that of the bundled Redis and of the test included.
    fn a_mirror_serves_every_image(&self) -> Result<()> {
        let mirror = "mirror.example.org/";
        let given = Given::file(&self.values(TRIAL)).with(&["global.imageRegistry=mirror.example.org"]);
        let mut images = Vec::new();
        self.helm4.objects(&given)?.iter().for_each(|object| images_of(&object.0, &mut images));
        if images.len() < 4 || !images.iter().all(|image| image.starts_with(mirror)) {
            bail!("with a mirror the images are {images:?}");
        }
        Ok(())
    }

    /// The Secret that docs/kubernetes.md has a person make has the entries that the pods read, and no other.
    fn the_guide_makes_every_secret(&self, overlay: &str, built: &[Object]) -> Result<()> {
        let mut read = BTreeSet::new();
        built.iter().for_each(|object| secret_entries(&object.0, &mut read));
        let text = fs::read_to_string(self.workspace.root.join("docs/kubernetes.md"))?;
        let (_, text) = text.split_once("\n## Without Helm\n").context("docs/kubernetes.md: Without Helm")?;
        let (dev, production) = text.split_once("needs the entries").context("what production needs")?;
        let told: BTreeSet<String> = match overlay {
            "dev" => dev.split("--from-literal=").skip(1).filter_map(|rest| rest.split('=').next()).collect(),
            _ => production
                .split('.')
                .next()
                .unwrap_or_default()
                .split('`')
                .skip(1)
                .step_by(2)
                .collect::<BTreeSet<_>>(),
        }
        .into_iter()
        .map(|entry| format!("tidegate-secrets/{entry}"))
        .collect();
        if read != told {
            bail!("k8s/overlays/{overlay} reads {read:?}, docs/kubernetes.md has {told:?} made");
        }
        Ok(())
    }
}

/// `NAME/ENTRY` of every Secret that an object reads, in whatever part of it.
fn secret_entries(value: &Value, found: &mut BTreeSet<String>) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match value {
        Value::Object(members) => {
            if let Some(from) = members.get("secretKeyRef") {
                found.insert(format!("{}/{}", text(&from["name"]), text(&from["key"])));
            }
            if let Some(volume) = members.get("secret") {
                for item in volume["items"].as_array().into_iter().flatten() {
                    found.insert(format!("{}/{}", text(&volume["secretName"]), text(&item["key"])));
                }
            }
            members.values().for_each(|value| secret_entries(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| secret_entries(value, found)),
        _ => {}
    }
}

fn images_of(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get("image").and_then(Value::as_str).map(str::to_owned));
            members.values().for_each(|value| images_of(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| images_of(value, found)),
        _ => {}
    }
}
