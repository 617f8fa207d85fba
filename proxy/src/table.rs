//! The table: the immutable compiled form of all that the data plane needs to decide.
//!
//! A table is built off the path of exchanges, from a [`Description`] and the table before it, of which it takes over
//! every service that did not change and the statistics of every endpoint that is still there.

pub mod authz;
pub mod description;
pub mod endpoints;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use weft_proto::Index;
use weft_proto::identity::{Identity, NodeName, TrustDomain};
use weft_proto::kinds::authorization_policy::{AuthorizationPolicy, ROOT_NAMESPACES};
use weft_proto::kinds::service::{EscapedSlashes, ServiceSettings, Span, UnderscoreHeaders};
use weft_proto::service::{Protocol, ServiceName, ServicePort};

use authz::{Authorization, CompileError, PolicyDescription};
use description::{Bind, Description, LocalInstance, LocalPort, ServiceDescription};
use endpoints::{Endpoint, Statistics};

/// All that the data plane of one node needs to decide.
#[derive(Debug)]
pub struct Table {
    /// Tells tables of this process apart.
    pub(crate) generation: u64,
    /// Index of the decisions that it was compiled from.
    pub index: Index,
    /// The mesh.
    pub trust_domain: TrustDomain,
    /// This node.
    pub node: NodeName,
    pub(crate) node_identity: Identity,
    /// Where this node is reached, as far as the table tells.
    pub(crate) node_ip: Option<IpAddr>,
    pub(crate) callers: BTreeMap<u32, ServiceName>,
    pub(crate) caller_any: Option<ServiceName>,
    pub(crate) binds: Vec<Bind>,
    deny_by_default: bool,
    policies: Arc<Vec<Arc<PolicyDescription>>>,
    services: BTreeMap<ServiceName, Arc<Service>>,
    by_address: BTreeMap<Ipv4Addr, ServiceName>,
}

/// A service, compiled.
#[derive(Debug)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Whom its instances are.
    pub identity: Identity,
    /// What its ports speak.
    pub ports: Vec<ServicePort>,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) settings: Settings,
    /// Whether its settings are known; what is not understood serves nobody.
    pub(crate) understood: bool,
    pub(crate) authorization: Arc<Authorization>,
    /// Whether a policy asks for an address, which differs between the two ends of a call.
    pub(crate) addresses_matter: bool,
    /// Whether a policy asks for a header.
    pub(crate) headers_matter: bool,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) local: Vec<LocalInstance>,
    description: ServiceDescription,
}

/// Settings of a service with their defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) retries: u8,
    pub(crate) escaped_slashes: EscapedSlashes,
    pub(crate) underscore_headers: UnderscoreHeaders,
}

/// Why a table cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A policy that cannot be enforced.
    #[error(transparent)]
    Policy(#[from] CompileError),
    /// Two services of one name.
    #[error("the service {0} is described twice")]
    Twice(ServiceName),
}

impl Table {
    /// Compiles the description. What did not change since `previous` is taken over from it.
    pub fn build(description: Description, previous: Option<&Self>) -> Result<Self, BuildError> {
        let same = |before: &&Self| before.deny_by_default == description.deny_by_default;
        let same_policies = previous.filter(same).filter(|before| *before.policies == description.policies);
        let policies = match same_policies {
            Some(before) => before.policies.clone(),
            None => Arc::new(description.policies),
        };
        let mut local: BTreeMap<ServiceName, Vec<LocalInstance>> = BTreeMap::new();
        for instance in description.local {
            local.entry(instance.service.clone()).or_default().push(instance);
        }
        let context = Context {
            trust_domain: &description.trust_domain,
            node: &description.node,
            zone: &description.zone,
            policies: &policies,
            deny_by_default: description.deny_by_default,
        };
        let (mut services, mut node_ip) = (BTreeMap::new(), None);
        for one in description.services {
            let name = one.name.clone();
            let own = one.endpoints.iter().find(|endpoint| endpoint.node == description.node);
            node_ip = node_ip.or(own.map(|endpoint| endpoint.address.ip()));
            let before = previous.and_then(|table| table.services.get(&name));
            let unchanged = same_policies.is_some();
            let service = context.service(one, local.remove(&name).unwrap_or_default(), before, unchanged)?;
            if services.insert(name.clone(), service).is_some() {
                return Err(BuildError::Twice(name));
            }
        }
        let addressed = |service: &Arc<Service>| Some((service.address?, service.name.clone()));
        Ok(Self {
            by_address: services.values().filter_map(addressed).collect(),
            generation: GENERATION.fetch_add(1, Ordering::Relaxed),
            index: description.index,
            node_identity: Identity::node(description.trust_domain.clone(), description.node.clone()),
            trust_domain: description.trust_domain,
            node: description.node,
            node_ip,
            callers: description.callers,
            caller_any: description.caller_any,
            binds: description.binds,
            deny_by_default: description.deny_by_default,
            policies,
            services,
        })
    }

    /// Whether it says the same as the table that it was built after, so that nothing need be swapped.
    pub fn is_as(&self, other: &Self) -> bool {
        let same_services = self.services.len() == other.services.len()
            && self.services.values().zip(other.services.values()).all(|(new, old)| Arc::ptr_eq(new, old));
        same_services
            && Arc::ptr_eq(&self.policies, &other.policies)
            && self.index == other.index
            && self.node_ip == other.node_ip
            && (&self.callers, &self.caller_any, &self.binds) == (&other.callers, &other.caller_any, &other.binds)
            && self.deny_by_default == other.deny_by_default
    }

    /// The service of that name.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// Where callers of this host reach services.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (&Arc<Service>, ServicePort, SocketAddr)> {
        self.services.values().flat_map(|service| {
            service.ports.iter().filter_map(move |port| Some((service, *port, service.listen_address(*port)?)))
        })
    }

    /// What callers of this host reach at the address.
    pub(crate) fn at(&self, address: SocketAddr) -> Option<(&Arc<Service>, ServicePort)> {
        let IpAddr::V4(ip) = address.ip().to_canonical() else { return None };
        let service = self.service(self.by_address.get(&ip)?)?;
        let port = service.port(address.port())?;
        service.listen_address(port).map(|_| (service, port))
    }

    /// Every service, by name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }
}

struct Context<'a> {
    trust_domain: &'a TrustDomain,
    node: &'a NodeName,
    zone: &'a str,
    policies: &'a [Arc<PolicyDescription>],
    deny_by_default: bool,
}

impl Context<'_> {
    fn service(
        &self,
        description: ServiceDescription,
        local: Vec<LocalInstance>,
        before: Option<&Arc<Service>>,
        same_policies: bool,
    ) -> Result<Arc<Service>, BuildError> {
        if let Some(service) = before
            && same_policies
            && service.description == description
            && service.local == local
        {
            return Ok(service.clone());
        }
        let authorization = match before {
            Some(service) if same_policies && service.description.labels == description.labels => {
                service.authorization.clone()
            }
            _ => {
                let (name, labels) = (&description.name, &description.labels);
                Arc::new(Authorization::compile(name, labels, self.policies, self.deny_by_default)?)
            }
        };
        let near = self.policies.iter().filter(|policy| is_near(policy, &description.name));
        let endpoint = |one: &description::EndpointDescription| Endpoint {
            here: one.node == *self.node,
            same_zone: one.zone == self.zone,
            statistics: carried(before, &one.node),
            description: one.clone(),
        };
        Ok(Arc::new(Service {
            name: description.name.clone(),
            identity: Identity::service(self.trust_domain.clone(), description.name.clone()),
            ports: description.ports.clone(),
            address: description.address,
            settings: Settings::new(description.settings.as_deref().unwrap_or(&ServiceSettings::default())),
            understood: description.settings.is_some(),
            authorization,
            addresses_matter: near.clone().any(|policy| asks_for_addresses(&policy.policy)),
            headers_matter: near.clone().any(|policy| asks_for_headers(&policy.policy)),
            endpoints: description.endpoints.iter().map(endpoint).collect(),
            local,
            description,
        }))
    }
}

fn carried(before: Option<&Arc<Service>>, node: &NodeName) -> Arc<Statistics> {
    let same = |endpoint: &&Endpoint| endpoint.description.node == *node;
    let kept = before.and_then(|service| service.endpoints.iter().find(same));
    kept.map_or_else(Arc::default, |endpoint| endpoint.statistics.clone())
}

/// Whether the policy's namespace lets it apply to the service.
fn is_near(description: &PolicyDescription, service: &ServiceName) -> bool {
    let namespace = description.key.namespace.as_str();
    namespace == service.namespace() || ROOT_NAMESPACES.contains(&namespace)
}

fn asks_for_headers(policy: &AuthorizationPolicy) -> bool {
    policy.rules.iter().flat_map(|rule| &rule.when).any(|condition| condition.key.starts_with(HEADER_KEY))
}

fn asks_for_addresses(policy: &AuthorizationPolicy) -> bool {
    policy.rules.iter().any(|rule| {
        let from = rule.from.iter().map(|from| &from.source).any(|source| {
            let lists =
                [&source.ip_blocks, &source.not_ip_blocks, &source.remote_ip_blocks, &source.not_remote_ip_blocks];
            lists.iter().any(|list| !list.is_empty())
        });
        from || rule.when.iter().any(|condition| ADDRESS_KEYS.contains(&condition.key.as_str()))
    })
}

impl Service {
    /// The port of that number.
    pub fn port(&self, number: u16) -> Option<ServicePort> {
        self.ports.iter().copied().find(|port| port.port == number)
    }

    /// The port that a caller means who names none or 80: port 80 if there is one, else the first that may be HTTP.
    pub(crate) fn http_port(&self) -> Option<ServicePort> {
        self.port(80).or_else(|| self.ports.iter().copied().find(|port| port.protocol != Protocol::Tcp))
    }

    /// Where an instance on this node serves the port; a healthy one first.
    pub(crate) fn local_port(&self, number: u16) -> Option<(LocalPort, bool)> {
        let serving = |instance: &LocalInstance| {
            let port = instance.ports.iter().copied().find(|port| port.port == number);
            port.map(|port| (port, instance.healthy))
        };
        let all = || self.local.iter().filter_map(serving);
        all().find(|(_, healthy)| *healthy).or_else(|| all().next())
    }

    /// Where callers of this host reach the port.
    pub(crate) fn listen_address(&self, port: ServicePort) -> Option<SocketAddr> {
        let address = self.address.filter(|_| self.description.listened.contains(&port.port));
        address.map(|address| SocketAddr::new(address.into(), port.port))
    }
}

impl Settings {
    fn new(settings: &ServiceSettings) -> Self {
        let positive = |span: Option<Span>| span.map(|Span(duration)| duration).filter(|duration| !duration.is_zero());
        let idle_timeout = match settings.idle_timeout {
            Some(Span(duration)) if duration.is_zero() => None,
            Some(Span(duration)) => Some(duration),
            None => Some(IDLE_TIMEOUT),
        };
        Self {
            connect_timeout: positive(settings.connect_timeout).unwrap_or(CONNECT_TIMEOUT),
            request_timeout: positive(settings.request_timeout),
            idle_timeout,
            retries: settings.retries.unwrap_or(RETRIES),
            escaped_slashes: settings.escaped_slashes,
            underscore_headers: settings.underscore_headers,
        }
    }
}

static GENERATION: AtomicU64 = AtomicU64::new(1);
/// Keys of conditions whose value depends on the end that judges.
const ADDRESS_KEYS: [&str; 3] = ["source.ip", "remote.ip", "destination.ip"];
/// How the keys of conditions on headers start.
const HEADER_KEY: &str = "request.headers";
/// Bound on reaching an instance, unless set.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an opaque stream may be silent, unless set.
const IDLE_TIMEOUT: Duration = Duration::from_hours(1);
/// How often a try that can't have acted is repeated, unless set.
const RETRIES: u8 = 2;
