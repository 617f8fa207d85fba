//! The listeners of a core, kept in step with the table.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use weft_proto::service::{Protocol, ServiceName};

use super::{gateway, http3, intercepted, links, local, named};
use crate::call::Destination;
use crate::connection::Connection;
use crate::core::Core;
use crate::forward::bytes::End as Near;
use crate::net::{Accepted, Listener, Net};
use crate::quic::QuicServer;
use crate::room::{Owner, Taken};
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
    /// What the firewall sends here that is for the own ports of instances.
    Inbound,
    /// The same of programs that call somebody.
    Outbound,
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
    tcp: Open<Purpose, Aborting>,
    /// Those of HTTP/3, by the port of gateways that each is for.
    quic: Open<u16, (Aborting, QuicServer)>,
}

/// What is open by address, and for what.
struct Open<P, H>(BTreeMap<SocketAddr, (P, H)>);

impl<P, H> Default for Open<P, H> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<P: Clone + PartialEq, H> Open<P, H> {
    /// Closes what is not wanted any more and opens what is missing; tells what could not be opened, and why.
    fn update(
        &mut self,
        wanted: BTreeMap<SocketAddr, P>,
        open: impl Fn(SocketAddr, &P) -> Result<H, String>,
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

/// Every address that a table and the settings ask for. Before there is a table whoever calls waits, where the process before this
/// one has left the listeners, and there is nothing to be told else.
fn wanted(settings: &PlaneSettings, table: &Table) -> BTreeMap<SocketAddr, Purpose> {
    let mut wanted = BTreeMap::from([(settings.mesh_address, Purpose::Mesh)]);
    if !table.is_in_force() {
        return wanted;
    }
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
    wanted.extend(table.intercepts.inbound.iter().map(|address| (*address, Purpose::Inbound)));
    wanted.extend(table.intercepts.outbound.iter().map(|address| (*address, Purpose::Outbound)));
    wanted.extend(table.gateways.addresses().map(|(address, port)| (address, Purpose::Gateway(port))));
    if let Some(address) = settings.proxy_address {
        wanted.insert(address, Purpose::Proxy);
    }
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
            let task = tokio::spawn(http3::listen(core.clone(), address, server.clone(), *port));
            Ok((Aborting(task.abort_handle()), server))
        };
        self.quic.update(secure, open, &mut problems);
        problems
    }

    /// Takes no more connections; answers what has some that are open, over QUIC.
    pub(crate) fn close(self) -> Vec<QuicServer> {
        self.quic.0.into_values().map(|(_, (_, server))| server).collect()
    }
}

fn remedy(address: SocketAddr, purpose: &Purpose, error: &io::Error) -> String {
    let what = match purpose {
        Purpose::Mesh => "links".to_owned(),
        Purpose::Proxy => "the forward proxy".to_owned(),
        Purpose::Inbound | Purpose::Outbound => "what `weft intercept` sends here".to_owned(),
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
        take(core.clone(), accepted, &purpose);
    }
}

/// Takes a connection, if there is room for it.
fn take<N: Net>(core: Arc<Core<N>>, accepted: Accepted<N::Stream>, purpose: &Purpose) {
    let shared = &core.shared;
    if *purpose == Purpose::Mesh {
        return drop(tokio::spawn(links::serve(core, accepted)));
    }
    let owner = || match purpose {
        Purpose::Gateway(_) | Purpose::Inbound => Owner::Address(accepted.theirs.ip().to_canonical()),
        Purpose::Outbound => {
            let meant = shared.net.meant(&accepted.stream).unwrap_or(accepted.ours);
            Owner::User(shared.net.owner(meant, accepted.theirs).map(|process| process.user))
        }
        _ => Owner::User(shared.net.owner(accepted.ours, accepted.theirs).map(|process| process.user)),
    };
    let Some(taken) = shared.room.take(owner) else { return Near::io(accepted.stream).abort() };
    match purpose {
        Purpose::Gateway(port) => drop(tokio::spawn(gateway::serve(core, accepted, taken, *port))),
        Purpose::Inbound => drop(tokio::spawn(intercepted::inbound(core, accepted, taken))),
        Purpose::Outbound => drop(tokio::spawn(intercepted::outbound(core, accepted, taken))),
        _ => call(&core, accepted, taken, purpose),
    }
}

/// Serves a connection of a local process that calls somebody.
fn call<N: Net>(core: &Arc<Core<N>>, accepted: Accepted<N::Stream>, taken: Taken, purpose: &Purpose) {
    let Accepted { stream, ours, theirs } = accepted;
    let fixed = match purpose {
        Purpose::Captured => core
            .shared
            .table
            .load()
            .at(ours)
            .map(|(name, port)| (Destination::Fixed(name.clone(), port.port), Some(port.protocol))),
        Purpose::Service(service, port, protocol) => {
            Some((Destination::Fixed(service.clone(), *port), Some(*protocol)))
        }
        _ => Some((Destination::Named, None)),
    };
    let mut near = Near::io(stream);
    let Some((destination, protocol)) = fixed else { return near.abort() };
    let connection = Connection::local(core, destination, (ours, theirs), taken);
    match protocol {
        Some(protocol) => drop(tokio::spawn(local::serve(connection, near, protocol))),
        None => drop(tokio::spawn(named::serve(connection, near))),
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
