//! The Dockerfile without an engine: a linter, and that what it copies, builds and runs is there and works.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;
use tidegate_testkit::{DEADLINE, Gateway, net::free_address};

use crate::{
    nodes::tidegate,
    tools::{read, root, run, tool},
};

/// The instructions: name and the rest, continued lines joined, comments left out.
pub(crate) fn instructions() -> Vec<(String, String)> {
    let text = read("Dockerfile");
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let split = |line: &str| {
        line.trim().split_once(' ').map(|(name, rest)| (name.to_owned(), rest.trim().to_owned()))
    };
    joined.lines().filter_map(split).collect()
}

fn of(name: &str) -> Vec<String> {
    let wanted = instructions().into_iter().filter(|(instruction, _)| instruction == name);
    wanted.map(|(_, rest)| rest).collect()
}

/// The words of an instruction in exec form.
#[track_caller]
fn exec(text: &str) -> Vec<String> {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not in exec form: {text}: {error}"))
}

#[test]
fn hadolint_has_nothing_to_say() {
    let said = run(tool("hadolint").args(["--no-color", "Dockerfile"]));
    assert_eq!(said, "");
}

#[test]
fn compiler_and_version_are_those_of_the_repository() {
    let toolchain = read("rust-toolchain.toml");
    let channel =
        toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    let arguments = of("ARG");
    assert_eq!(arguments[0], format!("RUST_VERSION={channel}"));
    let product = packages().into_iter().find(|package| package["name"] == "tidegate").unwrap();
    assert!(
        arguments.contains(&format!("VERSION={}", product["version"].as_str().unwrap())),
        "{arguments:?}"
    );
}

/// Copies out of the repository are of all that .dockerignore lets in: the sources of every crate, and no wildcard.
#[test]
fn what_is_copied_and_built_is_there() {
    let (from_stage, from_context): (Vec<String>, Vec<String>) =
        of("COPY").into_iter().partition(|copy| copy.starts_with("--from="));
    assert!(from_context.iter().all(|copy| copy == ". ."), "{from_context:?}");
    let stages: Vec<String> =
        of("FROM").iter().filter_map(|from| Some(from.split_once(" AS ")?.1.to_owned())).collect();
    for copy in &from_stage {
        let stage = copy.trim_start_matches("--from=").split(' ').next().unwrap();
        assert!(stages.iter().any(|name| name == stage), "{copy}");
    }
    let text = read(".dockerignore");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines[0], "*", "everything is left out but what is named");
    let admitted: BTreeSet<&str> = lines.iter().filter_map(|line| line.strip_prefix('!')).collect();
    for path in &admitted {
        assert!(!path.contains('*') && root().join(path).exists(), "{path} is not there");
    }
    for package in packages() {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap()).strip_prefix(root()).unwrap();
        let sources = manifest.with_file_name("src");
        for needed in [manifest, &sources] {
            assert!(admitted.contains(needed.to_str().unwrap()), "{} is not admitted", needed.display());
        }
        // Cargo wants the files of targets that a manifest names, also where it does not build them.
        let text = fs::read_to_string(root().join(manifest)).unwrap();
        for (named, folder) in [("[[test]]", "tests"), ("[[bench]]", "benches"), ("[[example]]", "examples")]
        {
            let folder = manifest.with_file_name(folder);
            let is_admitted = admitted.contains(folder.to_str().unwrap());
            assert!(!text.contains(named) || is_admitted, "{} is not admitted", folder.display());
        }
    }
    for needed in ["Cargo.toml", "Cargo.lock"] {
        assert!(admitted.contains(needed));
    }
    for secret in ["**/.*", "**/secrets", "**/*.key", "**/*.pem"] {
        assert!(lines.contains(&secret), "{secret} may enter the build");
    }
}

#[test]
fn what_is_built_is_the_program_of_this_repository() {
    let runs = of("RUN");
    let builds: Vec<&String> = runs.iter().filter(|run| run.contains("cargo build")).collect();
    assert_eq!(builds.len(), 1, "{runs:?}");
    for build in builds {
        let build: Vec<&str> = build.split_whitespace().collect();
        let after = |flag: &str| build[build.iter().position(|word| *word == flag).expect(flag) + 1];
        let package = packages().into_iter().find(|package| package["name"] == after("--package")).unwrap();
        let targets = package["targets"].as_array().unwrap();
        let is_binary = |target: &Value| target["name"] == after("--bin") && target["kind"][0] == "bin";
        assert!(targets.iter().any(is_binary), "{package}");
        assert!(build.contains(&"--locked") && build.contains(&"--release"), "{build:?}");
    }
    // Cargo accepts the features and the lock file for both architectures.
    for target in of("ENV").iter().filter_map(|env| env.split("CARGO_BUILD_TARGET=").nth(1)) {
        let target = target.split_whitespace().next().unwrap();
        let tree = ["tree", "--locked", "--package", "tidegate", "--edges", "normal", "--target", target];
        assert!(run(Command::new("cargo").args(tree)).contains("tikv-jemallocator"), "{target}");
    }
}

#[test]
fn what_the_image_runs_works() {
    let entry = exec(&of("ENTRYPOINT")[0]);
    assert_eq!(entry, ["/usr/local/bin/tidegate"]);
    let copied = of("COPY").into_iter().next_back().unwrap();
    assert!(copied.ends_with(&entry[0]), "{copied}");
    let arguments = exec(&of("CMD")[0]);
    assert_eq!(run(tidegate().args(&arguments).arg("--check")), "the configuration is good\n");
    assert_eq!(of("USER"), ["65532:65532"]);
}

#[test]
fn the_health_check_tells_alive_from_not() {
    let health = &of("HEALTHCHECK")[0];
    let command = exec(health.split_once("CMD").unwrap().1.trim());
    assert_eq!(command[0], "/usr/local/bin/tidegate");
    // In the image it finds the port of what runs; here other gateways run, so that it is told.
    assert_eq!(command[1..], ["healthcheck"]);
    let gateway = Gateway::start();
    let asked = |address: String| {
        tidegate()
            .arg(&command[1])
            .arg(format!("http://{address}/livez"))
            .args(["--timeout", "1m"])
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .code()
    };
    assert_eq!(asked(gateway.internal().to_string()), Some(0));
    assert_eq!(asked(free_address().to_string()), Some(1));
}

/// The root of the container may be read-only: no file is open for writing, and none appears.
#[test]
fn nothing_is_written_to_disk() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = tidegate();
    command.current_dir(directory.path()).args(["gateway", "--dev", "--listen", "127.0.0.1:0"]);
    command.args(["--internal", "127.0.0.1:0"]);
    let mut process = tidegate_testkit::Process::spawn("gateway", &mut command);
    process.wait_line("the gateway's addresses", DEADLINE, crate::nodes::listening);
    let descriptors = format!("/proc/{}/fd", process.pid());
    for entry in fs::read_dir(&descriptors).unwrap().filter_map(Result::ok) {
        let number = entry.file_name().into_string().unwrap();
        let Ok(file) = fs::read_link(entry.path()) else { continue };
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", process.pid())).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).map_or("0", str::trim);
        // The last octal digit has the access mode: 0 is reading.
        let writes = flags.ends_with(['1', '2']);
        // What this test has open itself was handed down to it.
        let inherited = Path::new("/proc/self/fd").join(&number);
        let is_own = fs::read_link(inherited).ok().as_ref() != Some(&file);
        assert!(
            !writes || !is_own || !file.is_absolute() || file.starts_with("/dev"),
            "{} is open for writing",
            file.display()
        );
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// The workspace's packages, as cargo tells them.
fn packages() -> Vec<Value> {
    let text =
        run(Command::new("cargo").args(["metadata", "--no-deps", "--locked", "--format-version", "1"]));
    let metadata: Value = serde_json::from_str(&text).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}
