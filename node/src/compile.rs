//! Pure: the replicated state, the live facts and this host's services make the description of a table.

mod gateways;
mod here;
mod outside;
mod site;
mod specs;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use weft_consensus::state::{ServiceRecord, State};
use weft_proto::facts::{Live, NodeFacts};
use weft_proto::identity::NodeName;
use weft_proto::kinds::Spec;
use weft_proto::kinds::mesh_config::MeshConfig;
use weft_proto::kinds::service::ServiceSettings;
use weft_proto::planted::{Bug, planted};
use weft_proto::resource::{KindName, Resource, ResourceKey};
use weft_proto::service::{Instance, ServiceName};
use weft_proxy::table::description::{self, Description, EndpointDescription, ListenerDescription, ServiceDescription};

pub use gateways::{Held, Source, serves_gateway};
pub use site::Site;
pub use specs::{Specs, Unenforced};

use gateways::Own;
use here::{callers, groups, instance};

use crate::config::Loopback;
use crate::registry::Local;

/// Compiles, and remembers what that took: what did not change since is taken over.
#[derive(Debug)]
pub struct Compiler {
    site: Site,
    specs: Specs,
    state: Option<Arc<State>>,
    local: Option<Arc<Local>>,
    /// What nodes said that is in `services`, this node's own aside.
    nodes: BTreeMap<NodeName, Arc<NodeFacts>>,
    /// The services that this node has instances of.
    own: BTreeSet<ServiceName>,
    services: BTreeMap<ServiceName, Known>,
    /// Certificates of gateways as this node holds them.
    held: Arc<Held>,
    gateways: Vec<Arc<ListenerDescription>>,
    /// Hosts outside the mesh.
    outside: Vec<Arc<ServiceDescription>>,
    places: Vec<description::LocalInstance>,
    /// What those need of certificates.
    sources: BTreeSet<Source>,
}

/// A service as it was compiled last.
#[derive(Debug)]
struct Known {
    /// Without its endpoints.
    base: ServiceDescription,
    endpoints: BTreeMap<NodeName, Vec<EndpointDescription>>,
    whole: Arc<ServiceDescription>,
}

impl Compiler {
    /// Nothing is compiled yet.
    pub fn new(site: Site) -> Self {
        let specs = Specs::new(site.kinds);
        Self {
            site,
            specs,
            state: None,
            local: None,
            nodes: BTreeMap::new(),
            own: BTreeSet::new(),
            services: BTreeMap::new(),
            held: Arc::default(),
            gateways: Vec::new(),
            outside: Vec::new(),
            places: Vec::new(),
            sources: BTreeSet::new(),
        }
    }

    /// Takes these certificates for those that this node holds.
    pub fn hold(&mut self, held: &Arc<Held>) {
        if !Arc::ptr_eq(&self.held, held) {
            self.held = held.clone();
            self.local = None;
        }
    }

    /// What gateways need of certificates.
    pub fn sources(&self) -> &BTreeSet<Source> {
        &self.sources
    }

    /// Documents that are not enforced on this node.
    pub fn unenforced(&self) -> Vec<Unenforced> {
        self.specs.unenforced()
    }

    /// Compiles. A document that cannot be enforced harms what it is about and nothing else.
    pub fn compile(&mut self, state: &Arc<State>, live: &Live, local: &Arc<Local>) -> Result<Description, String> {
        let trust_domain = state.trust_domain.clone().ok_or("this node has not received the mesh's state yet")?;
        let new_state = self.state.as_ref().is_none_or(|known| !Arc::ptr_eq(known, state));
        let new_local = self.local.as_ref().is_none_or(|known| !Arc::ptr_eq(known, local));
        let mut changed = BTreeSet::new();
        let called = if new_state { self.specs.read(state) } else { BTreeSet::new() };
        if new_state || new_local {
            self.describe(state, local, &called, &mut changed);
            self.place_own(state, local, &mut changed);
            self.serve_gateways(state, local);
            self.look_outside(state, local);
        }
        self.place_others(state, live, &mut changed);
        if self.specs.gateways_moved() {
            let gates = self.services.iter().filter(|(_, known)| known.whole.endpoints.iter().any(|one| one.gateway));
            changed.extend(gates.map(|(name, _)| name.clone()));
        }
        for name in changed {
            if let Some(known) = self.services.get_mut(&name) {
                let endpoints = last_resort(&known.endpoints, &self.nodes);
                let mut whole = ServiceDescription { endpoints, ..known.base.clone() };
                gateways::open(&self.specs, &mut whole);
                known.whole = Arc::new(whole);
            }
        }
        (self.state, self.local) = (Some(state.clone()), Some(local.clone()));
        let mut policies: Vec<_> = self.specs.policies().cloned().collect();
        if planted(Bug::PolicyLeftOut) {
            policies.pop();
        }
        let (callers, caller_any) = callers(local);
        let own = local.taken(state, &self.site.node);
        Ok(Description {
            index: state.index,
            trust_domain,
            node: self.site.node.clone(),
            zone: self.site.zone.clone(),
            deny_by_default: state.deny_by_default,
            services: self
                .outside
                .iter()
                .cloned()
                .chain(self.services.values().map(|known| known.whole.clone()))
                .collect(),
            aliases: self.specs.aliases(),
            grants: self.specs.grants(),
            policies,
            peers: self.specs.peers(),
            local: own.map(|own| instance(local, own)).chain(self.places.iter().cloned()).collect(),
            callers,
            caller_any,
            caller_groups: groups(local),
            binds: self.site.binds.clone(),
            intercepts: local.intercepts.clone(),
            gateways: self.gateways.clone(),
            challenges: if self.gateways.is_empty() { Vec::new() } else { self.specs.challenges() },
        })
    }

    /// What this node serves of gateways; what did not change is kept.
    fn serve_gateways(&mut self, state: &State, local: &Local) {
        let own: Vec<Own<'_>> = local
            .taken(state, &self.site.node)
            .filter(|instance| instance.gateway)
            .map(|instance| Own::new(&instance.id.service, &instance.labels))
            .collect();
        if own.is_empty() {
            (self.gateways, self.sources) = Default::default();
            return;
        }
        let ground = gateways::Ground { site: &self.site, specs: &self.specs, own: &own, held: &self.held };
        let (listeners, sources) = gateways::listeners(&ground);
        let before = std::mem::take(&mut self.gateways);
        let kept = |new: ListenerDescription| {
            let same = before.iter().find(|known| ***known == new);
            same.cloned().unwrap_or_else(|| Arc::new(new))
        };
        self.gateways = listeners.into_iter().map(kept).collect();
        self.sources = sources;
    }

    /// Takes up the hosts outside the mesh; what did not change is kept.
    fn look_outside(&mut self, state: &State, local: &Local) {
        let ground = outside::Ground { site: &self.site, specs: &self.specs, held: &self.held };
        let (mut services, places) = outside::services(&ground, &mut self.sources);
        outside::place_on_loopback(&mut services, &self.site, (state, local));
        let before = std::mem::take(&mut self.outside);
        let kept = |new: ServiceDescription| {
            let same = before.iter().find(|known| ***known == new);
            same.cloned().unwrap_or_else(|| Arc::new(new))
        };
        self.outside = services.into_iter().map(kept).collect();
        self.places = places;
    }

    /// Takes up what the state and this host say of each service, its instances aside.
    /// `called` are those of whose calls documents say something else than before.
    fn describe(
        &mut self,
        state: &State,
        local: &Local,
        called: &BTreeSet<ServiceName>,
        changed: &mut BTreeSet<ServiceName>,
    ) {
        self.services.retain(|name, _| state.services.contains_key(name));
        let before =
            self.state.clone().filter(|_| self.local.as_ref().is_some_and(|before| before.listened == local.listened));
        let changed_of =
            |kind: &KindName| before.as_ref().map(|before| changed_of(kind, before, state)).unwrap_or_default();
        let documents = changed_of(&ServiceSettings::KIND.key());
        // What holds for the whole mesh holds for each.
        let before = before.as_ref().filter(|_| changed_of(&MeshConfig::KIND.key()).is_empty());
        for (name, record) in &state.services {
            let same = before.is_some_and(|before| before.services.get(name) == Some(record));
            let same = same && !called.contains(name) && !documents.contains(&(name.namespace(), name.name()));
            if same && self.services.contains_key(name) {
                continue;
            }
            let base = describe_service(&self.site, state, &self.specs, name, local);
            match self.services.get_mut(name) {
                Some(known) if known.base == base => {}
                Some(known) => {
                    known.base = base;
                    changed.insert(name.clone());
                }
                None => {
                    let whole = Arc::new(base.clone());
                    self.services.insert(name.clone(), Known { base, endpoints: BTreeMap::new(), whole });
                    // Whoever said before that it runs it says so of a service that there is now.
                    let runs = |facts: &Arc<NodeFacts>| facts.instances.iter().any(|one| one.id.service == *name);
                    self.nodes.retain(|_, facts| !runs(facts));
                    changed.insert(name.clone());
                }
            }
        }
    }

    /// Believes nodes about the instances that they were admitted for, and about nothing else.
    fn place_others(&mut self, state: &State, live: &Live, changed: &mut BTreeSet<ServiceName>) {
        let admitted = |name: &NodeName| state.nodes.contains_key(name);
        let gone = self.nodes.keys().filter(|name| !live.contains_key(*name) || !admitted(name));
        for name in gone.cloned().collect::<Vec<_>>() {
            let before = self.nodes.remove(&name).map(|facts| services_of(&facts)).unwrap_or_default();
            self.place(&name, &before, Vec::new(), changed);
        }
        let me = self.site.node.clone();
        for (name, facts) in live.iter().filter(|(name, _)| **name != me && admitted(name)) {
            // What a node may run is said once, when it is admitted, and another one of its name says something else.
            if self.nodes.get(name).is_some_and(|known| Arc::ptr_eq(known, facts)) {
                continue;
            }
            let before = self.nodes.insert(name.clone(), facts.clone());
            if before.as_ref().is_some_and(|before| before.draining != facts.draining) {
                changed.extend(services_of(facts));
            }
            let before = before.map(|facts| services_of(&facts)).unwrap_or_default();
            self.place(name, &before, endpoints(state, facts), changed);
        }
    }

    fn place_own(&mut self, state: &State, local: &Local, changed: &mut BTreeSet<ServiceName>) {
        let (site, me) = (&self.site, self.site.node.clone());
        let own = local.advertised(state, &me);
        let endpoints: Vec<_> = own.iter().map(|own| endpoint((&me, site.address, &site.zone), own)).collect();
        let now = endpoints.iter().map(|(service, _)| service.clone()).collect();
        let before = std::mem::replace(&mut self.own, now);
        self.place(&me, &before, endpoints, changed);
    }

    /// Puts the endpoints of a node where those were that it had before.
    fn place(
        &mut self,
        node: &NodeName,
        before: &BTreeSet<ServiceName>,
        endpoints: Vec<(ServiceName, EndpointDescription)>,
        changed: &mut BTreeSet<ServiceName>,
    ) {
        let mut now: BTreeMap<ServiceName, Vec<EndpointDescription>> = BTreeMap::new();
        for (service, endpoint) in endpoints {
            now.entry(service).or_default().push(endpoint);
        }
        for name in before.iter().filter(|name| !now.contains_key(*name)) {
            if let Some(known) = self.services.get_mut(name)
                && known.endpoints.remove(node).is_some()
            {
                changed.insert(name.clone());
            }
        }
        for (name, new) in now {
            let Some(known) = self.services.get_mut(&name) else { continue };
            if known.endpoints.get(node) != Some(&new) {
                known.endpoints.insert(node.clone(), new);
                changed.insert(name);
            }
        }
    }
}

/// The services of which a node says that it runs instances.
fn services_of(facts: &NodeFacts) -> BTreeSet<ServiceName> {
    facts.instances.iter().map(|instance| instance.id.service.clone()).collect()
}

/// The documents of a kind, by namespace and name, that two states do not have in common.
fn changed_of<'s>(kind: &KindName, before: &'s State, now: &'s State) -> BTreeSet<(&'s str, &'s str)> {
    let other = |here: &'s State, there: &'s State| {
        let differs = move |(key, resource): &(&ResourceKey, &Arc<Resource>)| {
            there.resources.get(*key).is_none_or(|other| !Arc::ptr_eq(other, resource))
        };
        here.resources.iter().filter(differs).map(|(key, _)| key)
    };
    let keys = other(before, now).chain(other(now, before)).filter(|key| key.kind == *kind);
    keys.map(|key| (key.namespace.as_str(), key.name.as_str())).collect()
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
    let (settings, calls) = (specs.settings(&key), specs.calls(name));
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
        calls: calls.cloned().unwrap_or_default(),
        endpoints: Vec::new(),
        outside: None,
    }
}

/// All of a service's instances. Those of nodes that are about to stop are called only where there are no others: a node that is started
/// again is back at once, and whoever calls it meanwhile waits.
fn last_resort(
    endpoints: &BTreeMap<NodeName, Vec<EndpointDescription>>,
    nodes: &BTreeMap<NodeName, Arc<NodeFacts>>,
) -> Vec<EndpointDescription> {
    let leaves = |node: &NodeName| nodes.get(node).is_some_and(|facts| facts.draining);
    let all = || endpoints.values().flatten();
    let others = all().any(|one| one.healthy && !leaves(&one.node));
    let called = |one: &EndpointDescription| one.healthy && !(others && leaves(&one.node));
    all().map(|one| EndpointDescription { healthy: called(one), ..one.clone() }).collect()
}

/// The instances of a node that it was admitted for.
fn endpoints(state: &State, facts: &NodeFacts) -> Vec<(ServiceName, EndpointDescription)> {
    let (Some(record), Ok(address)) = (state.nodes.get(&facts.name), facts.address.parse()) else { return Vec::new() };
    let granted = |instance: &&Instance| record.services.iter().any(|grant| grant.covers(&instance.id.service));
    let placed = |instance: &Instance| endpoint((&facts.name, address, &facts.zone), instance);
    facts.instances.iter().filter(granted).map(placed).collect()
}

/// An instance as an endpoint of its service, at a node and its address and zone.
fn endpoint(
    (node, address, zone): (&NodeName, SocketAddr, &str),
    instance: &Instance,
) -> (ServiceName, EndpointDescription) {
    let endpoint = EndpointDescription {
        node: node.clone(),
        instance: instance.id.name.clone(),
        labels: instance.labels.clone(),
        address,
        zone: zone.to_owned(),
        ports: instance.ports.iter().map(|port| port.port).collect(),
        targets: instance.targets.clone(),
        weight: instance.weight,
        healthy: instance.healthy,
        gateway: gateways::is_gateway(&instance.labels),
    };
    (instance.id.service.clone(), endpoint)
}
