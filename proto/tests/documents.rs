//! Every example in docs/resources.md, and that of each kind, is what the mesh takes.

use weft_proto::document::parse;
use weft_proto::kinds::Kinds;

fn good(source: &str, text: &str) {
    if let Err(faults) = parse(Kinds::ALL, source, text) {
        panic!("{text}\n{}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    }
}

#[test]
fn the_examples_of_the_documentation_are_good() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/resources.md");
    let text = std::fs::read_to_string(path).expect("docs/resources.md is there");
    let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let documents: Vec<&str> = blocks.filter(|block| block.contains("apiVersion:")).collect();
    assert!(documents.len() >= 3, "the examples were not found");
    for block in documents {
        good("docs/resources.md", block);
    }
}

#[test]
fn every_kind_has_an_example_and_is_in_the_documentation() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/resources.md");
    let text = std::fs::read_to_string(path).expect("docs/resources.md is there");
    for kind in Kinds::ALL.iter() {
        good(kind.name, kind.example);
        let read = parse(Kinds::ALL, kind.name, kind.example).expect("good");
        assert_eq!(read[0].key.kind, kind.key(), "{} shows another kind", kind.name);
        assert!(text.contains(&format!("\n## {}\n", kind.name)), "docs/resources.md says nothing of {}", kind.name);
    }
}
