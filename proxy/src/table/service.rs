//! One service, compiled: who may call it, where its instances are, under which settings.

mod groups;
mod outside;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use weft_proto::identity::{Identity, NodeName, TrustDomain};
use weft_proto::kinds::authorization_policy::{APP_LABEL, AuthorizationPolicy};
use weft_proto::kinds::service::{EscapedSlashes, OnOverload, OutboundMode, ServiceSettings, Span, UnderscoreHeaders};
use weft_proto::service::{InstanceName, Labels, Protocol, ServiceName, ServicePort};

use super::authz::{Authorization, CompileError, PolicyDescription};
use super::description::{EndpointDescription, LocalInstance, LocalPort, ServiceDescription};
use super::destinations::{self, Asker, Treatment};
use super::endpoints::{Endpoint, Statistics};
use super::peers::PeersDescription;
use super::routes::{Called, Routes, StreamRoutes};
use crate::overload::Overload;
use groups::{Choice, Groups, label_of};
pub(crate) use outside::Outside;

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
    /// Who may call, by what policies its instances' labels select; the first one is that of instances without labels.
    pub(crate) authorizations: Arc<Vec<Arc<Authorization>>>,
    /// Whether a policy asks for an address, which differs between the two ends of a call.
    pub(crate) addresses_matter: bool,
    /// Whether a policy asks for a header.
    pub(crate) headers_matter: bool,
    /// Rules for its calls, of which the first document counts that the caller sees.
    pub(crate) routes: Vec<Arc<Routes>>,
    /// The same for opaque streams.
    pub(crate) stream_routes: Vec<Arc<StreamRoutes>>,
    groups: Groups,
    /// Where this node is reached, where it has an instance.
    pub(super) own_ip: Option<IpAddr>,
    /// All its instances.
    pub(crate) endpoints: Vec<Endpoint>,
    /// Those of this node.
    pub(crate) instances: Vec<Instance>,
    /// Of a host outside the mesh.
    outside: Option<Arc<Outside>>,
    description: Arc<ServiceDescription>,
}

/// An instance that this node runs.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) description: LocalInstance,
    /// Which of the service's authorizations is its own.
    pub(crate) group: usize,
    /// How many calls it is given at once.
    pub(crate) overload: Arc<Overload>,
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
    pub(crate) overload: OnOverload,
    /// Of a gateway: how many proxies that are trusted stand before it.
    pub(crate) trusted_proxies: usize,
    /// Whether what stands before a gateway says who calls, by the PROXY protocol.
    pub(crate) introduced: bool,
    /// Of a gateway: whether it speaks HTTP/3.
    pub(crate) http3: bool,
    /// Whether its calls to hosts that nobody knows are passed on, where it says so.
    pub(crate) passes: Option<bool>,
}

/// What services are compiled with.
pub(super) struct Context<'a> {
    pub(super) trust_domain: &'a TrustDomain,
    pub(super) node: &'a NodeName,
    pub(super) zone: &'a str,
    pub(super) policies: &'a [Arc<PolicyDescription>],
    /// Policies that are not what they were in the table before, in either form; none where all have to be taken for such.
    pub(super) changed: Option<Vec<Arc<PolicyDescription>>>,
    pub(super) deny_by_default: bool,
    pub(super) peers: &'a PeersDescription,
}

impl Context<'_> {
    /// Compiles one. What did not change since `before` is taken over from it.
    pub(super) fn service(
        &self,
        description: Arc<ServiceDescription>,
        local: Vec<LocalInstance>,
        before: Option<&Arc<Service>>,
    ) -> Result<Arc<Service>, CompileError> {
        let before = before.filter(|_| self.changed.is_some());
        if let Some(service) = before
            && (Arc::ptr_eq(&service.description, &description) || service.description == description)
            && service.instances.iter().map(|instance| &instance.description).eq(&local)
            && service.groups.peers_are(self.peers, &description)
            && !self.changed.iter().flatten().any(|policy| service.groups.are_selected_by(policy, &description))
        {
            return Ok(service.clone());
        }
        let chosen = Choice { policies: self.policies, peers: self.peers, service: &description };
        let mut groups = Groups::new(&chosen);
        let endpoint = |one: &EndpointDescription| Endpoint {
            own: one.node == *self.node,
            here: one.node == *self.node && !one.gateway,
            same_zone: zone(&one.zone).eq(zone(self.zone)),
            statistics: carried(before, one),
            group: groups.group(&one.labels, &chosen),
            description: one.clone(),
        };
        let endpoints: Vec<Endpoint> = description.endpoints.iter().map(endpoint).collect();
        let instance = |one: LocalInstance| Instance {
            group: groups.group(&one.labels, &chosen),
            overload: before.and_then(|before| before.overload(&one.id.name)).unwrap_or_else(Overload::new),
            description: one,
        };
        let instances = local.into_iter().map(instance).collect();
        let selected = || groups.selected.iter().flat_map(|one| &one.policies);
        let entry = description.outside.as_ref().map(|one| (one.namespace.as_str(), one.document.as_str()));
        let called = Called { service: &description.name, entry };
        Ok(Arc::new(Service {
            name: description.name.clone(),
            identity: Identity::service(self.trust_domain.clone(), description.account.clone()),
            ports: description.ports.clone(),
            address: description.address,
            settings: Settings::new(description.settings.as_deref().unwrap_or(&ServiceSettings::default())),
            understood: description.settings.is_some(),
            authorizations: groups.compile(before, self.deny_by_default && description.outside.is_none())?,
            addresses_matter: selected().any(|policy| asks_for_addresses(&policy.policy)),
            headers_matter: selected().any(|policy| asks_for_headers(&policy.policy)),
            routes: Routes::compile(
                (&description.calls.routes, &description.calls.gateway_routes),
                &called,
                before.map(|service| &service.routes[..]).unwrap_or_default(),
            ),
            stream_routes: StreamRoutes::compile(&description.calls.routes, &description.calls.stream_routes, &called),
            groups,
            outside: description.outside.as_ref().map(|one| Outside::compile(one, &description.calls.subsets)),
            own_ip: endpoints.iter().find(|one| one.own).map(|one| one.description.address.ip()),
            endpoints,
            instances,
            description,
        }))
    }
}

/// Region and zone of a locality.
fn zone(locality: &str) -> impl Iterator<Item = &str> {
    locality.split('/').take(2)
}

fn carried(before: Option<&Arc<Service>>, one: &EndpointDescription) -> Arc<Statistics> {
    let same =
        |endpoint: &&Endpoint| endpoint.description.node == one.node && endpoint.description.instance == one.instance;
    let kept = before.and_then(|service| service.endpoints.iter().find(same));
    kept.map_or_else(Arc::default, |endpoint| endpoint.statistics.clone())
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
    /// Its loopback address, where it is reached by that on this host.
    pub fn loopback(&self) -> Option<Ipv4Addr> {
        self.address
    }
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

    /// The instance of this node with that name.
    pub(crate) fn instance(&self, name: &InstanceName) -> Option<usize> {
        self.instances.iter().position(|instance| instance.description.id.name == *name)
    }

    /// How many calls an instance of this node is given at once.
    fn overload(&self, name: &InstanceName) -> Option<Arc<Overload>> {
        self.instance(name).map(|at| self.instances[at].overload.clone())
    }

    /// Whether it is a gateway of this node.
    pub(crate) fn is_entered_here(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.own && endpoint.description.gateway)
    }

    /// What an instance of this node speaks at the port.
    pub(crate) fn declared(&self, number: u16) -> Option<Protocol> {
        self.instances.iter().find_map(|instance| instance.port(number)).map(|port| port.protocol)
    }

    /// Whether it has an instance of that name.
    pub(crate) fn has(&self, instance: &str) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.description.is_called(instance))
    }

    /// Whether a policy asks for what only a request has, so that the verdict on a stream says nothing of requests.
    pub(crate) fn needs_http(&self) -> bool {
        self.authorizations.iter().any(|authorization| authorization.needs_http())
    }

    /// The labels of a subset, as a caller sees it; none where no document defines it.
    pub(crate) fn subset(&self, name: &str, caller: Asker<'_>) -> Option<&Labels> {
        destinations::subset(&self.description.calls.subsets, self.home(), caller, name)
    }

    /// How a port of it, or of a subset, is called by a caller.
    pub(crate) fn treatment(&self, (subset, port): (Option<&str>, u16), caller: Asker<'_>) -> Treatment {
        destinations::treatment(&self.description.calls.subsets, self.home(), caller, (subset, port))
    }

    /// Whether a document says how it is called.
    pub(crate) fn has_treatment(&self) -> bool {
        !self.description.calls.subsets.is_empty()
    }

    /// Whether an instance with these labels of its own is in a subset that asks for labels.
    pub(crate) fn is_in(&self, own: &Labels, subset: &Labels) -> bool {
        let label = label_of(&self.description, own);
        let has = |(name, value): (&String, &String)| match name.as_str() {
            APP_LABEL => *value == self.name.name(),
            name => label(name) == Some(value),
        };
        subset.iter().all(has)
    }

    /// The labels that all its instances on this node have.
    pub(crate) fn common_labels(&self) -> Labels {
        let mut labels = self.description.labels.clone();
        labels.insert(APP_LABEL.to_owned(), self.name.name().to_owned());
        let mut own = self.instances.iter().map(|instance| &instance.description.labels);
        if let Some(first) = own.next() {
            let mut common = first.clone();
            own.for_each(|other| common.retain(|name, value| other.get(name) == Some(value)));
            labels.extend(common);
        }
        labels
    }

    /// Whether its service account has another name than it.
    pub(super) fn has_account(&self) -> bool {
        self.description.account != self.name
    }

    /// Whether it is judged by the same policies as in another form.
    pub(crate) fn same_policies(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.authorizations, &other.authorizations)
    }

    /// Whether its instances have different policies.
    pub(crate) fn differs(&self) -> bool {
        self.authorizations.len() > 1
    }

    /// Where callers of this host reach the port.
    pub(crate) fn listen_address(&self, port: ServicePort) -> Option<SocketAddr> {
        let address = self.address.filter(|_| self.description.listened.contains(&port.port));
        address.map(|address| SocketAddr::new(address.into(), port.port))
    }
}

impl Instance {
    /// Where it serves the port.
    pub(crate) fn port(&self, number: u16) -> Option<LocalPort> {
        self.description.ports.iter().copied().find(|port| port.port == number)
    }

    /// Whether it may be called at the port.
    pub(crate) fn serves(&self, number: u16) -> bool {
        self.description.healthy && self.port(number).is_some()
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
            overload: settings.overload,
            trusted_proxies: settings.gateway_topology.num_trusted_proxies as usize,
            introduced: settings.gateway_topology.proxy_protocol.is_some(),
            http3: settings.http3,
            passes: settings.outbound_traffic_policy.map(|policy| policy.mode == OutboundMode::AllowAny),
        }
    }
}

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
