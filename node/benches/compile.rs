//! What a change costs until the table is in force: CPU time of compiling and building, with many services and instances.
//!
//! `cargo bench -p weft --bench compile [SERVICES INSTANCES]`: medians of 21 rounds, in microseconds of CPU.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use weft::compile::{Compiler, Site};
use weft::config::Loopback;
use weft::registry::Local;
use weft_consensus::state::{NodeRecord, ServiceRecord, State};
use weft_proto::command::NodeKeys;
use weft_proto::facts::{Live, NodeFacts};
use weft_proto::identity::NodeName;
use weft_proto::kinds::Kinds;
use weft_proto::resource::{KindName, Resource, ResourceKey};
use weft_proto::service::{Grant, Instance, InstanceId, InstanceName, Protocol, ServiceName, ServicePort};
use weft_proxy::table::Table;

const ROUNDS: usize = 21;
/// Instances of all services on one node.
const ON_NODE: usize = 100;

struct Mesh {
    state: Arc<State>,
    live: Live,
    local: Arc<Local>,
    compiler: Compiler,
    table: Table,
}

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let (services, instances) = (numbers.first().copied().unwrap_or(1000), numbers.get(1).copied().unwrap_or(10));
    let (first, mut mesh) = timed(|| Mesh::new(services, instances));
    println!("{services} services x {instances} instances on {} nodes; CPU time, median of {ROUNDS}", mesh.live.len());
    println!("  the first table                      {first:>8} us");
    report("one instance changes", &mut mesh, |mesh, round| {
        let name = mesh.live.keys().nth(round % mesh.live.len()).expect("a node").clone();
        let mut facts = NodeFacts::clone(&mesh.live[&name]);
        facts.instances[0].healthy = !facts.instances[0].healthy;
        mesh.live.insert(name, Arc::new(facts));
    });
    report("one policy changes", &mut mesh, |mesh, round| {
        let state = Arc::make_mut(&mut mesh.state);
        state.index += 1;
        let policy = policy(&format!("p{}", round % 7), &format!("s{}", round % 50), state.index);
        state.resources.insert(policy.key.clone(), Arc::new(policy));
    });
    report("a decision about something else", &mut mesh, |mesh, _| Arc::make_mut(&mut mesh.state).index += 1);
    report("a fact that concerns no service", &mut mesh, |mesh, round| {
        let name = mesh.live.keys().nth(round % mesh.live.len()).expect("a node").clone();
        let mut facts = NodeFacts::clone(&mesh.live[&name]);
        facts.sequence += 1;
        mesh.live.insert(name, Arc::new(facts));
    });
}

fn report(what: &str, mesh: &mut Mesh, mut change: impl FnMut(&mut Mesh, usize)) {
    let mut taken = Vec::new();
    let mut swaps = 0;
    for round in 0..ROUNDS {
        change(mesh, round);
        let (micros, swapped) = timed(|| mesh.publish());
        taken.push(micros);
        swaps += usize::from(swapped);
    }
    taken.sort_unstable();
    println!("  {what:<36} {:>8} us, swapped {swaps} of {ROUNDS}", taken[ROUNDS / 2]);
}

impl Mesh {
    fn new(services: usize, instances: usize) -> Self {
        let node = |number: usize| -> NodeName { format!("n{number}").parse().expect("a name") };
        let service = |number: usize| -> ServiceName { format!("s{number}").parse().expect("a name") };
        let nodes = (services * instances).div_ceil(ON_NODE).max(1);
        let mut state = State { index: 1, raft_id_next: 1, ..State::default() };
        state.trust_domain = Some("mesh.bench".parse().expect("a name"));
        let port = ServicePort { port: 80, protocol: Protocol::Http };
        let mut live = Live::new();
        for number in 0..=nodes {
            let keys = NodeKeys { name: node(number), fact_key: [1; 32], seal_key: [2; 32] };
            let record = NodeRecord { keys, raft_id: number as u64, services: vec![Grant::Every], admitted: 1 };
            state.nodes.insert(node(number), record);
        }
        for number in 0..services {
            let address = Ipv4Addr::from(0x7f40_0001 + u32::try_from(number).expect("few"));
            let declared = BTreeMap::from([(node(1), vec![port])]);
            let record = ServiceRecord { address, account: service(number), ports: vec![port], declared };
            state.services.insert(service(number), record);
        }
        for number in 0..100 {
            let policy = policy(&format!("q{number}"), &format!("s{number}"), 1);
            state.resources.insert(policy.key.clone(), Arc::new(policy));
        }
        for number in 1..=nodes {
            let instance = |at: usize| Instance {
                id: InstanceId { service: service(at % services), name: InstanceName::default() },
                labels: [("version".to_owned(), format!("v{}", at % 3))].into(),
                ports: vec![port],
                targets: Vec::new(),
                healthy: true,
                weight: 100,
            };
            let first = (number - 1) * ON_NODE;
            let facts = NodeFacts {
                name: node(number),
                raft_id: number as u64,
                generation: 1,
                sequence: 1,
                address: format!("10.0.{}.{}:7946", number / 250, number % 250 + 1),
                zone: format!("zone-{}", number % 3),
                version: "0.1.0".into(),
                refused: String::new(),
                instances: (first..(first + ON_NODE).min(services * instances)).map(instance).collect(),
                draining: false,
                commands: 1,
            };
            live.insert(node(number), Arc::new(facts));
        }
        let site = Site {
            node: node(0),
            address: "10.1.0.1:7946".parse().expect("an address"),
            zone: "zone-0".into(),
            loopback: Loopback::Auto,
            captured: Some("127.0.0.1:15006".parse().expect("an address")),
            binds: Vec::new(),
            gateway_ip: std::net::Ipv4Addr::UNSPECIFIED.into(),
            gateway_ports: BTreeMap::new(),
            kinds: Kinds::ALL,
        };
        let (state, local, mut compiler) = (Arc::new(state), Arc::new(Local::default()), Compiler::new(site));
        let description = compiler.compile(&state, &live, &local).expect("compiles");
        let table = Table::build(description, None).expect("builds");
        Self { state, live, local, compiler, table }
    }

    /// As a node does it; whether the table is another one.
    fn publish(&mut self) -> bool {
        let description = self.compiler.compile(&self.state, &self.live, &self.local).expect("compiles");
        let table = Table::build(description, Some(&self.table)).expect("builds");
        let same = table.is_as(&self.table);
        match same {
            true => self.table.advance(self.state.index),
            false => self.table = table,
        }
        !same
    }
}

fn policy(name: &str, service: &str, version: u64) -> Resource {
    let kind = KindName { group: "security.istio.io".into(), name: "AuthorizationPolicy".into() };
    Resource {
        key: ResourceKey { kind, namespace: "default".into(), name: name.into() },
        api_version: "security.istio.io/v1".into(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        spec: format!(
            "{{\"selector\":{{\"matchLabels\":{{\"app\":\"{service}\"}}}},\"action\":\"DENY\",\"rules\":[{{\"to\":[{{\"operation\":{{\"paths\":[\"/{version}\"]}}}}]}}]}}"
        ),
        created: 1,
        version,
    }
}

/// What something took, in microseconds of this thread's CPU.
fn timed<T>(run: impl FnOnce() -> T) -> (i64, T) {
    let now = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("there is such a clock").num_microseconds();
    let before = now();
    let done = run();
    (now() - before, done)
}
