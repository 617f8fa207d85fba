//! What a table is built from: plain values that the node compiles out of decisions and facts.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use weft_proto::Index;
use weft_proto::identity::{NodeName, TrustDomain};
use weft_proto::kinds::order::Challenge;
use weft_proto::kinds::service::ServiceSettings;
use weft_proto::service::{InstanceId, InstanceName, Labels, Protocol, ServiceName, ServicePort};

use super::authz::PolicyDescription;
use super::peers::PeersDescription;
use super::routes::{AliasDocument, GatewayDocument, GrantDocument, RouteDocument, StreamDocument, SubsetDocument};
use crate::tls::EdgeTls;

/// All that the data plane of one node needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// Index of the decisions that it was compiled from.
    pub index: Index,
    /// The mesh.
    pub trust_domain: TrustDomain,
    /// This node.
    pub node: NodeName,
    /// This node's failure domain.
    pub zone: String,
    /// Whether a call that no ALLOW policy covers is denied.
    pub deny_by_default: bool,
    /// What instances take at their own ports.
    pub peers: PeersDescription,
    /// Every service of the mesh.
    pub services: Vec<Arc<ServiceDescription>>,
    /// Further names of instances of services.
    pub aliases: Vec<AliasDescription>,
    /// Which namespaces' routes may lead to services of others.
    pub grants: Vec<Arc<GrantDocument>>,
    /// Every authorization policy of the mesh.
    pub policies: Vec<Arc<PolicyDescription>>,
    /// The instances that this node runs.
    pub local: Vec<LocalInstance>,
    /// Which service the processes of a user id belong to.
    pub callers: BTreeMap<u32, ServiceName>,
    /// Which service the processes of a control group belong to, whatever their user.
    pub caller_groups: BTreeMap<u64, ServiceName>,
    /// Whom every other local process belongs to; none: they call as the node itself.
    pub caller_any: Option<ServiceName>,
    /// Further addresses to listen on.
    pub binds: Vec<Bind>,
    /// Where the host's firewall sends connections.
    pub intercepts: Intercepts,
    /// What this node serves of gateways, the oldest document first.
    pub gateways: Vec<Arc<ListenerDescription>>,
    /// What proves to certificate authorities that names are ours, at gateways.
    pub challenges: Vec<Challenge>,
}

/// A port of a gateway that this node serves, as one document has it.
#[derive(Debug, Clone, PartialEq)]
pub struct ListenerDescription {
    /// The gateway: a service that this node runs.
    pub service: ServiceName,
    /// The document and the listener in it: `namespace/name listener`.
    pub name: String,
    /// The port that the document says.
    pub port: u16,
    /// Where it is listened on.
    pub addresses: Vec<SocketAddr>,
    /// What is spoken there.
    pub speaks: Speaks,
    /// Patterns of the hosts that it is for.
    pub hosts: Vec<String>,
    /// Whether every call is told to come by https.
    pub redirects: bool,
    /// Whether hosts that it names and nothing is attached for are answered here, and not by a listener for more hosts.
    pub strict: bool,
    /// Why it is not served.
    pub conflict: Option<String>,
    /// What is attached to it, with the hosts that each document has in common with it.
    pub routes: Vec<(Vec<String>, Arc<RouteDocument>)>,
    /// The same in the words of the Gateway API.
    pub gateway_routes: Vec<(Vec<String>, Arc<GatewayDocument>)>,
    /// The same for opaque streams.
    pub stream_routes: Vec<(Vec<String>, Arc<StreamDocument>)>,
}

/// What is spoken at a port of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Speaks {
    /// Plain HTTP.
    Http,
    /// TLS that ends there.
    Tls(EdgeTls),
    /// TLS that is passed on.
    Passthrough,
    /// An opaque stream.
    Tcp,
}

impl Speaks {
    /// What can share a port: HTTP with HTTP, TLS with TLS.
    pub(super) fn family(&self) -> u8 {
        match self {
            Self::Http => 0,
            Self::Tls(_) | Self::Passthrough => 1,
            Self::Tcp => 2,
        }
    }
}

/// A further name of instances of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct AliasDescription {
    /// The document that gives it.
    pub document: Arc<AliasDocument>,
    /// What documents say of calls by it.
    pub calls: Calls,
}

/// A service as the mesh knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceDescription {
    /// Its name.
    pub name: ServiceName,
    /// The service account of its instances, in its namespace.
    pub account: ServiceName,
    /// Labels that all its instances have, by which policies select them.
    pub labels: Labels,
    /// Loopback address by which callers of this host may name it; none: they may not.
    pub address: Option<Ipv4Addr>,
    /// Those of its ports that are listened on at that address.
    pub listened: Vec<u16>,
    /// Its ports, the same on every node. The first one is meant where a caller names none.
    pub ports: Vec<ServicePort>,
    /// Its settings; none where they cannot be understood: calls of it are answered with 500.
    pub settings: Option<Arc<ServiceSettings>>,
    /// What documents say of its calls.
    pub calls: Calls,
    /// Its instances.
    pub endpoints: Vec<EndpointDescription>,
    /// Set of a host outside the mesh; of such a one each node has the instances itself.
    pub outside: Option<OutsideDescription>,
}

/// What only a host outside the mesh has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutsideDescription {
    /// The namespace of its document.
    pub namespace: String,
    /// The name of that.
    pub document: String,
    /// The namespaces whose callers may call it; none: all.
    pub export_to: Vec<String>,
    /// Names of which its certificate must have one.
    pub names: Vec<String>,
    /// Addresses by which it is called too, by programs whose connections the firewall sends here.
    pub addresses: Vec<IpNet>,
    /// Ports of opaque streams at which it is meant whatever address is called, since it has none.
    pub anywhere: Vec<u16>,
    /// Whether it is where it was called, since nothing says where it is.
    pub dialled: bool,
    /// Its ports, and where they are there.
    pub targets: Vec<(u16, u16)>,
    /// Whether it is known at whatever port.
    pub any_port: bool,
    /// Of such a one: whether calls to it are passed on where their caller says nothing of that.
    pub passes: bool,
}

/// What documents say of the calls of a service, or by a further name of one, the oldest first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Calls {
    /// Rules, of which the first document counts that the caller sees.
    pub routes: Vec<Arc<RouteDocument>>,
    /// Rules in the words of the Gateway API, which go before those.
    pub gateway_routes: Vec<Arc<GatewayDocument>>,
    /// The same for opaque streams.
    pub stream_routes: Vec<Arc<StreamDocument>>,
    /// Subsets of its instances, and how they are called.
    pub subsets: Vec<Arc<SubsetDocument>>,
}

/// An instance of a service, and where it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointDescription {
    /// The node that runs it.
    pub node: NodeName,
    /// Its name among those of the service on the node.
    pub instance: InstanceName,
    /// Its own labels.
    pub labels: Labels,
    /// Where that node takes links.
    pub address: SocketAddr,
    /// Its failure domain.
    pub zone: String,
    /// Ports of the service that it serves.
    pub ports: Vec<u16>,
    /// The ports at which it listens for those itself, in their order; empty: at the same ones.
    pub targets: Vec<u16>,
    /// Its share relative to others, at least 1.
    pub weight: u16,
    /// Whether its check passes.
    pub healthy: bool,
    /// Whether it is a gateway: calls enter there, and go on as its own.
    pub gateway: bool,
}

impl EndpointDescription {
    /// The name by which it is called alone: its own, else that of its node.
    pub fn called(&self) -> &str {
        if self.instance.is_default() { self.node.as_str() } else { self.instance.as_str() }
    }

    /// Whether that is its name.
    pub fn is_called(&self, name: &str) -> bool {
        self.called() == name
    }
}

/// An instance that this node runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalInstance {
    /// The service it is a copy of, and its name among those of the service on this node.
    pub id: InstanceId,
    /// Its own labels.
    pub labels: Labels,
    /// Its share relative to others, at least 1.
    pub weight: u16,
    /// Where it serves the service's ports.
    pub ports: Vec<LocalPort>,
    /// The name by which it is reached, where it is outside: its targets are ports of that then.
    pub host: Option<Arc<str>>,
    /// Whether its check passes.
    pub healthy: bool,
}

/// Where an instance serves one port of its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalPort {
    /// The service's port.
    pub port: u16,
    /// Where the instance listens.
    pub target: SocketAddr,
    /// What it speaks there.
    pub protocol: Protocol,
}

/// Where the host's firewall sends connections; nowhere where it sends none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Intercepts {
    /// Those to the own ports of instances.
    pub inbound: Vec<SocketAddr>,
    /// Those of programs that call somebody.
    pub outbound: Vec<SocketAddr>,
}

/// A further plain listener for a port of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bind {
    /// Where to listen.
    pub address: SocketAddr,
    /// The service.
    pub service: ServiceName,
    /// The service's port.
    pub port: u16,
}
