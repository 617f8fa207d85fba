//! Every example in docs/resources.md is what the mesh takes.

use weft_proto::document::parse;

#[test]
fn the_examples_of_the_documentation_are_good() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/resources.md");
    let text = std::fs::read_to_string(path).expect("docs/resources.md is there");
    let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let documents: Vec<&str> = blocks.filter(|block| block.contains("apiVersion:")).collect();
    assert!(documents.len() >= 3, "the examples were not found");
    for block in documents {
        if let Err(faults) = parse("docs/resources.md", block) {
            panic!("{block}\n{}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
        }
    }
}
