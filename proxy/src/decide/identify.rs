//! Which service is asked for.

use std::net::Ipv4Addr;
use std::sync::Arc;

use weft_proto::identity::Identity;
use weft_proto::kinds::istio::service_of;
use weft_proto::service::{DEFAULT_NAMESPACE, ServiceName, ServicePort};

use crate::reject::Reject;
use crate::table::{Meant, Service, Table};

/// The service and port that `name.mesh:port` means, or a host in one of the forms of documents; a name alone is one of the
/// caller's namespace.
pub(crate) fn named(table: &Table, (host, port): (&str, Option<u16>), caller: &Identity) -> Result<Named, Reject> {
    let namespace = caller.namespace().unwrap_or(DEFAULT_NAMESPACE);
    let meant = service_of(host, namespace).and_then(|name| table.meant(&name, port));
    let Meant { service, port, subset } = meant.ok_or_else(|| Reject::UnknownHost(host.to_owned()))?;
    let found = match port {
        None | Some(80) => service.http_port(),
        Some(number) => service.port(number),
    };
    let port = found.ok_or_else(|| unknown_port(service, port))?;
    Ok(Named { service: service.clone(), port, subset })
}

/// What a caller names.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) service: Arc<Service>,
    pub(crate) port: ServicePort,
    /// Which of its instances; none: all.
    pub(crate) subset: Option<Arc<str>>,
}

/// The service and port that the listener or link is for.
pub(crate) fn fixed(table: &Table, name: &ServiceName, number: u16) -> Result<(Arc<Service>, ServicePort), Reject> {
    let service = table.service(name).ok_or_else(|| Reject::UnknownHost(name.host()))?;
    let port = service.port(number).ok_or_else(|| unknown_port(service, Some(number)))?;
    Ok((service.clone(), port))
}

/// The service and port that a loopback address means.
pub(crate) fn addressed(
    table: &Table,
    address: Ipv4Addr,
    port: Option<u16>,
) -> Result<(Arc<Service>, ServicePort), Reject> {
    let service = table.services().find(|service| service.address == Some(address));
    let service = service.ok_or_else(|| Reject::UnknownHost(address.to_string()))?;
    let port = port.and_then(|number| service.port(number));
    let port = port.ok_or_else(|| Reject::UnknownPort(format!("{} has no such port", service.name)))?;
    Ok((service.clone(), port))
}

fn unknown_port(service: &Service, asked: Option<u16>) -> Reject {
    let ports: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
    let asked = asked.map(|port| format!(" {port}")).unwrap_or_default();
    Reject::UnknownPort(format!("{} has no port{asked}; its ports are: {}", service.name, ports.join(", ")))
}
