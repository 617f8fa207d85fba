//! A file imports downwards only: there is no circle of files beyond a parent and those below it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module by its path from the crate's root, which is empty.
type Module = Vec<String>;
type Graph = BTreeMap<Module, BTreeSet<Module>>;

#[test]
fn files_of_a_crate_import_each_other_in_no_circle() {
    for member in ["proto", "consensus", "proxy", "node", "simulations"] {
        let graph = graph(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(member).join("src"));
        assert!(graph.len() > 3, "the sources of {member} were not found");
        for circle in circles(&graph) {
            let family = |parent: &Module| circle.iter().all(|module| module.starts_with(parent));
            let names: Vec<String> = circle.iter().map(|module| module.join("/")).collect();
            assert!(circle.iter().any(family), "{member}: these files import each other: {}", names.join(", "));
        }
    }
}

#[test]
fn imports_are_found() {
    let paths = imports(
        "use crate::a::{self, b::{C, d}, e as f};\npub(crate) use super::g;\n/// crate::none\nfn x() { self::h::y() }",
    );
    let paths: Vec<String> = paths.into_iter().map(|path| path.join("::")).collect();
    assert_eq!(paths, ["crate::a", "crate::a::b::C", "crate::a::b::d", "crate::a::e", "super::g", "self::h::y"]);
    let module = |text: &str| text.split('/').map(str::to_owned).collect::<Module>();
    let edges = [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("d", "e")];
    let mut graph: Graph = ["a", "b", "c", "d", "e"].iter().map(|name| (module(name), BTreeSet::new())).collect();
    for (from, to) in edges {
        graph.get_mut(&module(from)).expect("there").insert(module(to));
    }
    assert_eq!(circles(&graph), [BTreeSet::from([module("a"), module("b"), module("c")])]);
}

/// Which file names things of which.
fn graph(root: &Path) -> Graph {
    let mut files = BTreeMap::new();
    collect(root, root, &mut files);
    let mut graph = Graph::new();
    for (module, file) in &files {
        let text = fs::read_to_string(file).expect("readable");
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let named = imports(text).into_iter().filter_map(|path| resolve(module, &path, &files));
        graph.insert(module.clone(), named.filter(|other| other != module && !other.is_empty()).collect());
    }
    graph
}

fn collect(root: &Path, directory: &Path, files: &mut BTreeMap<Module, PathBuf>) {
    for entry in fs::read_dir(directory).expect("readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(root, &path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let inner = path.strip_prefix(root).expect("below the root").with_extension("");
            let mut module: Module = inner.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            if module.last().is_some_and(|last| matches!(last.as_str(), "lib" | "main" | "mod")) {
                module.pop();
            }
            files.insert(module, path);
        }
    }
}

/// The file that a path leads to, as seen from a module.
fn resolve(module: &Module, path: &[String], files: &BTreeMap<Module, PathBuf>) -> Option<Module> {
    let mut at = module.clone();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => {
            at.clear();
            rest = &path[1..];
        }
        "self" => rest = &path[1..],
        "super" => {
            while let Some(("super", others)) = rest.split_first().map(|(first, others)| (first.as_str(), others)) {
                at.pop();
                rest = others;
            }
        }
        // A module of its own, or another crate.
        first => {
            at.push(first.to_owned());
            let own = files.contains_key(&at);
            at.pop();
            if !own {
                return None;
            }
        }
    }
    for name in rest {
        at.push(name.clone());
        if !files.contains_key(&at) {
            at.pop();
            break;
        }
    }
    files.contains_key(&at).then_some(at)
}

/// The paths that a source names: all of its `use`, and those that begin with `crate`, `super` or `self`.
fn imports(text: &str) -> Vec<Vec<String>> {
    let code: String =
        text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let (mut paths, mut rest) = (Vec::new(), String::new());
    for statement in code.split_inclusive(';') {
        let line_start =
            statement.rfind("\nuse ").map(|at| at + 1).or_else(|| statement.rfind(" use ").map(|at| at + 1));
        let start = if statement.starts_with("use ") { Some(0) } else { line_start };
        match start {
            Some(start) if statement.ends_with(';') => {
                let tree = statement[start + 4..statement.len() - 1].split_whitespace().collect::<Vec<_>>().join(" ");
                expand(&[], &tree, &mut paths);
                rest.push_str(&statement[..start]);
            }
            _ => rest.push_str(statement),
        }
    }
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in rest.match_indices(root) {
            let before = rest[..at].chars().next_back();
            if before.is_some_and(|before| before.is_alphanumeric() || matches!(before, '_' | ':')) {
                continue;
            }
            let end =
                rest[at..].find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len() - at);
            paths.push(rest[at..at + end].trim_end_matches(':').split("::").map(str::to_owned).collect());
        }
    }
    paths
}

/// Takes a tree of imports apart.
fn expand(prefix: &[String], tree: &str, paths: &mut Vec<Vec<String>>) {
    let (head, inner) = match tree.split_once('{') {
        Some((head, rest)) => (head, rest.trim_end().strip_suffix('}')),
        None => (tree, None),
    };
    let head = head.split(" as ").next().unwrap_or_default();
    let names = head.split("::").map(str::trim).filter(|name| !name.is_empty() && *name != "*");
    let mut path = prefix.to_vec();
    path.extend(names.filter(|name| prefix.is_empty() || *name != "self").map(str::to_owned));
    let Some(inner) = inner else { return paths.push(path) };
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = inner[start..at].trim();
                if !part.is_empty() {
                    expand(&path, part, paths);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// Sets of modules that reach each other.
fn circles(graph: &Graph) -> Vec<BTreeSet<Module>> {
    let reach: BTreeMap<&Module, BTreeSet<&Module>> =
        graph.keys().map(|module| (module, reached(graph, module))).collect();
    let mut circles: Vec<BTreeSet<Module>> = Vec::new();
    for module in graph.keys().filter(|module| reach[module].contains(*module)) {
        if circles.iter().any(|circle| circle.contains(module)) {
            continue;
        }
        let both = reach[module].iter().filter(|other| reach[**other].contains(module));
        circles.push(both.map(|other| (*other).clone()).collect());
    }
    circles
}

fn reached<'g>(graph: &'g Graph, from: &Module) -> BTreeSet<&'g Module> {
    let (mut found, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(module) = open.pop() {
        for next in &graph[module] {
            if found.insert(next) {
                open.push(next);
            }
        }
    }
    found
}
