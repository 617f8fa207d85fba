//! What a node pays for its mesh being large: a real keeper of facts and a real compiler among false nodes.
//!
//! `cargo bench -p weft --bench gossip [NODES...]`: for each number of nodes, in microseconds of CPU and bytes, what a
//! round of gossip takes in which nothing happens (the node asks three others and three others ask it), and what it takes
//! until one changed instance is in the table.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use chitchat::{ChitchatId, Serializable};
use futures_util::future::BoxFuture;
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;
use prost::Message;
use tokio::time::timeout;
use weft::compile::{Compiler, Site};
use weft::config::Loopback;
use weft::keys::verify;
use weft::registry::Local;
use weft_consensus::gossip::{Gossip, GossipLink, GossipSettings, Signer, Verifier};
use weft_consensus::state::{NodeRecord, ServiceRecord, State};
use weft_proto::RaftId;
use weft_proto::command::NodeKeys;
use weft_proto::facts::NodeFacts;
use weft_proto::identity::NodeName;
use weft_proto::kinds::Kinds;
use weft_proto::service::{Grant, Instance, InstanceId, InstanceName, Protocol, ServiceName, ServicePort};
use weft_proto::wire::mesh as wire;
use weft_proxy::table::Table;
use zstd::bulk::{Compressor, Decompressor};

const ROUNDS: u32 = 100;
const CHANGES: usize = 21;
/// Nodes that the node asks in a round, and that ask it.
const PEERS: usize = 3;
const INSTANCES: usize = 10;
/// What a node takes of digests, as `consensus/src/gossip/vet.rs` has it.
const DIGEST_BYTES_MAX: usize = 44 << 10;
const PORT: ServicePort = ServicePort { port: 80, protocol: Protocol::Http };
const MESH: &str = "mesh.bench";

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let numbers = if numbers.is_empty() { vec![30, 300, 1000, 5000] } else { numbers };
    println!("{INSTANCES} instances a node; idle: mean of {ROUNDS} rounds; change: median of {CHANGES}");
    for number in numbers {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
        println!("{number} nodes: {}", runtime.block_on(measure(number)));
    }
}

async fn measure(number: usize) -> String {
    let crowd = Arc::new(Crowd::new(number));
    let state = Arc::new(crowd.state());
    let settings = GossipSettings {
        name: node(0),
        raft_id: 0,
        trust_domain: MESH.into(),
        address: address(0),
        generation: 1,
        seeds: vec![address(1).to_string()],
        remembered: BTreeMap::new(),
        interval: GossipSettings::INTERVAL,
    };
    let own = facts(0, 1);
    let (signer, verifier) = (Arc::new(Key(crowd.keys[0].clone())), Arc::new(Admitted(state.clone())));
    let gossip = Gossip::start(settings, Arc::new(Link(crowd.clone())), signer, verifier, own).await.expect("starts");
    // Who is in no digest yet has nothing to say.
    drop(gossip.receive(address(1), crowd.ask()).await);
    for member in 1..number {
        drop(gossip.receive(address(member), crowd.delta(member, 1)).await);
    }
    let mut live = gossip.live();
    let _ = timeout(Duration::from_secs(60), live.wait_for(|live| live.len() >= number)).await;
    let known = live.borrow_and_update().len();

    // Nothing happens.
    let before = crowd.spent();
    let began = cpu();
    for round in 0..ROUNDS {
        for peer in 0..PEERS {
            let from = address(1 + (round as usize * PEERS + peer) % (number - 1));
            let asked = crowd.ask();
            let answer = gossip.receive(from, asked).await;
            crowd.heard.fetch_add(answer.len() as u64, Ordering::Relaxed);
        }
        tokio::time::sleep(GossipSettings::INTERVAL).await;
    }
    let after = crowd.spent();
    let idle = (cpu() - began - (after.0 - before.0)) / i64::from(ROUNDS);
    let bytes = (after.1 - before.1) / u64::from(ROUNDS);
    let changed = live.has_changed().expect("it gossips");

    // One instance changes.
    let site = Site {
        node: node(0),
        address: address(0),
        zone: String::new(),
        loopback: Loopback::Off,
        captured: None,
        binds: Vec::new(),
        gateway_ip: std::net::Ipv4Addr::UNSPECIFIED.into(),
        gateway_ports: BTreeMap::new(),
        kinds: Kinds::ALL,
    };
    let (mut compiler, local) = (Compiler::new(site), Arc::new(Local::default()));
    let mut compile = |live: &_, before: Option<&Table>| {
        let description = compiler.compile(&state, live, &local).expect("compiles");
        Table::build(description, before).expect("builds")
    };
    let mut table = compile(&live.borrow_and_update().clone(), None);
    let (mut heard, mut published) = (Vec::new(), Vec::new());
    for change in 0..CHANGES {
        let member = 1 + change % (known - 1);
        let delta = crowd.delta(member, 2 + change as u64);
        let (began, before) = (cpu(), crowd.spent().0);
        drop(gossip.receive(address(member), delta).await);
        live.changed().await.expect("it gossips");
        let facts = live.borrow_and_update().clone();
        heard.push(cpu() - began - (crowd.spent().0 - before));
        let began = cpu();
        let next = compile(&facts, Some(&table));
        assert!(!next.is_as(&table), "the change is in the table");
        table = next;
        published.push(cpu() - began);
    }
    heard.sort_unstable();
    published.sort_unstable();
    let unrest = if changed { ", and something changed" } else { "" };
    format!(
        "{known} known; idle round {idle} us, {bytes} bytes sent{unrest}; change {} us to hear, {} us to publish",
        heard[CHANGES / 2],
        published[CHANGES / 2],
    )
}

/// All other nodes, as far as one of them sees.
struct Crowd {
    keys: Vec<Arc<Ed25519KeyPair>>,
    heartbeat: AtomicU64,
    versions: Mutex<Vec<u64>>,
    /// CPU time that the false nodes took themselves.
    own: AtomicI64,
    /// Bytes that the real one has sent.
    heard: AtomicU64,
}

impl Crowd {
    fn new(number: usize) -> Self {
        let random = SystemRandom::new();
        let key = |_| {
            let document = Ed25519KeyPair::generate_pkcs8(&random).expect("a key");
            Arc::new(Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("a key"))
        };
        let keys = (0..number).map(key).collect();
        let (heartbeat, versions) = (AtomicU64::new(1), Mutex::new(vec![1; number]));
        Self { keys, heartbeat, versions, own: AtomicI64::new(0), heard: AtomicU64::new(0) }
    }

    fn spent(&self) -> (i64, u64) {
        (self.own.load(Ordering::Relaxed), self.heard.load(Ordering::Relaxed))
    }

    fn state(&self) -> State {
        let mut state = State { index: 1, trust_domain: Some(MESH.parse().expect("a name")), ..State::default() };
        for (number, key) in self.keys.iter().enumerate() {
            let fact_key = key.public_key().as_ref().try_into().expect("32 bytes");
            let keys = NodeKeys { name: node(number), fact_key, seal_key: [2; 32] };
            let record = NodeRecord { keys, raft_id: number as RaftId, services: vec![Grant::Every], admitted: 1 };
            state.nodes.insert(node(number), record);
        }
        for number in 0..self.keys.len() {
            let address = Ipv4Addr::from(0x7f40_0001 + u32::try_from(number).expect("few"));
            let declared = BTreeMap::from([(node(1), vec![PORT])]);
            let record = ServiceRecord { address, account: service(number), ports: vec![PORT], declared };
            state.services.insert(service(number), record);
        }
        state
    }

    /// The digest of one of them, which has heard of all.
    fn digest(&self, kind: u8) -> Vec<u8> {
        let heartbeat = self.heartbeat.fetch_add(1, Ordering::Relaxed);
        let versions = self.versions.lock();
        let mut bytes = vec![0x53, 0xb0, 0, kind];
        // No honest node has more in its digest.
        let count = versions.len().min(DIGEST_BYTES_MAX / (id(0).serialized_len() + 3 * size_of::<u64>()));
        u16::try_from(count).expect("few").serialize(&mut bytes);
        for (number, version) in versions.iter().enumerate().take(count) {
            id(number).serialize(&mut bytes);
            [if number == 0 { 0 } else { heartbeat }, 0, *version].iter().for_each(|count| count.serialize(&mut bytes));
        }
        bytes
    }

    fn ask(&self) -> Bytes {
        self.alone(|| {
            let mut bytes = self.digest(0);
            MESH.serialize(&mut bytes);
            pack(&bytes)
        })
    }

    /// What a question is answered with, and nothing else.
    fn answer(&self, message: &[u8]) -> Bytes {
        self.heard.fetch_add(message.len() as u64, Ordering::Relaxed);
        self.alone(|| {
            let message = Decompressor::new().and_then(|mut one| one.decompress(message, 1 << 20)).expect("a message");
            let asks = message[3] == 0;
            if asks { pack(&[self.digest(1), vec![0]].concat()) } else { Bytes::new() }
        })
    }

    /// What a node says of itself.
    fn delta(&self, member: usize, version: u64) -> Bytes {
        self.alone(|| {
            self.versions.lock()[member] = version;
            let facts = wire::NodeFacts::from(facts(member, version)).encode_to_vec();
            let signature = self.keys[member].sign(&facts).as_ref().to_vec();
            let signed = wire::SignedFacts { facts: facts.into(), signature: signature.into() };
            let value = STANDARD_NO_PAD.encode(signed.encode_to_vec());
            let mut block = [vec![0], id(member).serialize_to_vec(), vec![0; 16], vec![1]].concat();
            "facts".serialize(&mut block);
            value.serialize(&mut block);
            version.serialize(&mut block);
            block.push(0);
            let mut bytes = vec![0x53, 0xb0, 0, 2, 2];
            u16::try_from(block.len()).expect("short").serialize(&mut bytes);
            bytes.extend(block);
            bytes.push(0);
            pack(&bytes)
        })
    }

    fn alone<T>(&self, run: impl FnOnce() -> T) -> T {
        let began = cpu();
        let done = run();
        self.own.fetch_add(cpu() - began, Ordering::Relaxed);
        done
    }
}

struct Link(Arc<Crowd>);

impl GossipLink for Link {
    fn send(&self, _: SocketAddr, message: Bytes) -> BoxFuture<'static, io::Result<Bytes>> {
        let answer = self.0.answer(&message);
        Box::pin(async { Ok(answer) })
    }
}

struct Key(Arc<Ed25519KeyPair>);

impl Signer for Key {
    fn sign(&self, facts: &[u8]) -> Vec<u8> {
        self.0.sign(facts).as_ref().to_vec()
    }
}

struct Admitted(Arc<State>);

impl Verifier for Admitted {
    fn verify(&self, name: &NodeName, raft_id: RaftId, facts: &[u8], signature: &[u8]) -> bool {
        let record = self.0.nodes.get(name).filter(|record| record.raft_id == raft_id);
        record.is_some_and(|record| verify(&record.keys.fact_key, facts, signature))
    }

    fn stays(&self, name: &NodeName, raft_id: RaftId) -> bool {
        self.0.nodes.get(name).is_some_and(|record| record.raft_id == raft_id)
    }

    fn admitted(&self, name: &NodeName) -> bool {
        self.0.nodes.contains_key(name)
    }
}

fn facts(number: usize, version: u64) -> NodeFacts {
    let instance = |at: usize| Instance {
        id: InstanceId { service: service(number + at), name: InstanceName::default() },
        labels: [("version".to_owned(), "v1".to_owned())].into(),
        ports: vec![PORT],
        targets: Vec::new(),
        healthy: true,
        weight: 100 + u16::try_from(version).expect("few changes"),
    };
    NodeFacts {
        name: node(number),
        raft_id: number as RaftId,
        generation: 1,
        sequence: version,
        address: address(number).to_string(),
        zone: "zone-1".into(),
        version: "0.1.0".into(),
        refused: String::new(),
        instances: (0..INSTANCES).map(instance).collect(),
        draining: false,
        commands: 1,
    }
}

fn node(number: usize) -> NodeName {
    format!("node-{number:04}").parse().expect("a name")
}

fn service(number: usize) -> ServiceName {
    format!("service-{number:04}").parse().expect("a name")
}

fn address(number: usize) -> SocketAddr {
    let number = u32::try_from(number).expect("few");
    (Ipv4Addr::from(0x0a00_0001 + number), 7946).into()
}

fn id(number: usize) -> ChitchatId {
    ChitchatId::new(node(number).as_str(), 1, address(number))
}

fn pack(message: &[u8]) -> Bytes {
    Compressor::new(1).and_then(|mut one| one.compress(message)).expect("there is room").into()
}

/// CPU time of this thread, in microseconds.
fn cpu() -> i64 {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("there is such a clock").num_microseconds()
}
