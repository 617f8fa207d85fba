//! The replicated state: ordered maps, equal on all nodes at an equal index.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;

use prost::Message;
use weft_proto::command::{CertificateRecord, KEY_LENGTH, NodeKeys, Outcome, TokenRecord, VERSION};
use weft_proto::convert::{ConvertError, account, account_of, address};
use weft_proto::identity::{NodeName, TrustDomain};
use weft_proto::resource::{Resource, ResourceKey};
use weft_proto::service::{Grant, Protocol, ServiceName, ServicePort};
use weft_proto::wire::mesh as wire;
use weft_proto::{Index, RaftId, UnixMillis};

/// All that the mesh has decided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// The mesh; none before it was founded.
    pub trust_domain: Option<TrustDomain>,
    /// Whether a call that no ALLOW policy covers is denied.
    pub deny_by_default: bool,
    /// Root certificates, DER; the last one signs.
    pub roots: Vec<Vec<u8>>,
    /// Admitted nodes.
    pub nodes: BTreeMap<NodeName, NodeRecord>,
    /// The authority's key, sealed to each voter that may sign.
    pub sealed_authority: BTreeMap<NodeName, Vec<u8>>,
    /// Join tokens by id.
    pub tokens: BTreeMap<String, Token>,
    /// Declared services.
    pub services: BTreeMap<ServiceName, ServiceRecord>,
    /// Documents.
    pub resources: BTreeMap<ResourceKey, Arc<Resource>>,
    /// Certificates that may still be valid, by serial number.
    pub certificates: BTreeMap<Vec<u8>, CertificateRecord>,
    /// Answers of the newest proposals, oldest first, so that a retry gets the same.
    pub recent: VecDeque<Answer>,
    /// The next Raft node id to give.
    pub raft_id_next: RaftId,
    /// The wall clock of whoever proposed last.
    pub clock: UnixMillis,
    /// Index of the last log entry applied.
    pub index: Index,
    /// The version of the commands that every admitted node knows.
    pub version: u32,
    /// Addresses of services that went not long ago: they are given to no other one yet.
    pub freed: BTreeMap<Ipv4Addr, Freed>,
    /// Certificates that are not to be trusted before they end, by serial number, and when they end.
    pub revoked: BTreeMap<Vec<u8>, UnixMillis>,
}

/// An address that a service had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freed {
    /// The service.
    pub service: ServiceName,
    /// When it went.
    pub at: UnixMillis,
}

/// An admitted node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its lasting public keys.
    pub keys: NodeKeys,
    /// Its Raft node id.
    pub raft_id: RaftId,
    /// What it may run.
    pub services: Vec<Grant>,
    /// When it was admitted.
    pub admitted: Index,
}

/// A join token and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub token: TokenRecord,
    /// Nodes that have joined on it.
    pub used: u32,
    /// Whether an operator has revoked it.
    pub revoked: bool,
}

/// A declared service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRecord {
    /// Its loopback address on every node.
    pub address: Ipv4Addr,
    /// The service account of its instances, in its namespace.
    pub account: ServiceName,
    /// Its ports, by number: what its nodes have declared, together.
    pub ports: Vec<ServicePort>,
    /// What each node that runs it has declared.
    pub declared: BTreeMap<NodeName, Vec<ServicePort>>,
}

/// What came of a proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The proposal's key.
    pub key: [u8; KEY_LENGTH],
    /// Where it was applied.
    pub index: Index,
    /// What came of it.
    pub outcome: Outcome,
}

impl State {
    /// The canonical encoding: equal states have equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        wire::State::from(self).encode_to_vec()
    }

    /// Reads what [`State::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let message = wire::State::decode(bytes).map_err(|error| error.to_string())?;
        if message.version > VERSION {
            return Err(format!(
                "the mesh's commands are of version {} and this weft knows them up to {VERSION}: upgrade weft on this host",
                message.version
            ));
        }
        Self::try_from(message).map_err(|error: ConvertError| error.to_string())
    }

    /// A digest of the canonical encoding, for comparing nodes.
    pub fn digest(&self) -> u32 {
        crc32fast::hash(&self.encode())
    }
}

impl From<&State> for wire::State {
    fn from(state: &State) -> Self {
        let sealed = state.sealed_authority.iter();
        Self {
            trust_domain: state.trust_domain.as_ref().map(ToString::to_string).unwrap_or_default(),
            deny_by_default: state.deny_by_default,
            roots: state.roots.iter().map(|root| root.clone().into()).collect(),
            nodes: state.nodes.values().map(encode_node).collect(),
            sealed_authority: sealed.map(|(name, key)| (name.to_string(), key.clone().into())).collect(),
            tokens: state.tokens.values().map(encode_token).collect(),
            services: state.services.iter().map(|(name, record)| encode_service(name, record)).collect(),
            resources: state.resources.values().map(|resource| Resource::clone(resource).into()).collect(),
            certificates: state.certificates.values().map(|record| record.clone().into()).collect(),
            recent: state.recent.iter().map(encode_answer).collect(),
            raft_id_next: state.raft_id_next,
            clock: state.clock,
            index: state.index,
            version: state.version,
            freed: state.freed.iter().map(encode_freed).collect(),
            revoked: state.revoked.iter().map(encode_revoked).collect(),
        }
    }
}

impl TryFrom<wire::State> for State {
    type Error = ConvertError;

    fn try_from(message: wire::State) -> Result<Self, ConvertError> {
        let mut state = Self {
            deny_by_default: message.deny_by_default,
            roots: message.roots.iter().map(|root| root.to_vec()).collect(),
            raft_id_next: message.raft_id_next,
            clock: message.clock,
            index: message.index,
            version: message.version,
            ..Self::default()
        };
        if !message.trust_domain.is_empty() {
            state.trust_domain = Some(message.trust_domain.parse()?);
        }
        for node in message.nodes {
            let record = decode_node(node)?;
            state.nodes.insert(record.keys.name.clone(), record);
        }
        for (name, sealed) in message.sealed_authority {
            state.sealed_authority.insert(name.parse()?, sealed.to_vec());
        }
        for token in message.tokens {
            let record: TokenRecord = token.token.ok_or(ConvertError::Missing("token"))?.try_into()?;
            let id = record.id.clone();
            state.tokens.insert(id, Token { token: record, used: token.used, revoked: token.revoked });
        }
        for service in message.services {
            let name: ServiceName = service.service.parse()?;
            let account = account(&name, &service.account)?;
            let mut declared = BTreeMap::new();
            for one in service.declarations {
                let ports = one.ports.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
                declared.insert(one.node.parse()?, ports);
            }
            let ports = merge(&declared, None).unwrap_or_default();
            let address = address(&service.address)?;
            state.services.insert(name, ServiceRecord { address, account, ports, declared });
        }
        for resource in message.resources {
            let resource = Resource::from(resource);
            state.resources.insert(resource.key.clone(), Arc::new(resource));
        }
        for record in message.certificates {
            let record: CertificateRecord = record.try_into()?;
            state.certificates.insert(record.serial.clone(), record);
        }
        for freed in message.freed {
            let record = Freed { service: freed.service.parse()?, at: freed.at };
            state.freed.insert(address(&freed.address)?, record);
        }
        state.revoked.extend(message.revoked.into_iter().map(|one| (one.serial.to_vec(), one.not_after)));
        for answer in message.recent {
            state.recent.push_back(Answer {
                key: answer.key.as_ref().try_into().map_err(|_| ConvertError::Range("recent.key"))?,
                index: answer.index,
                outcome: answer.outcome.ok_or(ConvertError::Missing("recent.outcome"))?.try_into()?,
            });
        }
        Ok(state)
    }
}

/// What nodes have declared, together, the `last` one after all others; the port that fits no other declaration.
pub(crate) fn merge(
    declared: &BTreeMap<NodeName, Vec<ServicePort>>,
    last: Option<&NodeName>,
) -> Result<Vec<ServicePort>, ServicePort> {
    let others = declared.iter().filter(|(node, _)| Some(*node) != last);
    let own = last.and_then(|node| declared.get_key_value(node));
    let mut merged: Vec<ServicePort> = Vec::new();
    for port in others.chain(own).flat_map(|(_, ports)| ports) {
        match merged.iter_mut().find(|known| known.port == port.port) {
            None => merged.push(*port),
            Some(known) if known.protocol == Protocol::Auto => known.protocol = port.protocol,
            Some(known) if port.protocol == Protocol::Auto || port.protocol == known.protocol => {}
            Some(_) => return Err(*port),
        }
    }
    Ok(merged)
}

fn encode_node(record: &NodeRecord) -> wire::Node {
    wire::Node {
        keys: Some(record.keys.clone().into()),
        raft_id: record.raft_id,
        services: record.services.iter().map(ToString::to_string).collect(),
        admitted: record.admitted,
        retired_raft_ids: Vec::new(),
    }
}

fn decode_node(message: wire::Node) -> Result<NodeRecord, ConvertError> {
    Ok(NodeRecord {
        keys: message.keys.ok_or(ConvertError::Missing("node.keys"))?.try_into()?,
        raft_id: message.raft_id,
        services: message.services.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
        admitted: message.admitted,
    })
}

fn encode_token(token: &Token) -> wire::Token {
    wire::Token { token: Some(token.token.clone().into()), used: token.used, revoked: token.revoked }
}

fn encode_service(name: &ServiceName, record: &ServiceRecord) -> wire::Service {
    wire::Service {
        service: name.to_string(),
        address: record.address.to_string(),
        account: account_of(name, &record.account),
        declarations: record
            .declared
            .iter()
            .map(|(node, ports)| wire::Declaration {
                node: node.to_string(),
                ports: ports.iter().map(|port| (*port).into()).collect(),
            })
            .collect(),
    }
}

fn encode_freed((address, freed): (&Ipv4Addr, &Freed)) -> wire::Freed {
    wire::Freed { address: address.to_string(), service: freed.service.to_string(), at: freed.at }
}

fn encode_revoked((serial, not_after): (&Vec<u8>, &UnixMillis)) -> wire::Revoked {
    wire::Revoked { serial: serial.clone().into(), not_after: *not_after }
}

fn encode_answer(answer: &Answer) -> wire::Applied {
    wire::Applied { key: answer.key.to_vec().into(), index: answer.index, outcome: Some(answer.outcome.clone().into()) }
}
