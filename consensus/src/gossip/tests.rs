use chitchat::{ChitchatId, Serializable as _};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::keeper::EXAMINE_EVERY;
use super::packed::Packer;
use super::parts::KEYS;
use weft_proto::service::{Instance, InstanceId, InstanceName, Labels, Protocol, ServicePort};

use super::*;

#[derive(Default)]
struct Net {
    nodes: Mutex<BTreeMap<SocketAddr, Arc<Gossip>>>,
    /// Nodes whose messages take longer, both ways.
    slow: Mutex<BTreeMap<SocketAddr, Duration>>,
}

struct Link(SocketAddr, Arc<Net>);

impl GossipLink for Link {
    fn send(&self, to: SocketAddr, message: Bytes) -> BoxFuture<'static, io::Result<Bytes>> {
        let (from, net) = (self.0, Arc::clone(&self.1));
        Box::pin(async move {
            let slow = |node| net.slow.lock().get(&node).copied().unwrap_or(Duration::from_millis(1));
            let delay = slow(from).max(slow(to));
            tokio::time::sleep(delay).await;
            let node = {
                let nodes = net.nodes.lock();
                nodes.get(&to).filter(|_| nodes.contains_key(&from)).map(Arc::clone)
            };
            let answered = node.ok_or(io::ErrorKind::ConnectionRefused)?.receive(from, message);
            let answer = answered.await;
            tokio::time::sleep(delay).await;
            Ok(answer)
        })
    }
}

/// A signature is a checksum over the name, the message and a secret.
struct Key(NodeName);

impl Signer for Key {
    fn sign(&self, facts: &[u8]) -> Vec<u8> {
        crc32fast::hash(&[b"secret", self.0.as_str().as_bytes(), facts].concat()).to_be_bytes().to_vec()
    }
}

#[derive(Default)]
struct Admitted(Mutex<BTreeMap<NodeName, RaftId>>);

impl Verifier for Admitted {
    fn verify(&self, name: &NodeName, raft_id: RaftId, facts: &[u8], signature: &[u8]) -> bool {
        self.0.lock().get(name) == Some(&raft_id) && Key(name.clone()).sign(facts) == signature
    }

    fn stays(&self, name: &NodeName, raft_id: RaftId) -> bool {
        self.0.lock().get(name) == Some(&raft_id)
    }
}

struct Mesh {
    net: Arc<Net>,
    admitted: Arc<Admitted>,
}

impl Mesh {
    async fn of(names: &[&str]) -> Self {
        let mesh = Self { net: Arc::default(), admitted: Arc::default() };
        for (id, name) in names.iter().enumerate() {
            mesh.admitted.0.lock().insert(name.parse().expect("must hold"), id as u64);
            mesh.start(name, id as u64).await;
        }
        for name in names {
            mesh.wait(name, |live| live.len() == names.len()).await;
        }
        mesh
    }

    async fn start(&self, name: &str, id: RaftId) {
        self.start_later(name, id, 1_000, BTreeMap::new()).await;
    }

    async fn start_later(
        &self,
        name: &str,
        id: RaftId,
        generation: UnixMillis,
        remembered: BTreeMap<NodeName, NodeFacts>,
    ) {
        let settings = GossipSettings {
            name: name.parse().expect("must hold"),
            raft_id: id,
            trust_domain: "mesh.test".into(),
            address: address(name),
            generation,
            seeds: vec![address("a").to_string(), address("b").to_string()],
            remembered,
            interval: GossipSettings::INTERVAL,
        };
        let link = Arc::new(Link(address(name), Arc::clone(&self.net)));
        let signer = Arc::new(Key(settings.name.clone()));
        let facts = facts(name, id);
        let gossip =
            Gossip::start(settings, link, signer, Arc::clone(&self.admitted) as _, facts).await.expect("must hold");
        self.net.nodes.lock().insert(address(name), Arc::new(gossip));
    }

    fn node(&self, name: &str) -> Arc<Gossip> {
        Arc::clone(&self.net.nodes.lock()[&address(name)])
    }

    async fn wait(&self, name: &str, condition: impl Fn(&Live) -> bool) -> Duration {
        let (began, mut live) = (Instant::now(), self.node(name).live());
        timeout(Duration::from_secs(20), live.wait_for(|live| condition(live)))
            .await
            .unwrap_or_else(|_| panic!("{name} sees {:?}", self.node(name).live().borrow()))
            .expect("must hold");
        began.elapsed()
    }

    /// Watches for `time`; `condition` must hold throughout on each of `names`.
    async fn holds(&self, names: &[&str], time: Duration, condition: impl Fn(&Live) -> bool) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            for name in names {
                let live = self.node(name).live().borrow().clone();
                assert!(condition(&live), "{name} sees {live:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn address(name: &str) -> SocketAddr {
    ([10, 0, 0, name.as_bytes()[0]], 7000).into()
}

fn facts(name: &str, raft_id: RaftId) -> NodeFacts {
    NodeFacts {
        name: name.parse().expect("must hold"),
        raft_id,
        generation: 1_000,
        sequence: 0,
        address: address(name).to_string(),
        zone: "z".into(),
        version: "0".into(),
        refused: String::new(),
        instances: Vec::new(),
        draining: false,
        commands: 0,
    }
}

fn id(name: &str, generation: u64) -> ChitchatId {
    ChitchatId::new(name, generation, address(name))
}

/// A delta about one member: its operations in an uncompressed block.
fn ack(about: &ChitchatId, operations: &[Vec<u8>]) -> Bytes {
    let mut block = [vec![0], about.serialize_to_vec(), vec![0; 16]].concat();
    operations.iter().for_each(|operation| block.extend(operation));
    let mut bytes = vec![0x53, 0xb0, 0, 2, 2];
    (block.len() as u16).serialize(&mut bytes);
    bytes.extend(block);
    bytes.push(0);
    bytes.into()
}

fn key_value(key: &str, value: &str, version: u64) -> Vec<u8> {
    [vec![1], key.serialize_to_vec(), value.serialize_to_vec(), version.serialize_to_vec(), vec![0]].concat()
}

fn max_version(version: u64) -> Vec<u8> {
    [vec![2], version.serialize_to_vec()].concat()
}

fn syn(about: &ChitchatId, heartbeat: u64, version: u64) -> Bytes {
    let mut bytes = vec![0x53, 0xb0, 0, 0, 1, 0];
    about.serialize(&mut bytes);
    [heartbeat, 0, version].iter().for_each(|counter| counter.serialize(&mut bytes));
    "mesh.test".serialize(&mut bytes);
    bytes.into()
}

/// A message as another node's link brings it.
fn tell(gossip: &Gossip, from: &str, message: &[u8]) {
    drop(gossip.receive(address(from), Packer::new().pack(message)));
}

fn told(live: &Live, name: &str) -> Option<u32> {
    live.get(&name.parse::<NodeName>().expect("must hold")).map(|facts| facts.commands)
}

#[tokio::test(start_paused = true)]
async fn what_was_known_before_a_restart_stays_known() {
    let mesh = Mesh::of(&["a", "b", "c"]).await;
    let remembered: BTreeMap<NodeName, NodeFacts> =
        ["b", "c"].iter().map(|name| (name.parse().expect("must hold"), facts(name, 0))).collect();
    for generation in [2_000, 3_000, 4_000] {
        mesh.net.nodes.lock().remove(&address("a"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        mesh.start_later("a", 0, generation, remembered.clone()).await;
        mesh.holds(&["a"], Duration::from_secs(10), |live| live.len() == 3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_restarts_again_and_again_ends_no_life_elsewhere() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let mesh = Mesh::of(&names).await;
    let others: Vec<&str> = names.iter().copied().filter(|name| *name != "c").collect();
    for restart in 1..=120 {
        mesh.net.nodes.lock().remove(&address("c"));
        tokio::time::sleep(Duration::from_millis(200)).await;
        mesh.start_later("c", 2, 1_000 + restart, BTreeMap::new()).await;
        tokio::time::sleep(Duration::from_millis(if restart % 2 == 0 { 700 } else { 5_000 })).await;
    }
    for name in &others {
        let time = mesh.wait(name, |live| live.len() == names.len()).await;
        assert!(time < Duration::from_secs(10), "{name} saw all after {time:?}");
        let own = mesh.node(name).live().borrow()[&name.parse::<NodeName>().expect("must hold")].generation;
        assert_eq!(own, 1_000, "the life of {name} was ended");
    }
}

/// So many instances, with names as long as users give them.
fn instances(count: u16) -> Vec<Instance> {
    let instance = |n: u16| Instance {
        id: InstanceId {
            service: format!("shop/checkout-{n}").parse().expect("must hold"),
            name: InstanceName::default(),
        },
        labels: Labels::new(),
        ports: vec![ServicePort { port: 8080, protocol: Protocol::Http }],
        targets: Vec::new(),
        healthy: true,
        weight: 100,
    };
    (0..count).map(instance).collect()
}

#[tokio::test(start_paused = true)]
async fn a_node_may_run_many_services() {
    let mesh = Mesh::of(&["a", "b", "c"]).await;
    let count = |live: &Live, name: &str| {
        live.get(&name.parse::<NodeName>().expect("must hold")).map(|facts| facts.instances.len())
    };
    for many in [400, 2_000, 3, 600, 0] {
        mesh.node("b").advertise(|facts| facts.instances = instances(many)).await;
        for name in ["a", "c"] {
            let time = mesh.wait(name, |live| count(live, "b") == Some(many.into())).await;
            assert!(time < Duration::from_secs(5), "{name} heard of {many} after {time:?}");
        }
        assert_eq!(mesh.node("b").too_large(), None, "{many}");
    }
    // What is too much is told, and what was said before stays.
    mesh.node("b").advertise(|facts| facts.instances = instances(700)).await;
    mesh.wait("a", |live| count(live, "b") == Some(700)).await;
    mesh.node("b").advertise(|facts| facts.instances = instances(20_000)).await;
    mesh.holds(&["a", "c"], Duration::from_secs(10), |live| count(live, "b") == Some(700)).await;
    assert!(mesh.node("b").too_large().is_some());
}

#[tokio::test(start_paused = true)]
async fn facts_arrive_and_the_dead_leave() {
    let mesh = Mesh::of(&["a", "b", "c"]).await;
    mesh.node("b").advertise(|facts| facts.commands = 7).await;
    for name in ["a", "b", "c"] {
        let time = mesh.wait(name, |live| told(live, "b") == Some(7)).await;
        assert!(time < Duration::from_secs(2), "{name} heard after {time:?}");
    }
    mesh.holds(&["a", "b", "c"], Duration::from_secs(60), |live| live.len() == 3).await;
    mesh.net.slow.lock().insert(address("c"), Duration::from_millis(700));
    mesh.holds(&["a", "b", "c"], Duration::from_secs(60), |live| live.len() == 3).await;
    mesh.net.slow.lock().clear();
    mesh.holds(&["a", "b", "c"], Duration::from_secs(10), |live| live.len() == 3).await;

    mesh.net.nodes.lock().remove(&address("c"));
    for name in ["a", "b"] {
        let time = mesh.wait(name, |live| live.len() == 2).await;
        assert!(time < Duration::from_secs(5), "{name} noticed after {time:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_the_state_admits_later_is_live_later_and_leaves_when_removed() {
    let mesh = Mesh::of(&["a", "b"]).await;
    mesh.start("c", 9).await;
    mesh.wait("c", |live| live.len() == 3).await;
    mesh.holds(&["a", "b"], Duration::from_secs(5), |live| live.len() == 2).await;
    mesh.admitted.0.lock().insert("c".parse().expect("must hold"), 9);
    let time = mesh.wait("a", |live| live.len() == 3).await;
    assert!(time <= EXAMINE_EVERY * 2, "{time:?}");
    mesh.admitted.0.lock().insert("c".parse().expect("must hold"), 10);
    mesh.wait("a", |live| live.len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_with_a_clock_behind_is_heard() {
    let mesh = Mesh::of(&["a", "b"]).await;
    mesh.node("b").own.send_modify(|facts| facts.generation = 5_000);
    let forged = records::seal(&mesh.node("b").own.borrow(), &Key("b".parse().expect("must hold")));
    mesh.net.nodes.lock().remove(&address("b"));
    // The former process signed generation 5000, which "a" knows; the next one starts at 1000.
    tell(&mesh.node("a"), "b", &syn(&id("b", 5_000), 5, 1));
    tell(&mesh.node("a"), "b", &syn(&id("b", 5_000), 6, 1));
    tell(&mesh.node("a"), "b", &ack(&id("b", 5_000), &[key_value(KEYS[0], &forged, 1)]));
    mesh.wait("a", |live| live.len() == 1).await;
    mesh.start("b", 1).await;
    mesh.node("b").advertise(|facts| facts.commands = 3).await;
    mesh.wait("a", |live| told(live, "b") == Some(3)).await;
    assert!(mesh.node("b").own.borrow().generation > 5_000);
}

#[tokio::test(start_paused = true)]
async fn a_liar_changes_nothing() {
    let mesh = Mesh::of(&["a", "b", "c"]).await;
    let mut forged = facts("a", 0);
    forged.commands = 666;
    forged.sequence = 1_000;
    let forged = records::seal(&forged, &Key("c".parse().expect("must hold")));
    let truth = |live: &Live| live.len() == 3 && told(live, "a").expect("must hold") < 10;
    for round in 1..20 {
        // The liar knows of a new life of "a" when its own gossip does.
        let known = mesh.node("c").live().borrow().values().find(|facts| facts.raft_id == 0).map(|a| a.generation);
        let about = id("a", known.expect("must hold"));
        for to in ["a", "b"] {
            let lie = |message: Bytes| tell(&mesh.node(to), "c", &message);
            lie(ack(&about, &[key_value(KEYS[0], &forged, 100 * round)]));
            lie(syn(&about, 1 << 30, 1 << 30));
            lie(syn(&about, u64::MAX, u64::MAX));
            lie(syn(&id("stranger", 1), round, round));
        }
        mesh.holds(&["a", "b"], Duration::from_millis(700), truth).await;
    }
    mesh.node("a").advertise(|facts| facts.commands = 9).await;
    mesh.wait("b", |live| told(live, "a") == Some(9)).await;
}

#[tokio::test(start_paused = true)]
async fn no_bytes_end_it() {
    let mesh = Mesh::of(&["a", "b", "c"]).await;
    let about = id("c", 1_000);
    let bad = [
        // chitchat asserts that a delta never lowers the version that it raised itself.
        ack(&about, &[key_value("x", "y", 1_000), max_version(500)]),
        ack(&id("a", 1_000), &[max_version(u64::MAX)]),
        ack(&about, &[key_value("junk", "y", 2_000)]),
        Bytes::from_static(b""),
        Bytes::from_static(b"\x53\xb0\x00\x01"),
        Bytes::from(vec![0xff; 100_000]),
    ];
    for message in bad {
        tell(&mesh.node("a"), "b", &message);
        mesh.holds(&["a"], Duration::from_secs(6), |live| live.contains_key(&"a".parse().expect("must hold"))).await;
        mesh.wait("a", |live| live.len() == 3).await;
    }
    let mut seed = 1u32;
    let mut packer = Packer::new();
    let spoil = |mut bytes: Vec<u8>, seed: &mut u32| {
        for _ in 0..3 {
            *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = *seed as usize / 7 % bytes.len();
            bytes[at] = (*seed >> 24) as u8;
        }
        bytes
    };
    for round in 0..20_000 {
        let bytes = ack(&about, &[key_value("facts", "y", 5)]).to_vec();
        // Most are spoilt before they are packed, which reaches further.
        let bytes = match round % 4 {
            0 => spoil(packer.pack(&bytes).to_vec(), &mut seed).into(),
            _ => packer.pack(&spoil(bytes, &mut seed)),
        };
        drop(mesh.node("a").receive(address("b"), bytes));
        tokio::task::yield_now().await;
    }
    mesh.wait("a", |live| live.len() == 3).await;
    mesh.node("b").advertise(|facts| facts.commands = 4).await;
    mesh.wait("a", |live| told(live, "b") == Some(4)).await;
    let node = mesh.net.nodes.lock().remove(&address("a")).expect("must hold");
    timeout(Duration::from_secs(5), Arc::into_inner(node).expect("must hold").stop()).await.expect("must hold");
}
