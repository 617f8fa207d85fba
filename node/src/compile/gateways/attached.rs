//! The rules that are attached to a listener.

use std::sync::Arc;

use weft_proto::kinds::gateway::Listener;
use weft_proto::kinds::hosts::meeting;
use weft_proto::kinds::istio::is_exported;
use weft_proto::kinds::istio_gateway::Server;
use weft_proto::resource::ResourceKey;
use weft_proxy::table::routes::{Document, GatewayDocument, RouteDocument, StreamDocument};

use super::super::Specs;

/// Documents with the hosts that each has in common with the listener.
pub(super) type Attached<T> = Vec<(Vec<String>, Arc<T>)>;

/// Istio's documents that name the gateway, for a server of it: those with rules for streams, or those with rules for HTTP.
pub(super) fn of_istio(
    specs: &Specs,
    gateway: &ResourceKey,
    server: &Server,
    streams: bool,
) -> Attached<RouteDocument> {
    let place = format!("{}/{}", gateway.namespace, gateway.name);
    let attached = |document: &Arc<RouteDocument>| {
        let namespace = &document.key.namespace;
        if !is_exported(&document.spec.export_to, namespace, &gateway.namespace) {
            return None;
        }
        let spec = document.spec.at(&place, namespace)?;
        let speaks = match streams {
            true => !spec.tcp.is_empty() || !spec.tls.is_empty(),
            false => !spec.http.is_empty(),
        };
        let met = |host: &String| {
            server.meets(&gateway.namespace, host, namespace).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let hosts: Vec<String> = spec.hosts.iter().flat_map(met).collect();
        (speaks && !hosts.is_empty()).then(|| (hosts, Arc::new(Document { spec, ..(**document).clone() })))
    };
    specs.routes().iter().filter_map(attached).collect()
}

/// `HTTPRoute`s and `GRPCRoute`s that name the gateway or the listener.
pub(super) fn http(
    specs: &Specs,
    gateway: &ResourceKey,
    (listener, host): (&Listener, &str),
) -> Attached<GatewayDocument> {
    let attached = |document: Arc<GatewayDocument>| {
        let named = document.spec.parent_refs.iter();
        let here = is_meant(named, &document.key, gateway, listener);
        let hosts = here.then(|| hosts(&document.spec.hostnames, host)).filter(|hosts| !hosts.is_empty())?;
        Some((hosts, document))
    };
    specs.gateway_routes().into_iter().filter_map(attached).collect()
}

/// The same of `TLSRoute`s and `TCPRoute`s.
pub(super) fn streams(
    specs: &Specs,
    gateway: &ResourceKey,
    (listener, host): (&Listener, &str),
) -> Attached<StreamDocument> {
    let attached = |document: Arc<StreamDocument>| {
        let named = document.spec.parent_refs.iter();
        let here = is_meant(named, &document.key, gateway, listener);
        let names = document.spec.hostnames.as_deref().unwrap_or_default();
        let hosts = here.then(|| hosts(names, host)).filter(|hosts| !hosts.is_empty())?;
        Some((hosts, document))
    };
    specs.stream_routes().into_iter().filter_map(attached).collect()
}

fn is_meant<'a>(
    mut parents: impl Iterator<Item = &'a weft_proto::kinds::http_route::ParentRef>,
    route: &ResourceKey,
    gateway: &ResourceKey,
    listener: &Listener,
) -> bool {
    let own = (gateway.namespace.as_str(), gateway.name.as_str());
    listener.admits(&gateway.namespace, (&route.kind.name, &route.namespace))
        && parents.any(|one| one.is_gateway(&route.namespace, own) && one.means(&listener.name, listener.port))
}

/// What the names of a route have in common with the host of a listener; none: all of that.
fn hosts(names: &[String], host: &str) -> Vec<String> {
    if names.is_empty() {
        return vec![host.to_owned()];
    }
    names.iter().filter_map(|name| meeting(host, name)).map(str::to_owned).collect()
}
