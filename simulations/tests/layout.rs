//! The rules of the tree: who may import whom, which files may name which library, and how long things may grow.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest file before its tests, in lines.
const FILE_LINES_MAX: usize = 400;
/// Longest function, in lines from its signature to its closing brace.
const FUNCTION_LINES_MAX: usize = 60;

/// Which crate of ours may import which.
const IMPORTS: [(&str, &[&str]); 5] = [
    ("proto", &[]),
    ("consensus", &["weft-proto"]),
    ("proxy", &["weft-proto"]),
    ("node", &["weft-proto", "weft-consensus", "weft-proxy"]),
    ("simulations", &["weft-proto", "weft-consensus", "weft-proxy", "weft"]),
];

/// Where a library may be named, as path prefixes; replacing it means editing those.
const LIBRARIES: [(&str, &[&str]); 7] = [
    (
        "openraft",
        &[
            "consensus/src/core.rs",
            "consensus/src/follow.rs",
            "consensus/src/keep.rs",
            "consensus/src/log.rs",
            "consensus/src/machine.rs",
            "consensus/src/network.rs",
            "consensus/src/propose.rs",
            "consensus/src/raft.rs",
            "consensus/src/replica.rs",
            "consensus/src/wire.rs",
        ],
    ),
    ("chitchat", &["consensus/src/gossip"]),
    ("sled", &["node/src/os/disk.rs"]),
    ("instant_acme", &["node/src/acme/"]),
    ("zbus", &["node/src/os/units.rs"]),
    ("h3_quinn", &["proxy/src/quic/"]),
    (
        "quinn",
        &[
            "proxy/src/quic",
            "proxy/src/net",
            "proxy/src/shared.rs",
            "node/src/control",
            "node/src/serve.rs",
            "node/src/tasks.rs",
            "simulations/src/world/",
        ],
    ),
];

#[test]
fn crates_import_only_what_they_may() {
    for (member, allowed) in IMPORTS {
        let manifest = read(&root().join(member).join("Cargo.toml"));
        let (normal, _) = manifest.split_once("[dev-dependencies]").unwrap_or((&manifest, ""));
        let ours: BTreeSet<&str> = normal
            .lines()
            .filter_map(|line| line.split(['.', ' ', '=']).next())
            .filter(|name| *name == "weft" || name.starts_with("weft-"))
            .collect();
        for name in ours {
            assert!(allowed.contains(&name), "{member}/Cargo.toml imports {name}; it may import {allowed:?}");
        }
    }
}

#[test]
fn libraries_are_named_in_few_files() {
    for (library, places) in LIBRARIES {
        for file in sources() {
            let name = relative(&file);
            if places.iter().any(|place| name.starts_with(place))
                || name.contains("/tests/")
                || name.contains("/benches/")
            {
                continue;
            }
            let whole = read(&file);
            let text = whole.split("#[cfg(test)]").next().unwrap_or_default();
            let used = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .any(|line| line.contains(&format!("{library}::")) || line.contains(&format!("use {library}")));
            let prefixed = text.contains(&format!("_{library}::"));
            assert!(!used || prefixed, "{name} names {library}; only {places:?} may");
        }
    }
}

#[test]
fn files_and_functions_stay_short() {
    let mut faults = Vec::new();
    for file in sources() {
        let name = relative(&file);
        if name.contains("/tests/") || name.contains("/benches/") {
            continue;
        }
        let text = read(&file);
        let lines: Vec<&str> = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).collect();
        if lines.len() > FILE_LINES_MAX {
            faults.push(format!("{name}: {} lines before its tests; at most {FILE_LINES_MAX}", lines.len()));
        }
        for (function, length) in functions(&lines) {
            if length > FUNCTION_LINES_MAX {
                faults.push(format!("{name}: {function} has {length} lines; at most {FUNCTION_LINES_MAX}"));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn nothing_is_left_for_later() {
    for file in sources() {
        let name = relative(&file);
        if name.ends_with("tests/layout.rs") {
            continue;
        }
        for (number, line) in read(&file).lines().enumerate() {
            for mark in ["TODO", "FIXME", "XXX", "HACK", "todo!(", "unimplemented!("] {
                assert!(!line.contains(mark), "{name}:{}: {mark}", number + 1);
            }
        }
    }
}

/// Functions and their lengths, told by rustfmt's indentation: a body ends at the brace under its signature.
fn functions(lines: &[&str]) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(at) = words.iter().position(|word| *word == "fn") else { continue };
        let modifiers = ["pub", "pub(crate)", "pub(super)", "async", "const", "unsafe", "extern"];
        if !words[..at].iter().all(|word| modifiers.contains(word)) {
            continue;
        }
        let closing = format!("{}}}", " ".repeat(indent));
        let end = lines[start..].iter().position(|line| {
            *line == closing
                || (*line).ends_with(';')
                    && line.starts_with(&" ".repeat(indent))
                    && !line.starts_with(&" ".repeat(indent + 1))
        });
        if let (Some(end), Some(name)) = (end, words.get(at + 1)) {
            let name = name.split(['(', '<']).next().unwrap_or(name);
            found.insert(format!("{name} (line {})", start + 1), end + 1);
        }
    }
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("simulations/ is in the workspace").to_path_buf()
}

fn relative(file: &Path) -> String {
    file.strip_prefix(root()).expect("under the root").display().to_string()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Every Rust source of the workspace.
fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for member in IMPORTS.map(|(member, _)| member) {
        collect(&root().join(member), &mut files);
    }
    files.sort();
    assert!(files.len() > 20, "the sources were not found");
    files
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("readable").flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target" && name != "vendor") {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
