//! Facts travel by gossip: each is owned by its node alone, signed by it, and believed by nobody
//! before the signature was verified against the key with which the mesh admitted that node.
//!
//! chitchat spreads the records and tells who is alive. It trusts its members, and Weft does not
//! trust it: `vet` checks messages before it sees them, `records` checks facts after. One task
//! keeps it running; when it dies, or when others have spoken in this node's name, it starts again
//! under a later generation with the same facts.

mod keeper;
mod packed;
mod parts;
mod records;
mod transport;
mod vet;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use weft_proto::facts::{Live, NodeFacts};
use weft_proto::identity::NodeName;
use weft_proto::{RaftId, UnixMillis};

use keeper::Keeper;
use parts::FACTS_BYTES_MAX;
use transport::{Inbox, Letter, Outboxes};

/// Port: carries gossip to other nodes over authenticated links.
pub trait GossipLink: Send + Sync + 'static {
    /// Sends one message of at most 66 KiB to the node that advertises `to` and brings back what it
    /// [answers](Gossip::receive), nothing where that is empty. Given up after 5 s.
    fn send(&self, to: SocketAddr, message: Bytes) -> BoxFuture<'static, io::Result<Bytes>>;
}

/// Signs with the node's fact key.
pub trait Signer: Send + Sync {
    /// The Ed25519 signature of encoded facts.
    fn sign(&self, facts: &[u8]) -> Vec<u8>;
}

/// Judges signatures by the replicated state.
pub trait Verifier: Send + Sync {
    /// Whether the node of this name was admitted under this Raft id with the key that signed.
    fn verify(&self, name: &NodeName, raft_id: RaftId, facts: &[u8], signature: &[u8]) -> bool;

    /// Whether the node of this name is still admitted under this Raft id. Asked of everyone all the time: no signature is
    /// checked again.
    fn stays(&self, _name: &NodeName, _raft_id: RaftId) -> bool {
        true
    }

    /// Whether a node of this name was admitted. Others are not even remembered, so that a
    /// member who invents names can't crowd out real ones.
    fn admitted(&self, _name: &NodeName) -> bool {
        true
    }
}

/// What gossip needs to know when it starts.
#[derive(Debug, Clone)]
pub struct GossipSettings {
    /// This node's name.
    pub name: NodeName,
    /// This node's Raft node id.
    pub raft_id: RaftId,
    /// The mesh; messages of another one are refused.
    pub trust_domain: String,
    /// Where other nodes reach this one.
    pub address: SocketAddr,
    /// Wall clock of the process' start. Later lives of the same process count on from it.
    pub generation: UnixMillis,
    /// `host:port` of nodes to begin with; names are resolved again every minute.
    pub seeds: Vec<String>,
    /// What other nodes said before this process began. They are live until they have had time to be heard.
    pub remembered: BTreeMap<NodeName, NodeFacts>,
    /// Time between rounds. A node is no longer live about ten rounds after it was last heard of.
    pub interval: Duration,
}

impl GossipSettings {
    /// The interval unless one is configured.
    pub const INTERVAL: Duration = Duration::from_millis(300);
}

/// Verified facts of the live nodes, this one included.
pub type LiveFacts = Arc<Live>;

/// The running gossip of one node. Dropping it ends it without a farewell, as a crash does.
pub struct Gossip {
    own: Arc<watch::Sender<NodeFacts>>,
    live: watch::Receiver<LiveFacts>,
    inbound: mpsc::Sender<Letter>,
    /// Bytes of the own facts, where they are more than gossip carries; else 0.
    too_large: Arc<AtomicUsize>,
    stop: oneshot::Sender<()>,
    keeper: JoinHandle<()>,
}

impl Gossip {
    /// Starts to gossip `facts`, whose name, Raft id and generation are those of the settings.
    ///
    /// # Errors
    /// Fails when the facts are larger than gossip can carry.
    #[expect(clippy::unused_async, reason = "it spawns, and so must be called within a runtime")]
    pub async fn start(
        settings: GossipSettings,
        link: Arc<dyn GossipLink>,
        signer: Arc<dyn Signer>,
        verifier: Arc<dyn Verifier>,
        mut facts: NodeFacts,
    ) -> io::Result<Self> {
        facts.name = settings.name.clone();
        facts.raft_id = settings.raft_id;
        facts.generation = settings.generation;
        let sealed = records::seal(&facts, &*signer);
        if sealed.len() > FACTS_BYTES_MAX {
            let problem = format!("the facts of node {} take {} bytes of {FACTS_BYTES_MAX}", facts.name, sealed.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem + ": run fewer services on it"));
        }
        let remembered = settings.remembered.iter().map(|(name, facts)| (name.clone(), Arc::new(facts.clone())));
        let mut first: Live = remembered.collect();
        first.insert(facts.name.clone(), Arc::new(facts.clone()));
        let (live, live_receiver) = watch::channel(Arc::new(first));
        let own = Arc::new(watch::Sender::new(facts));
        let (inbound, inbox) = Inbox::new();
        let (stop, stopped) = oneshot::channel();
        let outboxes = Outboxes::new(link, inbound.clone());
        let keeper = Keeper::new(settings, (signer, verifier), (inbox, outboxes), Arc::clone(&own), live);
        let too_large = keeper.too_large();
        let keeper = tokio::spawn(keeper.run(stopped));
        Ok(Self { own, live: live_receiver, inbound, too_large, stop, keeper })
    }

    /// Takes a message that an authenticated member sent; `from` is the address that it advertises. What is to be
    /// answered goes back the way on which the message came: empty where that is nothing, and when too many messages
    /// wait.
    pub fn receive(&self, from: SocketAddr, message: Bytes) -> impl Future<Output = Bytes> + use<> {
        let (answer, answered) = oneshot::channel();
        if self.inbound.try_send(Letter { from, message, answer: Some(answer) }).is_err() {
            metrics::counter!("weft_gossip_dropped_total", "direction" => "in").increment(1);
        }
        async { tokio::time::timeout(ANSWER_TIME_MAX, answered).await.ok().and_then(Result::ok).unwrap_or_default() }
    }

    /// Changes what this node says about itself. Changes in quick succession travel as one; the
    /// name, ids and sequence are not the caller's to change.
    #[expect(clippy::unused_async, reason = "callers need not care where the signing happens")]
    pub async fn advertise(&self, change: impl FnOnce(&mut NodeFacts)) {
        self.own.send_if_modified(|facts| {
            let mut next = facts.clone();
            change(&mut next);
            next.name.clone_from(&facts.name);
            next.raft_id = facts.raft_id;
            next.generation = facts.generation;
            next.sequence = facts.sequence;
            if next == *facts {
                return false;
            }
            next.sequence += 1;
            *facts = next;
            true
        });
    }

    /// Verified facts of the live nodes, this one included; a node absent from it is not live.
    pub fn live(&self) -> watch::Receiver<LiveFacts> {
        self.live.clone()
    }

    /// What is wrong where this node's facts are larger than gossip carries, and others see its former ones.
    pub fn too_large(&self) -> Option<String> {
        let bytes = self.too_large.load(Ordering::Relaxed);
        let text = || {
            format!(
                "what this node tells of its instances takes {bytes} bytes, and gossip carries {FACTS_BYTES_MAX}: others see what it was before; run fewer services on it"
            )
        };
        (bytes > 0).then(text)
    }

    /// Ends it. Other nodes notice as if this one had died: say so first, by draining.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.keeper.await;
    }
}

/// Bound on the time that chitchat takes to answer; it takes well under a millisecond unless it is ending.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
