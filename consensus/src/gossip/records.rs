//! Which facts are believed: signed by the node that they are about, and never older than what it
//! said before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use chitchat::ChitchatId;
use prost::Message as _;
use tokio::time::Instant;
use weft_proto::facts::{Live, NodeFacts};
use weft_proto::identity::NodeName;
use weft_proto::planted::{Bug, planted};
use weft_proto::wire::mesh as wire;

use super::{Signer, Verifier};

/// Signs `facts` and writes them as the value of a chitchat key.
pub(super) fn seal(facts: &NodeFacts, signer: &dyn Signer) -> String {
    let facts = wire::NodeFacts::from(facts.clone()).encode_to_vec();
    let signature = signer.sign(&facts);
    let signed = wire::SignedFacts { facts: facts.into(), signature: signature.into() };
    STANDARD_NO_PAD.encode(signed.encode_to_vec())
}

/// Reads a value that chitchat holds for `id`; `None` unless that node signed it in that life.
pub(super) fn unseal(id: &ChitchatId, value: &str, verifier: &dyn Verifier) -> Option<NodeFacts> {
    let signed = wire::SignedFacts::decode(&STANDARD_NO_PAD.decode(value).ok()?[..]).ok()?;
    let facts = NodeFacts::try_from(wire::NodeFacts::decode(&signed.facts[..]).ok()?).ok()?;
    let own = facts.name.as_str() == &*id.node_id && facts.generation == id.generation_id;
    let verified = own && verifier.verify(&facts.name, facts.raft_id, &signed.facts, &signed.signature);
    verified.then_some(facts)
}

/// The newest verified facts of every node that was heard of.
#[derive(Default)]
pub(super) struct Records {
    believed: BTreeMap<NodeName, Record>,
    refused: BTreeMap<ChitchatId, String>,
}

struct Record {
    facts: Arc<NodeFacts>,
    /// The value that was verified, and under which id: it is verified once, not every round.
    id: ChitchatId,
    value: String,
    /// When its node was last seen to say something new.
    advanced: Option<Instant>,
}

/// What became of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    /// Its node's newest facts, now or before.
    Believed,
    /// Older than what its node said before.
    Old,
    /// Refused, as it was before.
    RefusedAgain,
    /// Refused for the first time.
    Refused,
}

impl Records {
    /// Considers the value that chitchat holds for `id`. A refused one is judged again each time:
    /// the replicated state that admits its node may not have arrived yet.
    pub(super) fn offer(&mut self, id: &ChitchatId, value: &str, verifier: &dyn Verifier) -> Offer {
        if self.believes(id, value) {
            return Offer::Believed;
        }
        let Some(facts) = unseal(id, value, verifier) else {
            let before = self.refused.insert(id.clone(), value.to_owned());
            return if before.as_deref() == Some(value) { Offer::RefusedAgain } else { Offer::Refused };
        };
        self.refused.remove(id);
        let newest = self.believed.get(&facts.name).map(|record| (record.facts.generation, record.facts.sequence));
        if newest > Some((facts.generation, facts.sequence)) {
            return Offer::Old;
        }
        // The first record may be a dead node's last words; a newer one shows that it lives.
        let advanced = newest.map(|_| Instant::now());
        let record = Record { id: id.clone(), value: value.to_owned(), facts: Arc::new(facts), advanced };
        self.believed.insert(record.facts.name.clone(), record);
        Offer::Believed
    }

    /// Whether `value` was verified before and is still the newest of its node.
    pub(super) fn believes(&self, id: &ChitchatId, value: &str) -> bool {
        let record = id.node_id.parse::<NodeName>().ok().and_then(|name| self.believed.get(&name));
        record.is_some_and(|record| record.id == *id && record.value == value)
    }

    /// Whether a node has said anything that is believed.
    pub(super) fn knows(&self, name: &NodeName) -> bool {
        self.believed.contains_key(name)
    }

    /// The newest generation that each node has signed.
    pub(super) fn generations(&self) -> impl Iterator<Item = (&NodeName, u64)> {
        self.believed.iter().map(|(name, record)| (name, record.facts.generation))
    }

    /// Drops what those have said who are no longer admitted so.
    pub(super) fn judge_again(&mut self, verifier: &dyn Verifier) {
        self.believed.retain(|name, record| verifier.stays(name, record.facts.raft_id));
    }

    /// Drops what was refused of members that chitchat has forgotten.
    pub(super) fn retain_refused(&mut self, mut in_chitchat: impl FnMut(&ChitchatId) -> bool) {
        self.refused.retain(|id, _| in_chitchat(id));
    }

    /// Facts of the nodes named in `alive`, and of those that said something new within `fresh`:
    /// heartbeats can be forged so as to hide a node's own, signatures can't.
    pub(super) fn live(&self, alive: &BTreeSet<NodeName>, fresh: Duration) -> Live {
        let lives = |name: &NodeName, record: &Record| {
            planted(Bug::DeadStayLive)
                || alive.contains(name)
                || record.advanced.is_some_and(|advanced| advanced.elapsed() < fresh)
        };
        self.believed
            .iter()
            .filter(|(name, record)| lives(name, record))
            .map(|(name, record)| (name.clone(), record.facts.clone()))
            .collect()
    }
}
