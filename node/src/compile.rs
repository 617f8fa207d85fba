//! Pure: the replicated state, the live facts and this host's services make the description of a table.

mod specs;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use weft_consensus::state::{ServiceRecord, State};
use weft_proto::facts::NodeFacts;
use weft_proto::identity::NodeName;
use weft_proto::kinds::service::ServiceSettings;
use weft_proto::kinds::{Kinds, Spec};
use weft_proto::planted::{Bug, planted};
use weft_proto::resource::ResourceKey;
use weft_proto::service::ServiceName;
use weft_proxy::table::description::{self, Bind, Description, EndpointDescription, LocalPort, ServiceDescription};

pub use specs::{Specs, Unenforced};

use crate::config::Loopback;
use crate::registry::{CallerClaim, Local, LocalInstance};

/// What does not change while a node runs.
#[derive(Debug, Clone)]
pub struct Site {
    /// This node.
    pub node: NodeName,
    /// Where its links arrive, as others see it.
    pub address: SocketAddr,
    /// Its zone.
    pub zone: String,
    /// Which services' loopback addresses to listen on.
    pub loopback: Loopback,
    /// Where connections to them arrive, if they all arrive at one place.
    pub captured: Option<SocketAddr>,
    /// Further listeners.
    pub binds: Vec<Bind>,
    /// The kinds of documents that this build knows.
    pub kinds: Kinds,
}

impl Site {
    /// Which services callers of this host reach at their loopback addresses, for a person.
    pub fn loopback(&self, listened: &BTreeSet<ServiceName>) -> String {
        let names =
            |names: &BTreeSet<ServiceName>| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let said = match (&self.loopback, self.captured) {
            (Loopback::Off, _) => "off".to_owned(),
            (Loopback::Auto | Loopback::All, Some(_)) => "every service; no port is listened on".to_owned(),
            (Loopback::Auto, None) if listened.is_empty() => {
                "none without CAP_NET_ADMIN: `weft listen NAME`, or the forward proxy".to_owned()
            }
            (Loopback::Auto, None) => return names(listened),
            (Loopback::All, None) => "every service".to_owned(),
            (Loopback::Only(services), _) => names(services),
        };
        if listened.is_empty() || self.captures_all() { said } else { format!("{said}; {}", names(listened)) }
    }

    /// Whether every service is called at its address without a port being listened on.
    pub fn captures_all(&self) -> bool {
        self.captured.is_some() && matches!(self.loopback, Loopback::Auto | Loopback::All)
    }

    /// Whether callers of this host reach a service at its loopback address.
    fn serves(&self, service: &ServiceName) -> bool {
        self.captures_all() || self.loopback.listens(service)
    }
}

/// Compiles. A document that cannot be enforced harms what it is about and nothing else, and is told by `specs`.
pub fn compile(
    site: &Site,
    state: &State,
    live: &BTreeMap<NodeName, NodeFacts>,
    local: &Local,
    specs: &mut Specs,
) -> Result<Description, String> {
    specs.read(state);
    let trust_domain = state.trust_domain.clone().ok_or("this node has not received the mesh's state yet")?;
    let mut services = BTreeMap::new();
    for name in state.services.keys() {
        services.insert(name.clone(), describe_service(site, state, specs, name, local));
    }
    for facts in live.values().filter(|facts| facts.name != site.node) {
        add_endpoints(&mut services, state, facts);
    }
    let own: Vec<&LocalInstance> = local.taken(state, &site.node).collect();
    add_own_endpoints(&mut services, site, local, &own);
    let mut policies: Vec<_> = specs.policies().cloned().collect();
    if planted(Bug::PolicyLeftOut) {
        policies.pop();
    }
    let (callers, caller_any) = callers(local);
    Ok(Description {
        index: state.index,
        trust_domain,
        node: site.node.clone(),
        zone: site.zone.clone(),
        deny_by_default: state.deny_by_default,
        services: services.into_values().collect(),
        policies,
        local: own.into_iter().map(|own| instance(local, own)).collect(),
        callers,
        caller_any,
        binds: site.binds.clone(),
    })
}

fn describe_service(
    site: &Site,
    state: &State,
    specs: &Specs,
    name: &ServiceName,
    local: &Local,
) -> ServiceDescription {
    let asked_for = local.listened.contains(name);
    let ServiceRecord { address, account, ports: declared, .. } = &state.services[name];
    let address = *address;
    let (kind, namespace) = (ServiceSettings::KIND.key(), name.namespace().to_owned());
    let key = ResourceKey { kind, namespace, name: name.name().to_owned() };
    let settings = specs.settings(&key);
    let mut ports = declared.to_vec();
    for port in &mut ports {
        let all = settings.iter().flat_map(|settings| &settings.ports);
        if let Some(set) = all.into_iter().find(|set| set.port.get() == port.port) {
            port.protocol = set.protocol;
        }
    }
    ServiceDescription {
        name: name.clone(),
        account: account.clone(),
        labels: state.resources.get(&key).map(|resource| resource.labels.clone()).unwrap_or_default(),
        address: (asked_for || site.loopback != Loopback::Off).then_some(address),
        listened: ports.iter().map(|port| port.port).filter(|_| asked_for || site.serves(name)).collect(),
        ports,
        settings,
        endpoints: Vec::new(),
    }
}

/// Believes a node about the instances that it was admitted for, and about nothing else.
fn add_endpoints(services: &mut BTreeMap<ServiceName, ServiceDescription>, state: &State, facts: &NodeFacts) {
    let (Some(record), Ok(address)) = (state.nodes.get(&facts.name), facts.address.parse()) else { return };
    for instance in &facts.instances {
        if !record.services.iter().any(|grant| grant.covers(&instance.id.service)) {
            continue;
        }
        if let Some(service) = services.get_mut(&instance.id.service) {
            service.endpoints.push(EndpointDescription {
                node: facts.name.clone(),
                instance: instance.id.name.clone(),
                labels: instance.labels.clone(),
                address,
                zone: facts.zone.clone(),
                ports: instance.ports.iter().map(|port| port.port).collect(),
                weight: instance.weight,
                healthy: instance.healthy && !facts.draining,
            });
        }
    }
}

fn add_own_endpoints(
    services: &mut BTreeMap<ServiceName, ServiceDescription>,
    site: &Site,
    local: &Local,
    own: &[&LocalInstance],
) {
    for own in own {
        if let Some(service) = services.get_mut(&own.id.service) {
            service.endpoints.push(EndpointDescription {
                node: site.node.clone(),
                instance: own.id.name.clone(),
                labels: own.labels.clone(),
                address: site.address,
                zone: site.zone.clone(),
                ports: own.ports.iter().map(|port| port.port.port).collect(),
                weight: own.weight,
                healthy: local.is_healthy(&own.id),
            });
        }
    }
}

fn instance(local: &Local, own: &LocalInstance) -> description::LocalInstance {
    let ports = own.ports.iter().map(|port| LocalPort {
        port: port.port.port,
        target: port.target,
        protocol: port.port.protocol,
    });
    description::LocalInstance {
        id: own.id.clone(),
        labels: own.labels.clone(),
        weight: own.weight,
        ports: ports.collect(),
        healthy: local.is_healthy(&own.id),
    }
}

fn callers(local: &Local) -> (BTreeMap<u32, ServiceName>, Option<ServiceName>) {
    let (mut users, mut any) = (BTreeMap::new(), None);
    for instance in local.instances.values() {
        match instance.caller {
            CallerClaim::User(user) => drop(users.entry(user).or_insert_with(|| instance.id.service.clone())),
            CallerClaim::Any => any = any.or_else(|| Some(instance.id.service.clone())),
            CallerClaim::Nobody => {}
        }
    }
    (users, any)
}
