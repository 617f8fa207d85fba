//! What a node compiles out of the state, of what other nodes say and of its own instances, as golden scripts:
//! `tests/scripts/compile/`.

#[path = "../../proto/tests/support/golden.rs"]
mod golden;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use weft::compile::{Compiler, Site};
use weft::config::Loopback;
use weft::registry::Local;
use weft_consensus::state::{NodeRecord, ServiceRecord, State};
use weft_proto::command::NodeKeys;
use weft_proto::facts::{Live, NodeFacts};
use weft_proto::identity::NodeName;
use weft_proto::kinds::Kinds;
use weft_proto::resource::{KindName, Resource, ResourceKey};
use weft_proto::service::{Instance, InstanceId, ServiceName, ServicePort};
use weft_proxy::table::Table;
use weft_proxy::table::description::ServiceDescription;

use golden::{Line, Told};

struct Script {
    state: State,
    live: Live,
    compiler: Compiler,
    before: BTreeMap<ServiceName, Arc<ServiceDescription>>,
    table: Option<Table>,
}

impl Default for Script {
    fn default() -> Self {
        let site = Site {
            node: "me".parse().expect("a name"),
            address: "10.0.0.1:7946".parse().expect("an address"),
            zone: String::new(),
            loopback: Loopback::Off,
            captured: None,
            binds: Vec::new(),
            gateway_ip: std::net::Ipv4Addr::UNSPECIFIED.into(),
            gateway_ports: BTreeMap::new(),
            kinds: Kinds::ALL,
        };
        let state = State { index: 1, trust_domain: Some("mesh.test".parse().expect("a name")), ..State::default() };
        Self { state, live: Live::new(), compiler: Compiler::new(site), before: BTreeMap::new(), table: None }
    }
}

impl Script {
    fn run(&mut self, mut line: Line<'_>) -> Told {
        self.state.index += 1;
        let told = match line.word()? {
            "compile" => self.compile()?,
            "service" => self.service(&mut line)?,
            "undeclare" => {
                self.state.services.remove(&line.word()?.parse()?);
                String::new()
            }
            "admit" => self.admit(&mut line)?,
            "remove" => {
                self.state.nodes.remove(&line.word()?.parse()?);
                String::new()
            }
            "says" => self.says(&mut line)?,
            "gone" => {
                self.live.remove(&line.word()?.parse()?);
                String::new()
            }
            "settings" => self.document("weft", "Service", &mut line)?,
            "policy" => self.document("security.istio.io", "AuthorizationPolicy", &mut line)?,
            "document" => {
                let (kind, group) = line.word()?.split_once('.').ok_or("a kind is NAME.GROUP")?;
                self.document(group, kind, &mut line)?
            }
            other => return Err(format!("there is no command {other}").into()),
        };
        line.end()?;
        Ok(told)
    }

    /// `service NAME PORT/PROTOCOL`: it is declared; `-` of a gateway, which has none of its own.
    fn service(&mut self, line: &mut Line<'_>) -> Told {
        let name: ServiceName = line.word()?.parse()?;
        let said = line.word()?;
        let ports = if said == "-" { Vec::new() } else { vec![port(said)?] };
        let address = Ipv4Addr::new(127, 64, 0, u8::try_from(self.state.services.len() + 1)?);
        let declared = BTreeMap::from([("me".parse()?, ports.clone())]);
        let record = ServiceRecord { address, account: name.clone(), ports, declared };
        self.state.services.insert(name, record);
        Ok(String::new())
    }

    /// `admit NODE SERVICES`
    fn admit(&mut self, line: &mut Line<'_>) -> Told {
        let name: NodeName = line.word()?.parse()?;
        let services = line.word()?.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let keys = NodeKeys { name: name.clone(), fact_key: [1; 32], seal_key: [1; 32] };
        let record = NodeRecord { keys, raft_id: 1, services, admitted: self.state.index };
        self.state.nodes.insert(name, record);
        Ok(String::new())
    }

    /// `says NODE [zone=ZONE] [drains] SERVICE[@INSTANCE]:PORT/PROTOCOL[:unhealthy]...`: what it gossips; `gateway` is said in the place of a
    /// port.
    fn says(&mut self, line: &mut Line<'_>) -> Told {
        let name: NodeName = line.word()?.parse()?;
        let zone: String = line.named("zone")?.unwrap_or_default();
        let (mut instances, mut draining) = (Vec::new(), false);
        while let Ok(word) = line.word() {
            if word == "drains" {
                draining = true;
                continue;
            }
            let mut parts = word.split(':');
            let id = parts.next().ok_or("no instance")?;
            let (service, name) = id.split_once('@').map_or((id, None), |(service, name)| (service, Some(name)));
            let name = name.map(str::parse).transpose()?.unwrap_or_default();
            let id = InstanceId { service: service.parse()?, name };
            let said = parts.next().ok_or("no port")?;
            let (ports, labels) = match said {
                "gateway" => (Vec::new(), [("weft.mesh/gateway".to_owned(), "true".to_owned())].into()),
                said => (vec![port(said)?], BTreeMap::new()),
            };
            let healthy = parts.next() != Some("unhealthy");
            instances.push(Instance { id, labels, ports, targets: Vec::new(), healthy, weight: 100 });
        }
        let number = self.live.len() + 2;
        let address =
            self.live.get(&name).map_or_else(|| format!("10.0.0.{number}:7946"), |known| known.address.clone());
        let facts = NodeFacts {
            name: name.clone(),
            raft_id: 1,
            generation: 1,
            sequence: self.state.index,
            address,
            zone,
            version: "1".into(),
            refused: String::new(),
            instances,
            draining,
            commands: 1,
        };
        self.live.insert(name, Arc::new(facts));
        Ok(String::new())
    }

    /// `NAME SPEC`, or `NAME deleted`: a document.
    fn document(&mut self, group: &str, kind: &str, line: &mut Line<'_>) -> Told {
        let kind = KindName { group: group.into(), name: kind.into() };
        let namespace = if kind.name == "MeshConfig" { "weft-system" } else { "default" };
        let key = ResourceKey { kind, namespace: namespace.into(), name: line.word()?.into() };
        let spec = line.word()?;
        if spec == "deleted" {
            self.state.resources.remove(&key);
            return Ok(String::new());
        }
        let resource = Resource {
            key: key.clone(),
            api_version: format!("{group}/v1"),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            spec: spec.into(),
            created: 1,
            version: self.state.index,
        };
        self.state.resources.insert(key, Arc::new(resource));
        Ok(String::new())
    }

    /// Which services were compiled anew, and what they are then; what is not enforced; whether the table is another one.
    fn compile(&mut self) -> Told {
        let state = Arc::new(self.state.clone());
        let description = self.compiler.compile(&state, &self.live, &Arc::new(Local::default()))?;
        let mut told = String::new();
        let now: BTreeMap<_, _> = description.services.iter().map(|one| (one.name.clone(), one.clone())).collect();
        for name in self.before.keys().filter(|name| !now.contains_key(*name)) {
            writeln!(told, "{name} is gone")?;
        }
        for (name, service) in &now {
            if self.before.get(name).is_none_or(|before| !Arc::ptr_eq(before, service)) {
                told += &shown(service)?;
            }
        }
        for one in self.compiler.unenforced() {
            writeln!(told, "{} is not enforced: {}", one.key, one.why)?;
        }
        self.before = now;
        let policies = description.policies.len();
        let table = Table::build(description, self.table.as_ref())?;
        match &self.table {
            Some(before) if table.is_as(before) => writeln!(told, "the same table")?,
            _ => writeln!(told, "another table, {policies} policies")?,
        }
        self.table = Some(table);
        Ok(told)
    }
}

fn shown(service: &ServiceDescription) -> Told {
    let ports: Vec<String> = service.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect();
    let ports = if ports.is_empty() { "any port".to_owned() } else { ports.join(",") };
    let settings = match &service.settings {
        None => " with settings that nobody understands".to_owned(),
        Some(settings) => settings.retries.map(|retries| format!(" with {retries} retries")).unwrap_or_default(),
    };
    let mut documents: Vec<&ResourceKey> = service.calls.routes.iter().map(|one| &one.key).collect();
    documents.extend(service.calls.gateway_routes.iter().map(|one| &one.key));
    documents.extend(service.calls.stream_routes.iter().map(|one| &one.key));
    documents.extend(service.calls.subsets.iter().map(|one| &one.key));
    let documents: Vec<String> = documents.iter().map(ToString::to_string).collect();
    let called = if documents.is_empty() { String::new() } else { format!(" by {}", documents.join(", ")) };
    let mut told = format!("{} at {ports}{settings}{called}\n", service.name);
    for one in &service.endpoints {
        let ports: Vec<String> = one.ports.iter().map(ToString::to_string).collect();
        let health = if one.healthy { "" } else { ", not to be called" };
        let zone = if one.zone.is_empty() { String::new() } else { format!(" in {}", one.zone) };
        writeln!(told, "  {} on {} at {}{zone}: {}{health}", one.instance, one.node, one.address, ports.join(","))?;
    }
    Ok(told)
}

fn port(text: &str) -> Result<ServicePort, Box<dyn Error>> {
    let (port, protocol) = text.split_once('/').ok_or("a port is PORT/PROTOCOL")?;
    Ok(ServicePort { port: port.parse()?, protocol: protocol.parse()? })
}

#[test]
fn what_is_compiled_is_what_the_scripts_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/compile");
    golden::run(&folder, Script::run);
}
