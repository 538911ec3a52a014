//! `cargo xtask k8s`: everything about Kubernetes that is made from something else, and whether it is stale.
//!
//! | made | from |
//! | --- | --- |
//! | `charts/tidegate/values.schema.json`, the tables of its README | `values.yaml`, `docs/configuration.md`, `docs/router-configuration.md` |
//! | `charts/tidegate/files/` | `deploy/prometheus/rules.yml`, `deploy/grafana/` |
//! | `k8s/base`, `k8s/overlays` | the chart, `k8s/values` |

mod readme;
mod reference;
mod schema;
pub(crate) mod tree;
mod values;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::charts::render::Helm;
use crate::charts::tools::Tools;
use crate::workspace::Workspace;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Change nothing; fail when a file is stale
    #[arg(long)]
    check: bool,
}

/// Files by their path from the root.
type Files = BTreeMap<PathBuf, String>;

/// Directories that hold nothing but what is made.
const MADE: [&str; 3] = ["charts/tidegate/files", "k8s/base", "k8s/overlays"];

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let tools = Tools::install(workspace)?;
    if options.check { check(workspace, &tools) } else { write(workspace, &tools) }
}

/// An error names every stale file.
pub(crate) fn check(workspace: &Workspace, tools: &Tools) -> Result<()> {
    let root = &workspace.root;
    let mut made = chart_files(root)?;
    // Helm reads the schema and the files: while they are stale, so is what it would render.
    let mut stale = changed(root, &made);
    if stale.is_empty() {
        made.extend(tree_files(root, tools)?);
        stale = changed(root, &made);
        stale.extend(superfluous(root, &made)?);
    }
    match stale.as_slice() {
        [] => Ok(()),
        stale => {
            let names: Vec<_> = stale.iter().map(|path| path.display().to_string()).collect();
            bail!("stale: {}; `cargo xtask k8s` makes them anew", names.join(", "))
        }
    }
}

fn write(workspace: &Workspace, tools: &Tools) -> Result<()> {
    let root = &workspace.root;
    let mut made = chart_files(root)?;
    put(root, &made)?;
    made.extend(tree_files(root, tools)?);
    put(root, &made)?;
    for path in superfluous(root, &made)? {
        println!("remove {}", path.display());
        fs::remove_file(root.join(path))?;
    }
    Ok(())
}

/// Schema, README, and the copies that a package of the chart needs: Helm reads no file outside of it.
fn chart_files(root: &Path) -> Result<Files> {
    let chart = Path::new("charts/tidegate");
    let items = values::parse(&read(&root.join(chart).join("values.yaml"))?)?;
    let pages = schema::Pages {
        gateway: read(&root.join("docs/configuration.md"))?,
        router: read(&root.join("docs/router-configuration.md"))?,
    };
    let schema = serde_json::to_string_pretty(&schema::schema(&items, &pages)?)?;
    let page = read(&root.join(chart).join("README.md"))?;
    let mut made = Files::from([
        (chart.join("values.schema.json"), format!("{schema}\n")),
        (chart.join("README.md"), readme::readme(&page, &items)?),
    ]);
    let copied = [("deploy/prometheus", "rules.yml"), ("deploy/grafana", ".json")];
    for (directory, ending) in copied {
        for path in below(&root.join(directory))? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            if let Some(name) = name.filter(|name| name.ends_with(ending)) {
                made.insert(chart.join("files").join(name), read(&path)?);
            }
        }
    }
    Ok(made)
}

fn tree_files(root: &Path, tools: &Tools) -> Result<Files> {
    let helm = Helm { program: tools.helm4.clone(), chart: root.join("charts/tidegate") };
    let files = tree::files(&helm, &root.join("k8s/values"))?;
    Ok(files.into_iter().map(|(path, text)| (Path::new("k8s").join(path), text)).collect())
}

fn changed(root: &Path, made: &Files) -> Vec<PathBuf> {
    let is_stale = |(path, text): &(&PathBuf, &String)| {
        !fs::read_to_string(root.join(path)).is_ok_and(|found| found == **text)
    };
    made.iter().filter(is_stale).map(|(path, _)| path.clone()).collect()
}

fn superfluous(root: &Path, made: &Files) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for directory in MADE {
        for path in below(&root.join(directory))? {
            let path = path.strip_prefix(root).context("below the root")?.to_owned();
            if !made.contains_key(&path) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn put(root: &Path, made: &Files) -> Result<()> {
    for path in changed(root, made) {
        println!("write {}", path.display());
        let target = root.join(&path);
        if let Some(directory) = target.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&target, &made[&path]).with_context(|| format!("write {}", target.display()))?;
    }
    Ok(())
}

/// Every file below a directory; none where there is no directory.
fn below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop().filter(|directory| directory.is_dir()) {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() { directories.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}
