//! The services that this host runs: registered, declared to the mesh, checked, advertised.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use weft_consensus::replica::Replica;
use weft_consensus::state::State;
use weft_proto::command::{Command, Outcome, Proposal};
use weft_proto::identity::{Identity, NodeName, TrustDomain};
use weft_proto::service::{Instance, ServiceName, ServicePort};

use crate::api::schema::{PortSpec, ServiceSpec};
use crate::checks::{self, Check, Report};
use crate::world::{World, random};

/// Weight of an instance that names none.
const WEIGHT: u16 = 100;
/// Most ports of one service.
const PORTS_MAX: usize = 64;
/// Bound on the log's decision about a declaration.
const DECISION_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a declaration that did not go through is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pause before a refused declaration is tried again; an operator must act first.
const REFUSED_PAUSE: Duration = Duration::from_secs(15);
/// Check results waiting to be seen.
const REPORTS_MAX: usize = 256;

/// One service of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalService {
    /// Its name.
    pub name: ServiceName,
    /// Its ports and where the application listens.
    pub ports: Vec<LocalPort>,
    /// How its health is told.
    pub check: Option<Check>,
    /// Which local processes call as this service.
    pub caller: CallerClaim,
    /// Its share relative to other instances.
    pub weight: u16,
}

/// One port of a [`LocalService`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalPort {
    /// The port callers use, and what it speaks.
    pub port: ServicePort,
    /// Where the application listens.
    pub target: SocketAddr,
}

/// Which local processes call as a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerClaim {
    /// None.
    Nobody,
    /// Those of this user.
    User(u32),
    /// All that no other service claims.
    Any,
}

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
    /// Registered services.
    pub services: BTreeMap<ServiceName, LocalService>,
    /// Health by service; absent until the first check, which counts as unhealthy where there is a check. Of an instance
    /// without one it is only known whether anything listens.
    pub health: BTreeMap<ServiceName, Result<(), String>>,
    /// Why the mesh has not taken a service.
    pub refused: BTreeMap<ServiceName, Untaken>,
    /// Faults in what was registered, one line each.
    pub faults: Vec<String>,
    /// Services whose loopback addresses this host was asked to listen on.
    pub listened: BTreeSet<ServiceName>,
    /// Whether it was looked what is registered.
    pub read: bool,
}

impl Local {
    /// Whether an instance may be called.
    pub fn is_healthy(&self, name: &ServiceName) -> bool {
        let service = self.services.get(name);
        service.is_some_and(|service| match self.health.get(name) {
            Some(health) => health.is_ok(),
            None => service.check.is_none(),
        })
    }

    /// The instances as gossip tells them: what the mesh has taken.
    pub fn instances(&self, state: &State, me: &NodeName) -> Vec<Instance> {
        let taken = |service: &&LocalService| is_taken(state, me, &service.name);
        let instance = |service: &LocalService| Instance {
            service: service.name.clone(),
            ports: service.ports.iter().map(|port| port.port).collect(),
            healthy: self.is_healthy(&service.name),
            weight: service.weight,
        };
        self.services.values().filter(taken).map(instance).collect()
    }

    /// The identities that this host's services need, of those that the mesh has taken.
    pub fn identities(&self, state: &State, trust_domain: &TrustDomain, me: &NodeName) -> BTreeSet<Identity> {
        let taken = self.services.keys().filter(|name| is_taken(state, me, name));
        taken.map(|name| Identity::service(trust_domain.clone(), name.clone())).collect()
    }
}

/// What only a host knows of the names in a specification.
pub struct Names<'a> {
    /// The number of a user.
    pub user: &'a dyn Fn(&str) -> Option<u32>,
    /// The address of `host:port`.
    pub address: &'a dyn Fn(&str) -> Option<SocketAddr>,
}

/// Checks a specification.
pub fn parse(spec: &ServiceSpec, names: &Names<'_>) -> Result<LocalService, Vec<String>> {
    let mut faults = Vec::new();
    let name = spec.name.parse::<ServiceName>().map_err(|error| faults.push(format!("name: {error}"))).ok();
    if spec.ports.is_empty() || spec.ports.len() > PORTS_MAX {
        faults.push(format!("ports: {} given; name 1 to {PORTS_MAX}", spec.ports.len()));
    }
    let mut ports: Vec<LocalPort> = Vec::new();
    for (i, port) in spec.ports.iter().enumerate() {
        match parse_port(port, names) {
            Ok(port) if ports.iter().any(|other| other.port.port == port.port.port) => {
                faults.push(format!("ports[{i}].port: {} is listed twice", port.port.port));
            }
            Ok(port) => ports.push(port),
            Err(fault) => faults.push(format!("ports[{i}].{fault}")),
        }
    }
    let check = spec.check.as_deref().map(Check::parse).transpose();
    let check = check.map_err(|error| faults.push(format!("check: {error}"))).ok().flatten();
    let caller = parse_caller(spec, names.user).map_err(|fault| faults.push(fault)).ok();
    if spec.weight == Some(0) {
        faults.push("weight: 1 to 65535".into());
    }
    match (name, caller) {
        (Some(name), Some(caller)) if faults.is_empty() => {
            Ok(LocalService { name, ports, check, caller, weight: spec.weight.unwrap_or(WEIGHT) })
        }
        _ => Err(faults),
    }
}

fn parse_port(spec: &PortSpec, names: &Names<'_>) -> Result<LocalPort, String> {
    if spec.port == 0 {
        return Err("port: 1 to 65535".into());
    }
    let target = match spec.target.as_deref() {
        None => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), spec.port),
        Some(text) => text.parse().ok().or_else(|| (names.address)(text)).ok_or_else(|| {
            format!("target: {text:?} is not ADDRESS:PORT or NAME:PORT, such as 127.0.0.1:8081, or its name is not known here")
        })?,
    };
    if target.port() == 0 {
        return Err("target: its port is 1 to 65535".into());
    }
    Ok(LocalPort { port: ServicePort { port: spec.port, protocol: spec.protocol }, target })
}

fn parse_caller(spec: &ServiceSpec, user: impl Fn(&str) -> Option<u32>) -> Result<CallerClaim, String> {
    match (spec.user.as_deref(), spec.caller.as_deref()) {
        (Some(_), Some(_)) => Err("user and caller exclude each other".into()),
        (None, None) => Ok(CallerClaim::Nobody),
        (None, Some("any")) => Ok(CallerClaim::Any),
        (None, Some(other)) => Err(format!("caller: {other:?} is not known; the only value is any")),
        (Some(name), None) => match name.parse().ok().or_else(|| user(name)) {
            Some(id) => Ok(CallerClaim::User(id)),
            None => Err(format!("user: there is no user {name:?} on this host")),
        },
    }
}

/// Keeps what is registered in step with the mesh.
pub struct Registry<W: World> {
    pub(crate) world: W,
    pub(crate) name: NodeName,
    pub(crate) replica: Replica,
    pub(crate) local: watch::Sender<Arc<Local>>,
}

impl<W: World> Registry<W> {
    /// Replaces what is registered.
    pub fn set(local: &watch::Sender<Arc<Local>>, services: BTreeMap<ServiceName, LocalService>, faults: Vec<String>) {
        local.send_if_modified(|current| {
            if current.services == services && current.faults == faults && current.read {
                return false;
            }
            let changed = Arc::make_mut(current);
            let same =
                |name: &ServiceName| changed.services.get(name).is_some_and(|old| services.get(name) == Some(old));
            let kept: BTreeSet<ServiceName> = services.keys().filter(|name| same(name)).cloned().collect();
            changed.health.retain(|name, _| kept.contains(name));
            changed.refused.retain(|name, _| kept.contains(name));
            changed.services = services;
            changed.faults = faults;
            changed.read = true;
            true
        });
    }

    /// Runs until the node stops: declares, checks.
    pub async fn run(self) {
        let (reports, mut reported) = mpsc::channel::<Report>(REPORTS_MAX);
        let mut checked: BTreeMap<ServiceName, LocalService> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        let mut changes = self.local.subscribe();
        let mut states = self.replica.state();
        let mut retry = RETRY_PAUSE;
        let mut refused = BTreeMap::new();
        loop {
            let local = changes.borrow_and_update().clone();
            let wanted = &local.services;
            if wanted.len() != checked.len() || wanted.iter().any(|(name, service)| checked.get(name) != Some(service))
            {
                tasks.abort_all();
                checked.clone_from(wanted);
                for service in checked.values() {
                    self.spawn_check(&mut tasks, service, reports.clone());
                }
            }
            let pending = self.declare(&local, &mut refused).await.unwrap_or(retry);
            retry = RETRY_PAUSE;
            tokio::select! {
                biased;
                changed = changes.changed() => if changed.is_err() { return },
                Some(report) = reported.recv() => self.note(report),
                changed = states.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pending) => {}
            }
        }
    }

    fn spawn_check(&self, tasks: &mut JoinSet<()>, service: &LocalService, reports: mpsc::Sender<Report>) {
        let targets = service.ports.iter().map(|port| port.target).collect();
        let (name, world) = (service.name.clone(), self.world.clone());
        match service.check.clone() {
            Some(check) => tasks.spawn(checks::watch(world.net().clone(), name, targets, check, reports)),
            None => tasks.spawn(checks::watch_listening(world, name, targets, reports)),
        };
    }

    fn note(&self, report: Report) {
        self.local.send_if_modified(|current| {
            let health = if report.healthy { Ok(()) } else { Err(report.problem) };
            if !current.services.contains_key(&report.service) || current.health.get(&report.service) == Some(&health) {
                return false;
            }
            match &health {
                Ok(()) => tracing::info!(service = %report.service, "instance is healthy"),
                Err(problem) => tracing::warn!(service = %report.service, problem, "instance is not healthy"),
            }
            Arc::make_mut(current).health.insert(report.service, health);
            true
        });
    }

    /// Declares what the mesh does not know yet; tells how long to wait before looking again.
    /// What was refused is not asked for again at once: each time is an entry in the log.
    async fn declare(&self, local: &Local, refused: &mut BTreeMap<ServiceName, Instant>) -> Option<Duration> {
        let state = self.replica.state().borrow().clone();
        state.trust_domain.as_ref()?;
        let mut pause = REFUSED_PAUSE;
        refused.retain(|name, _| local.services.contains_key(name));
        if !self.withdraw(local, &state).await {
            pause = RETRY_PAUSE;
        }
        for service in local.services.values() {
            let ports: Vec<ServicePort> = service.ports.iter().map(|port| port.port).collect();
            if is_declared(&state, &self.name, &service.name, &ports) {
                self.clear_refusal(&service.name);
                continue;
            }
            if refused.get(&service.name).is_some_and(|at| at.elapsed() < REFUSED_PAUSE) {
                continue;
            }
            let command = Command::DeclareService { node: self.name.clone(), service: service.name.clone(), ports };
            let proposal = Proposal { key: random(&self.world), at: self.world.now(), command };
            match self.replica.propose(proposal, DECISION_TIMEOUT).await {
                Ok((_, Outcome::Refused(refusal))) => {
                    refused.insert(service.name.clone(), Instant::now());
                    self.refuse(&service.name, Untaken::Refused(refusal.detail));
                }
                Ok((_, outcome)) => {
                    if let Outcome::Declared { address } = outcome {
                        tracing::info!(service = %service.name, %address, "service declared");
                    }
                    self.clear_refusal(&service.name);
                }
                Err(error) => {
                    self.refuse(&service.name, Untaken::NotAsked(error.to_string()));
                    pause = RETRY_PAUSE;
                }
            }
        }
        Some(pause)
    }

    /// Withdraws what this host runs no more; tells whether that is done.
    async fn withdraw(&self, local: &Local, state: &State) -> bool {
        let mut done = true;
        // Files that can't be read say nothing of what is no longer there.
        let services = state.services.iter().filter(|_| local.read && local.faults.is_empty());
        let mine = services.filter(|(_, record)| record.declared.contains_key(&self.name));
        for (name, _) in mine.filter(|(name, _)| !local.services.contains_key(*name)) {
            let command = Command::WithdrawService { node: self.name.clone(), service: name.clone() };
            let proposal = Proposal { key: random(&self.world), at: self.world.now(), command };
            match self.replica.propose(proposal, DECISION_TIMEOUT).await {
                Ok(_) => tracing::info!(service = %name, "service withdrawn"),
                Err(error) => {
                    done = false;
                    tracing::debug!(service = %name, %error, "a service could not be withdrawn yet");
                }
            }
        }
        done
    }

    fn refuse(&self, name: &ServiceName, why: Untaken) {
        self.local.send_if_modified(|current| {
            // It may have been removed while the mesh was asked.
            if !current.services.contains_key(name) || current.refused.get(name) == Some(&why) {
                return false;
            }
            tracing::warn!(service = %name, %why, "the mesh has not taken the service");
            Arc::make_mut(current).refused.insert(name.clone(), why);
            true
        });
    }

    fn clear_refusal(&self, name: &ServiceName) {
        self.local.send_if_modified(|current| {
            current.refused.contains_key(name) && Arc::make_mut(current).refused.remove(name).is_some()
        });
    }
}

/// Whether the mesh has taken the service from this node.
pub(crate) fn is_taken(state: &State, me: &NodeName, name: &ServiceName) -> bool {
    state.services.get(name).is_some_and(|record| record.declared.contains_key(me))
}

fn is_declared(state: &State, me: &NodeName, name: &ServiceName, ports: &[ServicePort]) -> bool {
    state.services.get(name).and_then(|record| record.declared.get(me)).is_some_and(|known| known == ports)
}
