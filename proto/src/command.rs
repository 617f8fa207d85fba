//! Every way in which the replicated state changes, and what comes of it.

use std::fmt;
use std::net::Ipv4Addr;

use bytes::Bytes;

use crate::identity::{Identity, NodeName, TrustDomain};
use crate::resource::{Resource, ResourceKey};
use crate::service::{Grant, ServiceName, ServicePort};
use crate::{Index, RaftId, UnixMillis};

/// The newest version of the mesh's commands that this build knows. A new command, or a new field on which the outcome of
/// one depends, makes a new version; it is proposed once every admitted node knows that.
pub const VERSION: u32 = 1;
/// Bytes in an idempotency key.
pub const KEY_LENGTH: usize = 16;
/// Bytes of an Ed25519 or X25519 public key.
pub const PUBLIC_KEY_LENGTH: usize = 32;
/// Bytes of a SHA-256 digest.
pub const DIGEST_LENGTH: usize = 32;

/// A command with what makes its retry harmless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Chosen at random by the proposer; the same key is applied once.
    pub key: [u8; KEY_LENGTH],
    /// Proposer's wall clock.
    pub at: UnixMillis,
    /// What to do.
    pub command: Command,
}

/// One change of the replicated state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The mesh's first decision.
    Found(Found),
    /// A new join token.
    CreateToken(TokenRecord),
    /// No more joins with this token.
    RevokeToken {
        /// Its id.
        id: String,
    },
    /// A node joins on a token.
    Admit(Admission),
    /// A voter may sign: it gets the authority's key, sealed to it.
    GrantAuthority {
        /// The voter.
        node: NodeName,
        /// The key, readable by that node only.
        sealed: Vec<u8>,
    },
    /// A service exists, with these ports; it gets its loopback address.
    DeclareService {
        /// The node that runs it.
        node: NodeName,
        /// Its name.
        service: ServiceName,
        /// Its ports; merged with those that other nodes have declared.
        ports: Vec<ServicePort>,
        /// The service account that its instances have, in its namespace: its own name unless it was given another.
        account: ServiceName,
    },
    /// A node runs a service no more. With its last node the service goes.
    WithdrawService {
        /// The node.
        node: NodeName,
        /// The service.
        service: ServiceName,
    },
    /// Documents put and deleted, all or none.
    ChangeResources(Vec<ResourceChange>),
    /// A certificate is about to be signed.
    RecordCertificate(CertificateRecord),
    /// A node is in the mesh no more: its admission, keys, certificates, vote and declarations go.
    RemoveNode {
        /// The node.
        node: NodeName,
    },
    /// Every admitted node knows this version of the commands.
    Raise {
        /// The version.
        version: u32,
    },
    /// One of a later version, encoded. It is kept and passed on as it is, and not applied: what comes of it is not known.
    Later(Bytes),
}

impl Command {
    /// The version of the mesh from which on it may be proposed.
    pub fn since(&self) -> u32 {
        match self {
            Self::Later(_) => u32::MAX,
            // Each command that is added to the first version names its own.
            _ => 1,
        }
    }
}

/// The founding of a mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub trust_domain: TrustDomain,
    /// Whether a call that no ALLOW policy covers is denied.
    pub deny_by_default: bool,
    /// Root certificate, DER.
    pub root_certificate: Vec<u8>,
    /// The first node, which becomes the first voter.
    pub node: NodeKeys,
    /// The root's signing key, sealed to the first node.
    pub sealed_authority: Vec<u8>,
    /// The version of the commands that the first node knows.
    pub version: u32,
}

/// A node's name and its lasting public keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeKeys {
    /// Its name.
    pub name: NodeName,
    /// Ed25519 public key that signs its facts.
    pub fact_key: [u8; PUBLIC_KEY_LENGTH],
    /// X25519 public key to which secrets for it are sealed.
    pub seal_key: [u8; PUBLIC_KEY_LENGTH],
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Public part, shown by `weft token list`.
    pub id: String,
    /// SHA-256 of the secret.
    pub secret_hash: [u8; DIGEST_LENGTH],
    /// When it stops working.
    pub expires: UnixMillis,
    /// How many nodes may join on it.
    pub uses: u32,
    /// What those nodes may run.
    pub services: Vec<Grant>,
}

/// A node's wish to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// The token's public part.
    pub token_id: String,
    /// SHA-256 of the secret that the node showed.
    pub secret_hash: [u8; DIGEST_LENGTH],
    /// The node.
    pub node: NodeKeys,
}

/// One change of one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceChange {
    /// Put this, or delete what the key names.
    pub action: ResourceAction,
    /// Version that must be current; 0 means that it must not exist; none means whatever is there.
    pub expected: Option<Index>,
}

/// What to do with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResourceAction {
    /// Create or replace.
    Put(Resource),
    /// Remove.
    Delete(ResourceKey),
}

impl ResourceAction {
    /// The document it is about.
    pub fn key(&self) -> &ResourceKey {
        match self {
            Self::Put(resource) => &resource.key,
            Self::Delete(key) => key,
        }
    }
}

/// What is known of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRecord {
    /// The node that holds its key.
    pub node: NodeName,
    /// Whom it names.
    pub identity: Identity,
    /// Serial number, at most 20 bytes (RFC 5280, 4.1.2.2).
    pub serial: Vec<u8>,
    /// Start of validity.
    pub not_before: UnixMillis,
    /// End of validity.
    pub not_after: UnixMillis,
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Applied; nothing to tell.
    Done,
    /// The node is in the mesh under this id.
    Admitted {
        /// Never used before and never again.
        raft_id: RaftId,
    },
    /// The service has this address on every node.
    Declared {
        /// In 127.0.0.0/8.
        address: Ipv4Addr,
    },
    /// One line a change, such as `AuthorizationPolicy default/x created`.
    Changed(Vec<String>),
    /// Not applied, on every node for the same reason.
    Refused(Refusal),
}

/// Why a command was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// For programs.
    pub reason: Reason,
    /// For people: what was wrong and what to do.
    pub detail: String,
}

/// The kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The mesh exists already.
    Founded,
    /// No mesh yet.
    NotFounded,
    /// No such token, or a wrong secret.
    TokenUnknown,
    /// Its lifetime is over.
    TokenExpired,
    /// As many nodes as it allows have joined.
    TokenUsedUp,
    /// Revoked by an operator.
    TokenRevoked,
    /// The name belongs to another node.
    NameTaken,
    /// No such node.
    NodeUnknown,
    /// The node was not admitted for this.
    NotGranted,
    /// A document or declaration changed meanwhile, or contradicts one.
    Conflict,
    /// No such document or token.
    NotFound,
    /// A bound is reached.
    Full,
    /// A refusal of a newer version.
    Other,
}

impl Reason {
    const ALL: [Self; 13] = [
        Self::Founded,
        Self::NotFounded,
        Self::TokenUnknown,
        Self::TokenExpired,
        Self::TokenUsedUp,
        Self::TokenRevoked,
        Self::NameTaken,
        Self::NodeUnknown,
        Self::NotGranted,
        Self::Conflict,
        Self::NotFound,
        Self::Full,
        Self::Other,
    ];

    /// Its name on the wire and in `--output json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Founded => "founded",
            Self::NotFounded => "not-founded",
            Self::TokenUnknown => "token-unknown",
            Self::TokenExpired => "token-expired",
            Self::TokenUsedUp => "token-used-up",
            Self::TokenRevoked => "token-revoked",
            Self::NameTaken => "name-taken",
            Self::NodeUnknown => "node-unknown",
            Self::NotGranted => "not-granted",
            Self::Conflict => "conflict",
            Self::NotFound => "not-found",
            Self::Full => "full",
            Self::Other => "other",
        }
    }

    /// The reason of that name; [`Reason::Other`] for one that this version does not know.
    pub fn named(text: &str) -> Self {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text).unwrap_or(Self::Other)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Command {
    /// The command's name, for logs: no secrets, no bulk.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found(found) => write!(f, "found mesh {}", found.trust_domain),
            Self::CreateToken(token) => write!(f, "create token {}", token.id),
            Self::RevokeToken { id } => write!(f, "revoke token {id}"),
            Self::Admit(admission) => write!(f, "admit node {}", admission.node.name),
            Self::GrantAuthority { node, .. } => write!(f, "grant authority to {node}"),
            Self::WithdrawService { node, service } => write!(f, "withdraw service {service} of {node}"),
            Self::DeclareService { node, service, .. } => write!(f, "declare service {service} by {node}"),
            Self::RemoveNode { node } => write!(f, "remove node {node}"),
            Self::ChangeResources(changes) => write!(f, "change {} resources", changes.len()),
            Self::Raise { version } => write!(f, "raise the mesh to version {version}"),
            Self::Later(_) => f.write_str("a command of a later version"),
            Self::RecordCertificate(record) => {
                write!(f, "record certificate of {} on {}", record.identity, record.node)
            }
        }
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.command.fmt(f)
    }
}
