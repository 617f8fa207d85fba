//! What this node serves of gateways: the documents of both families that select a gateway here, with the rules that are
//! attached to them, make listeners.

mod attached;
mod credentials;
mod entrances;
mod istio;
mod standard;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use weft_proto::kinds::Spec;
use weft_proto::kinds::authorization_policy::APP_LABEL;
use weft_proto::kinds::gateway::Gateway;
use weft_proto::kinds::istio_gateway::IstioGateway;
use weft_proto::kinds::secret::Credential;
use weft_proto::resource::{Resource, ResourceKey};
use weft_proto::service::{Labels, ServiceName};
use weft_proxy::table::description::ListenerDescription;
use weft_proxy::table::gateways::settle;
use weft_proxy::table::routes::Document;

use super::{Site, Specs};
use crate::registry::{EGRESS, GATEWAY_LABEL};
use credentials::Wanted;

pub(super) use entrances::open;

/// Where a certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A document.
    Secret {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The authorities that this host trusts.
    System,
    /// Files of this host, PEM; empty where there is none.
    Files {
        /// The certificate.
        chain: String,
        /// Its key.
        key: String,
        /// The authorities of the other end.
        authorities: String,
    },
}

/// Certificates as this node holds them, or why it does not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held(pub BTreeMap<Source, Result<Credential, String>>);

/// A gateway that this node serves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own<'a> {
    service: &'a ServiceName,
    labels: &'a Labels,
    /// Whether only callers of the mesh come in.
    within: bool,
}

/// What listeners are made from.
pub(super) struct Ground<'a> {
    pub(super) site: &'a Site,
    pub(super) specs: &'a Specs,
    pub(super) own: &'a [Own<'a>],
    pub(super) held: &'a Held,
}

/// The listeners of this node, the oldest document first, and what they need of certificates.
pub(super) fn listeners(ground: &Ground<'_>) -> (Vec<ListenerDescription>, BTreeSet<Source>) {
    let mut wanted = Wanted::new(ground);
    let mut made = istio::listeners(ground, &mut wanted);
    made.extend(standard::listeners(ground, &mut wanted));
    made.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut listeners: Vec<ListenerDescription> = made.into_iter().map(|(_, listener)| listener).collect();
    settle(&mut listeners);
    (listeners, wanted.sources)
}

/// Whether a gateway of that name and labels serves the document; labels tell what is a gateway.
pub fn serves_gateway(resource: &Resource, service: &ServiceName, labels: &Labels) -> bool {
    let own = Own::new(service, labels);
    if !is_gateway(labels) {
        return false;
    }
    if resource.key.kind == IstioGateway::KIND.key() {
        return IstioGateway::of(resource).is_ok_and(|spec| own.has(&spec.selector));
    }
    Gateway::of(resource).is_ok_and(|spec| {
        let document = Document { key: resource.key.clone(), created: resource.created, spec };
        standard::serves(&own, &document)
    })
}

/// Where documents stand among each other: by age, then by name.
type Age = (u64, String, String);

fn age(created: u64, key: &ResourceKey) -> Age {
    (created, key.name.clone(), key.namespace.clone())
}

impl<'a> Own<'a> {
    /// One of this name and labels.
    pub(super) fn new(service: &'a ServiceName, labels: &'a Labels) -> Self {
        Self { service, labels, within: is_egress(labels) }
    }

    /// Whether it has these labels; `app` is its name.
    fn has(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.iter().all(|(name, value)| match name.as_str() {
            APP_LABEL => value == self.service.name(),
            name => self.labels.get(name) == Some(value),
        })
    }
}

/// Whether an instance of these labels is a gateway.
pub(super) fn is_gateway(labels: &Labels) -> bool {
    labels.contains_key(GATEWAY_LABEL)
}

fn is_egress(labels: &Labels) -> bool {
    labels.get(GATEWAY_LABEL).is_some_and(|value| value == EGRESS)
}

impl Ground<'_> {
    /// Where a port is listened on; `at` names an address. Nowhere where only callers of the mesh come in.
    fn addresses(&self, (port, within): (u16, bool), at: &[std::net::IpAddr]) -> Vec<SocketAddr> {
        if within {
            return Vec::new();
        }
        let port = self.site.gateway_ports.get(&port).copied().unwrap_or(port);
        match at {
            [] => vec![SocketAddr::new(self.site.gateway_ip, port)],
            at => at.iter().map(|ip| SocketAddr::new(*ip, port)).collect(),
        }
    }
}
