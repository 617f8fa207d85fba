//! What is at an address: by the loopback addresses of services, by the own ports of this node's instances, by those of all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use weft_proto::loopback::{addresses, is_loopback_of_services};
use weft_proto::service::{ServiceName, ServicePort};

use super::description::LocalPort;
use super::endpoints::Endpoint;
use super::service::Instance;
use super::{Service, Table};

/// Where services are, by their places in a table.
#[derive(Debug)]
pub(super) struct Places {
    /// By loopback address, in its order.
    by_address: Vec<(Ipv4Addr, usize)>,
    /// Those of this node's instances, by the port at which those listen, in its order.
    by_target: Vec<(u16, usize)>,
    /// Instances, by loopback address: made when it is asked for first.
    by_instance: OnceLock<BTreeMap<Ipv4Addr, (usize, ServiceName)>>,
    /// With their ports, by where their instances listen: made when it is asked for first.
    by_place: OnceLock<BTreeMap<SocketAddr, (usize, u16)>>,
}

impl Places {
    pub(super) fn of(services: &[Arc<Service>]) -> Self {
        let addressed = services.iter().enumerate().filter_map(|(at, service)| Some((service.address?, at)));
        let mut by_address: Vec<(Ipv4Addr, usize)> = addressed.collect();
        by_address.sort_unstable();
        let targets = |service: &Service| {
            let ports = service.instances.iter().flat_map(|one| &one.description.ports);
            ports.map(|port| port.target.port()).collect::<Vec<_>>()
        };
        let own = services.iter().enumerate().filter(|(_, service)| service.outside().is_none());
        let targets = own.flat_map(|(at, service)| targets(service).into_iter().map(move |port| (port, at)));
        let mut by_target: Vec<(u16, usize)> = targets.collect();
        by_target.sort_unstable();
        Self { by_address, by_target, by_instance: OnceLock::new(), by_place: OnceLock::new() }
    }
}

impl Table {
    /// What callers of this host reach at the address.
    pub(crate) fn at(&self, address: SocketAddr) -> Option<(&ServiceName, ServicePort)> {
        let IpAddr::V4(ip) = address.ip().to_canonical() else { return None };
        let (service, name) = self.on_loopback(ip)?;
        let port = service.port(address.port())?;
        service.listen_address(port).map(|_| (name, port))
    }

    /// The service that has the loopback address, and by what name: its own, or that of an instance.
    pub(crate) fn on_loopback(&self, address: Ipv4Addr) -> Option<(&Arc<Service>, &ServiceName)> {
        if let Some(service) = self.addressed(address) {
            return Some((service, &service.name));
        }
        let (at, name) = if is_loopback_of_services(address) { self.instances().get(&address)? } else { return None };
        Some((&self.services[*at], name)).filter(|(service, _)| service.address.is_some())
    }

    /// The service that has the loopback address.
    fn addressed(&self, address: Ipv4Addr) -> Option<&Arc<Service>> {
        let all = &self.places.by_address;
        let at = all.binary_search_by_key(&address, |(address, _)| *address).ok()?;
        Some(&self.services[all[at].1])
    }

    /// Instances of services, by their loopback addresses. Those of services go before, and the first by its name.
    fn instances(&self) -> &BTreeMap<Ipv4Addr, (usize, ServiceName)> {
        self.places.by_instance.get_or_init(|| {
            let services = self.services.iter().enumerate().filter(|(_, service)| service.outside().is_none());
            let named = services.flat_map(|(at, service)| {
                let called = |one: &Endpoint| service.name.of_instance(one.description.called());
                let names: BTreeSet<ServiceName> = service.endpoints.iter().map(called).collect();
                names.into_iter().map(move |name| (at, name))
            });
            let mut placed = BTreeMap::new();
            for (at, name) in named {
                let free = |address: &Ipv4Addr| self.addressed(*address).is_none() && !placed.contains_key(address);
                if let Some(address) = addresses(&name).find(free) {
                    placed.insert(address, (at, name));
                }
            }
            placed
        })
    }

    /// What is called by callers of this host at a loopback address.
    pub fn called_at(&self, address: Ipv4Addr) -> Option<&ServiceName> {
        self.on_loopback(address).map(|(_, name)| name)
    }

    /// The service of an instance, and the instance's loopback address, where the service has one here.
    pub fn instance(&self, name: &ServiceName) -> Option<(&Arc<Service>, Option<Ipv4Addr>)> {
        let (address, (service, _)) = self.instances().iter().find(|(_, (_, other))| other == name)?;
        let service = &self.services[*service];
        Some((service, service.address.map(|_| *address)))
    }

    /// The instance of this node that listens at the address, and the port of its service that it serves there.
    pub(crate) fn instance_at(&self, address: SocketAddr) -> Option<(&Arc<Service>, &Instance, LocalPort)> {
        let from = self.places.by_target.partition_point(|(port, _)| *port < address.port());
        let fitting = self.places.by_target[from..].iter().take_while(|(port, _)| *port == address.port());
        let ip = address.ip().to_canonical();
        // Somewhere on this host it is: what listens on all addresses is told by that of loopback.
        let is = |target: SocketAddr| {
            let own = target.ip().to_canonical();
            target.port() == address.port() && (own == ip || own.is_loopback() || own.is_unspecified())
        };
        fitting.map(|(_, at)| &self.services[*at]).find_map(|service| {
            service.instances.iter().find_map(|instance| {
                let port = instance.description.ports.iter().copied().find(|port| is(port.target))?;
                Some((service, instance, port))
            })
        })
    }

    /// The service of which an instance listens at the address, on whatever node, and the port of it that this is.
    pub(crate) fn endpoint_at(&self, address: SocketAddr) -> Option<(&ServiceName, ServicePort)> {
        let places = self.places.by_place.get_or_init(|| {
            let all = self.services.iter().enumerate().filter(|(_, service)| service.outside().is_none());
            let placed = all.flat_map(|(at, service)| service.endpoints.iter().map(move |one| (at, &one.description)));
            let listed = placed.filter(|(_, one)| !one.gateway).flat_map(|(at, one)| {
                let listens = move |(place, port): (usize, &u16)| {
                    let target = one.targets.get(place).copied().unwrap_or(*port);
                    (SocketAddr::new(one.address.ip().to_canonical(), target), (at, *port))
                };
                one.ports.iter().enumerate().map(listens)
            });
            listed.collect()
        });
        let (at, port) = places.get(&SocketAddr::new(address.ip().to_canonical(), address.port()))?;
        let service = &self.services[*at];
        Some((&service.name, service.port(*port)?))
    }
}
