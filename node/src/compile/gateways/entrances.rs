//! Gateways as services of the mesh: the ports at which callers of the mesh enter are those that documents say.

use weft_proto::kinds::istio_gateway::Server;
use weft_proto::service::{Protocol, ServicePort};
use weft_proxy::table::description::ServiceDescription;

use super::super::Specs;
use super::{Own, standard};

/// Gives a service the ports of those of its instances that are gateways.
pub(in crate::compile) fn open(specs: &Specs, service: &mut ServiceDescription) {
    let name = service.name.clone();
    for endpoint in service.endpoints.iter_mut().filter(|one| one.gateway) {
        let entrances = entrances(specs, &Own::new(&name, &endpoint.labels));
        endpoint.ports = entrances.iter().map(|port| port.port).collect();
        for port in entrances {
            if service.ports.iter().all(|known| known.port != port.port) {
                service.ports.push(port);
            }
        }
    }
}

/// The ports of a gateway, as callers of the mesh see them: of several documents the oldest says what is spoken.
fn entrances(specs: &Specs, own: &Own<'_>) -> Vec<ServicePort> {
    let mut ports: Vec<(u64, ServicePort)> = Vec::new();
    for document in specs.istio_gateways().iter().filter(|one| own.has(&one.spec.selector)) {
        let port = |server: &Server| ServicePort { port: server.port.number, protocol: protocol(server) };
        ports.extend(document.spec.servers.iter().map(|server| (document.created, port(server))));
    }
    for document in specs.gateways().iter().filter(|one| standard::serves(own, one)) {
        let listeners = document.spec.listeners.iter();
        let port = |port, http| ServicePort { port, protocol: of(http) };
        ports.extend(listeners.map(|one| {
            let http = one.protocol == "HTTP" || (one.protocol == "HTTPS" && standard::is_of_mesh(one));
            (document.created, port(one.port, http))
        }));
    }
    ports.sort_by_key(|(created, port)| (port.port, *created));
    ports.dedup_by_key(|(_, port)| port.port);
    ports.into_iter().map(|(_, port)| port).collect()
}

/// TLS of the mesh's own ends with the link: what is in it is what is spoken.
fn protocol(server: &Server) -> Protocol {
    of(server.speaks_http() && (server.is_of_mesh() || !server.is_secured()))
}

fn of(http: bool) -> Protocol {
    if http { Protocol::Http } else { Protocol::Tcp }
}
