//! Where things are: the root, the target directory, the cache of installed tools, the product's binary.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::{cargo, environment, output, run};

#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
}

impl Workspace {
    pub(crate) fn discover() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
        let text = output(cargo(root).args(["metadata", "--no-deps", "--locked", "--format-version", "1"]))?;
        let metadata: Value = serde_json::from_str(&text).context("cargo metadata prints JSON")?;
        let target =
            metadata["target_directory"].as_str().context("cargo metadata tells the target directory")?;
        Ok(Self { root: root.to_owned(), target: target.into() })
    }

    /// What tests need and the machine lacks is installed here, never into the system's language environments.
    pub(crate) fn cache(&self, name: &str) -> PathBuf {
        self.root.join(".cache").join(name)
    }

    /// The product that is tested: the one that was given, else as it is built here.
    pub(crate) fn product(&self) -> PathBuf {
        environment("TIDEGATE_BIN").map_or_else(|| self.target.join("release/tidegate"), PathBuf::from)
    }

    /// The product as it ships. Built alone, so that no test crate's features leak into it.
    pub(crate) fn build_product(&self) -> Result<PathBuf> {
        run(cargo(&self.root).args(["build", "--release", "--locked", "--package", "tidegate"]))?;
        Ok(self.target.join("release/tidegate"))
    }
}
