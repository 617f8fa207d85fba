//! The services that this host runs: registered, declared to the mesh, checked, advertised.

mod instance;
mod local;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use weft_consensus::replica::Replica;
use weft_consensus::state::State;
use weft_proto::command::{Command, Outcome, Proposal};
use weft_proto::identity::NodeName;
use weft_proto::service::{InstanceId, ServiceName};

use crate::checks::{self, Report};
use crate::world::{World, random};

pub use instance::{CallerClaim, EGRESS, GATEWAY_LABEL, LocalInstance, LocalPort, Names, parse};
use local::Declaration;
pub use local::{Local, Registered, UnitState, Untaken};

/// How long a service is still known to the mesh that no host runs any more: what is replaced or moved keeps its address,
/// and its callers get 503 and not 404.
pub const UNDECLARED_AFTER: Duration = Duration::from_secs(15);
/// Bound on the log's decision about a declaration.
const DECISION_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a declaration that did not go through is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pause before a refused declaration is tried again; an operator must act first.
const REFUSED_PAUSE: Duration = Duration::from_secs(15);
/// Check results waiting to be seen.
const REPORTS_MAX: usize = 256;

/// Keeps what is registered in step with the mesh.
pub struct Registry<W: World> {
    pub(crate) world: W,
    pub(crate) name: NodeName,
    pub(crate) replica: Replica,
    pub(crate) local: watch::Sender<Arc<Local>>,
}

impl<W: World> Registry<W> {
    /// Replaces what is registered.
    pub fn set(local: &watch::Sender<Arc<Local>>, registered: Registered) {
        let Registered { instances, faults } = registered;
        local.send_if_modified(|current| {
            if current.instances == instances && current.faults == faults && current.read {
                return false;
            }
            let before = current.declarations();
            let changed = Arc::make_mut(current);
            let same = |id: &InstanceId| changed.instances.get(id).is_some_and(|old| instances.get(id) == Some(old));
            let kept: BTreeSet<InstanceId> = instances.keys().filter(|id| same(id)).cloned().collect();
            changed.health.retain(|id, _| kept.contains(id));
            changed.draining.retain(|id| kept.contains(id));
            changed.instances = instances;
            let now = changed.declarations();
            changed.refused.retain(|name, _| now.get(name) == before.get(name));
            changed.faults = faults;
            changed.read = true;
            true
        });
    }

    /// Runs until the node stops: declares, checks.
    pub async fn run(self) {
        let (reports, mut reported) = mpsc::channel::<Report>(REPORTS_MAX);
        let mut checked: BTreeMap<InstanceId, LocalInstance> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        let mut changes = self.local.subscribe();
        let mut states = self.replica.state();
        let mut asked = Asked::default();
        loop {
            let local = changes.borrow_and_update().clone();
            if local.instances != checked {
                tasks.abort_all();
                checked.clone_from(&local.instances);
                for instance in checked.values() {
                    self.spawn_check(&mut tasks, instance, reports.clone());
                }
            }
            let pending = self.declare(&local, &mut asked).await.unwrap_or(RETRY_PAUSE);
            tokio::select! {
                biased;
                changed = changes.changed() => if changed.is_err() { return },
                Some(report) = reported.recv() => self.note(report),
                changed = states.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pending) => {}
            }
        }
    }

    fn spawn_check(&self, tasks: &mut JoinSet<()>, instance: &LocalInstance, reports: mpsc::Sender<Report>) {
        let targets = instance.ports.iter().map(|port| port.target).collect();
        let (id, world) = (instance.id.clone(), self.world.clone());
        if instance.check.is_none() && instance.unit.is_some() {
            // The service manager tells.
            return;
        }
        match instance.check.clone() {
            Some(check) => tasks.spawn(checks::watch(world.net().clone(), id, targets, check, reports)),
            None => tasks.spawn(checks::watch_listening(world, id, targets, reports)),
        };
    }

    fn note(&self, report: Report) {
        self.local.send_if_modified(|current| {
            let health = if report.healthy { Ok(()) } else { Err(report.problem) };
            if !current.instances.contains_key(&report.instance)
                || current.health.get(&report.instance) == Some(&health)
            {
                return false;
            }
            match &health {
                Ok(()) => tracing::info!(instance = %report.instance, "instance is healthy"),
                Err(problem) => tracing::warn!(instance = %report.instance, problem, "instance is not healthy"),
            }
            Arc::make_mut(current).health.insert(report.instance, health);
            true
        });
    }

    /// Declares what the mesh does not know yet; tells how long to wait before looking again.
    /// What was refused is not asked for again at once: each time is an entry in the log.
    async fn declare(&self, local: &Local, asked: &mut Asked) -> Option<Duration> {
        let state = self.replica.state().borrow().clone();
        state.trust_domain.as_ref()?;
        if !state.nodes.contains_key(&self.name) {
            return Some(REFUSED_PAUSE);
        }
        let declarations = local.declarations();
        asked.refused.retain(|name, _| declarations.contains_key(name));
        let mut pause = self.withdraw(local, &state, asked).await;
        for (service, declaration) in declarations {
            if declaration.is_taken(&state, &self.name, &service) {
                self.clear_refusal(&service);
                continue;
            }
            if asked.refused.get(&service).is_some_and(|at| at.elapsed() < REFUSED_PAUSE) {
                continue;
            }
            let Declaration { account, ports } = declaration;
            let command = Command::DeclareService { node: self.name.clone(), service: service.clone(), ports, account };
            let proposal = Proposal { key: random(&self.world), at: self.world.now(), command };
            match self.replica.propose(proposal, DECISION_TIMEOUT).await {
                Ok((_, Outcome::Refused(refusal))) => {
                    asked.refused.insert(service.clone(), Instant::now());
                    self.refuse(&service, Untaken::Refused(refusal.detail));
                }
                Ok((_, outcome)) => {
                    if let Outcome::Declared { address } = outcome {
                        tracing::info!(%service, %address, "service declared");
                    }
                    self.clear_refusal(&service);
                }
                Err(error) => {
                    self.refuse(&service, Untaken::NotAsked(error.to_string()));
                    pause = RETRY_PAUSE;
                }
            }
        }
        Some(pause)
    }

    /// Withdraws what this host runs no more, with its last host after a grace; tells how long to wait before looking again.
    async fn withdraw(&self, local: &Local, state: &State, asked: &mut Asked) -> Duration {
        // Files that can't be read say nothing of what is no longer there.
        let known = local.read && local.faults.is_empty();
        let mine = state.services.iter().filter(|(_, record)| known && record.declared.contains_key(&self.name));
        let ended: Vec<_> = mine.filter(|(name, _)| !local.runs(name)).collect();
        asked.ended.retain(|name, _| ended.iter().any(|(ended, _)| *ended == name));
        let mut pause = REFUSED_PAUSE;
        for (name, record) in ended {
            let since = *asked.ended.entry(name.clone()).or_insert_with(Instant::now);
            let left = UNDECLARED_AFTER.saturating_sub(since.elapsed());
            if record.declared.len() == 1 && !left.is_zero() {
                pause = pause.min(left);
                continue;
            }
            let command = Command::WithdrawService { node: self.name.clone(), service: name.clone() };
            let proposal = Proposal { key: random(&self.world), at: self.world.now(), command };
            match self.replica.propose(proposal, DECISION_TIMEOUT).await {
                Ok(_) => tracing::info!(service = %name, "service withdrawn"),
                Err(error) => {
                    pause = pause.min(RETRY_PAUSE);
                    tracing::debug!(service = %name, %error, "a service could not be withdrawn yet");
                }
            }
        }
        pause
    }

    fn refuse(&self, name: &ServiceName, why: Untaken) {
        self.local.send_if_modified(|current| {
            // It may have been removed while the mesh was asked.
            if !current.runs(name) || current.refused.get(name) == Some(&why) {
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

/// When the mesh was asked last for what it does not do, and since when it need not know of what has ended.
#[derive(Debug, Default)]
struct Asked {
    refused: BTreeMap<ServiceName, Instant>,
    ended: BTreeMap<ServiceName, Instant>,
}
