//! Hosts that stand for those of the Internet: every host of a task finds them by their names, and trusts their authority.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::process::Child;

use super::certificates::Certificates;
use super::form::{Service, Task};

/// The hosts that stand for those of the Internet.
#[derive(Default)]
pub(super) struct Internet {
    names: Vec<String>,
    processes: Vec<Child>,
}

impl Internet {
    /// Those of a task.
    pub(super) fn of(services: &[Service]) -> Self {
        let outside = services.iter().filter(|service| service.external);
        Self { names: outside.flat_map(names).collect(), processes: Vec::new() }
    }

    /// Where each is, its name, and what it is like.
    pub(super) fn hosts<'s>(&self, services: &'s [Service]) -> Vec<(usize, String, &'s Service)> {
        let of = |name: &String| services.iter().find(|service| service.external && names(service).contains(name));
        let numbered = self.places().zip(&self.names);
        numbered.filter_map(|(at, name)| Some((at, name.clone(), of(name)?))).collect()
    }

    /// Where they are, among the hosts.
    pub(super) fn places(&self) -> std::ops::Range<usize> {
        FIRST..FIRST + self.names.len()
    }

    /// Keeps a process.
    pub(super) fn run(&mut self, process: Child) {
        self.processes.push(process);
    }

    /// Ends all.
    pub(super) fn end(&mut self) {
        self.processes.clear();
    }

    /// Makes them known to what will run in a network namespace, with other lines: `ip netns exec` puts these files in the place of the host's own.
    pub(super) fn tell(&self, namespace: &str, others: &str, certificates: &Certificates) -> Result<(), String> {
        if self.names.is_empty() && others.is_empty() {
            return Ok(());
        }
        let place = directory(namespace);
        let trusted = place.join("ssl/certs");
        fs::create_dir_all(&trusted).map_err(|error| format!("{}: {error}", trusted.display()))?;
        let lines = self.places().zip(&self.names).map(|(at, name)| format!("{} {name}\n", address(at)));
        let hosts = format!("127.0.0.1 localhost\n{others}{}", lines.collect::<String>());
        fs::write(place.join("hosts"), hosts).map_err(|error| error.to_string())?;
        let authority = certificates.file(&certificate("example.com", "crt"))?;
        fs::copy(authority, trusted.join("ca-certificates.crt")).map(drop).map_err(|error| error.to_string())
    }
}

/// The documents that say of hosts with names of services that they are outside: on Kubernetes these are services without a proxy
/// beside them. Those that the task names itself are its own matter.
pub(super) fn entries(task: &Task) -> String {
    let texts = task.steps.iter().filter_map(|step| step.apply.as_deref());
    let documents = texts.flat_map(|text| serde_saphyr::from_multiple::<Value>(text).unwrap_or_default());
    let named: Vec<Value> =
        documents.filter(|one| one["kind"] == "ServiceEntry").map(|one| one["spec"]["hosts"].clone()).collect();
    let own = |service: &&Service| {
        let named = named.iter().any(|hosts| hosts.as_array().is_some_and(|all| all.contains(&json!(service.name))));
        service.external && service.name.contains(".svc.") && !named
    };
    let port = |number: u16, name: &str| json!({ "number": number, "name": name, "protocol": name.to_uppercase() });
    let entry = |service: &Service| {
        let namespace = service.name.split('.').nth(1).unwrap_or("default");
        let metadata = json!({ "name": service.name, "namespace": namespace });
        let spec =
            json!({ "hosts": [service.name], "ports": [port(80, "http"), port(443, "https")], "resolution": "DNS" });
        let entry = json!({ "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": metadata, "spec": spec });
        format!("---\n{entry}\n")
    };
    task.services.iter().filter(own).map(entry).collect()
}

/// Takes away what a namespace was told.
pub(super) fn forget(namespace: &str) {
    // Most were told nothing.
    let _ = fs::remove_dir_all(directory(namespace));
}

/// The address of a host.
pub(super) fn address(at: usize) -> String {
    format!("10.78.0.{}", at + 1)
}

/// The file of a host's certificate or key.
pub(super) fn certificate(name: &str, ending: &str) -> String {
    format!("internet/{name}.{ending}")
}

impl Service {
    /// The file of its certificate or key, as a host of the Internet: one that checks its callers has an authority with them. The hosts
    /// of a pattern have one for all of it.
    pub(super) fn certificate(&self, ending: &str) -> String {
        let mut words = self.behaviour.split_whitespace();
        match (self.behaviour.contains("of the same CA"), words.find(|word| word.starts_with("*."))) {
            (true, _) => format!("{}.{ending}", self.name),
            (false, Some(pattern)) => certificate(pattern, ending),
            (false, None) => certificate(&self.name, ending),
        }
    }

    /// What it answers by its description, whatever it is asked for.
    pub(super) fn page(&self) -> Option<String> {
        if self.behaviour.contains("200 text/html") {
            return Some("<html></html>\n".to_owned());
        }
        let (_, said) = self.behaviour.split_once("answers \"")?;
        said.split_once('"').map(|(text, _)| format!("{text}\n"))
    }
}

fn directory(namespace: &str) -> PathBuf {
    PathBuf::from("/etc/netns").join(namespace)
}

/// The names that a service goes by: of a pattern some of those that it covers.
fn names(service: &Service) -> Vec<String> {
    match service.name.strip_prefix("*.") {
        Some(domain) => ["www", "en", "de"].iter().map(|label| format!("{label}.{domain}")).collect(),
        None => vec![service.name.clone()],
    }
}

/// The first of them, among the hosts.
const FIRST: usize = 150;
