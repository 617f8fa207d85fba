//! What a node tells the mesh about itself, and whom it believes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;
use weft_consensus::gossip::{Signer, Verifier};
use weft_consensus::state::State;
use weft_proto::RaftId;
use weft_proto::identity::{Identity, NodeName};

use crate::keys::{Keys, verify};
use crate::start::Node;
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

    fn admitted(&self, name: &NodeName) -> bool {
        let state = self.0.borrow().clone();
        // Before the first state has arrived nobody can be told apart; facts are still believed only when verified.
        state.trust_domain.is_none() || state.nodes.contains_key(name)
    }
}

/// Tells the mesh what changes here, and the certificates' keeper which services run here.
pub(crate) async fn advertise<W: World>(node: Arc<Node<W>>, wanted: watch::Sender<BTreeSet<Identity>>) {
    let (mut states, mut locals) = (node.replica.state(), node.local.subscribe());
    let (mut enforced, mut expires, mut status) = (node.enforced.clone(), node.expires.clone(), node.replica.status());
    loop {
        let state = states.borrow_and_update().clone();
        let local = locals.borrow_and_update().clone();
        let (enforcing, ends) = (enforced.borrow_and_update().clone(), *expires.borrow_and_update());
        let voter = status.borrow_and_update().voters.contains(node.name());
        let identities = local.identities(&state, node.trust_domain());
        wanted.send_if_modified(|before| std::mem::replace(before, identities.clone()) != identities);
        let instances = local.instances(&state);
        node.gossip
            .advertise(move |facts| {
                facts.instances = instances;
                facts.enforced = enforcing.index;
                facts.refused = enforcing.refused;
                facts.certificate_expires = ends;
                facts.voter = voter;
            })
            .await;
        let ended = tokio::select! {
            biased;
            changed = states.changed() => changed.is_err(),
            changed = locals.changed() => changed.is_err(),
            changed = enforced.changed() => changed.is_err(),
            changed = expires.changed() => changed.is_err(),
            changed = status.changed() => changed.is_err(),
        };
        if ended {
            return;
        }
    }
}

/// Keeps the address book in step with gossip, and on disk for the next start.
pub(crate) async fn remember_peers<W: World>(node: Arc<Node<W>>, store: Store) {
    let mut live = node.gossip.live();
    let mut kept = BTreeMap::new();
    loop {
        let facts = live.borrow_and_update().clone();
        node.book.learn_all(&facts);
        let all: BTreeMap<NodeName, String> =
            node.book.all().into_iter().map(|(name, address)| (name, address.to_string())).collect();
        if all != kept {
            match store.keep_peers(&all).await {
                Ok(()) => kept = all,
                Err(error) => tracing::warn!(%error, "the peers' addresses could not be kept"),
            }
        }
        if live.changed().await.is_err() {
            return;
        }
    }
}
