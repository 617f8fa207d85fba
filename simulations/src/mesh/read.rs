//! Reads meshes: files of documents, of which one is of kind `Simulation` and the others are for `weft apply`.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;
use weft_proto::document;
use weft_proto::kinds::Kinds;

use super::assertion::{Assertion, Claim, When};
use super::{Document, Mesh, Place, Protocol, Role, Service};

/// Meshes that come with the program.
const SCENARIOS: [(&str, &str); 4] = [
    ("gateways", include_str!("../../meshes/gateways.yaml")),
    ("routes", include_str!("../../meshes/routes.yaml")),
    ("shop", include_str!("../../meshes/shop.yaml")),
    ("tiers", include_str!("../../meshes/tiers.yaml")),
];

/// Most services of a mesh.
const SERVICES_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Envelope {
    #[serde(rename = "apiVersion")]
    _api_version: ApiVersion,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize)]
enum ApiVersion {
    #[serde(rename = "weft/v1")]
    V1,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    #[serde(default)]
    deny_by_default: bool,
    services: Vec<ServiceSpec>,
    #[serde(default)]
    admissions: Vec<AdmissionSpec>,
    #[serde(default)]
    assertions: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceSpec {
    name: String,
    hosts: Vec<Value>,
    #[serde(default = "default_port")]
    port: u16,
    #[serde(default)]
    protocol: ProtocolSpec,
    #[serde(default)]
    role: RoleSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RoleSpec {
    #[default]
    Application,
    Gateway,
    Egress,
    External,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ProtocolSpec {
    #[default]
    Http,
    Tcp,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdmissionSpec {
    host: usize,
    services: Vec<String>,
}

fn default_port() -> u16 {
    8080
}

impl Mesh {
    /// The mesh of that name that comes with the program.
    pub fn scenario(name: &str) -> Result<Self, String> {
        let names = || SCENARIOS.map(|(name, _)| name).join(", ");
        let found = SCENARIOS.iter().find(|(known, _)| *known == name);
        let (name, text) = found.ok_or_else(|| format!("{name:?} is no scenario; there are: {}", names()))?;
        Self::parse(&[((*name).to_owned(), (*text).to_owned())])
    }

    /// Reads files. All faults are told at once, a line each.
    pub fn read(files: &[PathBuf]) -> Result<Self, String> {
        let read = |file: &PathBuf| {
            let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
            Ok((file.display().to_string(), text))
        };
        Self::parse(&files.iter().map(read).collect::<Result<Vec<_>, String>>()?)
    }

    fn parse(sources: &[(String, String)]) -> Result<Self, String> {
        let (mut simulations, mut resources, mut faults) = (Vec::new(), Vec::new(), Vec::new());
        for (source, text) in sources {
            let documents: Vec<Value> = serde_saphyr::from_multiple(text)
                .map_err(|error| format!("{source}: not valid YAML: {}", error.without_snippet()))?;
            for (at, document) in documents.into_iter().enumerate().filter(|(_, document)| !document.is_null()) {
                if document["kind"] == "Simulation" {
                    simulations.push((format!("{source}, document {}", at + 1), document));
                    continue;
                }
                let text = document.to_string();
                match document::parse(Kinds::ALL, source, &text) {
                    Ok(read) => resources.extend(read.into_iter().map(|resource| (resource.key, text.clone()))),
                    // Each was read alone; its place is that in the file.
                    Err(found) => faults.extend(found.into_iter().map(|fault| {
                        let fault = document::Fault { document: at + 1, ..fault };
                        fault.to_string()
                    })),
                }
            }
        }
        if !faults.is_empty() {
            return Err(faults.join("\n"));
        }
        let (source, simulation) = match <[_; 1]>::try_from(simulations) {
            Ok([one]) => one,
            Err(found) => {
                return Err(format!("{} documents of kind Simulation; one says what runs where", found.len()));
            }
        };
        let documents: Vec<&str> =
            resources.iter().filter(|(key, _)| key.namespace == "default").map(|(key, _)| key.name.as_str()).collect();
        let mut mesh = simulated(simulation, &documents)
            .map_err(|faults| faults.iter().map(|fault| format!("{source}: {fault}")).collect::<Vec<_>>().join("\n"))?;
        mesh.fixed = resources.into_iter().map(|(key, text)| Document { key, text }).collect();
        mesh.sort();
        Ok(mesh)
    }
}

fn simulated(document: Value, documents: &[&str]) -> Result<Mesh, Vec<String>> {
    let Envelope { metadata, spec, .. } = serde_path_to_error::deserialize(document)
        .map_err(|error| vec![format!("{}: {}", error.path(), error.inner())])?;
    let mut faults = Vec::new();
    if spec.services.is_empty() || spec.services.len() > SERVICES_MAX {
        faults.push(format!("spec.services: {} given; name 1 to {SERVICES_MAX}", spec.services.len()));
    }
    let names: Vec<String> = spec.services.iter().map(|service| service.name.clone()).collect();
    let services = services(spec.services, &mut faults);
    for (at, admission) in spec.admissions.iter().enumerate() {
        if admission.host == 0 {
            faults.push(format!("spec.admissions[{at}].host: host 0 makes the mesh; its node may run every service"));
        }
        for name in admission.services.iter().filter(|name| !names.contains(name)) {
            faults.push(format!("spec.admissions[{at}].services: {name:?} is no service of this mesh"));
        }
    }
    let mut assertions = Vec::new();
    for (at, text) in spec.assertions.iter().enumerate() {
        match Assertion::parse(text, &names).and_then(|read| fits(read, &services, documents)) {
            Ok(assertion) => assertions.push(assertion),
            Err(fault) => faults.push(format!("spec.assertions[{at}]: {fault}")),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let admissions = spec.admissions.into_iter().map(|AdmissionSpec { host, services }| (host, services)).collect();
    Ok(Mesh {
        name: metadata.name,
        deny_by_default: spec.deny_by_default,
        services,
        admissions,
        fixed: Vec::new(),
        switches: Vec::new(),
        assertions,
    })
}

/// The services, and what is wrong with them.
fn services(specs: Vec<ServiceSpec>, faults: &mut Vec<String>) -> Vec<Service> {
    let mut services: Vec<Service> = Vec::new();
    for (at, service) in specs.into_iter().enumerate() {
        let (path, ServiceSpec { name, hosts, port, protocol, role }) = (format!("spec.services[{at}]"), service);
        if let Err(error) = name.parse::<weft_proto::service::ServiceName>() {
            faults.push(format!("{path}.name: {error}"));
        }
        if services.iter().any(|other| other.name == name) || ["outside", "strangers"].contains(&name.as_str()) {
            faults.push(format!("{path}.name: {name:?} is taken"));
        }
        if port == 0 {
            faults.push(format!("{path}.port: 1 to 65535"));
        }
        let mut places = Vec::new();
        for host in &hosts {
            match place(host) {
                Some(place) => places.push(place),
                None => faults.push(format!("{path}.hosts: {host} is no host; write numbers from 0, all, odd, even")),
            }
        }
        let protocol = match protocol {
            ProtocolSpec::Http => Protocol::Http,
            ProtocolSpec::Tcp => Protocol::Tcp,
        };
        let role = match role {
            RoleSpec::Application => Role::Application,
            RoleSpec::Gateway => Role::Gateway,
            RoleSpec::Egress => Role::Egress,
            RoleSpec::External => Role::External,
        };
        services.push(Service { name, hosts: places, port, protocol, role });
    }
    services
}

fn place(host: &Value) -> Option<Place> {
    match host {
        Value::Number(number) => number.as_u64().and_then(|host| usize::try_from(host).ok()).map(Place::Host),
        Value::String(word) => match word.as_str() {
            "all" => Some(Place::All),
            "odd" => Some(Place::Odd),
            "even" => Some(Place::Even),
            _ => None,
        },
        _ => None,
    }
}

/// Whether what an assertion names is there.
fn fits(assertion: Assertion, services: &[Service], documents: &[&str]) -> Result<Assertion, String> {
    let (Claim::Calls { calls, .. } | Claim::Share { calls, .. } | Claim::Retries { calls, .. }) = &assertion.claim
    else {
        return Ok(assertion);
    };
    if let Claim::Calls { when, .. } | Claim::Share { when, .. } = &assertion.claim
        && let When::While(name) | When::Unless(name) = when
        && !documents.contains(&name.as_str())
    {
        return Err(format!("{assertion:?}: no document {name:?} is in these files", assertion = assertion.text));
    }
    let opaque = calls.to.is_some_and(|to| services[to].protocol == Protocol::Tcp);
    if opaque && (calls.method.is_some() || calls.path.is_some()) {
        return Err(format!("{:?}: a tcp port knows neither methods nor paths", assertion.text));
    }
    Ok(assertion)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(spec: &str) -> Result<Mesh, String> {
        let text = format!("apiVersion: weft/v1\nkind: Simulation\nmetadata: {{name: test}}\nspec:\n{spec}");
        Mesh::parse(&[("test.yaml".into(), text)])
    }

    #[test]
    fn scenarios_are_good() {
        for (name, _) in SCENARIOS {
            let mesh = Mesh::scenario(name).expect(name);
            assert!(!mesh.assertions.is_empty(), "{name}");
        }
        assert!(Mesh::scenario("none").expect_err("unknown").contains("there are: gateways, routes, shop, tiers"));
    }

    #[test]
    fn the_documented_mesh_is_good() {
        let text =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/simulation.md")).expect("docs");
        let mut blocks = text.split("```yaml\n").skip(1);
        let example = blocks.next().and_then(|rest| rest.split("```").next()).expect("an example");
        let mesh = Mesh::parse(&[("docs/simulation.md".into(), example.into())]).expect("good");
        assert_eq!((mesh.services.len(), mesh.assertions.len(), mesh.switches.len()), (3, 6, 1));
    }

    #[test]
    fn policies_of_conditions_are_switches() {
        let mesh = Mesh::scenario("tiers").expect("good");
        assert_eq!(mesh.switches.iter().map(|document| document.key.name.as_str()).collect::<Vec<_>>(), ["lockdown"]);
        assert_eq!(mesh.fixed.len(), 2);
    }

    #[test]
    fn services_run_where_they_are_placed() {
        let mesh = Mesh::scenario("shop").expect("good");
        let hosts = |service, of| (0..of).filter(|host| mesh.runs_on(service, *host, of)).collect::<Vec<_>>();
        assert_eq!((hosts(0, 5), hosts(1, 5), hosts(1, 1)), (vec![0, 1, 2, 3, 4], vec![1, 2, 3], vec![0]));
        assert!(!mesh.admits(2, 1) && mesh.admits(1, 1));
    }

    #[test]
    fn faults_name_their_place() {
        for (spec, why) in [
            ("  services: []", "test.yaml, document 1: spec.services: 0 given"),
            ("  services: [{name: web, hosts: [some]}]", "spec.services[0].hosts: \"some\" is no host"),
            ("  services: [{name: web, hosts: [all], ports: 1}]", "spec.services[0].ports: unknown field"),
            (
                "  services: [{name: web, hosts: [all]}]\n  assertions: [web may call web while x]",
                "spec.assertions[0]: \"web may call web while x\": no document \"x\"",
            ),
            (
                "  services: [{name: db, hosts: [all], protocol: tcp}]\n  assertions: [db may call db GET]",
                "a tcp port knows neither methods nor paths",
            ),
        ] {
            let fault = parse(spec).expect_err(spec);
            assert!(fault.contains(why), "{fault}");
        }
        assert!(Mesh::parse(&[]).expect_err("none").contains("0 documents of kind Simulation"));
    }
}
