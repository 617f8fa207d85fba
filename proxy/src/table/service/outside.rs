//! Hosts outside the mesh: services without an identity, at addresses or by names.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use weft_proto::identity::Identity;
use weft_proto::kinds::destination_rule::Tls;
use weft_proto::kinds::istio::is_exported;
use weft_proto::service::{Protocol, ServiceName, ServicePort};

use super::{Instance, Service};
use crate::overload::Overload;
use crate::table::description::{LocalPort, OutsideDescription};
use crate::table::endpoints::Endpoint;
use crate::table::routes::SubsetDocument;
use crate::tls::originate::Origination;

/// What only a host outside has.
#[derive(Debug)]
pub(crate) struct Outside {
    description: OutsideDescription,
    /// TLS towards it, by what documents say.
    originations: Vec<(Tls, Result<Origination, String>)>,
}

impl Outside {
    pub(super) fn compile(description: &OutsideDescription, documents: &[Arc<SubsetDocument>]) -> Arc<Self> {
        let mut originations: Vec<(Tls, Result<Origination, String>)> = Vec::new();
        for tls in documents.iter().flat_map(|one| one.spec.tls_blocks()) {
            if originations.iter().all(|(known, _)| known != tls)
                && let Some(made) = Origination::of(tls, &description.names)
            {
                originations.push((tls.clone(), made));
            }
        }
        Arc::new(Self { description: description.clone(), originations })
    }

    /// The namespace of its document.
    pub(crate) fn namespace(&self) -> &str {
        &self.description.namespace
    }

    /// Whether it is known at whatever port.
    pub(crate) fn takes_any_port(&self) -> bool {
        self.description.any_port
    }

    /// How long the longest block of its addresses is that an address is in; none where it is in none.
    pub(in crate::table) fn covers(&self, ip: IpAddr) -> Option<u8> {
        let blocks = self.description.addresses.iter().filter(|block| block.contains(&ip));
        blocks.map(IpNet::prefix_len).max()
    }

    /// Whether it is meant wherever the port is called.
    pub(in crate::table) fn is_anywhere(&self, port: u16) -> bool {
        self.description.anywhere.contains(&port)
    }

    /// Whether it is where it was called, and nowhere else.
    pub(in crate::table) fn is_dialled(&self) -> bool {
        self.description.dialled
    }

    /// Whether calls to it are passed on, of a caller that says so or not, or nothing of that.
    pub(crate) fn passes(&self, said: Option<bool>) -> bool {
        !self.description.any_port || said.unwrap_or(self.description.passes)
    }

    /// Whether callers of a namespace may call it.
    pub(crate) fn is_seen_by(&self, namespace: &str) -> bool {
        is_exported(&self.description.export_to, &self.description.namespace, namespace)
    }

    /// TLS towards it as a block says; none where that says that there is none.
    pub(crate) fn origination(&self, tls: &Tls) -> Option<&Result<Origination, String>> {
        self.originations.iter().find(|(known, _)| known == tls).map(|(_, made)| made)
    }
}

impl Service {
    /// What only a host outside the mesh has.
    pub(crate) fn outside(&self) -> Option<&Outside> {
        self.outside.as_deref()
    }

    /// Where documents about it are looked for beside the caller's own namespace.
    pub(super) fn home(&self) -> &str {
        self.outside().map_or_else(|| self.name.namespace(), Outside::namespace)
    }

    /// The same for a caller that is led there by rules alone.
    pub(in crate::table) fn closed(self) -> Self {
        Self { endpoints: Vec::new(), instances: Vec::new(), ..self }
    }

    /// What this pattern of hosts is for one of them; a port that it does not say goes to the same port there.
    pub(in crate::table) fn aimed(&self, host: &str, port: u16) -> Self {
        let known = self.port(port);
        let protocol = known.map_or(Protocol::Auto, |known| known.protocol);
        let target = self.outside().and_then(|outside| outside.target(port)).unwrap_or(port);
        let name = ServiceName::outside(host);
        let local = |one: &Instance| {
            let mut description = one.description.clone();
            let ip: Option<IpAddr> = host.parse().ok();
            let address = SocketAddr::new(ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), target);
            description.id.service = name.clone();
            description.host = ip.is_none().then(|| host.into());
            description.ports = vec![LocalPort { port, target: address, protocol }];
            Instance { description, group: one.group, overload: Overload::new() }
        };
        let place = |one: &Endpoint| {
            let mut description = one.description.clone();
            description.ports = vec![port];
            Endpoint { description, statistics: Arc::default(), ..*one }
        };
        Self {
            identity: Identity::service(self.identity.trust_domain().clone(), name.clone()),
            ports: vec![ServicePort { port, protocol }],
            authorizations: self.authorizations.clone(),
            routes: self.routes.clone(),
            stream_routes: self.stream_routes.clone(),
            groups: self.groups.clone(),
            endpoints: self.endpoints.iter().map(place).collect(),
            instances: self.instances.iter().map(local).collect(),
            description: self.description.clone(),
            outside: self.outside.clone(),
            name,
            ..*self
        }
    }
}

impl Outside {
    /// The port at the host.
    fn target(&self, port: u16) -> Option<u16> {
        self.description.targets.iter().find(|(own, _)| *own == port).map(|(_, target)| *target)
    }
}
