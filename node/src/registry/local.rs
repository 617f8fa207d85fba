//! All instances of this host, and how they fare.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use weft_consensus::state::State;
use weft_proto::identity::{Identity, NodeName, TrustDomain};
use weft_proto::service::{Instance, InstanceId, Protocol, ServiceName, ServicePort};

use weft_proxy::table::description::Intercepts;

use crate::intercept::Kept;

use super::instance::{LocalInstance, LocalPort};

/// Why the mesh has not taken a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Untaken {
    /// It does not want it.
    Refused(String),
    /// It could not be asked yet.
    NotAsked(String),
}

impl fmt::Display for Untaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => f.write_str(why),
            Self::NotAsked(why) => write!(f, "not declared to the mesh yet: {why}"),
        }
    }
}

/// What is registered here, and how it fares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Local {
    /// Registered instances.
    pub instances: BTreeMap<InstanceId, LocalInstance>,
    /// Their health; absent until the first check, which counts as unhealthy where there is a check. Of an instance
    /// without one it is only known whether anything listens.
    pub health: BTreeMap<InstanceId, Result<(), String>>,
    /// How the units fare that instances are of; absent while that is not known.
    pub units: BTreeMap<String, UnitState>,
    /// Instances that are given no more calls, since they are about to stop.
    pub draining: BTreeSet<InstanceId>,
    /// Why the mesh has not taken a service.
    pub refused: BTreeMap<ServiceName, Untaken>,
    /// Faults in what was registered, one line each.
    pub faults: Vec<String>,
    /// Services whose loopback addresses this host was asked to listen on.
    pub listened: BTreeSet<ServiceName>,
    /// Where the host's firewall sends connections.
    pub intercepts: Intercepts,
    /// What it sends there.
    pub intercepted: Option<Kept>,
    /// Whether it was looked what is registered.
    pub read: bool,
}

/// How a unit of the service manager fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitState {
    /// Whether it takes calls; why not.
    pub active: Result<(), String>,
    /// The number of its control group, while it has one.
    pub group: Option<u64>,
}

impl Local {
    /// What is wrong with an instance; none where it may be called, or nothing is known yet.
    pub fn problem(&self, id: &InstanceId) -> Option<&str> {
        if self.draining.contains(id) {
            return Some("it is given no more calls, since it is about to stop");
        }
        let unit = self.instances.get(id).and_then(|instance| self.units.get(instance.unit.as_ref()?));
        let unit = unit.and_then(|unit| unit.active.as_ref().err());
        unit.or_else(|| self.health.get(id)?.as_ref().err()).map(String::as_str)
    }

    /// Whether an instance may be called.
    pub fn is_healthy(&self, id: &InstanceId) -> bool {
        let Some(instance) = self.instances.get(id) else { return false };
        if self.draining.contains(id) {
            return false;
        }
        let unit = instance.unit.as_ref();
        let runs = unit.is_none_or(|unit| self.units.get(unit).is_some_and(|unit| unit.active.is_ok()));
        runs && match self.health.get(id) {
            Some(health) => health.is_ok(),
            None => instance.check.is_none(),
        }
    }

    /// Whether this host runs an instance of the service.
    pub fn runs(&self, service: &ServiceName) -> bool {
        self.of(service).next().is_some()
    }

    /// Its instances of a service.
    pub fn of<'a>(&'a self, service: &'a ServiceName) -> impl Iterator<Item = &'a LocalInstance> {
        self.instances.values().filter(move |instance| instance.id.service == *service)
    }

    /// The instances that the mesh has taken from this node: they count, here as elsewhere.
    pub fn taken(&self, state: &State, me: &NodeName) -> impl Iterator<Item = &LocalInstance> {
        self.instances.values().filter(|instance| {
            state.services.get(&instance.id.service).is_some_and(|record| record.declared.contains_key(me))
        })
    }

    /// Whether the mesh has taken all that this node's instances of a service declare.
    pub fn is_taken(&self, state: &State, me: &NodeName, service: &ServiceName) -> bool {
        Declaration::of(self.of(service)).is_none_or(|declaration| declaration.is_taken(state, me, service))
    }

    /// The instances as gossip tells them.
    pub fn advertised(&self, state: &State, me: &NodeName) -> Vec<Instance> {
        let advertised = |instance: &LocalInstance| Instance {
            id: instance.id.clone(),
            labels: instance.labels.clone(),
            ports: instance.ports.iter().map(|port| port.port).collect(),
            targets: instance.targets(),
            healthy: self.is_healthy(&instance.id),
            weight: instance.weight,
        };
        self.taken(state, me).map(advertised).collect()
    }

    /// The identities that this host's instances need.
    pub fn identities(&self, state: &State, trust_domain: &TrustDomain, me: &NodeName) -> BTreeSet<Identity> {
        let accounts = self.taken(state, me).map(|instance| &state.services[&instance.id.service].account);
        accounts.map(|account| Identity::service(trust_domain.clone(), account.clone())).collect()
    }

    /// What this host declares to the mesh.
    pub(super) fn declarations(&self) -> BTreeMap<ServiceName, Declaration> {
        let mut declarations = BTreeMap::new();
        for instance in self.instances.values() {
            declarations.entry(instance.id.service.clone()).or_insert_with(|| Declaration::new(instance)).add(instance);
        }
        declarations
    }
}

/// What this host's instances of a service have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Declaration {
    pub(super) account: ServiceName,
    pub(super) ports: Vec<ServicePort>,
}

impl Declaration {
    /// What all of them declare together; none where there is none.
    fn of<'a>(instances: impl Iterator<Item = &'a LocalInstance>) -> Option<Self> {
        let mut declaration = None;
        instances.for_each(|one| declaration.get_or_insert_with(|| Self::new(one)).add(one));
        declaration
    }

    fn new(instance: &LocalInstance) -> Self {
        Self { account: instance.account.clone(), ports: Vec::new() }
    }

    /// Whether the mesh has taken it from this node.
    pub(super) fn is_taken(&self, state: &State, me: &NodeName, service: &ServiceName) -> bool {
        state.services.get(service).is_some_and(|record| {
            record.account == self.account && record.declared.get(me).is_some_and(|known| *known == self.ports)
        })
    }

    fn add(&mut self, instance: &LocalInstance) {
        for LocalPort { port, .. } in &instance.ports {
            match self.ports.iter_mut().find(|known| known.port == port.port) {
                None => self.ports.push(*port),
                Some(known) if known.protocol == Protocol::Auto => *known = *port,
                Some(_) => {}
            }
        }
    }

    /// Why an instance does not go with these.
    fn contradicts(&self, instance: &LocalInstance) -> Option<String> {
        if self.account != instance.account {
            let text = "all instances of a service have one service account; that of another one here is";
            return Some(format!("serviceAccount: {text} {}", self.account.name()));
        }
        let known = |port: u16| self.ports.iter().find(|known| known.port == port).map(|known| known.protocol);
        let differs = instance.ports.iter().find(|LocalPort { port, .. }| {
            known(port.port).is_some_and(|known| {
                known != port.protocol && known != Protocol::Auto && port.protocol != Protocol::Auto
            })
        })?;
        let port = differs.port;
        Some(format!("port {} speaks another protocol in another instance here than {}", port.port, port.protocol))
    }
}

/// What a host was told to run, and what was wrong with it.
#[derive(Debug, Default)]
pub struct Registered {
    pub(super) instances: BTreeMap<InstanceId, LocalInstance>,
    pub(super) faults: Vec<String>,
}

impl Registered {
    /// One more instance, which `source` has told of. What contradicts those before it is left out.
    pub fn add(&mut self, source: &str, instance: LocalInstance) {
        let fault = match self.instances.contains_key(&instance.id) {
            true => Some(format!("{} stands in another file too", instance.id)),
            false => self.contradiction(&instance),
        };
        match fault {
            Some(fault) => self.fault(source, &fault),
            None => drop(self.instances.insert(instance.id.clone(), instance)),
        }
    }

    /// What is wrong with what `source` has told.
    pub fn fault(&mut self, source: &str, fault: &str) {
        self.faults.push(format!("{source}: {fault}"));
    }

    /// What is wrong, one line each.
    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    /// Why the instance would not go with those of other names; nothing where it would.
    pub fn contradiction(&self, instance: &LocalInstance) -> Option<String> {
        let other = |other: &&LocalInstance| other.id.service == instance.id.service && other.id != instance.id;
        Declaration::of(self.instances.values().filter(other))?.contradicts(instance)
    }
}
