//! Every example in the documentation, and that of each kind, is what the mesh takes.

use std::path::Path;

use weft_proto::document::parse;
use weft_proto::kinds::core_service::CoreService;
use weft_proto::kinds::{Kinds, Spec};

fn good(source: &str, text: &str) {
    if let Err(faults) = parse(Kinds::ALL, source, text) {
        panic!("{text}\n{}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    }
}

#[test]
fn the_examples_of_the_documentation_are_good() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let pages = ["", "tasks"].iter().flat_map(|folder| std::fs::read_dir(docs.join(folder)).expect("a folder"));
    let mut count = 0;
    for page in pages.map(|page| page.expect("a page").path()).filter(|page| page.extension() == Some("md".as_ref())) {
        let text = std::fs::read_to_string(&page).expect("a text");
        let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
        // Worlds are the simulation's own.
        let documents = blocks.filter(|block| block.contains("apiVersion:") && !block.contains("kind: Simulation"));
        for block in documents {
            good(&page.display().to_string(), block);
            count += 1;
        }
    }
    assert!(count >= 15, "only {count} examples were found");
}

#[test]
fn every_kind_has_an_example_and_is_in_the_documentation() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/resources.md");
    let text = std::fs::read_to_string(path).expect("docs/resources.md is there");
    for kind in Kinds::ALL.iter() {
        good(kind.name, kind.example);
        let read = parse(Kinds::ALL, kind.name, kind.example).expect("good");
        assert_eq!(read[0].key.kind, kind.key(), "{} shows another kind", kind.name);
        let title = if kind.key() == CoreService::KIND.key() { "Service of Kubernetes" } else { kind.name };
        assert!(text.contains(&format!("\n## {title}\n")), "docs/resources.md says nothing of {}", kind.name);
    }
}
