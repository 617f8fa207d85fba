//! Gateways, and whether what is attached to them is served.

use std::collections::BTreeSet;

use weft_proto::kinds::Spec;
use weft_proto::kinds::gateway::{Gateway, Listener, ObjectRef};
use weft_proto::kinds::hosts::meeting;
use weft_proto::kinds::http_route::ParentRef;
use weft_proto::kinds::istio_gateway::IstioGateway;
use weft_proto::kinds::virtual_service::{MESH, VirtualService};
use weft_proto::resource::Resource;

use super::{Findings, Ground, Read};

pub(super) fn virtual_services(ground: &Ground<'_>, findings: &mut Findings) {
    for one in &ground.virtual_services {
        let own = &one.resource.key.namespace;
        for (at, named) in one.spec.gateways.iter().enumerate().filter(|(_, named)| *named != MESH) {
            let path = format!("spec.gateways[{at}]");
            let single = VirtualService { gateways: vec![named.clone()], ..VirtualService::default() };
            let is = |gateway: &&Read<'_, IstioGateway>| {
                let key = &gateway.resource.key;
                single.applies(&format!("{}/{}", key.namespace, key.name), own)
            };
            match ground.istio_gateways.iter().find(is) {
                None => findings.add("WFT107", one.resource, path, format!("there is no gateway {named}")),
                Some(gateway) => hosts(one, gateway, (named, &path), findings),
            }
        }
    }
}

/// Whether anything of the document's hosts is served at the gateway.
fn hosts(
    one: &Read<'_, VirtualService>,
    gateway: &Read<'_, IstioGateway>,
    (named, path): (&str, &str),
    findings: &mut Findings,
) {
    let key = &gateway.resource.key;
    let met = |host: &String| {
        let servers = gateway.spec.servers.iter();
        servers.flat_map(|server| server.meets(&key.namespace, host, &one.resource.key.namespace)).next().is_some()
    };
    if !one.spec.hosts.iter().any(met) {
        let text = format!("no server of {named} is for any of spec.hosts, or for this namespace");
        findings.add("WFT108", one.resource, path.into(), text);
    }
}

/// Certificates that gateways name.
pub(super) fn certificates(ground: &Ground<'_>, findings: &mut Findings) {
    for one in &ground.istio_gateways {
        for (at, server) in one.spec.servers.iter().enumerate() {
            let Some(tls) = server.tls.as_ref().filter(|_| !server.is_of_mesh()) else { continue };
            let named =
                std::iter::once(&tls.credential_name).chain(&tls.credential_names).filter(|name| !name.is_empty());
            // Where the gateway is that serves it is not known here: any namespace will do.
            for name in named.filter(|name| !ground.secrets.iter().any(|(_, known)| known == *name)) {
                let text = format!("there is no Secret {name}, in whatever namespace");
                findings.add("WFT109", one.resource, format!("spec.servers[{at}].tls.credentialName"), text);
            }
        }
    }
    for one in &ground.gateways {
        for (at, listener) in one.spec.listeners.iter().enumerate() {
            let own = listener.tls.iter().flat_map(|tls| &tls.certificate_refs);
            let callers = one.spec.validation(listener).filter(|_| listener.tls.is_some());
            for to in own.chain(callers.iter().flat_map(|asked| &asked.ca_certificate_refs)) {
                certificate(ground, one.resource, to, &format!("spec.listeners[{at}].tls"), findings);
            }
        }
    }
}

fn certificate(ground: &Ground<'_>, resource: &Resource, to: &ObjectRef, path: &str, findings: &mut Findings) {
    let own = &resource.key.namespace;
    let namespace = to.namespace.as_ref().unwrap_or(own);
    if !ground.secrets.contains(&(namespace.clone(), to.name.clone())) {
        let text = format!("there is no Secret {namespace}/{}", to.name);
        findings.add("WFT109", resource, path.into(), text);
    }
    let mut grants = ground.grants.iter().filter(|grant| grant.resource.key.namespace == *namespace);
    if namespace != own && !grants.any(|grant| grant.spec.allows_secret(own, &to.name)) {
        let text = format!("no ReferenceGrant of {namespace} lets gateways of {own} have {}", to.name);
        findings.add("WFT105", resource, path.into(), text);
    }
}

/// A gateway that a route names: whether it is there and takes the route.
pub(super) fn parent(
    ground: &Ground<'_>,
    resource: &Resource,
    (parent, names): (&ParentRef, &[String]),
    findings: &mut Findings,
) {
    if parent.kind != "Gateway" {
        return;
    }
    let own = &resource.key.namespace;
    let path = || "spec.parentRefs".to_owned();
    let is = |one: &&Read<'_, Gateway>| {
        let key = &one.resource.key;
        parent.is_gateway(own, (&key.namespace, &key.name))
    };
    let Some(gateway) = ground.gateways.iter().find(is) else {
        let text = format!("there is no gateway {}", parent.name);
        return findings.add("WFT107", resource, path(), text);
    };
    let meant: Vec<&Listener> = gateway.spec.listeners.iter().filter(|one| parent.means(&one.name, one.port)).collect();
    if meant.is_empty() {
        let text = format!("{} has no such listener", parent.name);
        return findings.add("WFT107", resource, path(), text);
    }
    let kind = (resource.key.kind.name.as_str(), own.as_str());
    let admitting: Vec<&&Listener> =
        meant.iter().filter(|one| one.admits(&gateway.resource.key.namespace, kind)).collect();
    if admitting.is_empty() {
        let text = format!("no listener of {} takes a {} of the namespace {own}", parent.name, kind.0);
        return findings.add("WFT108", resource, path(), text);
    }
    let host = |one: &&&Listener| one.hostname.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| "*".into());
    let met = |one: &&&Listener| names.is_empty() || names.iter().any(|name| meeting(&host(one), name).is_some());
    if !admitting.iter().any(met) {
        let text = format!("no listener of {} is for any of spec.hostnames", parent.name);
        findings.add("WFT110", resource, path(), text);
    }
}

/// Whether a gateway's document names the port.
pub(super) fn has_port(resource: &Resource, port: u16) -> bool {
    let istio = IstioGateway::of(resource).is_ok_and(|spec| spec.servers.iter().any(|one| one.port.number == port));
    istio || Gateway::of(resource).is_ok_and(|spec| spec.listeners.iter().any(|one| one.port == port))
}

/// What is known of secrets: their namespaces and names.
pub(super) type Secrets = BTreeSet<(String, String)>;
