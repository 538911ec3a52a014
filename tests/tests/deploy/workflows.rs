//! The workflows of `.github`: a linter knows the actions, their inputs, expressions and shell lines.

use std::fs;

use crate::tools::{read, root, run, tool};

#[test]
fn the_linter_has_nothing_to_say() {
    let folder = root().join(".github/workflows");
    let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.collect();
    assert!(files.len() >= 2, "{files:?}");
    assert_eq!(run(tool("actionlint").arg("-no-color").args(files)), "");
}

/// The tests run on the compiler that the repository asks for.
#[test]
fn the_tests_compiler_is_the_repositorys() {
    let (workflow, toolchain) = (read(".github/workflows/test.yml"), read("rust-toolchain.toml"));
    let version =
        toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    assert!(workflow.contains(&format!("image: rust:{version}-bookworm")), "{version}");
}

/// A release is built from base images by digest, through the arguments that the Dockerfile has for them.
#[test]
fn a_release_names_its_base_images_by_digest() {
    let (workflow, dockerfile) = (read(".github/workflows/release.yml"), read("Dockerfile"));
    for argument in ["RUST_IMAGE", "RUNTIME_IMAGE"] {
        assert!(dockerfile.contains(&format!("ARG {argument}=")), "{argument}");
        assert!(workflow.contains(&format!("{argument}=${{{{ steps.base.outputs.")), "{argument}");
    }
    for argument in ["VERSION", "REVISION", "SOURCE"] {
        assert!(
            dockerfile.contains(&format!("ARG {argument}=")) && workflow.contains(&format!("{argument}=$"))
        );
    }
}
