//! A Raft group of several nodes in one process, over a network that can be cut, on disks in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use weft_consensus::disk::{Batch, Disk, MemoryDisk, write_durably};
use weft_consensus::membership::Step;
use weft_consensus::replica::{PeerError, Peers, Replica, Settings};
use weft_consensus::status::Role;
use weft_proto::command::{Command, Found, NodeKeys, Outcome, Proposal, TokenRecord};
use weft_proto::identity::NodeName;
use weft_proto::wire::cluster::{Consensus, ConsensusReply, FollowEvent, FollowRequest};

/// Calls between replicas of this process.
#[derive(Clone, Default)]
struct Wires(Arc<Mutex<Exchange>>);

#[derive(Default)]
struct Exchange {
    replicas: BTreeMap<NodeName, Replica>,
    down: BTreeSet<NodeName>,
}

struct End {
    wires: Wires,
    me: NodeName,
}

impl End {
    fn reach(&self, to: &NodeName) -> Result<Replica, PeerError> {
        let exchange = self.wires.0.lock();
        if exchange.down.contains(to) || exchange.down.contains(&self.me) {
            return Err(PeerError::Unreachable("down".into()));
        }
        exchange.replicas.get(to).cloned().ok_or_else(|| PeerError::Unreachable("not there".into()))
    }
}

impl Peers for End {
    fn call(&self, to: NodeName, request: Consensus) -> BoxFuture<'static, Result<ConsensusReply, PeerError>> {
        let (replica, me) = (self.reach(&to), self.me.clone());
        Box::pin(async move { Ok(replica?.answer(&me, request).await) })
    }

    fn follow(
        &self,
        to: NodeName,
        request: FollowRequest,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<FollowEvent, PeerError>>, PeerError>> {
        let (replica, me) = (self.reach(&to), self.me.clone());
        Box::pin(async move { Ok(replica?.feed(&me, request).map(Ok).boxed()) })
    }
}

struct Node {
    id: u64,
    name: NodeName,
    disk: MemoryDisk,
}

impl Node {
    fn new(id: u64) -> Self {
        Self { id, name: format!("n{id}").parse().expect("name"), disk: MemoryDisk::default() }
    }

    async fn start(&self, wires: &Wires) -> Replica {
        let peers = Arc::new(End { wires: wires.clone(), me: self.name.clone() });
        let settings = Settings {
            snapshot_after: 50,
            keep: 10,
            seeds: vec!["n1".parse().expect("name")],
            ..Settings::new(self.id, self.name.clone())
        };
        let replica = Replica::start(settings, Arc::new(self.disk.clone()), peers).await.expect("started");
        let mut exchange = wires.0.lock();
        exchange.down.remove(&self.name);
        exchange.replicas.insert(self.name.clone(), replica.clone());
        replica
    }

    async fn kill(&self, wires: &Wires) {
        let replica = {
            let mut exchange = wires.0.lock();
            exchange.down.insert(self.name.clone());
            exchange.replicas.remove(&self.name)
        };
        replica.expect("ran").stop().await;
    }
}

fn proposal(n: u64, command: Command) -> Proposal {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&n.to_be_bytes());
    Proposal { key, at: n, command }
}

fn found() -> Proposal {
    let node = NodeKeys { name: "n1".parse().expect("name"), fact_key: [1; 32], seal_key: [2; 32] };
    let trust_domain = "mesh.test".parse().expect("name");
    let found = Found {
        trust_domain,
        deny_by_default: false,
        root_certificate: vec![1],
        node,
        sealed_authority: vec![2],
        version: 1,
    };
    proposal(0, Command::Found(found))
}

fn token(n: u64) -> Proposal {
    let record =
        TokenRecord { id: format!("t{n}"), secret_hash: [0; 32], expires: u64::MAX / 2, uses: 1, services: Vec::new() };
    proposal(n, Command::CreateToken(record))
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn has_token(replica: &Replica, n: u64) -> bool {
    replica.state().borrow().tokens.contains_key(&format!("t{n}"))
}

const BOUND: Duration = Duration::from_secs(15);

async fn commit(replica: &Replica, n: u64) {
    let (_, outcome) = replica.propose(token(n), BOUND).await.expect("decided");
    assert_eq!(outcome, Outcome::Done);
}

#[tokio::test]
async fn a_group_grows_loses_its_leader_and_forgets_nothing() {
    let wires = Wires::default();
    let nodes: Vec<Node> = (1..=4).map(Node::new).collect();
    let first = nodes[0].start(&wires).await;
    first.found(found()).await.expect("founded");
    first.found(found()).await.expect("founding again is harmless");
    let mut replicas = vec![first.clone()];
    for node in &nodes[1..] {
        replicas.push(node.start(&wires).await);
    }
    // More than a snapshot's worth before anyone else votes, so that followers are caught up by one.
    for n in 1..=80 {
        commit(&first, n).await;
    }
    until("everyone follows", || replicas.iter().all(|replica| has_token(replica, 80))).await;
    let grow = |ids: [u64; 2]| Step::Add(ids.map(|id| (id, format!("n{id}").parse().expect("name"))).to_vec());
    first.change_voters(grow([2, 3])).await.expect("three voters");
    commit(&replicas[3], 81).await;
    until("the replica sees its own write", || has_token(&replicas[3], 81)).await;

    nodes[0].kill(&wires).await;
    commit(&replicas[1], 82).await;
    commit(&replicas[3], 83).await;
    until("a replica follows another voter", || has_token(&replicas[3], 83)).await;

    replicas[0] = nodes[0].start(&wires).await;
    until("the killed one catches up", || has_token(&replicas[0], 83)).await;
    let digests = || replicas.iter().map(|replica| replica.state().borrow().digest()).collect::<BTreeSet<_>>();
    until("all states are equal", || digests().len() == 1).await;
    let leads = |replica: &&Replica| replica.status().borrow().role == Role::Leader;
    let leader = replicas.iter().find(leads).expect("someone leads");
    let index = leader.read_index(BOUND).await.expect("readable");
    assert!(replicas[3].read_index(BOUND).await.expect("readable from a replica") >= index);
    for node in &nodes {
        node.kill(&wires).await;
    }
    for (n, node) in nodes.iter().enumerate() {
        replicas[n] = node.start(&wires).await;
    }
    for replica in &replicas {
        assert!((1..=83).all(|n| has_token(replica, n)), "everything is there before anyone is asked");
    }
    commit(&replicas[2], 84).await;
}

#[tokio::test]
async fn a_leader_that_is_not_heard_is_none() {
    let wires = Wires::default();
    let nodes: Vec<Node> = (1..=3).map(Node::new).collect();
    let first = nodes[0].start(&wires).await;
    first.found(found()).await.expect("founded");
    let others = [nodes[1].start(&wires).await, nodes[2].start(&wires).await];
    commit(&first, 1).await;
    until("everyone follows", || others.iter().all(|replica| has_token(replica, 1))).await;
    let step = Step::Add([2, 3].map(|id| (id, format!("n{id}").parse().expect("name"))).to_vec());
    first.change_voters(step).await.expect("three voters");
    let leader = |replica: &Replica| replica.status().borrow().leader.clone();
    until("all know the leader", || others.iter().chain([&first]).all(|replica| leader(replica).is_some())).await;
    // Alone it leads nobody, and knows it; the others have another.
    wires.0.lock().down.insert("n1".parse().expect("a name"));
    until("the one that is cut off leads no more", || {
        leader(&first).is_none() && first.status().borrow().role != Role::Leader
    })
    .await;
    assert!(first.status().borrow().leaderless_since.is_some_and(|since| since.elapsed() >= Duration::from_secs(2)));
    until("the others have another leader", || {
        others.iter().all(|replica| leader(replica).is_some_and(|name| name.as_str() != "n1"))
    })
    .await;
    wires.0.lock().down.insert("n2".parse().expect("a name"));
    until("nobody leads", || others.iter().all(|replica| leader(replica).is_none())).await;
    wires.0.lock().down.clear();
    until("all have a leader again", || others.iter().chain([&first]).all(|replica| leader(replica).is_some())).await;
    commit(&others[1], 2).await;
}

#[tokio::test]
async fn a_retry_applies_once() {
    let wires = Wires::default();
    let replica = Node::new(1).start(&wires).await;
    replica.found(found()).await.expect("founded");
    let (first, outcome) = replica.propose(token(1), BOUND).await.expect("decided");
    let (_, again) = replica.propose(token(1), BOUND).await.expect("decided");
    assert_eq!(outcome, again);
    let state = replica.state().borrow().clone();
    assert_eq!(state.recent.iter().filter(|answer| answer.index == first).count(), 1);
    assert_eq!(state.tokens.len(), 1);
}

#[tokio::test]
async fn a_damaged_disk_is_refused() {
    let wires = Wires::default();
    let node = Node::new(1);
    let replica = node.start(&wires).await;
    replica.found(found()).await.expect("founded");
    for n in 1..=120 {
        commit(&replica, n).await;
    }
    node.kill(&wires).await;
    let everything = node.disk.scan(&[0], &[255], usize::MAX).expect("scanned");
    assert!(everything.iter().any(|(key, _)| key.starts_with(b"s/c/")), "a snapshot was written");
    for (key, value) in everything {
        let mut harm = Batch::new();
        let mut flipped = value.clone();
        let at = flipped.len() / 2;
        flipped[at] ^= 0x40;
        harm.put(key.clone(), flipped);
        write_durably(&node.disk, harm).await.expect("written");
        let peers = Arc::new(End { wires: wires.clone(), me: node.name.clone() });
        let settings = Settings::new(node.id, node.name.clone());
        let started = Replica::start(settings, Arc::new(node.disk.clone()), peers).await;
        assert!(started.is_err(), "{} was changed and nobody noticed", key.escape_ascii());
        let mut mend = Batch::new();
        mend.put(key, value);
        write_durably(&node.disk, mend).await.expect("written");
    }
}
