//! The listeners of a core, kept in step with the table.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use weft_proto::service::{Protocol, ServiceName};

use super::{gateway, http3, links, local, named};
use crate::call::Destination;
use crate::connection::Connection;
use crate::core::Core;
use crate::forward::bytes::End as Near;
use crate::net::{Accepted, Listener, Net};
use crate::room::Owner;
use crate::shared::PlaneSettings;
use crate::table::Table;
use crate::task::Aborting;

/// What arrives at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Links.
    Mesh,
    /// The forward proxy.
    Proxy,
    /// The ports of all services.
    Captured,
    /// A port of a service.
    Service(ServiceName, u16, Protocol),
    /// A port of a gateway.
    Gateway(u16),
}

/// Open listeners.
#[derive(Default)]
pub(crate) struct Listeners {
    tcp: Open<Purpose>,
    /// Those of HTTP/3, by the port of gateways that each is for.
    quic: Open<u16>,
}

/// What is open by address, and for what.
struct Open<P>(BTreeMap<SocketAddr, (P, Aborting)>);

impl<P> Default for Open<P> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<P: Clone + PartialEq> Open<P> {
    /// Closes what is not wanted any more and opens what is missing; tells what could not be opened, and why.
    fn update(
        &mut self,
        wanted: BTreeMap<SocketAddr, P>,
        open: impl Fn(SocketAddr, &P) -> Result<Aborting, String>,
        problems: &mut Vec<String>,
    ) {
        self.0.retain(|address, (purpose, _)| wanted.get(address) == Some(purpose));
        for (address, purpose) in wanted {
            if self.0.contains_key(&address) {
                continue;
            }
            match open(address, &purpose) {
                Ok(opened) => drop(self.0.insert(address, (purpose, opened))),
                Err(problem) => problems.push(problem),
            }
        }
    }
}

/// Every address that a table and the settings ask for.
fn wanted(settings: &PlaneSettings, table: &Table) -> BTreeMap<SocketAddr, Purpose> {
    let mut wanted = BTreeMap::new();
    match settings.captured {
        Some(address) => drop(wanted.insert(address, Purpose::Captured)),
        None => {
            for (service, port, address) in table.addresses() {
                wanted.insert(address, Purpose::Service(service.name.clone(), port.port, port.protocol));
            }
        }
    }
    for bind in &table.binds {
        let protocol = table.service(&bind.service).and_then(|service| service.port(bind.port));
        let protocol = protocol.map_or(Protocol::Auto, |port| port.protocol);
        wanted.insert(bind.address, Purpose::Service(bind.service.clone(), bind.port, protocol));
    }
    wanted.extend(table.gateways.addresses().map(|(address, port)| (address, Purpose::Gateway(port))));
    if let Some(address) = settings.proxy_address {
        wanted.insert(address, Purpose::Proxy);
    }
    wanted.insert(settings.mesh_address, Purpose::Mesh);
    wanted
}

impl Listeners {
    /// Brings them in step with a table; answers what could not be opened, and why.
    pub(crate) fn update<N: Net>(&mut self, core: &Arc<Core<N>>, table: &Table) -> Vec<String> {
        let mut problems = Vec::new();
        let open = |address, purpose: &Purpose| {
            let listener = core.shared.net.listen(address).map_err(|error| remedy(address, purpose, &error))?;
            let task = tokio::spawn(accept(core.clone(), listener, purpose.clone()));
            Ok(Aborting(task.abort_handle()))
        };
        self.tcp.update(wanted(&core.shared.settings, table), open, &mut problems);
        let secure = table.gateways.secure_addresses().filter(|(_, port)| table.speaks_http3(*port)).collect();
        let open = |address, port: &u16| {
            let server = http3::bind(core, address, *port).map_err(|error| {
                format!("cannot listen on {address} (UDP) for HTTP/3 at port {port} of a gateway: {error}")
            })?;
            let task = tokio::spawn(http3::listen(core.clone(), address, server, *port));
            Ok(Aborting(task.abort_handle()))
        };
        self.quic.update(secure, open, &mut problems);
        problems
    }

    /// Takes no more connections.
    pub(crate) fn close(&mut self) {
        *self = Self::default();
    }
}

fn remedy(address: SocketAddr, purpose: &Purpose, error: &io::Error) -> String {
    let what = match purpose {
        Purpose::Mesh => "links".to_owned(),
        Purpose::Proxy => "the forward proxy".to_owned(),
        Purpose::Captured => "services' loopback addresses".to_owned(),
        Purpose::Service(service, port, _) => format!("{service} port {port}"),
        Purpose::Gateway(port) => format!("port {port} of a gateway"),
    };
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied if matches!(purpose, Purpose::Gateway(_)) => {
            let port = address.port();
            format!("; ports below 1024 need CAP_NET_BIND_SERVICE, or another one: `weft up --gateway-port {port}=PORT`")
        }
        io::ErrorKind::PermissionDenied => {
            let port = address.port();
            format!("; ports below 1024 need CAP_NET_BIND_SERVICE or `sysctl net.ipv4.ip_unprivileged_port_start={port}`, or call it through the forward proxy")
        }
        io::ErrorKind::AddrInUse => {
            "; another process listens there, or on all addresses: let it listen on 127.0.0.1, or call through the forward proxy".to_owned()
        }
        _ => String::new(),
    };
    format!("cannot listen on {address} for {what}: {error}{remedy}")
}

async fn accept<N: Net>(core: Arc<Core<N>>, mut listener: N::Listener, purpose: Purpose) {
    loop {
        let accepted = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files, above all: others must end before another can begin.
                tracing::warn!(%error, "a connection could not be taken");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let core = core.clone();
        let Accepted { stream, ours, theirs } = accepted;
        let fixed = match &purpose {
            Purpose::Mesh => {
                tokio::spawn(links::serve(core, Accepted { stream, ours, theirs }));
                continue;
            }
            Purpose::Gateway(port) => {
                match core.shared.room.take(|| Owner::Address(theirs.ip().to_canonical())) {
                    Some(taken) => {
                        let accepted = Accepted { stream, ours, theirs };
                        drop(tokio::spawn(gateway::serve(core, accepted, taken, *port)));
                    }
                    None => Near::io(stream).abort(),
                }
                continue;
            }
            Purpose::Proxy => Some((Destination::Named, None)),
            Purpose::Captured => core
                .shared
                .table
                .load()
                .at(ours)
                .map(|(service, port)| (Destination::Fixed(service.name.clone(), port.port), Some(port.protocol))),
            Purpose::Service(service, port, protocol) => {
                Some((Destination::Fixed(service.clone(), *port), Some(*protocol)))
            }
        };
        let mut near = Near::io(stream);
        let taken = core.shared.room.take(|| Owner::User(core.shared.net.owner(ours, theirs)));
        let (Some((destination, protocol)), Some(taken)) = (fixed, taken) else {
            near.abort();
            continue;
        };
        let connection = Connection::local(&core, destination, (ours, theirs), taken);
        match protocol {
            Some(protocol) => drop(tokio::spawn(local::serve(connection, near, protocol))),
            None => drop(tokio::spawn(named::serve(connection, near))),
        }
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
