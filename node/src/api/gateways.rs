//! How gateways stand: which nodes serve them, where, and what is attached to each listener.

use serde_json::{Value, json};
use weft_proto::facts::Live;
use weft_proto::kinds::Spec;
use weft_proto::kinds::gateway::{Gateway, Listener};
use weft_proto::kinds::grpc_route::GrpcRoute;
use weft_proto::kinds::hosts::meeting;
use weft_proto::kinds::http_route::{HttpRoute, ParentRef};
use weft_proto::kinds::tcp_route::TcpRoute;
use weft_proto::kinds::tls_route::TlsRoute;
use weft_proto::resource::{Resource, ResourceKey};

use crate::compile::serves_gateway;

/// Which live nodes serve a gateway, and where each is reached.
pub(super) fn served_by(resource: &Resource, live: &Live) -> Vec<(String, String)> {
    let serves = |one: &&weft_proto::service::Instance| serves_gateway(resource, &one.id.service, &one.labels);
    let nodes = live.values().filter(|facts| facts.instances.iter().any(|one| serves(&one)));
    let place = |facts: &std::sync::Arc<weft_proto::facts::NodeFacts>| {
        let address: Option<std::net::SocketAddr> = facts.address.parse().ok();
        (facts.name.to_string(), address.map_or_else(|| facts.address.clone(), |address| address.ip().to_string()))
    };
    nodes.map(place).collect()
}

/// `status.listeners` of a gateway of the Gateway API; none of another kind.
pub(super) fn listeners(resources: &[Resource], resource: &Resource, conditions: &Value) -> Option<Value> {
    let gateway = (resource.key.kind == Gateway::KIND.key()).then(|| Gateway::of(resource).ok()).flatten()?;
    let attached = attached(resources);
    let listener = |one: &Listener| {
        let count = attached.iter().filter(|route| route.is_attached(&resource.key, one)).count();
        let kinds: Vec<Value> =
            one.kinds().iter().map(|kind| json!({ "group": resource.key.kind.group, "kind": kind })).collect();
        json!({ "name": one.name, "attachedRoutes": count, "supportedKinds": kinds, "conditions": conditions })
    };
    Some(gateway.listeners.iter().map(listener).collect())
}

/// A route, as gateways see it.
struct Route<'a> {
    key: &'a ResourceKey,
    parents: Vec<ParentRef>,
    names: Vec<String>,
}

impl Route<'_> {
    fn is_attached(&self, gateway: &ResourceKey, listener: &Listener) -> bool {
        let own = (gateway.namespace.as_str(), gateway.name.as_str());
        let host = listener.hostname.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| "*".into());
        let namespace = &self.key.namespace;
        listener.admits(&gateway.namespace, (&self.key.kind.name, namespace))
            && self.parents.iter().any(|one| one.is_gateway(namespace, own) && one.means(&listener.name, listener.port))
            && (self.names.is_empty() || self.names.iter().any(|name| meeting(&host, name).is_some()))
    }
}

fn attached<'a>(resources: &'a [Resource]) -> Vec<Route<'a>> {
    let read = |resource: &'a Resource| {
        let key = &resource.key;
        let (parents, names) = match &key.kind {
            kind if *kind == HttpRoute::KIND.key() => {
                let spec = HttpRoute::of(resource).ok()?;
                (spec.parent_refs, spec.hostnames)
            }
            kind if *kind == GrpcRoute::KIND.key() => {
                let spec = GrpcRoute::of(resource).ok()?;
                (spec.parent_refs, spec.hostnames)
            }
            kind if *kind == TlsRoute::KIND.key() => {
                let spec = TlsRoute::of(resource).ok()?;
                (spec.parent_refs, spec.hostnames)
            }
            kind if *kind == TcpRoute::KIND.key() => (TcpRoute::of(resource).ok()?.parent_refs, Vec::new()),
            _ => return None,
        };
        Some(Route { key, parents, names })
    };
    resources.iter().filter_map(read).collect()
}
