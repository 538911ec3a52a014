//! `cargo xtask ten-million`: ten million keys on 500 nodes with the routers' placement; writes the table and the plots of
//! `docs/ten-million.md`. Takes some minutes of one core.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};

use crate::workspace::Workspace;

/// Between these lines of the page the table stands.
const BEGIN: &str = "<!-- table of cargo xtask ten-million -->\n";
const END: &str = "<!-- end of the table -->";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Keys to place.
    #[arg(long, default_value = "10000000")]
    keys: u64,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let docs = workspace.root.join("docs");
    let mut command = Command::new("cargo");
    command.current_dir(&workspace.root);
    command.args(["run", "--release", "--package", "tidegate-router", "--example", "ten_million", "--"]);
    let output = command.arg(&docs).arg(options.keys.to_string()).output().context("cargo does not start")?;
    ensure!(output.status.success(), "the simulation failed: {}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).context("a table that is no text")?;
    let path = docs.join("ten-million.md");
    let page = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let page =
        with_table(&page, &table).with_context(|| format!("{} has no place for it", path.display()))?;
    fs::write(&path, page).with_context(|| format!("{}", path.display()))?;
    print!("{table}");
    Ok(())
}

fn with_table(page: &str, table: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_takes_the_place_of_the_last_one() {
        let page = |table: &str| format!("a\n{BEGIN}\n{table}\n{END}\nb\n");
        assert_eq!(with_table(&page("old\n"), "new\n"), Some(page("new\n")));
        assert_eq!(with_table("no place", "new"), None);
    }
}
