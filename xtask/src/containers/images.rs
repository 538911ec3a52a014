//! The images: stand-ins of those that the Dockerfile and the compose file name, made of this machine's Debian packages
//! under the same names, and our own, of our own Dockerfile.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::engine::Engine;
use crate::command::{cargo, output, run};
use crate::prepare::apt_get;

/// What the compose file calls the image that it builds.
const OURS: &str = "tidegate:local";

const PATH: &str =
    "ENV PATH=/usr/local/cargo/bin:/usr/local/toolchain/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const AUTHORITIES: &str = "ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt";

/// Builds the Dockerfile as a person does, but with the dependencies in the image of the compiler: the engine has no
/// network but its own.
pub(super) fn build(engine: &Engine, root: &Path) -> Result<()> {
    let compiler = concat!("rust:", "1.95.0", "-bookworm");
    if !engine.has_image(TOOLCHAIN) {
        println!("making a stand-in for {compiler}");
        rust(engine, TOOLCHAIN, &suite()?).with_context(|| format!("make a stand-in for {compiler}"))?;
    }
    dependencies(engine, root, compiler)?;
    run(engine.command().args(["build", "--network", "none", "--tag", OURS]).arg(root))
}

/// The compiler's image without dependencies.
const TOOLCHAIN: &str = "stand-in:toolchain";

/// Puts the sources of all dependencies into the compiler's image, in place of the registry.
fn dependencies(engine: &Engine, root: &Path, compiler: &str) -> Result<()> {
    let context = engine.scratch("dependencies")?;
    let mut vendor = cargo(root);
    vendor.args(["vendor", "--quiet", "--locked", "--versioned-dirs"]).arg(context.join("crates"));
    run(&mut vendor)?;
    let crates = "/usr/local/cargo/crates";
    let sources =
        format!("[source.crates-io]\nreplace-with = \"beside\"\n[source.beside]\ndirectory = \"{crates}\"\n");
    fs::write(context.join("config.toml"), sources)?;
    let file = format!("FROM {TOOLCHAIN}\nCOPY config.toml /usr/local/cargo/\nCOPY crates {crates}\n");
    fs::write(context.join("Dockerfile"), file)?;
    run(engine.command().args(["build", "--quiet", "--tag", compiler]).arg(&context))
}

/// The Dockerfile's last stage around a binary that is there.
pub(super) fn wrap(engine: &Engine, root: &Path, binary: &Path) -> Result<()> {
    let text = fs::read_to_string(root.join("Dockerfile"))?;
    let context = engine.scratch("wrap")?;
    let mut strip = Command::new("strip");
    run(strip.arg("--strip-debug").arg("-o").arg(context.join("tidegate")).arg(binary))?;
    fs::write(context.join("Dockerfile"), last_stage(&text)?)?;
    run(engine.command().args(["build", "--quiet", "--tag", OURS]).arg(&context))
}

/// The arguments before the first stage, and what follows the last FROM, with the binary from the context.
fn last_stage(dockerfile: &str) -> Result<String> {
    let (global, _) = dockerfile.split_once("\nFROM ").context("a Dockerfile has a stage")?;
    let (_, last) = dockerfile.rsplit_once("\nFROM ").context("a Dockerfile has a stage")?;
    let copy = "COPY --from=build /out/tidegate ";
    if !last.contains(copy) {
        bail!("the last stage of the Dockerfile has no '{copy}'");
    }
    Ok(format!("{global}\nFROM {}", last.replace(copy, "COPY tidegate ")))
}

/// Makes an image with this name from packages of this suite.
type Maker = fn(&Engine, &str, &str) -> Result<()>;

/// Makes every image that runs beside ours or below it, unless the engine has it.
pub(super) fn stand_ins(engine: &Engine) -> Result<()> {
    let suite = suite()?;
    let makers: [(&str, Maker); 3] = [
        ("gcr.io/distroless/cc-debian12:nonroot", distroless),
        ("redis:7.2-alpine", redis),
        ("prom/prometheus:v3.5.0", prometheus),
    ];
    for (name, make) in makers {
        if !engine.has_image(name) {
            println!("making a stand-in for {name}");
            make(engine, name, &suite).with_context(|| format!("make a stand-in for {name}"))?;
        }
    }
    Ok(())
}

/// The C library, the authorities of TLS, time zones, and no shell.
fn distroless(engine: &Engine, name: &str, _: &str) -> Result<()> {
    const PACKAGES: [&str; 8] = [
        "base-files",
        "ca-certificates",
        "libc6",
        "libgcc-s1",
        "libstdc++6",
        "media-types",
        "netbase",
        "tzdata",
    ];
    let (packages, root) = (engine.scratch("packages")?, engine.scratch("distroless")?);
    let mut download = apt_get();
    download.args(["-o", "APT::Sandbox::User=root", "download"]).args(PACKAGES).current_dir(&packages);
    run(&mut download)?;
    for package in fs::read_dir(&packages)? {
        run(Command::new("dpkg").arg("-x").arg(package?.path()).arg(&root))?;
    }
    let mut authorities = String::new();
    for authority in fs::read_dir(root.join("usr/share/ca-certificates/mozilla"))? {
        authorities += &fs::read_to_string(authority?.path())?;
    }
    fs::create_dir_all(root.join("etc/ssl/certs"))?;
    fs::write(root.join("etc/ssl/certs/ca-certificates.crt"), authorities)?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/sbin/nologin\nnonroot:x:65532:65532::/nonexistent:/sbin/nologin\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nnonroot:x:65532:\n")?;
    let mut tar = Command::new("tar");
    engine.import(name, tar.arg("-C").arg(&root).args(["-c", "."]), &["USER 65532", AUTHORITIES])
}

fn redis(engine: &Engine, name: &str, suite: &str) -> Result<()> {
    engine.import(name, &mut debian(suite, "redis-server,redis-tools", &[]), &[PATH])
}

/// Debian's Prometheus with the folder and the `wget` that the official image has.
fn prometheus(engine: &Engine, name: &str, suite: &str) -> Result<()> {
    let hook = r#"chroot "$1" sh -c 'mkdir -p /prometheus && chown 65534:65534 /prometheus && ln -s /bin/busybox /usr/bin/wget'"#;
    let changes = [PATH, r#"ENTRYPOINT ["/usr/bin/prometheus"]"#, "USER 65534"];
    engine.import(name, &mut debian(suite, "prometheus,busybox", &[hook.to_owned()]), &changes)
}

/// The C compiler of Debian and the toolchain of this machine, without its documentation.
fn rust(engine: &Engine, name: &str, suite: &str) -> Result<()> {
    let sysroot = PathBuf::from(output(Command::new("rustc").args(["--print", "sysroot"]))?.trim());
    let mut hooks = vec![r#"mkdir -p "$1/usr/local/cargo/bin" "$1/usr/local/toolchain""#.to_owned()];
    for folder in ["bin", "lib", "libexec"].into_iter().filter(|folder| sysroot.join(folder).is_dir()) {
        hooks.push(format!(r#"cp -aL '{}' "$1/usr/local/toolchain/""#, sysroot.join(folder).display()));
    }
    let changes = [PATH, "ENV CARGO_HOME=/usr/local/cargo"];
    engine.import(name, &mut debian(suite, "gcc,g++,make,libc6-dev", &hooks), &changes)
}

/// Writes a minimal Debian with these packages to standard output, as tar.
fn debian(suite: &str, packages: &str, hooks: &[String]) -> Command {
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=minbase", "--format=tar"]).arg(format!("--include={packages}"));
    command.args(hooks.iter().map(|hook| format!("--customize-hook={hook}"))).args([suite, "-"]);
    command
}

/// The name of this machine's Debian release.
fn suite() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.map(|name| name.trim_matches('"').to_owned()).context("stand-ins are made on Debian only")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_last_stage_takes_a_binary_that_is_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let text = last_stage(&fs::read_to_string(root.join("Dockerfile")).unwrap()).unwrap();
        assert_eq!(text.matches("\nFROM ").count(), 1, "{text}");
        assert!(text.contains("ARG RUNTIME_IMAGE=") && text.contains("\nCOPY tidegate /usr/local/bin/"));
        assert!(last_stage("ARG A=b\nFROM a\nCOPY b c\n").is_err());
    }
}
