//! The signing side of certificates: admission is checked and recorded by the log, then the authority signs.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use weft_consensus::replica::Replica;
use weft_consensus::state::State;
use weft_proto::command::{CertificateRecord, Command, KEY_LENGTH, Outcome, Proposal};
use weft_proto::facts::Live;
use weft_proto::identity::{Identity, NodeName};
use weft_proto::service::ServiceName;

use crate::authority::{Authority, BACKDATE_MS, LEAF_LIFETIME_MS, check_request, serial};
use crate::keys::{Keys, seal};
use crate::world::{World, random};

/// Bound on the log's decision about one certificate.
const DECISION_TIMEOUT: Duration = Duration::from_secs(10);

/// Signs for the mesh where this node holds the authority's key.
pub struct Issuer<W> {
    world: W,
    me: NodeName,
    keys: Arc<Keys>,
    replica: Replica,
    /// The authority, and what it was opened from: it may be another one some day.
    opened: Mutex<Option<Opened>>,
}

struct Opened {
    sealed: Vec<u8>,
    root: Vec<u8>,
    authority: Arc<Authority>,
}

impl<W: World> Issuer<W> {
    /// An issuer of this node.
    pub fn new(world: W, me: NodeName, keys: Arc<Keys>, replica: Replica) -> Self {
        Self { world, me, keys, replica, opened: Mutex::new(None) }
    }

    /// The authority, where this node was given its key.
    pub fn authority(&self) -> Option<Arc<Authority>> {
        let state = self.replica.state().borrow().clone();
        let (sealed, root) = (state.sealed_authority.get(&self.me)?, state.roots.last()?);
        let mut opened = self.opened.lock();
        if let Some(opened) = opened.as_ref().filter(|opened| opened.sealed == *sealed && opened.root == *root) {
            return Some(opened.authority.clone());
        }
        let secret = self.keys.open(sealed).inspect_err(|error| tracing::error!(%error, "the authority's key")).ok()?;
        let authority = Authority::from_parts(root, &secret);
        let authority = authority.inspect_err(|error| tracing::error!(%error, "the authority's key")).ok()?;
        let authority = Arc::new(authority);
        *opened = Some(Opened { sealed: sealed.clone(), root: root.clone(), authority: authority.clone() });
        Some(authority)
    }

    /// Issues a certificate to a node: checks, records, signs. Answers the chain, leaf first, root last.
    pub async fn issue(
        &self,
        node: &NodeName,
        identity: &str,
        csr: &[u8],
        key: [u8; KEY_LENGTH],
    ) -> Result<Vec<Vec<u8>>, String> {
        let authority = self.authority().ok_or("this node does not hold the authority's key; ask a voter")?;
        let identity: Identity = identity.parse().map_err(|error| format!("{error}"))?;
        let certified = check_request(csr).map_err(|error| format!("the signing request is not good: {error}"))?;
        if matches!(identity, Identity::Node { .. }) {
            let state = self.replica.state().borrow().clone();
            let admitted = state.nodes.get(node).map(|record| record.keys.fact_key);
            if admitted.is_none_or(|key| key[..] != certified[..]) {
                return Err("a node's own certificate is for the key that it was admitted with".into());
            }
        }
        let now = self.world.now();
        let record = CertificateRecord {
            node: node.clone(),
            identity,
            serial: serial(key),
            not_before: now.saturating_sub(BACKDATE_MS),
            not_after: now + LEAF_LIFETIME_MS,
        };
        let proposal = Proposal { key, at: now, command: Command::RecordCertificate(record.clone()) };
        match self.replica.propose(proposal, DECISION_TIMEOUT).await {
            Ok((_, Outcome::Refused(refusal))) => Err(refusal.detail),
            Ok(_) => {
                let services = self.services(&record);
                let leaf = authority.sign(csr, &record, &services).map_err(|error| error.to_string())?;
                Ok(vec![leaf.to_vec(), authority.root().to_vec()])
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// The services that the node runs under the identity.
    fn services(&self, record: &CertificateRecord) -> Vec<ServiceName> {
        let Identity::Service { service: account, .. } = &record.identity else { return Vec::new() };
        let state = self.replica.state().borrow().clone();
        let run = state
            .services
            .iter()
            .filter(|(_, known)| known.account == *account && known.declared.contains_key(&record.node));
        run.map(|(name, _)| name.clone()).collect()
    }

    /// The next grant of the authority's key that is due: to a voter that does not hold it yet; and where there is one
    /// voter, to the oldest of the other nodes that live, so that the key does not end with one host.
    pub fn grant_due(&self, state: &State, voters: &[NodeName], live: &Live) -> Option<Proposal> {
        let holds = |node: &NodeName| state.sealed_authority.contains_key(node);
        let voter = voters.iter().find(|voter| state.nodes.contains_key(*voter) && !holds(voter));
        let oldest = || {
            let others = state.nodes.iter().filter(|(name, _)| live.contains_key(*name) && !holds(name));
            others.min_by_key(|(_, record)| record.raft_id).map(|(name, _)| name)
        };
        let alone = voters.len() == 1 && state.sealed_authority.len() == 1;
        let node = voter.or_else(|| if alone { oldest() } else { None })?;
        let seal_key = &state.nodes.get(node)?.keys.seal_key;
        let sealed = seal(seal_key, &self.authority()?.secret());
        let sealed = sealed.inspect_err(|error| tracing::error!(%error, %node, "sealing the authority's key")).ok()?;
        Some(self.proposal(Command::GrantAuthority { node: node.clone(), sealed }))
    }

    /// A proposal of that command, made now.
    pub fn proposal(&self, command: Command) -> Proposal {
        Proposal { key: random(&self.world), at: self.world.now(), command }
    }
}
