//! Brings Autobahn's test suite to a machine of today: it runs on Python 2.7 only, which Debian last had in bullseye.
//!
//! Nothing is installed into the system. The interpreter's packages are fetched with apt under a configuration of
//! their own and unpacked into the cache; a virtual environment on top holds the suite and its pinned needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::is_debian;
use crate::command::{output, run};
use crate::prepare::{once, pip};

/// The last Debian release with Python 2.7.
const SUITE: &str = "bullseye";

/// The interpreter, its headers (for one C extension below), and the libraries that newer releases dropped.
const DEBIAN_PACKAGES: [&str; 7] = [
    "python2.7",
    "python2.7-minimal",
    "libpython2.7-minimal",
    "libpython2.7-stdlib",
    "libpython2.7-dev",
    "libssl1.1",
    "libffi7",
];

/// Debian's own keys, where its package puts them; without it apt looks at the keys that it trusts anyway.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The last virtualenv that can make environments for Python 2.7.
const VIRTUALENV: &str = "virtualenv==20.21.1";

/// The suite with the versions of its time; installed without dependency resolution, which no longer works for them.
const PYTHON_PACKAGES: [&str; 30] = [
    "autobahntestsuite==0.8.2",
    "autobahn==0.10.9",
    "Twisted==20.3.0",
    "txaio==2.1.0",
    "klein==17.10.0",
    "werkzeug==0.16.1",
    "jinja2==2.11.3",
    "markupsafe==1.1.1",
    "pyopenssl==21.0.0",
    "cryptography==3.3.2",
    "service_identity==18.1.0",
    "attrs==20.3.0",
    "Automat==20.2.0",
    "cffi==1.15.1",
    "constantly==15.1.0",
    "enum34==1.1.10",
    "hyperlink==21.0.0",
    "idna==2.10",
    "incremental==17.5.0",
    "ipaddress==1.0.23",
    "linecache2==1.0.0",
    "pyasn1==0.4.8",
    "pyasn1_modules==0.2.8",
    "pycparser==2.21",
    "PyHamcrest==1.10.1",
    "six==1.16.0",
    "traceback2==1.4.0",
    "typing==3.10.0.0",
    "unittest2==1.1.0",
    "zope.interface==5.5.2",
];

/// Masking and UTF-8 checks in C; the suite uses it when it is there.
const ACCELERATOR: &str = "wsaccel==0.6.2";

/// Where everything is unpacked.
#[derive(Debug)]
pub(crate) struct Installation {
    directory: PathBuf,
    libraries: PathBuf,
}

impl Installation {
    /// The suite's program.
    pub(crate) fn wstest(&self) -> Command {
        let mut command = self.python2(&self.directory.join("suite/bin/python"));
        command.arg(self.directory.join("suite/bin/wstest"));
        command
    }

    /// The old interpreter finds its old libraries, and does not warn about its age.
    fn python2(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", &self.libraries).env("PYTHONWARNINGS", "ignore");
        command.env_remove("PYTHONHOME").env_remove("PYTHONPATH");
        command
    }
}

/// Installs on first use; later calls only look at a stamp.
pub(crate) fn ensure(directory: &Path) -> Result<Installation> {
    let recipe = format!("{SUITE} {DEBIAN_PACKAGES:?} {VIRTUALENV} {PYTHON_PACKAGES:?} {ACCELERATOR}");
    once(directory, &recipe, || {
        if !is_debian() {
            bail!("the Autobahn suite needs Debian packages of Python 2.7: run this on a Debian machine");
        }
        unpack_interpreter(directory)?;
        install_suite(&located(directory)?)
    })?;
    located(directory)
}

fn located(directory: &Path) -> Result<Installation> {
    let libraries = fs::read_dir(directory.join("root/usr/lib")).context("the interpreter is unpacked")?;
    let libraries = libraries.filter_map(Result::ok).map(|entry| entry.path());
    let libraries = libraries.into_iter().find(|path| path.to_string_lossy().ends_with("-linux-gnu"));
    let libraries = libraries.context("the unpacked packages have libraries")?;
    Ok(Installation { directory: directory.to_owned(), libraries })
}

/// Fetches the packages under an apt configuration of our own and unpacks them beside the system.
fn unpack_interpreter(directory: &Path) -> Result<()> {
    let (lists, archives, packages) =
        (directory.join("apt/lists"), directory.join("apt/cache"), directory.join("debs"));
    for path in [lists.join("partial"), archives.join("archives/partial"), packages.clone()] {
        fs::create_dir_all(path)?;
    }
    let sources = directory.join("apt/sources.list");
    fs::write(&sources, format!("{}\n", source_line()?))?;
    let status = directory.join("apt/status");
    fs::write(&status, "")?;
    let config = directory.join("apt/apt.conf");
    // The machine's own settings (proxies, certificates) stay in force: only places are replaced.
    let settings = [
        ("Dir::State::lists", lists.as_path()),
        ("Dir::State::status", &status),
        ("Dir::Cache", &archives),
        ("Dir::Etc::sourcelist", &sources),
        ("Dir::Etc::sourceparts", Path::new("/dev/null")),
        ("Dir::Etc::preferencesparts", Path::new("/dev/null")),
    ];
    let settings =
        settings.iter().map(|(key, path)| format!("{key} \"{}\";\n", path.display())).collect::<String>();
    // Fetching as an unprivileged user would fail in a directory that only its owner can read.
    fs::write(&config, format!("{settings}APT::Sandbox::User \"root\";\n"))?;
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(&packages).env("APT_CONFIG", &config).arg("-qq").args(arguments);
        command
    };
    run(&mut apt(&["update"])).with_context(|| format!("the machine's Debian mirror has no {SUITE}"))?;
    run(apt(&["download"]).args(DEBIAN_PACKAGES))?;
    for package in fs::read_dir(&packages)? {
        run(Command::new("dpkg").arg("--extract").arg(package?.path()).arg(directory.join("root")))?;
    }
    Ok(())
}

/// The machine's own mirror with the old suite, so that no host is named here.
fn source_line() -> Result<String> {
    let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
    let targets =
        output(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let keyring = Path::new(KEYRING).exists().then_some(KEYRING);
    old_source(&targets, keyring).context("no Debian source with the component main is configured for apt")
}

/// Picks the main archive (its release has no `-updates` or `-security`) from `apt-get indextargets`.
fn old_source(targets: &str, keyring: Option<&str>) -> Option<String> {
    let signed_by = keyring.map(|keyring| format!("[signed-by={keyring}] ")).unwrap_or_default();
    targets.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (uri, release, component) = (fields.next()?, fields.next()?, fields.next()?);
        let is_main =
            component == "main" && !release.contains('-') && uri.trim_end_matches('/').ends_with("debian");
        is_main.then(|| format!("deb {signed_by}{uri} {SUITE} main"))
    })
}

fn install_suite(installation: &Installation) -> Result<()> {
    let directory = &installation.directory;
    let (maker, suite) = (directory.join("maker"), directory.join("suite"));
    run(Command::new("python3").args(["-m", "venv"]).arg(&maker))?;
    run(pip(&maker).args(["install", VIRTUALENV]))?;
    let interpreter = directory.join("root/usr/bin/python2.7");
    let mut virtualenv = installation.python2(&maker.join("bin/python"));
    run(virtualenv.args(["-m", "virtualenv", "--quiet", "--python"]).arg(interpreter).arg(&suite))?;
    let pip2 = || {
        let mut command = installation.python2(&suite.join("bin/python"));
        command.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "--no-python-version-warning"]);
        command.args(["install", "--no-deps"]);
        command
    };
    run(pip2().args(PYTHON_PACKAGES))?;
    let headers = directory.join("root/usr/include");
    let flags = format!("-I{} -I{}", headers.join("python2.7").display(), headers.display());
    run(pip2().arg(ACCELERATOR).env("CFLAGS", flags))?;
    run(installation.wstest().arg("--autobahnversion"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_archive_is_picked() {
        let targets = "http://m.example/debian-security/ b-security main\n\
            http://m.example/debian/ b-updates main\nhttp://m.example/debian/ b main\n";
        let source = |keyring| old_source(targets, keyring);
        assert_eq!(source(None).as_deref(), Some("deb http://m.example/debian/ bullseye main"));
        assert_eq!(
            source(Some("/k")).as_deref(),
            Some("deb [signed-by=/k] http://m.example/debian/ bullseye main")
        );
        assert_eq!(old_source("http://m.example/other b main\n", None), None);
    }
}
