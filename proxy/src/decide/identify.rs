//! Which service is asked for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use weft_proto::identity::Identity;
use weft_proto::kinds::istio::{instance_of, service_of};
use weft_proto::service::{DEFAULT_NAMESPACE, MESH_SUFFIX, ServiceName, ServicePort};

use crate::reject::Reject;
use crate::table::{Service, Table};

/// The service and port that `name.mesh:port` means, its instance that `instance.name.mesh` means where no service is called so, or a host in one of the forms of documents; a name alone is one of the
/// caller's namespace.
pub(crate) fn named(table: &Table, (host, port): (&str, Option<u16>), caller: &Identity) -> Result<Named, Reject> {
    let namespace = caller.namespace().unwrap_or(DEFAULT_NAMESPACE);
    let names = [service_of(host, namespace), instance_of(host, namespace)];
    let inside = |name: ServiceName| {
        let meant = table.meant(&name, port).filter(|meant| !meant.service.name.is_outside())?;
        Some((name, meant))
    };
    let Some((name, meant)) = names.into_iter().flatten().find_map(inside) else {
        return outside(table, (host, port.unwrap_or(HTTP_PORT)), caller);
    };
    let found = match meant.port {
        None | Some(80) => meant.service.http_port(),
        Some(number) => meant.service.port(number),
    };
    let port = found.ok_or_else(|| unknown_port(meant.service, meant.port))?;
    let called = (name, meant.called.unwrap_or(port.port));
    Ok(Named { service: meant.service.clone(), port, subset: meant.subset, called })
}

/// The host outside the mesh that is meant.
fn outside(table: &Table, (host, port): (&str, u16), caller: &Identity) -> Result<Named, Reject> {
    // What has no dot, and what is of the mesh by its form, is a name of the mesh's own: where there is no such service, its callers do
    // not go elsewhere without the mesh's TLS, unless a document says by that name that it is outside.
    let of_mesh = || !host.contains('.') || host.ends_with(MESH_SUFFIX) || host.split('.').nth(2) == Some("svc");
    let own = host.parse::<IpAddr>().is_err() && of_mesh();
    let named = || table.service(&ServiceName::outside(host)).is_some();
    let may = !own || named();
    let found = if may { table.outside(host, port, caller) } else { None };
    let service = found.ok_or_else(|| Reject::UnknownHost(host.to_owned()))?;
    let port = service.port(port).ok_or_else(|| unknown_port(&service, Some(port)))?;
    Ok(Named { called: (service.name.clone(), port.port), service, port, subset: None })
}

/// What a program means that has called an address: what its request names, where that is known; else what documents say of the
/// address; else whatever is there.
pub(crate) fn intercepted(
    table: &Table,
    address: SocketAddr,
    host: Option<(&str, u16)>,
    caller: &Identity,
) -> Result<Named, Reject> {
    if let Some(known) = host.and_then(|host| known(table, host, caller)) {
        return Ok(known);
    }
    outside(table, (&address.ip().to_canonical().to_string(), address.port()), caller)
}

/// What is called by a name that the mesh or a document knows.
pub(crate) fn known(table: &Table, (host, port): (&str, u16), caller: &Identity) -> Option<Named> {
    let named = named(table, (host, Some(port)), caller).ok()?;
    let declared = named.service.outside().is_none_or(|outside| !outside.takes_any_port());
    declared.then_some(named)
}

/// What a caller names.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) service: Arc<Service>,
    pub(crate) port: ServicePort,
    /// Which of its instances; none: all.
    pub(crate) subset: Option<Arc<str>>,
    /// The name and port by which it is called, which may be a further name.
    pub(crate) called: (ServiceName, u16),
}

/// The service and port that the listener or link is for.
pub(crate) fn fixed(table: &Table, (name, number): (&ServiceName, u16), caller: &Identity) -> Result<Named, Reject> {
    if name.is_outside() {
        return outside(table, (name.name(), number), caller);
    }
    let meant = table.meant(name, Some(number)).ok_or_else(|| Reject::UnknownHost(name.host()))?;
    let port = meant.port.and_then(|number| meant.service.port(number));
    let port = port.ok_or_else(|| unknown_port(meant.service, Some(number)))?;
    Ok(Named { service: meant.service.clone(), port, subset: meant.subset, called: (name.clone(), number) })
}

/// The service and port that a loopback address means.
pub(crate) fn addressed(
    table: &Table,
    address: Ipv4Addr,
    port: Option<u16>,
) -> Result<(ServiceName, ServicePort), Reject> {
    let (service, name) = table.on_loopback(address).ok_or_else(|| Reject::UnknownHost(address.to_string()))?;
    let port = port.and_then(|number| service.port(number));
    let port = port.ok_or_else(|| Reject::UnknownPort(format!("{} has no such port", service.name)))?;
    Ok((name.clone(), port))
}

fn unknown_port(service: &Service, asked: Option<u16>) -> Reject {
    let ports: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
    let asked = asked.map(|port| format!(" {port}")).unwrap_or_default();
    Reject::UnknownPort(format!("{} has no port{asked}; its ports are: {}", service.name, ports.join(", ")))
}

/// The port that is meant where none is named.
const HTTP_PORT: u16 = 80;
