//! Wire messages to vocabulary and back; the only parser of what other nodes send.

mod facts;

use std::net::Ipv4Addr;

use bytes::Bytes;
use prost::Message;

use crate::command::{
    Admission, CertificateRecord, Command, Found, NodeKeys, Outcome, Proposal, Reason, Refusal, ResourceAction,
    ResourceChange, TokenRecord,
};
use crate::identity::NameError;
use crate::resource::{KindName, Resource, ResourceKey};
use crate::service::{Grant, ServiceName, ServicePort};
use crate::wire::mesh as wire;

/// A message that does not say what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A field without which the message means nothing.
    #[error("the field {0} is missing")]
    Missing(&'static str),
    /// A field of the wrong length or out of its range.
    #[error("the field {0} is out of range")]
    Range(&'static str),
    /// A name that breaks its rule.
    #[error(transparent)]
    Name(#[from] NameError),
}

type Parsed<T> = Result<T, ConvertError>;

fn bytes<const N: usize>(value: &[u8], field: &'static str) -> Parsed<[u8; N]> {
    value.try_into().map_err(|_| ConvertError::Range(field))
}

fn each<W, T>(values: Vec<W>, parse: impl Fn(W) -> Parsed<T>) -> Parsed<Vec<T>> {
    values.into_iter().map(parse).collect()
}

// ---- Proposals and commands ------------------------------------------------------------------

impl From<Proposal> for wire::Proposal {
    fn from(proposal: Proposal) -> Self {
        let command = match proposal.command {
            Command::Later(encoded) => encoded,
            command => wire::Command::from(command).encode_to_vec().into(),
        };
        Self { key: proposal.key.to_vec().into(), at: proposal.at, command }
    }
}

impl TryFrom<wire::Proposal> for Proposal {
    type Error = ConvertError;

    fn try_from(message: wire::Proposal) -> Parsed<Self> {
        Ok(Self { key: bytes(&message.key, "key")?, at: message.at, command: command(message.command)? })
    }
}

/// Reads a command. One whose kind is not known here is of a later version.
fn command(encoded: Bytes) -> Parsed<Command> {
    let message = wire::Command::decode(encoded.clone()).map_err(|_| ConvertError::Range("command"))?;
    match message.kind {
        None if !encoded.is_empty() => Ok(Command::Later(encoded)),
        _ => message.try_into(),
    }
}

/// How a service account is written that stands beside its service: left out where it is the service's name.
pub fn account_of(service: &ServiceName, account: &ServiceName) -> String {
    if account == service { String::new() } else { account.name().to_owned() }
}

/// Reads what [`account_of`] wrote.
pub fn account(service: &ServiceName, text: &str) -> Parsed<ServiceName> {
    if text.is_empty() { Ok(service.clone()) } else { Ok(ServiceName::new(service.namespace(), text)?) }
}

impl From<Command> for wire::Command {
    fn from(command: Command) -> Self {
        use wire::command::Kind;
        let kind = match command {
            Command::Found(found) => Kind::Found(found.into()),
            Command::CreateToken(token) => Kind::CreateToken(token.into()),
            Command::RevokeToken { id } => Kind::RevokeToken(wire::RevokeToken { id }),
            Command::Admit(admission) => Kind::Admit(admission.into()),
            Command::GrantAuthority { node, sealed } => {
                Kind::GrantAuthority(wire::GrantAuthority { node: node.to_string(), sealed_authority: sealed.into() })
            }
            Command::DeclareService { node, service, ports, account } => Kind::DeclareService(wire::DeclareService {
                node: node.to_string(),
                account: account_of(&service, &account),
                service: service.to_string(),
                ports: ports.into_iter().map(Into::into).collect(),
            }),
            Command::RemoveNode { node } => Kind::RemoveNode(wire::RemoveNode { node: node.to_string() }),
            Command::WithdrawService { node, service } => {
                Kind::WithdrawService(wire::WithdrawService { node: node.to_string(), service: service.to_string() })
            }
            Command::ChangeResources(changes) => {
                Kind::ChangeResources(wire::ChangeResources { changes: changes.into_iter().map(Into::into).collect() })
            }
            Command::RecordCertificate(record) => Kind::RecordCertificate(record.into()),
            Command::Raise { version } => Kind::Raise(wire::Raise { version }),
            Command::Later(encoded) => return Self::decode(encoded).unwrap_or_default(),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<wire::Command> for Command {
    type Error = ConvertError;

    fn try_from(message: wire::Command) -> Parsed<Self> {
        use wire::command::Kind;
        Ok(match message.kind.ok_or(ConvertError::Missing("command.kind"))? {
            Kind::Found(found) => Self::Found(found.try_into()?),
            Kind::CreateToken(token) => Self::CreateToken(token.try_into()?),
            Kind::RevokeToken(revoke) => Self::RevokeToken { id: revoke.id },
            Kind::Admit(admit) => Self::Admit(admit.try_into()?),
            Kind::GrantAuthority(grant) => {
                Self::GrantAuthority { node: grant.node.parse()?, sealed: grant.sealed_authority.to_vec() }
            }
            Kind::DeclareService(declare) => {
                let service: ServiceName = declare.service.parse()?;
                Self::DeclareService {
                    node: declare.node.parse()?,
                    ports: each(declare.ports, TryInto::try_into)?,
                    account: account(&service, &declare.account)?,
                    service,
                }
            }
            Kind::RemoveNode(remove) => Self::RemoveNode { node: remove.node.parse()? },
            Kind::WithdrawService(withdraw) => {
                Self::WithdrawService { node: withdraw.node.parse()?, service: withdraw.service.parse()? }
            }
            Kind::ChangeResources(message) => {
                Self::ChangeResources(message.changes.into_iter().map(Into::into).collect())
            }
            Kind::RecordCertificate(record) => Self::RecordCertificate(record.try_into()?),
            Kind::Raise(raise) => Self::Raise { version: raise.version },
        })
    }
}

impl From<Found> for wire::Found {
    fn from(found: Found) -> Self {
        Self {
            trust_domain: found.trust_domain.to_string(),
            deny_by_default: found.deny_by_default,
            root_certificate: found.root_certificate.into(),
            node: Some(found.node.into()),
            sealed_authority: found.sealed_authority.into(),
            version: found.version,
        }
    }
}

impl TryFrom<wire::Found> for Found {
    type Error = ConvertError;

    fn try_from(message: wire::Found) -> Parsed<Self> {
        Ok(Self {
            trust_domain: message.trust_domain.parse()?,
            deny_by_default: message.deny_by_default,
            root_certificate: message.root_certificate.to_vec(),
            node: message.node.ok_or(ConvertError::Missing("found.node"))?.try_into()?,
            sealed_authority: message.sealed_authority.to_vec(),
            version: message.version,
        })
    }
}

impl From<NodeKeys> for wire::NodeKeys {
    fn from(keys: NodeKeys) -> Self {
        Self {
            name: keys.name.to_string(),
            fact_key: keys.fact_key.to_vec().into(),
            seal_key: keys.seal_key.to_vec().into(),
        }
    }
}

impl TryFrom<wire::NodeKeys> for NodeKeys {
    type Error = ConvertError;

    fn try_from(message: wire::NodeKeys) -> Parsed<Self> {
        Ok(Self {
            name: message.name.parse()?,
            fact_key: bytes(&message.fact_key, "fact_key")?,
            seal_key: bytes(&message.seal_key, "seal_key")?,
        })
    }
}

impl From<TokenRecord> for wire::CreateToken {
    fn from(token: TokenRecord) -> Self {
        Self {
            id: token.id,
            secret_hash: token.secret_hash.to_vec().into(),
            expires: token.expires,
            uses: token.uses,
            services: token.services.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<wire::CreateToken> for TokenRecord {
    type Error = ConvertError;

    fn try_from(message: wire::CreateToken) -> Parsed<Self> {
        Ok(Self {
            id: message.id,
            secret_hash: bytes(&message.secret_hash, "secret_hash")?,
            expires: message.expires,
            uses: message.uses,
            services: each(message.services, |text| Ok(text.parse::<Grant>()?))?,
        })
    }
}

impl From<Admission> for wire::Admit {
    fn from(admission: Admission) -> Self {
        Self {
            token_id: admission.token_id,
            secret_hash: admission.secret_hash.to_vec().into(),
            node: Some(admission.node.into()),
        }
    }
}

impl TryFrom<wire::Admit> for Admission {
    type Error = ConvertError;

    fn try_from(message: wire::Admit) -> Parsed<Self> {
        Ok(Self {
            token_id: message.token_id,
            secret_hash: bytes(&message.secret_hash, "secret_hash")?,
            node: message.node.ok_or(ConvertError::Missing("admit.node"))?.try_into()?,
        })
    }
}

impl From<ServicePort> for wire::ServicePort {
    fn from(port: ServicePort) -> Self {
        Self { port: u32::from(port.port), protocol: port.protocol.to_string() }
    }
}

impl TryFrom<wire::ServicePort> for ServicePort {
    type Error = ConvertError;

    fn try_from(message: wire::ServicePort) -> Parsed<Self> {
        let port = u16::try_from(message.port).ok().filter(|port| *port > 0).ok_or(ConvertError::Range("port"))?;
        Ok(Self { port, protocol: message.protocol.parse()? })
    }
}

impl From<ResourceChange> for wire::ResourceChange {
    fn from(change: ResourceChange) -> Self {
        let key = change.action.key().clone();
        let put = match change.action {
            ResourceAction::Put(resource) => Some(resource.into()),
            ResourceAction::Delete(_) => None,
        };
        let KindName { group, name: kind } = key.kind;
        Self { put, group, kind, namespace: key.namespace, name: key.name, expected: change.expected }
    }
}

impl From<wire::ResourceChange> for ResourceChange {
    fn from(message: wire::ResourceChange) -> Self {
        let action = match message.put {
            Some(resource) => ResourceAction::Put(resource.into()),
            None => ResourceAction::Delete(ResourceKey {
                kind: KindName { group: message.group, name: message.kind },
                namespace: message.namespace,
                name: message.name,
            }),
        };
        Self { action, expected: message.expected }
    }
}

impl From<Resource> for wire::Resource {
    fn from(resource: Resource) -> Self {
        Self {
            api_version: resource.api_version,
            kind: resource.key.kind.name,
            namespace: resource.key.namespace,
            name: resource.key.name,
            labels: resource.labels,
            annotations: resource.annotations,
            spec: resource.spec,
            created: resource.created,
            version: resource.version,
        }
    }
}

impl From<wire::Resource> for Resource {
    fn from(message: wire::Resource) -> Self {
        let kind = KindName::of(&message.api_version, &message.kind);
        Self {
            key: ResourceKey { kind, namespace: message.namespace, name: message.name },
            api_version: message.api_version,
            labels: message.labels,
            annotations: message.annotations,
            spec: message.spec,
            created: message.created,
            version: message.version,
        }
    }
}

impl From<CertificateRecord> for wire::RecordCertificate {
    fn from(record: CertificateRecord) -> Self {
        Self {
            node: record.node.to_string(),
            identity: record.identity.to_string(),
            serial: record.serial.into(),
            not_before: record.not_before,
            not_after: record.not_after,
        }
    }
}

impl TryFrom<wire::RecordCertificate> for CertificateRecord {
    type Error = ConvertError;

    fn try_from(message: wire::RecordCertificate) -> Parsed<Self> {
        if message.serial.is_empty() || message.serial.len() > 20 {
            return Err(ConvertError::Range("serial"));
        }
        Ok(Self {
            node: message.node.parse()?,
            identity: message.identity.parse()?,
            serial: message.serial.to_vec(),
            not_before: message.not_before,
            not_after: message.not_after,
        })
    }
}

// ---- Outcomes ----------------------------------------------------------------------------------

impl From<Outcome> for wire::Outcome {
    fn from(outcome: Outcome) -> Self {
        use wire::outcome::Kind;
        let kind = match outcome {
            Outcome::Done => Kind::Done(wire::Done {}),
            Outcome::Admitted { raft_id } => Kind::Admitted(wire::Admitted { raft_id }),
            Outcome::Declared { address } => Kind::Declared(wire::Declared { address: address.to_string() }),
            Outcome::Changed(changed) => Kind::Changed(wire::Changed { changed }),
            Outcome::Refused(refusal) => {
                Kind::Refused(wire::Refusal { code: refusal.reason.to_string(), detail: refusal.detail })
            }
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<wire::Outcome> for Outcome {
    type Error = ConvertError;

    fn try_from(message: wire::Outcome) -> Parsed<Self> {
        use wire::outcome::Kind;
        Ok(match message.kind.ok_or(ConvertError::Missing("outcome.kind"))? {
            Kind::Done(_) => Self::Done,
            Kind::Admitted(admitted) => Self::Admitted { raft_id: admitted.raft_id },
            Kind::Declared(declared) => Self::Declared { address: address(&declared.address)? },
            Kind::Changed(changed) => Self::Changed(changed.changed),
            Kind::Refused(refusal) => {
                Self::Refused(Refusal { reason: Reason::named(&refusal.code), detail: refusal.detail })
            }
        })
    }
}

/// Reads an IPv4 address.
pub fn address(text: &str) -> Parsed<Ipv4Addr> {
    text.parse().map_err(|_| ConvertError::Range("address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> NodeKeys {
        NodeKeys { name: "a".parse().expect("name"), fact_key: [1; 32], seal_key: [2; 32] }
    }

    #[test]
    fn proposals_round_trip() {
        let commands = [
            Command::Found(Found {
                trust_domain: "mesh.local".parse().expect("name"),
                deny_by_default: true,
                root_certificate: vec![1],
                node: keys(),
                sealed_authority: vec![2],
                version: 1,
            }),
            Command::Admit(Admission { token_id: "t".into(), secret_hash: [3; 32], node: keys() }),
            Command::DeclareService {
                node: keys().name,
                service: "web".parse().expect("name"),
                ports: vec![ServicePort { port: 80, protocol: crate::service::Protocol::Grpc }],
                account: "web".parse().expect("name"),
            },
            Command::DeclareService {
                node: keys().name,
                service: "shop/web".parse().expect("name"),
                ports: Vec::new(),
                account: "shop/front".parse().expect("name"),
            },
            Command::CreateToken(TokenRecord {
                id: "t".into(),
                secret_hash: [5; 32],
                expires: 7,
                uses: 3,
                services: vec!["*".parse().expect("a grant"), "shop/web".parse().expect("a grant")],
            }),
            Command::RecordCertificate(CertificateRecord {
                node: keys().name,
                identity: "spiffe://mesh.local/ns/shop/sa/front".parse().expect("an identity"),
                serial: vec![7; 16],
                not_before: 1,
                not_after: 2,
            }),
            Command::RemoveNode { node: keys().name },
            Command::WithdrawService { node: keys().name, service: "web".parse().expect("name") },
            Command::RevokeToken { id: "t".into() },
            Command::GrantAuthority { node: keys().name, sealed: vec![4] },
            Command::Raise { version: 2 },
            // A field with a number that no version has taken yet.
            Command::Later(Bytes::from_static(&[0xfa, 0x06, 0x03, b'n', b'e', b'w'])),
            Command::ChangeResources(vec![ResourceChange {
                action: ResourceAction::Delete(ResourceKey {
                    kind: KindName::of("weft/v1", "Service"),
                    namespace: "default".into(),
                    name: "web".into(),
                }),
                expected: Some(7),
            }]),
        ];
        for command in commands {
            let proposal = Proposal { key: [9; 16], at: 5, command };
            let encoded = wire::Proposal::from(proposal.clone()).encode_to_vec();
            let decoded = wire::Proposal::decode(encoded.as_slice()).expect("decodes");
            assert_eq!(Proposal::try_from(decoded), Ok(proposal));
        }
    }

    #[test]
    fn a_port_out_of_range_is_refused() {
        for port in [0, 65_536] {
            let message = wire::ServicePort { port, protocol: "http".into() };
            assert_eq!(ServicePort::try_from(message), Err(ConvertError::Range("port")));
        }
    }
}
