//! Gateways that this node serves, compiled: ports, what ends TLS there, and the rules of each host.

mod hosts;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use weft_proto::kinds::hosts::covers;
use weft_proto::service::{Protocol, ServiceName, ServicePort};

use super::description::{ListenerDescription, Speaks};
use super::routes::{HostRank, Routes, StreamRoutes};
use crate::call::Door;
use crate::tls::{self, EdgeClients};
use hosts::Hosts;

/// Everything that this node serves of gateways.
#[derive(Debug, Default)]
pub(crate) struct Gateways {
    listeners: Vec<Arc<ListenerDescription>>,
    /// By number, for callers from outside.
    ports: BTreeMap<u16, Arc<Port>>,
    /// By gateway and number, for callers of the mesh.
    entrances: BTreeMap<(ServiceName, u16), Arc<Port>>,
    hosts: BTreeMap<Arc<str>, Arc<VirtualHost>>,
}

/// A port.
#[derive(Debug)]
pub(crate) enum Port {
    /// Plain HTTP.
    Http(Hosts),
    /// TLS, told apart by the name that callers ask for.
    Tls(Vec<TlsListener>),
    /// Opaque streams.
    Tcp(Arc<VirtualHost>),
}

/// What becomes of TLS for some names.
#[derive(Debug)]
pub(crate) struct TlsListener {
    /// The document and the listener in it.
    pub(crate) name: Arc<str>,
    hosts: Vec<String>,
    pub(crate) then: Then,
}

/// What becomes of a stream of TLS.
pub(crate) enum Then {
    /// It is passed on as it is.
    Pass(Arc<VirtualHost>),
    /// It ends here, and HTTP follows.
    Http(Ending, Hosts),
    /// It ends here, and an opaque stream follows.
    Stream(Ending, Arc<VirtualHost>),
    /// It is refused, since there is no certificate.
    Refuse,
}

/// How TLS ends here.
#[derive(Clone)]
pub(crate) struct Ending {
    pub(crate) config: Arc<ServerConfig>,
    /// Names of which a caller's certificate must have one; none: any will do.
    pub(crate) names: Arc<[String]>,
    /// Whether it can end over QUIC too: where callers show no certificates, and TLS 1.3 is spoken.
    pub(crate) quic: bool,
}

impl fmt::Debug for Then {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass(_) => "Pass",
            Self::Http(..) => "Http",
            Self::Stream(..) => "Stream",
            Self::Refuse => "Refuse",
        })
    }
}

/// A host at a port, with the rules for it.
#[derive(Debug)]
pub(crate) struct VirtualHost {
    /// Tells it apart from all others of the table.
    pub(crate) key: Arc<str>,
    /// The gateway: whose policies judge here, and who calls from here on.
    pub(crate) service: ServiceName,
    pub(crate) port: ServicePort,
    /// How callers spoke.
    pub(crate) scheme: &'static str,
    pub(crate) routes: Option<Arc<Routes>>,
    pub(crate) stream_routes: Option<Arc<StreamRoutes>>,
}

/// Where rules of listeners are: those of which gateway, else of a port, and of which listener where TLS tells them apart.
type Place<'a> = (&'a str, Option<&'a Arc<str>>);

/// A port where an older document serves something else.
const TAKEN: &str = "an older document serves something else at this port";

impl Gateways {
    /// Compiles them, the oldest first; what did not change is taken over whole.
    pub(super) fn compile(listeners: Vec<Arc<ListenerDescription>>, before: Option<&Arc<Self>>) -> Arc<Self> {
        if let Some(same) = before.filter(|before| before.listeners == listeners) {
            return same.clone();
        }
        let mut gateways = Self::default();
        let mut numbers: BTreeMap<u16, Vec<&ListenerDescription>> = BTreeMap::new();
        for one in listeners.iter().filter(|one| one.conflict.is_none()) {
            numbers.entry(one.port).or_default().push(one);
        }
        for (number, all) in numbers {
            let outside: Vec<_> = all.iter().copied().filter(|one| !one.addresses.is_empty()).collect();
            let shared = gateways.port_of(&outside, "");
            let services: BTreeSet<&ServiceName> = all.iter().map(|one| &one.service).collect();
            for service in services {
                let own: Vec<_> = all.iter().copied().filter(|one| one.service == *service).collect();
                let same = own.len() == outside.len() && own.iter().zip(&outside).all(|(a, b)| std::ptr::eq(*a, *b));
                let port = if same { shared.clone() } else { gateways.port_of(&own, &service.to_string()) };
                gateways.entrances.extend(port.map(|port| ((service.clone(), number), port)));
            }
            gateways.ports.extend(shared.map(|port| (number, port)));
        }
        gateways.listeners = listeners;
        Arc::new(gateways)
    }

    /// A port, of the listeners that can share one with the first of these; `side` tells those of a gateway from those of a port.
    fn port_of(&mut self, all: &[&ListenerDescription], side: &str) -> Option<Arc<Port>> {
        let first = all.first()?;
        let own: Vec<_> = all.iter().copied().filter(|one| one.speaks.family() == first.speaks.family()).collect();
        Some(Arc::new(match first.speaks {
            Speaks::Http => Port::Http(self.hosts_of(&own, (side, None))),
            Speaks::Tcp => Port::Tcp(self.stream(first, (side, None))),
            Speaks::Passthrough | Speaks::Tls(_) => {
                Port::Tls(own.iter().map(|one| self.tls_listener(one, side)).collect())
            }
        }))
    }

    fn tls_listener(&mut self, one: &ListenerDescription, side: &str) -> TlsListener {
        let name: Arc<str> = one.name.as_str().into();
        let place = (side, Some(&name));
        let then = match &one.speaks {
            Speaks::Tls(edge) => match tls::edge::server_config(edge) {
                Ok(config) => {
                    let quic = edge.clients == EdgeClients::Unasked && edge.new;
                    let ending = Ending { config, names: edge.names.clone().into(), quic };
                    match edge.http {
                        true => Then::Http(ending, self.hosts_of(&[one], place)),
                        false => Then::Stream(ending, self.stream(one, place)),
                    }
                }
                Err(_) => Then::Refuse,
            },
            _ => Then::Pass(self.stream(one, place)),
        };
        TlsListener { name, hosts: one.hosts.clone(), then }
    }

    /// The hosts of listeners that share a port.
    fn hosts_of(&mut self, own: &[&ListenerDescription], place: Place<'_>) -> Hosts {
        let mut hosts = Hosts::default();
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        // The Gateway API's documents go before those of Istio: what they name is theirs.
        let patterns = |one: &ListenerDescription| -> Vec<String> {
            let istio = one.routes.iter().flat_map(|(hosts, _)| hosts);
            let standard = one.gateway_routes.iter().flat_map(|(hosts, _)| hosts);
            // Where nothing is attached the narrowest listener answers all the same.
            let own = one.hosts.iter().filter(|_| one.redirects || one.strict);
            istio.chain(standard).chain(own).cloned().collect()
        };
        let all: Vec<(String, &ListenerDescription)> =
            own.iter().flat_map(|one| patterns(one).into_iter().map(|pattern| (pattern, *one))).collect();
        for (pattern, one) in &all {
            if !seen.insert(pattern) {
                continue;
            }
            let same: Vec<&ListenerDescription> =
                all.iter().filter(|(other, _)| other == pattern).map(|(_, one)| *one).collect();
            let routes = Arc::new(rules(pattern, &same));
            let host = self.keep(pattern, one, place, (Some(routes), None));
            hosts.add(pattern, host);
        }
        hosts
    }

    fn stream(&mut self, one: &ListenerDescription, place: Place<'_>) -> Arc<VirtualHost> {
        let istio: Vec<_> = one.routes.iter().map(|(_, document)| document.clone()).collect();
        let passes = matches!(one.speaks, Speaks::Passthrough);
        let routes = StreamRoutes::at_gateway(&istio, &one.stream_routes, passes);
        self.keep("", one, place, (None, Some(Arc::new(routes))))
    }

    fn keep(
        &mut self,
        pattern: &str,
        one: &ListenerDescription,
        (side, listener): Place<'_>,
        (routes, stream_routes): (Option<Arc<Routes>>, Option<Arc<StreamRoutes>>),
    ) -> Arc<VirtualHost> {
        let key: Arc<str> =
            format!("{side} {} {} {pattern}", one.port, listener.map(|name| &**name).unwrap_or_default()).into();
        let protocol = if routes.is_some() { Protocol::Http } else { Protocol::Tcp };
        let host = Arc::new(VirtualHost {
            key: key.clone(),
            service: one.service.clone(),
            port: ServicePort { port: one.port, protocol },
            scheme: if matches!(one.speaks, Speaks::Tls(_)) { "https" } else { "http" },
            routes,
            stream_routes,
        });
        self.hosts.insert(key, host.clone());
        host
    }

    /// Where connections from outside arrive, and at which port.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (SocketAddr, u16)> {
        let served = self.listeners.iter().filter(|one| one.conflict.is_none());
        served.flat_map(|one| one.addresses.iter().map(|address| (*address, one.port)))
    }

    /// Where HTTPS can be served over QUIC, and at which port.
    pub(crate) fn secure_addresses(&self) -> impl Iterator<Item = (SocketAddr, u16)> {
        self.addresses().filter(|(_, port)| self.ports.get(port).is_some_and(|port| port.is_secure()))
    }

    /// The gateway that a port is of: that of the oldest document, where several share it.
    pub(crate) fn behind(&self, port: u16) -> Option<&ServiceName> {
        let mut served = self.listeners.iter().filter(|one| one.port == port && !one.addresses.is_empty());
        served.find(|one| one.conflict.is_none()).map(|one| &one.service)
    }

    /// What is served at a door.
    pub(crate) fn port(&self, door: &Door) -> Option<&Arc<Port>> {
        match &door.gateway {
            None => self.ports.get(&door.port),
            Some(gateway) => self.entrances.get(&(gateway.clone(), door.port)),
        }
    }

    /// The host of that key.
    pub(crate) fn host(&self, key: &str) -> Option<&Arc<VirtualHost>> {
        self.hosts.get(key)
    }

    /// The host that a connection means, by what each request names.
    pub(crate) fn enter(&self, door: &Door, host: Option<&str>) -> Option<&Arc<VirtualHost>> {
        match (&**self.port(door)?, &door.listener) {
            (Port::Http(hosts), _) => hosts.find(host?),
            (Port::Tcp(stream), _) => Some(stream),
            (Port::Tls(listeners), Some(name)) => match &listeners.iter().find(|one| one.name == *name)?.then {
                Then::Http(_, hosts) => hosts.find(host?),
                Then::Pass(stream) | Then::Stream(_, stream) => Some(stream),
                Then::Refuse => None,
            },
            (Port::Tls(_), None) => None,
        }
    }

    /// Every host of a gateway, and a port of it, that a name means.
    pub(crate) fn find(
        &self,
        gateway: &ServiceName,
        port: Option<u16>,
        name: &str,
    ) -> impl Iterator<Item = &Arc<VirtualHost>> {
        let ports = self.ports.iter().filter(move |(number, _)| port.is_none_or(|port| port == **number));
        let found = ports.filter_map(move |(_, port)| match &**port {
            Port::Http(hosts) => hosts.find(name),
            Port::Tcp(stream) => Some(stream),
            Port::Tls(listeners) => match &for_name(listeners, name)?.then {
                Then::Http(_, hosts) => hosts.find(name),
                Then::Pass(stream) | Then::Stream(_, stream) => Some(stream),
                Then::Refuse => None,
            },
        });
        found.filter(move |host| host.service == *gateway)
    }

    /// What does not work, and what to do.
    pub(crate) fn problems(&self) -> impl Iterator<Item = String> {
        self.listeners.iter().filter_map(|one| Some(format!("gateway {}: {}", one.name, one.problem()?)))
    }
}

impl ListenerDescription {
    /// Why it is not served as it says.
    pub fn problem(&self) -> Option<String> {
        if let Some(why) = &self.conflict {
            return Some(why.clone());
        }
        match &self.speaks {
            Speaks::Tls(edge) => tls::edge::server_config(edge).err(),
            _ => None,
        }
    }
}

/// Marks those that cannot be served since an older one serves something else at their port; the oldest stand first.
pub fn settle(listeners: &mut [ListenerDescription]) {
    for at in 0..listeners.len() {
        let (before, rest) = listeners.split_at_mut(at);
        let own = &mut rest[0];
        let meets = |other: &&ListenerDescription| {
            let outside = !other.addresses.is_empty() && !own.addresses.is_empty();
            other.port == own.port && (outside || other.service == own.service)
        };
        let mut same = before.iter().filter(meets).filter(|other| other.conflict.is_none());
        let clash = same.find_map(|other| match (&other.speaks, &own.speaks) {
            (a, b) if a.family() != b.family() => Some(TAKEN.to_owned()),
            (Speaks::Tcp, _) => Some(TAKEN.to_owned()),
            (Speaks::Tls(_) | Speaks::Passthrough, _) => {
                let name = own.hosts.iter().find(|host| other.hosts.contains(host))?;
                Some(format!("an older document serves {name} at this port"))
            }
            _ => None,
        });
        own.conflict = clash.or_else(|| own.conflict.take());
    }
}

impl Port {
    /// What ends HTTPS for a name where that can be done over QUIC, and the listener.
    pub(crate) fn secure(&self, name: &str) -> Option<(&Arc<str>, &Ending)> {
        let Self::Tls(listeners) = self else { return None };
        let listener = for_name(listeners, name)?;
        listener.secure().map(|ending| (&listener.name, ending))
    }

    /// Whether any name is served so.
    fn is_secure(&self) -> bool {
        let Self::Tls(listeners) = self else { return false };
        listeners.iter().any(|one| one.secure().is_some())
    }
}

impl TlsListener {
    /// What ends HTTPS here, where that can be done over QUIC.
    pub(crate) fn secure(&self) -> Option<&Ending> {
        match &self.then {
            Then::Http(ending, _) => Some(ending).filter(|ending| ending.quic),
            _ => None,
        }
    }

    /// How narrow the pattern is by which a name is meant; none where it is not.
    fn meets(&self, name: &str) -> Option<HostRank> {
        let meant = self.hosts.iter().filter(|pattern| covers(pattern, name) || (name.is_empty() && *pattern == "*"));
        meant.map(|pattern| HostRank::of(pattern)).max()
    }
}

/// The listener for the name that a caller asks for, which is empty where it asks for none.
pub(crate) fn for_name<'l>(listeners: &'l [TlsListener], name: &str) -> Option<&'l TlsListener> {
    let ranked = listeners.iter().filter_map(|one| Some((one.meets(name)?, one)));
    // Of equals the first: the oldest.
    ranked.rev().max_by_key(|(rank, _)| *rank).map(|(_, one)| one)
}

/// The rules for a pattern of hosts.
fn rules(pattern: &str, own: &[&ListenerDescription]) -> Routes {
    let attached = |one: &&ListenerDescription| one.gateway_routes.clone();
    let mut standard: Vec<(HostRank, _)> = Vec::new();
    for (hosts, document) in own.iter().flat_map(attached) {
        let ranks = hosts.iter().filter(|host| covers(host, pattern)).map(|host| HostRank::of(host));
        standard.extend(ranks.max().map(|rank| (rank, document)));
    }
    if !standard.is_empty() {
        return Routes::of_gateway(&standard);
    }
    if own.iter().any(|one| one.redirects) {
        return Routes::to_https();
    }
    let meant = own.iter().flat_map(|one| &one.routes).filter(|(hosts, _)| hosts.iter().any(|host| host == pattern));
    let mut documents: Vec<_> = meant.map(|(_, document)| document.clone()).collect();
    documents.dedup_by(|a, b| Arc::ptr_eq(a, b));
    Routes::of_istio(&documents)
}
