//! What a node tells the mesh about itself, and whom it believes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use weft_consensus::gossip::{Gossip, GossipSettings, Signer, Verifier};
use weft_consensus::replica::Replica;
use weft_consensus::state::State;
use weft_proto::RaftId;
use weft_proto::facts::NodeFacts;
use weft_proto::identity::{Identity, NodeName, TrustDomain};
use weft_proxy::tls::Admission;

use crate::book::Book;
use crate::control::GossipLinks;
use crate::keys::{Keys, verify};
use crate::node::Node;
use crate::start_error::StartError;
use crate::store::Store;
use crate::world::World;

/// Signs this node's facts.
pub(crate) struct FactSigner(pub(crate) Arc<Keys>);

impl Signer for FactSigner {
    fn sign(&self, facts: &[u8]) -> Vec<u8> {
        self.0.sign(facts)
    }
}

/// Believes facts that the admitted holder of the name has signed.
pub(crate) struct Admitted(pub(crate) watch::Receiver<Arc<State>>);

impl Verifier for Admitted {
    fn verify(&self, name: &NodeName, raft_id: RaftId, facts: &[u8], signature: &[u8]) -> bool {
        let state = self.0.borrow().clone();
        let record = state.nodes.get(name).filter(|record| record.raft_id == raft_id);
        record.is_some_and(|record| verify(&record.keys.fact_key, facts, signature))
    }

    fn stays(&self, name: &NodeName, raft_id: RaftId) -> bool {
        let state = self.0.borrow().clone();
        state.trust_domain.is_none() || state.nodes.get(name).is_some_and(|record| record.raft_id == raft_id)
    }

    fn admitted(&self, name: &NodeName) -> bool {
        let state = self.0.borrow().clone();
        // Before the first state has arrived nobody can be told apart; facts are still believed only when verified.
        state.trust_domain.is_none() || state.nodes.contains_key(name)
    }
}

/// By the replicated state. Of a node that it does not know a valid certificate must do: it may come with a newer one.
pub(crate) fn admission(replica: &Replica) -> Admission {
    let states = replica.state();
    Box::new(move |name, key| {
        let state = states.borrow();
        state.nodes.get(name).map(|record| record.keys.fact_key[..] == *key)
    })
}

/// What gossip begins with.
pub(crate) struct Ears<'a, W: World> {
    pub(crate) world: &'a W,
    pub(crate) store: &'a Store,
    pub(crate) book: &'a Book,
    /// Where others reach this node.
    pub(crate) address: SocketAddr,
    pub(crate) keys: Arc<Keys>,
}

impl<W: World> Ears<'_, W> {
    /// Begins to gossip, with what was known when the process before this one ended.
    pub(crate) async fn open(
        self,
        trust_domain: &TrustDomain,
        facts: NodeFacts,
        links: GossipLinks<W::Net>,
        replica: &Replica,
    ) -> Result<Gossip, StartError> {
        let said = self.store.facts().map_err(|error| StartError::Corrupt(error.to_string()))?;
        let remembered = said.into_iter().filter(|one| one.name != facts.name).map(|one| (one.name.clone(), one));
        let others = self.book.all().into_iter().filter(|(seed, _)| *seed != facts.name);
        let settings = GossipSettings {
            name: facts.name.clone(),
            raft_id: facts.raft_id,
            trust_domain: trust_domain.to_string(),
            address: self.address,
            generation: self.world.now(),
            seeds: others.map(|(_, address)| address.to_string()).collect(),
            remembered: remembered.collect(),
            interval: GossipSettings::INTERVAL,
        };
        let (signer, verifier) = (Arc::new(FactSigner(self.keys)), Arc::new(Admitted(replica.state())));
        Ok(Gossip::start(settings, Arc::new(links), signer, verifier, facts).await?)
    }
}

/// Tells the mesh what changes here, and the certificates' keeper which services run here.
pub(crate) async fn advertise<W: World>(node: Arc<Node<W>>, wanted: watch::Sender<Option<BTreeSet<Identity>>>) {
    let (mut states, mut locals) = (node.replica.state(), node.local.subscribe());
    let mut enforced = node.enforced.clone();
    loop {
        let state = states.borrow_and_update().clone();
        let local = locals.borrow_and_update().clone();
        let refused = enforced.borrow_and_update().refused();
        // Before it is known what runs here nothing is known to run here no more.
        let known = local.read && state.trust_domain.is_some();
        let identities = known.then(|| local.identities(&state, node.trust_domain(), node.name()));
        wanted.send_if_modified(|before| known && std::mem::replace(before, identities.clone()) != identities);
        let instances = local.advertised(&state, node.name());
        node.gossip
            .advertise(move |facts| {
                facts.instances = instances;
                facts.refused = refused;
            })
            .await;
        let ended = tokio::select! {
            biased;
            changed = states.changed() => changed.is_err(),
            changed = locals.changed() => changed.is_err(),
            changed = enforced.changed() => changed.is_err(),
        };
        if ended {
            return;
        }
    }
}

/// Lets go of nodes that were removed from the mesh.
pub(crate) async fn let_go<W: World>(node: Arc<Node<W>>) {
    let mut states = node.replica.state();
    let mut known: BTreeSet<NodeName> = BTreeSet::new();
    loop {
        let state = states.borrow_and_update().clone();
        for name in known.iter().filter(|name| !state.nodes.contains_key(*name) && *name != node.name()) {
            tracing::info!(node = %name, "node was removed from the mesh");
            node.control.forget(name);
        }
        known = state.nodes.keys().cloned().collect();
        if states.changed().await.is_err() {
            return;
        }
    }
}

/// Keeps the address book in step with gossip, and what nodes said on disk for the next start.
pub(crate) async fn remember_peers<W: World>(node: Arc<Node<W>>, store: Store) {
    let mut live = node.gossip.live();
    let (mut kept, mut said) = (BTreeMap::new(), Vec::new());
    let mut heard: BTreeSet<NodeName> = live.borrow().keys().cloned().collect();
    loop {
        let facts = live.borrow_and_update().clone();
        node.book.learn_all(&facts);
        for name in heard.iter().filter(|name| !facts.contains_key(*name)) {
            tracing::warn!(node = %name, "node is not live any more");
        }
        for name in facts.keys().filter(|name| !heard.contains(*name)) {
            tracing::info!(node = %name, "node is live");
        }
        heard = facts.keys().cloned().collect();
        let all: BTreeMap<NodeName, String> =
            node.book.all().into_iter().map(|(name, address)| (name, address.to_string())).collect();
        if all != kept {
            match store.keep_peers(&all).await {
                Ok(()) => kept = all,
                Err(error) => tracing::warn!(%error, "the peers' addresses could not be kept"),
            }
        }
        let lasting: Vec<NodeFacts> =
            facts.values().filter(|facts| facts.name != *node.name()).map(|facts| lasting(facts)).collect();
        // Alone, this node may be the one that is cut off: what it knew is worth more than nothing.
        if lasting != said && !lasting.is_empty() {
            match store.keep_facts(&lasting).await {
                Ok(()) => said = lasting,
                Err(error) => tracing::warn!(%error, "what other nodes said could not be kept"),
            }
        }
        tokio::time::sleep(REMEMBER_PAUSE).await;
        if live.changed().await.is_err() {
            return;
        }
    }
}

/// What of a node's facts is of use to a process that begins later.
fn lasting(facts: &NodeFacts) -> NodeFacts {
    NodeFacts { generation: 0, sequence: 0, refused: String::new(), ..facts.clone() }
}

/// What changes within this is kept together.
const REMEMBER_PAUSE: Duration = Duration::from_millis(500);
