//! The node's own records on its disk, beside the log: who it is, its keys, its certificates, its last known peers.
//!
//! Keys start with `n/`. Each value carries a checksum; a damaged one is an error, never a guess.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use prost::Message;
use weft_consensus::disk::{Batch, Disk, write_durably};
use weft_proto::facts::NodeFacts;
use weft_proto::identity::{Identity, NodeName, TrustDomain};
use weft_proto::resource::ResourceKey;
use weft_proto::wire::mesh as wire;
use weft_proto::{Index, RaftId};

use crate::keys::Keys;

const NODE_KEY: &[u8] = b"n/node";
const JOINING_KEY: &[u8] = b"n/joining";
const PEERS_KEY: &[u8] = b"n/peers";
const FACTS_KEY: &[u8] = b"n/facts";
const SVID_PREFIX: &[u8] = b"n/svid/";
const SVID_END: &[u8] = b"n/svid0";
const SECRET_PREFIX: &[u8] = b"n/secret/";
const SVIDS_MAX: usize = 4096;
const CHECKSUM_LENGTH: usize = 4;

/// Who this node is.
#[derive(Debug)]
pub struct NodeIdentity {
    /// Its name.
    pub name: NodeName,
    /// Its Raft node id.
    pub raft_id: RaftId,
    /// The mesh.
    pub trust_domain: TrustDomain,
    /// Root certificates, DER.
    pub roots: Vec<Vec<u8>>,
    /// Its lasting keys.
    pub keys: Keys,
}

/// A certificate with its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Svid {
    /// Whom it names.
    pub identity: Identity,
    /// Private key, PKCS #8.
    pub key: Vec<u8>,
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
}

/// The records of one disk.
#[derive(Clone)]
pub struct Store {
    disk: Arc<dyn Disk>,
}

#[derive(Message)]
struct NodeRecord {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint64, tag = "2")]
    raft_id: u64,
    #[prost(string, tag = "3")]
    trust_domain: String,
    #[prost(bytes = "vec", repeated, tag = "4")]
    roots: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "5")]
    keys: Vec<u8>,
}

#[derive(Message)]
struct JoiningRecord {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "vec", tag = "2")]
    keys: Vec<u8>,
}

#[derive(Message)]
struct SvidRecord {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    chain: Vec<Vec<u8>>,
}

#[derive(Message)]
struct SecretRecord {
    #[prost(uint64, tag = "1")]
    version: u64,
    #[prost(bytes = "vec", tag = "2")]
    sealed: Vec<u8>,
}

#[derive(Message)]
struct PeersRecord {
    #[prost(btree_map = "string, string", tag = "1")]
    addresses: BTreeMap<String, String>,
}

#[derive(Message)]
struct FactsRecord {
    #[prost(message, repeated, tag = "1")]
    facts: Vec<wire::NodeFacts>,
}

impl Store {
    /// Records on this disk.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk }
    }

    /// Who this node is; none on a fresh disk.
    pub fn node(&self) -> io::Result<Option<NodeIdentity>> {
        let Some(record) = self.read::<NodeRecord>(NODE_KEY)? else { return Ok(None) };
        let damaged = |error: String| io::Error::new(io::ErrorKind::InvalidData, format!("the node's record: {error}"));
        Ok(Some(NodeIdentity {
            name: record.name.parse().map_err(|error| damaged(format!("{error}")))?,
            raft_id: record.raft_id,
            trust_domain: record.trust_domain.parse().map_err(|error| damaged(format!("{error}")))?,
            roots: record.roots,
            keys: Keys::from_bytes(&record.keys).map_err(|error| damaged(error.to_string()))?,
        }))
    }

    /// Records who this node is, together with its first certificate, or not at all.
    pub async fn found(&self, node: &NodeIdentity, svid: &Svid, peers: &BTreeMap<NodeName, String>) -> io::Result<()> {
        let record = NodeRecord {
            name: node.name.to_string(),
            raft_id: node.raft_id,
            trust_domain: node.trust_domain.to_string(),
            roots: node.roots.clone(),
            keys: node.keys.to_bytes(),
        };
        let mut batch = Batch::new();
        batch.put(NODE_KEY.to_vec(), seal(&record));
        batch.delete(JOINING_KEY.to_vec());
        batch.put(svid_key(&svid.identity), seal(&svid_record(svid)));
        batch.put(PEERS_KEY.to_vec(), seal(&peers_record(peers)));
        write_durably(&*self.disk, batch).await
    }

    /// The keys with which a node of this name has asked to join without having been answered.
    pub fn joining(&self, name: &NodeName) -> io::Result<Option<Keys>> {
        let record = self.read::<JoiningRecord>(JOINING_KEY)?.filter(|record| record.name == name.as_str());
        let keys = record.map(|record| Keys::from_bytes(&record.keys)).transpose();
        keys.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
    }

    /// Keeps the keys with which this node asks to join, so that it is known again where the answer is lost.
    pub async fn keep_joining(&self, name: &NodeName, keys: &Keys) -> io::Result<()> {
        let mut batch = Batch::new();
        batch.put(JOINING_KEY.to_vec(), seal(&JoiningRecord { name: name.to_string(), keys: keys.to_bytes() }));
        write_durably(&*self.disk, batch).await
    }

    /// The mesh has refused: nothing is left.
    pub async fn forget_joining(&self) -> io::Result<()> {
        let mut batch = Batch::new();
        batch.delete(JOINING_KEY.to_vec());
        write_durably(&*self.disk, batch).await
    }

    /// Keeps a certificate; it replaces the one of the same identity.
    pub async fn keep_svid(&self, svid: &Svid) -> io::Result<()> {
        let mut batch = Batch::new();
        batch.put(svid_key(&svid.identity), seal(&svid_record(svid)));
        write_durably(&*self.disk, batch).await
    }

    /// Forgets the certificate of an identity that this node no longer runs.
    pub async fn forget_svid(&self, identity: &Identity) -> io::Result<()> {
        let mut batch = Batch::new();
        batch.delete(svid_key(identity));
        write_durably(&*self.disk, batch).await
    }

    /// Every certificate kept.
    pub fn svids(&self) -> io::Result<Vec<Svid>> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a certificate's record is damaged");
        let mut svids = Vec::new();
        for (key, value) in self.disk.scan(SVID_PREFIX, SVID_END, SVIDS_MAX)? {
            let record: SvidRecord = open(&value)?;
            let name = std::str::from_utf8(&key[SVID_PREFIX.len()..]).map_err(|_| damaged())?;
            let identity = name.parse().map_err(|_| damaged())?;
            svids.push(Svid { identity, key: record.key, chain: record.chain });
        }
        Ok(svids)
    }

    /// Keeps what is secret in a version of a document, sealed to this node; it replaces that of another version.
    pub async fn keep_secret(&self, document: &ResourceKey, version: Index, sealed: Vec<u8>) -> io::Result<()> {
        let mut batch = Batch::new();
        batch.put(secret_key(document), seal(&SecretRecord { version, sealed }));
        write_durably(&*self.disk, batch).await
    }

    /// What was kept of that version.
    pub fn secret(&self, document: &ResourceKey, version: Index) -> io::Result<Option<Vec<u8>>> {
        let record: Option<SecretRecord> = self.read(&secret_key(document))?;
        Ok(record.filter(|record| record.version == version).map(|record| record.sealed))
    }

    /// Keeps the addresses at which peers were last known, for the next start.
    pub async fn keep_peers(&self, peers: &BTreeMap<NodeName, String>) -> io::Result<()> {
        let mut batch = Batch::new();
        batch.put(PEERS_KEY.to_vec(), seal(&peers_record(peers)));
        write_durably(&*self.disk, batch).await
    }

    /// The addresses at which peers were last known.
    pub fn peers(&self) -> io::Result<BTreeMap<NodeName, String>> {
        let record: PeersRecord = self.read(PEERS_KEY)?.unwrap_or_default();
        let parsed = record.addresses.into_iter().filter_map(|(name, address)| Some((name.parse().ok()?, address)));
        Ok(parsed.collect())
    }

    /// Keeps what other nodes said last, for the next start.
    pub async fn keep_facts(&self, facts: &[NodeFacts]) -> io::Result<()> {
        let mut batch = Batch::new();
        let facts = facts.iter().cloned().map(Into::into).collect();
        batch.put(FACTS_KEY.to_vec(), seal(&FactsRecord { facts }));
        write_durably(&*self.disk, batch).await
    }

    /// What other nodes said last.
    pub fn facts(&self) -> io::Result<Vec<NodeFacts>> {
        let record: FactsRecord = self.read(FACTS_KEY)?.unwrap_or_default();
        Ok(record.facts.into_iter().filter_map(|facts| facts.try_into().ok()).collect())
    }

    fn read<M: Message + Default>(&self, key: &[u8]) -> io::Result<Option<M>> {
        self.disk.read(key)?.map(|value| open(&value)).transpose()
    }
}

fn svid_key(identity: &Identity) -> Vec<u8> {
    [SVID_PREFIX, identity.to_string().as_bytes()].concat()
}

fn secret_key(document: &ResourceKey) -> Vec<u8> {
    [SECRET_PREFIX, format!("{}/{}", document.namespace, document.name).as_bytes()].concat()
}

fn svid_record(svid: &Svid) -> SvidRecord {
    SvidRecord { key: svid.key.clone(), chain: svid.chain.clone() }
}

fn peers_record(peers: &BTreeMap<NodeName, String>) -> PeersRecord {
    let addresses = peers.iter().map(|(name, address)| (name.to_string(), address.clone())).collect();
    PeersRecord { addresses }
}

fn seal(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    [&crc32fast::hash(&body).to_be_bytes()[..], &body].concat()
}

fn open<M: Message + Default>(value: &[u8]) -> io::Result<M> {
    let damaged = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let (checksum, body) = value.split_at_checked(CHECKSUM_LENGTH).ok_or_else(|| damaged("a record is cut short"))?;
    if crc32fast::hash(body).to_be_bytes() != checksum {
        return Err(damaged("a record does not match its checksum"));
    }
    M::decode(body).map_err(|_| damaged("a record cannot be decoded"))
}
