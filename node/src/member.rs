//! Becoming a node: from the disk, by making a mesh, or by joining one.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use prost::Message;
use weft_consensus::disk::{Batch, write_durably};
use weft_consensus::replica::Replica;
use weft_proto::command::{CertificateRecord, Command, Found, Proposal, VERSION};
use weft_proto::identity::{Identity, NodeName, TrustDomain};
use weft_proto::{RaftId, wire};

use crate::authority::{self, Authority, BACKDATE_MS, LEAF_LIFETIME_MS};
use crate::config::{Config, Start};
use crate::join::{self, JoinError, Joined};
use crate::keys::{Keys, seal};
use crate::start_error::StartError;
use crate::store::{NodeIdentity, Store, Svid};
use crate::world::{World, random};

const FOUNDING_KEY: &[u8] = b"n/founding";

/// Who this node is: from its disk, or by making or joining a mesh, which its disk then remembers.
pub(crate) async fn become_member<W: World>(
    config: &Config,
    world: &W,
    store: &Store,
    address: SocketAddr,
) -> Result<NodeIdentity, StartError> {
    let resumed = store.node().map_err(|error| StartError::Corrupt(error.to_string()))?;
    match (&config.start, resumed) {
        (Start::Found { unless_done: false, .. }, Some(node)) => {
            Err(StartError::Founded { node: node.name, mesh: node.trust_domain })
        }
        (_, Some(node)) => match &config.name {
            Some(name) if *name != node.name => Err(StartError::Renamed { node: node.name, name: name.clone() }),
            _ => Ok(node),
        },
        (Start::Resume, None) => Err(StartError::Empty),
        (Start::Found { trust_domain, deny_by_default, .. }, None) => {
            let name = new_name(config)?;
            found(world, store, name, trust_domain.clone(), *deny_by_default, address).await
        }
        (Start::Join { line }, None) => {
            let name = new_name(config)?;
            let joined = ask_to_join(world, store, &name, line).await?;
            let mut peers: BTreeMap<NodeName, String> =
                joined.peers.iter().map(|(name, address)| (name.clone(), address.to_string())).collect();
            peers.insert(name, address.to_string());
            store.found(&joined.node, &joined.svid, &peers).await?;
            Ok(joined.node)
        }
    }
}

fn new_name(config: &Config) -> Result<NodeName, StartError> {
    config.name.as_ref().or(config.host_name.as_ref()).cloned().ok_or(StartError::Nameless)
}

/// Asks with the keys of an earlier attempt whose answer was lost: it may have been admitted.
async fn ask_to_join<W: World>(world: &W, store: &Store, name: &NodeName, line: &str) -> Result<Joined, StartError> {
    join::read_line(line)?;
    let keys = match store.joining(name).map_err(|error| StartError::Corrupt(error.to_string()))? {
        Some(keys) => keys,
        None => {
            let keys = Keys::generate(world)?;
            store.keep_joining(name, &keys).await?;
            keys
        }
    };
    match join::join(world, name, keys, line).await {
        Ok(joined) => Ok(joined),
        Err(error @ JoinError::Refused(_)) => {
            store.forget_joining().await?;
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Makes the root, the first node's identity and the proposal that founds the mesh; all on disk before any is used.
async fn found<W: World>(
    world: &W,
    store: &Store,
    name: NodeName,
    trust_domain: TrustDomain,
    deny_by_default: bool,
    address: SocketAddr,
) -> Result<NodeIdentity, StartError> {
    let now = world.now();
    let keys = Keys::generate(world)?;
    let authority = Authority::create(&trust_domain, random(world), now)?;
    let identity = Identity::node(trust_domain.clone(), name.clone());
    let (csr, key) = authority::request_of(&keys.pkcs8()?)?;
    let record = CertificateRecord {
        node: name.clone(),
        identity: identity.clone(),
        serial: authority::serial(random(world)),
        not_before: now.saturating_sub(BACKDATE_MS),
        not_after: now + LEAF_LIFETIME_MS,
    };
    let chain = vec![authority.sign(&csr, &record, &[])?.to_vec(), authority.root().to_vec()];
    let public = keys.public(&name);
    let founded = Found {
        trust_domain: trust_domain.clone(),
        deny_by_default,
        root_certificate: authority.root().to_vec(),
        sealed_authority: seal(&public.seal_key, &authority.secret())?,
        node: public,
        version: VERSION,
    };
    let proposals = [Command::Found(founded), Command::RecordCertificate(record)]
        .map(|command| wire::mesh::Proposal::from(Proposal { key: random(world), at: now, command }));
    let mut batch = Batch::new();
    let [first, second] = proposals.map(|proposal| proposal.encode_length_delimited_to_vec());
    batch.put(FOUNDING_KEY.to_vec(), [first, second].concat());
    write_durably(&*world.disk(), batch).await?;
    let roots = vec![authority.root().to_vec()];
    let node = NodeIdentity { name: name.clone(), raft_id: FIRST_RAFT_ID, trust_domain, roots, keys };
    store.found(&node, &Svid { identity, key, chain }, &BTreeMap::from([(name, address.to_string())])).await?;
    Ok(node)
}

const FIRST_RAFT_ID: RaftId = 1;

/// The proposals that found the mesh, where that was begun and not finished.
pub(crate) fn read_founding<W: World>(world: &W) -> Result<Vec<Proposal>, StartError> {
    let Some(bytes) = world.disk().read(FOUNDING_KEY)? else { return Ok(Vec::new()) };
    let mut rest = bytes.as_slice();
    let mut proposals = Vec::new();
    while !rest.is_empty() {
        let message = wire::mesh::Proposal::decode_length_delimited(&mut rest);
        let message = message.map_err(|error| StartError::Corrupt(format!("the founding record: {error}")))?;
        proposals
            .push(message.try_into().map_err(|error| StartError::Corrupt(format!("the founding record: {error}")))?);
    }
    Ok(proposals)
}

pub(crate) async fn finish_founding<W: World>(
    world: &W,
    replica: &Replica,
    proposals: Vec<Proposal>,
) -> Result<(), StartError> {
    let mut proposals = proposals.into_iter();
    let Some(first) = proposals.next() else { return Ok(()) };
    replica.found(first).await.map_err(|error| StartError::Consensus(error.to_string()))?;
    for proposal in proposals {
        let bound = std::time::Duration::from_secs(10);
        replica.propose(proposal, bound).await.map_err(|error| StartError::Consensus(error.to_string()))?;
    }
    let mut batch = Batch::new();
    batch.delete(FOUNDING_KEY.to_vec());
    Ok(write_durably(&*world.disk(), batch).await?)
}
