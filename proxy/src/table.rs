//! The table: the immutable compiled form of all that the data plane needs to decide.
//!
//! A table is built off the path of exchanges, from a [`Description`] and the table before it, of which it takes over
//! every service that did not change and the statistics of every endpoint that is still there.

pub(crate) mod aliases;
pub mod authz;
pub(crate) mod challenges;
pub mod description;
pub(crate) mod destinations;
pub mod endpoints;
pub mod gateways;
pub mod outside;
pub mod peers;
mod places;
pub mod routes;
mod service;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{self, AtomicU64};

use weft_proto::Index;
use weft_proto::identity::{Identity, NodeName, TrustDomain};
use weft_proto::kinds::hosts::reading_as;
use weft_proto::service::{ServiceName, ServicePort};

use aliases::Alias;
use authz::{CompileError, PolicyDescription};
use challenges::Challenges;
use description::{Bind, Description, Intercepts, LocalInstance};
use gateways::Gateways;
use places::Places;
use routes::GrantDocument;
use service::Context;

pub use service::Service;
pub(crate) use service::Settings;

/// All that the data plane of one node needs to decide.
#[derive(Debug)]
pub struct Table {
    /// Tells tables of this process apart.
    pub(crate) generation: u64,
    /// Index of the newest decisions that it says all of.
    index: AtomicU64,
    /// The mesh.
    pub trust_domain: TrustDomain,
    /// This node.
    pub node: NodeName,
    pub(crate) node_identity: Identity,
    /// Where this node is reached, as far as the table tells.
    node_ip: Option<IpAddr>,
    /// This node's failure domain.
    pub(crate) zone: String,
    pub(crate) callers: BTreeMap<u32, ServiceName>,
    pub(crate) caller_any: Option<ServiceName>,
    pub(crate) caller_groups: BTreeMap<u64, ServiceName>,
    pub(crate) binds: Vec<Bind>,
    /// Where the host's firewall sends connections.
    pub(crate) intercepts: Intercepts,
    /// Further names of instances of services.
    aliases: Vec<Arc<Alias>>,
    /// Which namespaces' routes may lead to services of others.
    grants: Vec<Arc<GrantDocument>>,
    /// What this node serves of gateways.
    pub(crate) gateways: Arc<Gateways>,
    /// What proves to certificate authorities that names are ours.
    pub(crate) challenges: Arc<Challenges>,
    deny_by_default: bool,
    policies: Arc<Vec<Arc<PolicyDescription>>>,
    /// In the order of their names.
    services: Vec<Arc<Service>>,
    places: Places,
}

/// What a name means.
#[derive(Debug)]
pub(crate) struct Meant<'t> {
    pub(crate) service: &'t Arc<Service>,
    /// The service's port; none where none is said.
    pub(crate) port: Option<u16>,
    /// By what port it is called, where that is said or there is but one.
    pub(crate) called: Option<u16>,
    /// Which of the service's instances; none: all.
    pub(crate) subset: Option<Arc<str>>,
}

/// How the name of a subset begins that is a further name of the service: no document can name one so.
const ALIAS: &str = "service ";
/// The same of one that is an instance of it.
const INSTANCE: &str = "instance ";

/// Why a table cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A policy that cannot be enforced.
    #[error(transparent)]
    Policy(#[from] CompileError),
    /// Services are described once each, in the order of their names.
    #[error("the service {0} is described twice, or out of order")]
    Order(ServiceName),
}

impl Table {
    /// Compiles the description. What did not change since `previous` is taken over from it.
    pub fn build(description: Description, previous: Option<&Self>) -> Result<Self, BuildError> {
        let same_default = previous.filter(|before| before.deny_by_default == description.deny_by_default);
        let changed = same_default.map(|before| changed(&before.policies, &description.policies));
        let policies = match (same_default, &changed) {
            (Some(before), Some(changed)) if changed.is_empty() => before.policies.clone(),
            _ => Arc::new(description.policies),
        };
        let mut local: BTreeMap<ServiceName, Vec<LocalInstance>> = BTreeMap::new();
        for instance in description.local {
            local.entry(instance.id.service.clone()).or_default().push(instance);
        }
        let context = Context {
            trust_domain: &description.trust_domain,
            node: &description.node,
            zone: &description.zone,
            policies: &policies,
            changed,
            deny_by_default: description.deny_by_default,
            peers: &description.peers,
        };
        let mut before = previous.map(|table| &table.services[..]).unwrap_or_default().iter().peekable();
        let mut services: Vec<Arc<Service>> = Vec::with_capacity(description.services.len());
        for one in description.services {
            if services.last().is_some_and(|last| last.name >= one.name) {
                return Err(BuildError::Order(one.name.clone()));
            }
            while before.next_if(|service| service.name < one.name).is_some() {}
            let before = before.next_if(|service| service.name == one.name);
            let local = if local.is_empty() { Vec::new() } else { local.remove(&one.name).unwrap_or_default() };
            services.push(context.service(one, local, before)?);
        }
        let known = previous.map(|table| &table.aliases[..]).unwrap_or_default();
        let aliases = description.aliases.into_iter().filter_map(|one| Alias::compile(one, known)).collect();
        Ok(Self {
            places: Places::of(&services),
            generation: GENERATION.fetch_add(1, atomic::Ordering::Relaxed),
            index: AtomicU64::new(description.index),
            node_identity: Identity::node(description.trust_domain.clone(), description.node.clone()),
            trust_domain: description.trust_domain,
            node: description.node,
            node_ip: services.iter().find_map(|service| service.own_ip),
            zone: description.zone,
            callers: description.callers,
            caller_any: description.caller_any,
            caller_groups: description.caller_groups,
            binds: description.binds,
            intercepts: description.intercepts,
            aliases,
            grants: description.grants,
            gateways: Gateways::compile(description.gateways, previous.map(|table| &table.gateways)),
            challenges: Challenges::compile(description.challenges, previous.map(|table| &table.challenges)),
            deny_by_default: description.deny_by_default,
            policies,
            services,
        })
    }

    /// Whether it is of some state of the mesh: the one that a node begins with is not.
    pub(crate) fn is_in_force(&self) -> bool {
        self.index() > 0
    }

    /// Index of the newest decisions that it says all of.
    pub fn index(&self) -> Index {
        self.index.load(atomic::Ordering::Relaxed)
    }

    /// Newer decisions change nothing of it.
    pub fn advance(&self, index: Index) {
        self.index.fetch_max(index, atomic::Ordering::Relaxed);
    }

    /// Whether it says the same as the table that it was built after, so that nothing need be swapped.
    pub fn is_as(&self, other: &Self) -> bool {
        let same_services = self.services.len() == other.services.len()
            && self.services.iter().zip(&other.services).all(|(new, old)| Arc::ptr_eq(new, old));
        same_services
            && Arc::ptr_eq(&self.policies, &other.policies)
            && (self.node_ip, &self.zone) == (other.node_ip, &other.zone)
            && (&self.callers, &self.caller_any, &self.binds) == (&other.callers, &other.caller_any, &other.binds)
            && self.intercepts == other.intercepts
            && self.caller_groups == other.caller_groups
            && self.deny_by_default == other.deny_by_default
            && self.aliases.len() == other.aliases.len()
            && self.aliases.iter().zip(&other.aliases).all(|(new, old)| Arc::ptr_eq(new, old))
            && self.grants == other.grants
            && Arc::ptr_eq(&self.gateways, &other.gateways)
            && Arc::ptr_eq(&self.challenges, &other.challenges)
    }

    /// Services whose service account has another name, and who their instances are.
    pub(crate) fn accounts(&self) -> BTreeMap<ServiceName, Identity> {
        let others = self.services.iter().filter(|service| service.has_account());
        others.map(|service| (service.name.clone(), service.identity.clone())).collect()
    }

    /// The service of that name.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.binary_search_by(|service| service.name.cmp(name)).ok().map(|at| &self.services[at])
    }

    /// What a further name of a service means that has none itself; a service of the name goes before it.
    fn alias(&self, name: &ServiceName) -> Option<&Arc<Alias>> {
        self.aliases.iter().find(|alias| alias.is(name))
    }

    /// Whether a document of the kind in the namespace may lead to the service.
    pub(crate) fn grants(&self, kind: &str, namespace: &str, to: &ServiceName) -> bool {
        let own = |one: &&Arc<GrantDocument>| one.key.namespace == to.namespace();
        self.grants.iter().filter(own).any(|one| one.spec.allows(kind, namespace, to.name()))
    }

    /// The service that a name means, the port of it, and which of its instances.
    pub(crate) fn meant(&self, name: &ServiceName, port: Option<u16>) -> Option<Meant<'_>> {
        if let Some(service) = self.service(name) {
            return Some(Meant { service, port, called: None, subset: None });
        }
        if let Some(service) = self.known_outside(name) {
            return Some(Meant { service, port, called: None, subset: None });
        }
        if let Some((instance, service)) = name.instance() {
            let service = self.service(&service).filter(|service| service.has(instance))?;
            return Some(Meant { service, port, called: port, subset: Some(format!("{INSTANCE}{instance}").into()) });
        }
        let document = &self.alias(name)?.description.document;
        let service = self.service(&document.spec.service(&document.key.namespace)?)?;
        let ports = || document.spec.ports.iter().map(|one| one.port.get());
        let port = port.or_else(|| ports().find(|port| *port == 80 || document.spec.ports.len() == 1));
        let target = |number: u16| {
            let own = document.spec.ports.iter().find(|one| one.port.get() == number)?;
            let numbers = [own.target(), Some(number)].into_iter().flatten();
            let only = || if let [only] = service.ports[..] { Some(only.port) } else { None };
            numbers.into_iter().find(|number| service.port(*number).is_some()).or_else(only)
        };
        let called = port;
        let port = match port {
            None => None,
            Some(number) => Some(target(number)?),
        };
        let by = called.map(|port| format!(":{port}")).unwrap_or_default();
        Some(Meant { service, port, called, subset: Some(format!("{ALIAS}{name}{by}").into()) })
    }

    /// A host outside whose name reads like one of a service.
    fn known_outside(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        if self.alias(name).is_some() || !self.services.first().is_some_and(|first| first.name.is_outside()) {
            return None;
        }
        reading_as(name).find_map(|host| self.service(&ServiceName::outside(&host)))
    }

    /// The further name that a subset is, and by what port it is called, where that is said.
    pub(crate) fn alias_of(&self, subset: &str) -> Option<(&Arc<Alias>, Option<u16>)> {
        let name = subset.strip_prefix(ALIAS)?;
        let (name, port) = name.split_once(':').map_or((name, None), |(name, port)| (name, port.parse().ok()));
        Some((self.alias(&name.parse().ok()?)?, port))
    }

    /// The instance that a subset is.
    pub(crate) fn instance_of(subset: &str) -> Option<&str> {
        subset.strip_prefix(INSTANCE)
    }

    /// Where callers of this host reach services.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (&Arc<Service>, ServicePort, SocketAddr)> {
        self.services.iter().flat_map(|service| {
            service.ports.iter().filter_map(move |port| Some((service, *port, service.listen_address(*port)?)))
        })
    }

    /// Where this node is reached, as far as the table tells.
    pub(crate) fn own_ip(&self) -> IpAddr {
        self.node_ip.unwrap_or(NO_ADDRESS)
    }

    /// Whether what stands before a port of gateways says who calls.
    pub(crate) fn is_introduced(&self, port: u16) -> bool {
        self.gate(port).is_some_and(|settings| settings.introduced)
    }

    /// Whether HTTP/3 is spoken at a port of gateways, where HTTPS is: its gateway asks for it, and nothing stands before that.
    pub(crate) fn speaks_http3(&self, port: u16) -> bool {
        self.gate(port).is_some_and(|settings| settings.http3 && !settings.introduced)
    }

    /// What is set for the gateway that a port is of.
    fn gate(&self, port: u16) -> Option<&Settings> {
        self.gateways.behind(port).and_then(|gateway| self.service(gateway)).map(|service| &service.settings)
    }

    /// Every service, by name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.iter()
    }
}

/// Policies of which one of two lists has another form than the other, or none. Both are in the order of their names.
fn changed(before: &[Arc<PolicyDescription>], now: &[Arc<PolicyDescription>]) -> Vec<Arc<PolicyDescription>> {
    let (mut before, mut now, mut changed) = (before.iter().peekable(), now.iter().peekable(), Vec::new());
    loop {
        let order = match (before.peek(), now.peek()) {
            (None, None) => return changed,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) if Arc::ptr_eq(old, new) || old == new => {
                before.next();
                now.next();
                continue;
            }
            (Some(old), Some(new)) => old.key.cmp(&new.key),
        };
        changed.extend(if order == Ordering::Greater { None } else { before.next().cloned() });
        changed.extend(if order == Ordering::Less { None } else { now.next().cloned() });
    }
}

/// The address of a node that none is known of.
const NO_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
static GENERATION: AtomicU64 = AtomicU64::new(1);
