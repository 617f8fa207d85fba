//! What `weft analyze` finds, as scripts: services, documents, findings.

#[path = "../../proto/tests/support/golden.rs"]
mod golden;

use std::collections::BTreeMap;
use std::path::Path;

use golden::{Line, Told};
use serde_json::{Value, json};
use weft::analyze::{KnownService, Services, analyze};
use weft_proto::document::parse;
use weft_proto::kinds::Kinds;
use weft_proto::resource::{Resource, ResourceKey};
use weft_proto::service::{ServiceName, ServicePort};

#[derive(Default)]
struct Script {
    services: Services,
    documents: BTreeMap<ResourceKey, Resource>,
}

impl Script {
    fn run(&mut self, mut line: Line<'_>) -> Told {
        let told = match line.word()? {
            "service" => self.service(&mut line)?,
            "analyze" => self.analyze(true),
            "offline" => self.analyze(false),
            "clear" => {
                self.documents.clear();
                String::new()
            }
            // `KIND NAMESPACE/NAME SPEC`
            kind => {
                let known = Kinds::ALL.named(kind)?;
                let (namespace, name) = line.word()?.split_once('/').ok_or("a name is NAMESPACE/NAME")?;
                let spec: Value = serde_json::from_str(line.word()?)?;
                let version = known.api_versions().next().ok_or("no version")?;
                let document = json!({
                    "apiVersion": version,
                    "kind": known.name,
                    "metadata": {"name": name, "namespace": namespace},
                    "spec": spec,
                });
                let read =
                    parse(Kinds::ALL, "script", &document.to_string()).map_err(|faults| format!("{faults:?}"))?;
                self.documents.extend(read.into_iter().map(|one| (one.key.clone(), one)));
                String::new()
            }
        };
        line.end()?;
        Ok(told)
    }

    /// `service NAME PORT/PROTOCOL,... [others=N] VERSION...`: with an instance of each version, and others without one.
    fn service(&mut self, line: &mut Line<'_>) -> Told {
        let name: ServiceName = line.word()?.parse()?;
        let port = |text: &str| -> Result<ServicePort, Box<dyn std::error::Error>> {
            let (number, protocol) = text.split_once('/').ok_or("a port is NUMBER/PROTOCOL")?;
            Ok(ServicePort { port: number.parse()?, protocol: protocol.parse()? })
        };
        let ports = line.word()?.split(',').map(port).collect::<Result<_, _>>()?;
        let versions: Vec<&str> = std::iter::from_fn(|| line.word().ok()).collect();
        let labels = |version: &&str| {
            [("app".to_owned(), name.name().to_owned()), ("version".to_owned(), (*version).to_owned())].into()
        };
        let others =
            (0..line.named("others")?.unwrap_or(0)).map(|_| [("app".to_owned(), name.name().to_owned())].into());
        let known = KnownService { ports, instances: versions.iter().map(labels).chain(others).collect() };
        self.services.insert(name, known);
        Ok(String::new())
    }

    fn analyze(&self, online: bool) -> String {
        let documents: Vec<Resource> = self.documents.values().cloned().collect();
        let found = analyze(&documents, online.then_some(&self.services));
        if found.is_empty() {
            return "nothing\n".into();
        }
        let line =
            |one: &weft::analyze::Finding| format!("{} {}: {}: {}\n", one.code, one.document, one.path, one.message);
        found.iter().map(line).collect()
    }
}

#[test]
fn what_is_found_is_what_the_scripts_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/analyze");
    golden::run(&folder, Script::run);
}

#[test]
fn every_code_is_in_the_documentation() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/commands.md");
    let text = std::fs::read_to_string(path).expect("docs/commands.md is there");
    for (code, _, meaning) in weft::analyze::CODES {
        assert!(text.contains(&format!("| {code} | {meaning}")), "docs/commands.md says nothing of {code}: {meaning}");
    }
}
