//! What the node's API takes and gives: JSON over HTTP/1.1 on the Unix socket `<data-dir>/weft.sock`.
//!
//! | call | body → answer |
//! |---|---|
//! | `GET /v1/status` | → [`Status`] |
//! | `GET /v1/members` | → `[Member]` |
//! | `POST /v1/tokens` | [`TokenRequest`] → [`TokenCreated`] |
//! | `GET /v1/tokens` | → `[Token]` |
//! | `DELETE /v1/tokens/{id}` | → `{}` |
//! | `POST /v1/services` | [`ServiceSpec`] → [`Service`] |
//! | `GET /v1/services` | → [`Services`] |
//! | `DELETE /v1/services/{namespace}/{name}?instance=` | → [`Removed`]; without an instance all of this host |
//! | `DELETE /v1/nodes/{name}` | → [`Applied`] |
//! | `POST /v1/listen` | [`Listen`] → [`Listened`] |
//! | `POST /v1/resources?dry_run=true` | [`ApplyRequest`] → [`Applied`] |
//! | `GET /v1/index` | → [`Reached`], after every decision acknowledged anywhere before is applied here |
//! | `GET /v1/resources?kind=&namespace=&name=` | → `[document]` |
//! | `DELETE /v1/resources/{kind}/{namespace}/{name}?expected=` | → [`Applied`] |
//! | `GET /v1/enforced?index=&timeout_ms=` | → [`Enforced`] |
//! | `GET /v1/certificates` | → `[Certificate]` |
//! | `POST /v1/explain` | [`ExplainRequest`] → [`weft_proxy::explain::Explanation`] |
//!
//! A failure has a status of 4xx or 5xx and an [`Error`] as its body.

mod host;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weft_proto::service::Protocol;
use weft_proto::{Index, UnixMillis};

pub use host::{Checked, CheckedNode, Drained, Listen, Listened, ListenedService, Way};

/// Body of every failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What kind of failure, for programs, such as `conflict`.
    pub reason: String,
    /// What was wrong and what to do, for people.
    pub message: String,
    /// One line a fault, where there are several (documents).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
}

/// How the mesh looks from this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// This node's name.
    pub node: String,
    /// The mesh.
    pub trust_domain: String,
    /// Version of the binary.
    pub version: String,
    /// `leader`, `voter`, `learner` or `replica`.
    pub role: String,
    /// The leader, where one is known.
    pub leader: Option<String>,
    /// Raft term.
    pub term: u64,
    /// Names of the voters.
    pub voters: Vec<String>,
    /// Index of the last decision applied here.
    pub applied: Index,
    /// Index of the table enforced here.
    pub enforced: Index,
    /// Seconds since a voter here knew of a leader; none while there is one.
    pub no_leader_for_s: Option<u64>,
    /// Live nodes.
    pub nodes_live: usize,
    /// Admitted nodes.
    pub nodes_admitted: usize,
    /// Where links arrive.
    pub address: String,
    /// Where the forward proxy listens.
    pub proxy: Option<String>,
    /// Which services callers of this host reach at their loopback addresses.
    #[serde(default)]
    pub loopback: String,
    /// Where metrics and health are served.
    pub metrics: Option<String>,
    /// When the first of this node's certificates ends.
    pub certificate_expires: UnixMillis,
    /// What does not work, and the remedy; one line each. Empty when all is well.
    pub problems: Vec<String>,
}

/// A certificate: one that gateways show, or one of this node or its services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// `secret` or `svid`; `order` where it is ordered and not there yet.
    pub kind: String,
    /// The document, or whom it names.
    pub name: String,
    /// Hosts that it is for.
    pub names: Vec<String>,
    /// When it ends; 0 where that is not known.
    pub expires: UnixMillis,
    /// When the mesh orders it next; 0 where it does not.
    #[serde(default)]
    pub renews: UnixMillis,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Whether gossip hears it.
    pub live: bool,
    /// `leader`, `voter`, `learner` or `replica`.
    pub role: String,
    /// Where links to it go; empty when it is not live.
    pub address: String,
    /// Its zone; empty when it is not live.
    pub zone: String,
    /// Its binary's version.
    pub version: String,
    /// Index of the table it enforces; 0 when it could not be asked.
    pub enforced: Index,
    /// Why it does not enforce a newer one; empty when nothing was refused.
    pub refused: String,
    /// Services it runs: `namespace/name`, with `!` in front when unhealthy.
    pub services: Vec<String>,
    /// Its Raft node id.
    pub raft_id: u64,
    /// When the first of its certificates ends; 0 when it could not be asked.
    pub certificate_expires: UnixMillis,
}

/// What a new join token allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRequest {
    /// Seconds until it expires, 1 to 2,592,000 (30 days).
    pub lifetime_s: u64,
    /// How many nodes may join on it, 1 to 10,000.
    pub uses: u32,
    /// What they may run: `namespace/name`, `namespace/*` or `*`.
    pub services: Vec<String>,
}

/// A new join token; the only time its secret is seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCreated {
    /// Its id.
    pub id: String,
    /// The line for `weft up --join`.
    pub line: String,
    /// When it expires.
    pub expires: UnixMillis,
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its id.
    pub id: String,
    /// `usable`, `expired`, `used-up` or `revoked`.
    pub state: String,
    /// Nodes that joined on it.
    pub used: u32,
    /// Nodes that may.
    pub uses: u32,
    /// When it expires.
    pub expires: UnixMillis,
    /// What they may run.
    pub services: Vec<String>,
}

/// An instance that this host runs: a file in `services.d/` has the same fields, in YAML.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// Its service: `web`, or `prod/web`.
    pub name: String,
    /// Its name among the instances of the service on this host, a DNS label; `default` unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Its labels, by which routes and policies choose among instances, such as `version: v2`. Beside them it has those of
    /// its service's document, and `app` with the service's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The service account that it has, in its service's namespace: who it is to others. The service's name unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Its ports; at least one, but for a gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortSpec>,
    /// How its health is told: `tcp` or `http:/path`. None: healthy while registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    /// The unit of systemd that it is, such as `web.service`: its processes call as its service, and it is healthy while that is
    /// active, beside what a check says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Processes of this user, by name or number, call as its service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `any`: it speaks for every local process that no other service claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// Share relative to other instances, 1 to 65535; 100 unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Whether it is a gateway: this node serves the `Gateway` documents that its name or labels select.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gateway: bool,
    /// Whether it is a gateway that takes only callers of the mesh: no port of the host is listened on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub egress: bool,
}

/// A port of a [`ServiceSpec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortSpec {
    /// The port callers use.
    pub port: u16,
    /// Where the application listens: `host:port`. Unset: `127.0.0.1` and the same port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What it speaks.
    #[serde(default)]
    pub protocol: Protocol,
}

/// Services of this host and of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// Every service of the mesh.
    pub services: Vec<Service>,
    /// Faults in `services.d/`, one line each.
    pub faults: Vec<String>,
}

/// Instances that this host runs no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// `namespace/name`, or `namespace/name@instance`.
    pub instances: Vec<String>,
    /// Seconds until the mesh forgets the service, of which no other host runs an instance; none where it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgotten_in_s: Option<u64>,
}

/// One service of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `namespace/name`.
    pub name: String,
    /// Its loopback address, the same on every node; empty until allotted.
    pub address: String,
    /// Its host name.
    pub host: String,
    /// Who its instances are to others: their SPIFFE ID.
    pub identity: String,
    /// `8080/http`.
    pub ports: Vec<String>,
    /// Its instances: node, health, and whether it is this node's.
    pub instances: Vec<ServiceInstance>,
}

/// One instance of a [`Service`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInstance {
    /// Its node.
    pub node: String,
    /// Its name among those of the service on the node.
    pub name: String,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its share relative to other instances.
    pub weight: u16,
    /// Whether its check passes.
    pub healthy: bool,
    /// It has no check, and counts as healthy as long as something listens; told of this node's own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchecked: bool,
    /// Why not, where this node knows.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub problem: String,
}

/// Documents to apply, all or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyRequest {
    /// The texts.
    pub texts: Vec<Text>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// Its name, for messages.
    pub source: String,
    /// YAML or JSON documents.
    pub text: String,
}

/// A change that is committed, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Its index; 0 in a dry run.
    pub index: Index,
    /// One line a document: `AuthorizationPolicy default/x created`.
    pub changes: Vec<String>,
    /// What can never match, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A node has applied every decision that was acknowledged anywhere before it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// Up to which index.
    pub index: Index,
}

/// Who enforces an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enforced {
    /// The index asked for.
    pub index: Index,
    /// Live nodes.
    pub nodes: usize,
    /// Those of them that enforce it.
    pub enforced: usize,
    /// The others.
    pub lagging: Vec<Lagging>,
    /// Admitted nodes that are not live. One that is down enforces it before it is ready again; one that is only cut off
    /// decides by what it knew until it is reached.
    pub absent: Vec<String>,
    /// How long the answer took, milliseconds.
    pub took_ms: u64,
}

/// A node that does not enforce an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lagging {
    /// The node.
    pub node: String,
    /// What it enforces.
    pub enforced: Index,
    /// Why, as far as known.
    pub why: String,
}

/// A call to explain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainRequest {
    /// The caller: a service (`web`, `prod/web`), a node (`node/a`) or a SPIFFE ID; at a gateway its address.
    pub from: String,
    /// The callee, a service; at a gateway a host.
    pub to: String,
    /// The gateway that it comes in at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Its port; the first one unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// HTTP method; none asks about an opaque stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Request path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Request headers, `name: value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// The name that a stream of TLS asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
}
