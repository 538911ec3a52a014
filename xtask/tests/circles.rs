//! Files of a crate that import each other in a circle. A folder's own file may name the files below it: that is how it is
//! put together.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Modules of a crate, by their paths, with their text.
type Modules = BTreeMap<Vec<String>, String>;

/// A module, and one that it imports.
type Import = (Vec<String>, Vec<String>);

#[test]
fn files_of_some_crates_import_in_no_circle() {
    for folder in ["backplane/src", "reactor/src", "router/src"] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(folder);
        let mut modules = Modules::new();
        collect(&root, &mut Vec::new(), &mut modules);
        let imports = imports_of(&modules);
        assert!(imports.len() > 20, "{} imports were found in {folder}", imports.len());
        let circles = in_circles(imports);
        assert!(circles.is_empty(), "{folder}: {}", told(&circles));
    }
}

/// The files below a folder, tests left out.
fn collect(folder: &Path, at: &mut Vec<String>, modules: &mut Modules) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path: PathBuf = entry.path();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        if ["tests", "testing", "simulation", "lib"].contains(&&*stem) {
            continue;
        }
        if path.is_dir() {
            at.push(stem);
            collect(&path, at, modules);
            at.pop();
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let module = if stem == "mod" { at.clone() } else { [&at[..], &[stem]].concat() };
            modules.insert(module, product_of(&fs::read_to_string(&path).unwrap()));
        }
    }
}

/// Without comments, and without a module of tests at the end.
fn product_of(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join(" ")
}

fn imports_of(modules: &Modules) -> BTreeSet<Import> {
    let of = |(module, text): (&Vec<String>, &String)| {
        let named = paths_in(text).into_iter().filter_map(|path| resolve(module, &path, modules));
        let named = named.filter(|target| !target.starts_with(module));
        named.map(|target| (module.clone(), target)).collect::<Vec<_>>()
    };
    modules.iter().flat_map(of).collect()
}

/// What a text names by a path from the top of its crate, or from a folder above.
fn paths_in(text: &str) -> Vec<String> {
    let begins = |(at, _): &(usize, &str)| {
        !text[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
    };
    let roots = ["crate::", "super::"].into_iter().flat_map(|root| text.match_indices(root));
    roots.filter(begins).flat_map(|(at, _)| expand("", &text[at..])).collect()
}

/// `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(prefix: &str, rest: &str) -> Vec<String> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let (path, after) = rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len()));
    let path = format!("{prefix}{path}");
    match after.strip_prefix('{') {
        None => vec![path],
        Some(list) => parts_of(list).into_iter().flat_map(|part| expand(&path, part.trim())).collect(),
    }
}

/// The parts of a list up to its end.
fn parts_of(list: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut parts) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&list[begin..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&list[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts
}

/// The longest module that a path begins with; none where that is the top of the crate.
fn resolve(from: &[String], path: &str, modules: &Modules) -> Option<Vec<String>> {
    let mut at = from.to_vec();
    let mut found = None;
    for name in path.split("::") {
        match name {
            "crate" => at.clear(),
            "super" => {
                at.pop();
            }
            name => {
                if modules.contains_key(&at) {
                    found = Some(at.clone());
                }
                at.push(name.to_owned());
            }
        }
    }
    if modules.contains_key(&at) { Some(at) } else { found }
}

/// Takes away, again and again, imports of what imports nothing, and imports by what nothing imports.
fn in_circles(mut imports: BTreeSet<Import>) -> BTreeSet<Import> {
    loop {
        let from: BTreeSet<_> = imports.iter().map(|(from, _)| from.clone()).collect();
        let to: BTreeSet<_> = imports.iter().map(|(_, to)| to.clone()).collect();
        let before = imports.len();
        imports.retain(|(by, of)| from.contains(of) && to.contains(by));
        if imports.len() == before {
            return imports;
        }
    }
}

fn told(imports: &BTreeSet<Import>) -> String {
    let line = |(from, to): &Import| format!("{} imports {}", from.join("::"), to.join("::"));
    imports.iter().map(line).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_circle_is_found_and_a_chain_is_none() {
    let check = |texts: &[(&str, &str)], expect: &str| {
        let modules = texts
            .iter()
            .map(|(name, text)| (name.split('/').map(str::to_owned).collect::<Vec<_>>(), (*text).to_owned()));
        assert_eq!(told(&in_circles(imports_of(&modules.collect()))), expect);
    };
    check(&[("a", "use crate::b::B;"), ("b", "use crate::{c, d::{D}};"), ("c", ""), ("d", "")], "");
    check(
        &[
            ("a/b", "use super::{c::C, d};"),
            ("a/c", "super::super::a::b::f()"),
            ("a/d", ""),
            ("a", "use b::B;"),
        ],
        "a::b imports a::c, a::c imports a::b",
    );
}
