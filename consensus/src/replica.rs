//! The handle on the replicated state: propose, read, watch, serve, stop.
//!
//! A node is a member of the Raft group and runs a core, or it follows the committed log. It changes from one to the
//! other by itself, on the same disk: a follower's log is a prefix of the committed one, so a core can start on it; a
//! core that is no member any more drops what was never committed and follows.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use openraft::async_runtime::WatchReceiver;
use openraft::entry::RaftEntry;
use openraft::{ChangeMembers, EntryPayload, RaftMetrics, ServerState};
use tokio::sync::{Notify, RwLock, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use weft_proto::command::{Outcome, Proposal};
use weft_proto::identity::NodeName;
use weft_proto::wire::cluster::{
    self as messages, Consensus, ConsensusReply, FollowEvent, FollowRequest, consensus, consensus_reply,
};
use weft_proto::{Index, RaftId};

use crate::disk::Disk;
use crate::follow;
use crate::log::{Corrupt, Log};
use crate::machine::Machine;
use crate::membership::{Candidate, Step, View};
use crate::network::Network;
pub use crate::network::{PeerError, Peers};
pub use crate::propose::ProposeError;
use crate::raft::{self, Core, Member, TypeConfig};
use crate::state::State;
use crate::wire;

/// How a replica behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This disk's Raft node id.
    pub raft_id: RaftId,
    /// This node.
    pub name: NodeName,
    /// How often a leader shows that it lives.
    pub heartbeat: Duration,
    /// Silence after which a voter stands for election, drawn between the two.
    pub election: (Duration, Duration),
    /// Entries after which a snapshot is written.
    pub snapshot_after: u64,
    /// Entries kept before a snapshot.
    pub keep: u64,
    /// Members known before the first state has arrived.
    pub seeds: Vec<NodeName>,
}

impl Settings {
    /// The defaults.
    pub fn new(raft_id: RaftId, name: NodeName) -> Self {
        Self {
            raft_id,
            name,
            heartbeat: Duration::from_millis(100),
            election: (Duration::from_millis(500), Duration::from_millis(1000)),
            snapshot_after: 5000,
            keep: 1000,
            seeds: Vec::new(),
        }
    }
}

/// What a node is to the Raft group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// It leads.
    Leader,
    /// It votes.
    Voter,
    /// It is about to vote.
    Learner,
    /// It follows the committed log.
    #[default]
    Replica,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leader => "leader",
            Self::Voter => "voter",
            Self::Learner => "learner",
            Self::Replica => "replica",
        })
    }
}

/// How the Raft group looks from here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RaftStatus {
    /// What this node is.
    pub role: Role,
    /// The leader, as far as known.
    pub leader: Option<NodeName>,
    /// The term.
    pub term: u64,
    /// Index of the last entry applied here.
    pub applied: Index,
    /// Index of the last entry in the log here.
    pub last: Index,
    /// The voters, by the newest membership applied here.
    pub voters: Vec<NodeName>,
    /// Since when no leader is known; none while one is.
    pub leaderless_since: Option<Instant>,
}

/// Why a replica does not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// What is on the disk cannot be trusted.
    #[error("{0}")]
    Corrupt(#[from] Corrupt),
    /// The settings make no sense, or the core does not start.
    #[error("{0}")]
    Core(String),
}

/// The replicated state. Clones share it.
#[derive(Clone)]
pub struct Replica {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) settings: Settings,
    pub(crate) log: Log,
    pub(crate) machine: Machine,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) core: RwLock<Option<Core>>,
    status: watch::Sender<RaftStatus>,
    failed: watch::Sender<Option<String>>,
    /// Told when the node should become a member.
    promoted: Notify,
    stopping: watch::Sender<bool>,
    heard_leader: parking_lot::Mutex<Option<NodeName>>,
    keeper: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

/// How often the status is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long a member may know of no leader before it asks whether it still is one.
const LOST_AFTER: Duration = Duration::from_secs(5);
/// Pause between sources that failed, doubled up to the second.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Restarts of a core that died, within [`RESTART_WINDOW`].
const RESTARTS_MAX: usize = 5;
const RESTART_WINDOW: Duration = Duration::from_secs(60);
/// Bound on a learner's catching up.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(30);
/// Bound on a change of the membership.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

impl Replica {
    /// Starts from what is on the disk.
    pub async fn start(settings: Settings, disk: Arc<dyn Disk>, peers: Arc<dyn Peers>) -> Result<Self, StartError> {
        let log = Log::open(disk.clone())?;
        let machine = Machine::open(disk, &log)?;
        let inner = Arc::new(Inner {
            settings,
            log,
            machine,
            peers,
            core: RwLock::new(None),
            status: watch::channel(RaftStatus::default()).0,
            failed: watch::channel(None).0,
            promoted: Notify::new(),
            stopping: watch::channel(false).0,
            heard_leader: parking_lot::Mutex::default(),
            keeper: parking_lot::Mutex::default(),
        });
        let replica = Self { inner };
        if replica.is_member() {
            replica.start_core().await?;
        }
        replica.inner.refresh(None);
        let keeper = tokio::spawn(replica.clone().keep());
        *replica.inner.keeper.lock() = Some(keeper);
        Ok(replica)
    }

    /// Makes a Raft group of this node alone and commits the mesh's first decision. Harmless to repeat.
    pub async fn found(&self, proposal: Proposal) -> Result<(Index, Outcome), ProposeError> {
        if !self.is_member() {
            self.start_core().await.map_err(|error| ProposeError::Failed(error.to_string()))?;
            self.inner.promoted.notify_one();
        }
        {
            let core = self.inner.core.read().await;
            let core = core.as_ref().ok_or(ProposeError::Stopped)?;
            let members = std::collections::BTreeMap::from([(
                self.inner.settings.raft_id,
                Member::new(&self.inner.settings.name),
            )]);
            if !core.is_initialized().await.map_err(|error| ProposeError::Failed(error.to_string()))? {
                core.initialize(members).await.map_err(|error| ProposeError::Failed(error.to_string()))?;
            }
        }
        self.propose(proposal, CHANGE_TIMEOUT).await
    }

    /// The newest state applied here.
    pub fn state(&self) -> watch::Receiver<Arc<State>> {
        self.inner.machine.states()
    }

    /// How the Raft group looks from here.
    pub fn status(&self) -> watch::Receiver<RaftStatus> {
        self.inner.status.subscribe()
    }

    /// Told when the replicated state has failed for good on this node.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.inner.failed.subscribe()
    }

    /// Serves the committed log to a follower.
    pub fn feed(&self, _from: &NodeName, request: FollowRequest) -> BoxStream<'static, FollowEvent> {
        let inner = self.inner.clone();
        let leader = move || inner.status.borrow().leader.clone();
        let stopping = self.inner.stopping.subscribe();
        follow::feed(self.inner.log.clone(), self.inner.machine.clone(), leader, stopping, request)
    }

    /// Answers another node.
    pub async fn answer(&self, from: &NodeName, request: Consensus) -> ConsensusReply {
        let kind = match self.try_answer(from, request).await {
            Ok(kind) => kind,
            Err(text) => consensus_reply::Kind::Error(text),
        };
        ConsensusReply { kind: Some(kind) }
    }

    async fn try_answer(&self, from: &NodeName, request: Consensus) -> Result<consensus_reply::Kind, String> {
        use consensus::Kind;
        use consensus_reply::Kind as Reply;
        let kind = request.kind.ok_or("an empty request")?;
        match kind {
            Kind::Propose(propose) => return Ok(Reply::Propose(self.answer_propose(propose).await)),
            Kind::ReadIndex(_) => return Ok(Reply::ReadIndex(self.answer_read_index().await)),
            _ => {}
        }
        if request.to != self.inner.settings.raft_id {
            return Err(format!("Raft node {} is meant; this is {}", request.to, self.inner.settings.raft_id));
        }
        let core = self.member_core(from).await?;
        let garbled = |error: weft_proto::convert::ConvertError| error.to_string();
        match kind {
            Kind::Append(message) => {
                let response = core.append_entries(wire::parse_append(message).map_err(garbled)?).await;
                Ok(Reply::Append(wire::append_reply(&response.map_err(|error| error.to_string())?)))
            }
            Kind::Vote(message) => {
                let response = core.vote(wire::parse_vote_request(&message).map_err(garbled)?).await;
                Ok(Reply::Vote(wire::vote_reply(&response.map_err(|error| error.to_string())?)))
            }
            Kind::PreVote(message) => {
                let response = core.pre_vote(wire::parse_vote_request(&message).map_err(garbled)?).await;
                Ok(Reply::PreVote(wire::vote_reply(&response.map_err(|error| error.to_string())?)))
            }
            Kind::Snapshot(message) => {
                let (vote, snapshot) = wire::parse_install(message).map_err(garbled)?;
                let response = core.install_full_snapshot(vote, snapshot).await;
                Ok(Reply::Snapshot(wire::snapshot_reply(&response.map_err(|error| error.to_string())?)))
            }
            Kind::Transfer(message) => {
                let request = wire::parse_transfer(&message).map_err(garbled)?;
                let response = core.handle_transfer_leader(request).await.map_err(|error| error.to_string())?;
                response.map_err(|error| error.to_string())?;
                Ok(Reply::Transfer(messages::TransferReply {}))
            }
            Kind::Propose(_) | Kind::ReadIndex(_) => Err("answered above".into()),
        }
    }

    /// The core, started if this node has followed so far and a voter now takes it for a member.
    async fn member_core(&self, from: &NodeName) -> Result<Core, String> {
        if let Some(core) = &*self.inner.core.read().await {
            return Ok(core.clone());
        }
        let voters = self.inner.voter_names();
        if !voters.is_empty() && !voters.contains(from) {
            return Err(format!("{from} is no voter as far as is known here"));
        }
        if voters.is_empty() && self.inner.settings.seeds.is_empty() {
            return Err("this node is not part of a mesh yet".into());
        }
        self.inner.promoted.notify_one();
        Err("this node followed so far; its core is starting".into())
    }

    /// The view from which the leader plans its voters.
    pub fn view(&self, candidates: Vec<Candidate>, wanted: usize) -> View {
        let members = self.inner.machine.members().borrow().clone();
        let membership = members.membership();
        View {
            leader: self.inner.settings.raft_id,
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            candidates,
            wanted,
        }
    }

    /// Carries out one step of a plan. Only the leader can.
    pub async fn change_voters(&self, step: Step) -> Result<(), ProposeError> {
        let core = self.inner.core.read().await.clone().ok_or(ProposeError::NoLeader)?;
        let mut voters: BTreeSet<RaftId> = self.inner.machine.members().borrow().membership().voter_ids().collect();
        let new = match step {
            Step::Add(new) => new,
            Step::Replace { old, new } => {
                voters.remove(&old);
                vec![new]
            }
            Step::Remove(old) => {
                voters.remove(&old);
                Vec::new()
            }
            Step::Forget(learner) => {
                let change = ChangeMembers::RemoveNodes(BTreeSet::from([learner]));
                let changed = timeout(CHANGE_TIMEOUT, core.change_membership(change, false)).await;
                return changed
                    .map_err(|_| ProposeError::Timeout)?
                    .map(|_| ())
                    .map_err(|error| ProposeError::Failed(error.to_string()));
            }
        };
        for (id, name) in new {
            let added = timeout(CATCH_UP_TIMEOUT, core.add_learner(id, Member::new(&name), true)).await;
            added.map_err(|_| ProposeError::Timeout)?.map_err(|error| ProposeError::Failed(error.to_string()))?;
            voters.insert(id);
        }
        let changed = timeout(CHANGE_TIMEOUT, core.change_membership(voters, false)).await;
        changed.map_err(|_| ProposeError::Timeout)?.map(|_| ()).map_err(|error| ProposeError::Failed(error.to_string()))
    }

    /// Asks another voter to lead.
    pub async fn transfer_leader(&self, to: RaftId) -> Result<(), ProposeError> {
        let core = self.inner.core.read().await.clone().ok_or(ProposeError::NoLeader)?;
        core.trigger().transfer_leader(to).await.map_err(|error| ProposeError::Failed(error.to_string()))
    }

    /// Stops. What was acknowledged is on the disk.
    pub async fn stop(&self) {
        self.inner.stopping.send_replace(true);
        let keeper = self.inner.keeper.lock().take();
        if let Some(keeper) = keeper {
            keeper.abort();
        }
        if let Some(core) = self.inner.core.write().await.take() {
            let _ = core.shutdown().await;
        }
    }

    fn is_member(&self) -> bool {
        let members = self.inner.machine.members().borrow().clone();
        members.membership().get_node(&self.inner.settings.raft_id).is_some()
    }

    async fn start_core(&self) -> Result<(), StartError> {
        let mut slot = self.inner.core.write().await;
        if slot.is_some() {
            return Ok(());
        }
        let config = raft::config(&self.inner.settings).map_err(StartError::Core)?;
        let network = Network { peers: self.inner.peers.clone() };
        let (log, machine) = (self.inner.log.clone(), self.inner.machine.clone());
        let core = Core::new(self.inner.settings.raft_id, config, network, log, machine).await;
        *slot = Some(core.map_err(|error| StartError::Core(error.to_string()))?);
        Ok(())
    }

    async fn stop_core(&self) {
        if let Some(core) = self.inner.core.write().await.take() {
            let _ = core.shutdown().await;
        }
    }

    /// Runs as a member or as a follower, whichever this node is, until the replica stops.
    async fn keep(self) {
        let mut restarts: Vec<Instant> = Vec::new();
        loop {
            let running = self.inner.core.read().await.clone();
            match running {
                Some(core) => {
                    if let Err(why) = self.keep_member(&core).await {
                        restarts.retain(|at| at.elapsed() < RESTART_WINDOW);
                        restarts.push(Instant::now());
                        metrics::counter!("weft_raft_restarts_total").increment(1);
                        tracing::error!(why, "the Raft core has ended; starting it again");
                        if restarts.len() > RESTARTS_MAX {
                            self.inner.failed.send_replace(Some(why));
                            return;
                        }
                        self.stop_core().await;
                        if let Err(error) = self.start_core().await {
                            self.inner.failed.send_replace(Some(error.to_string()));
                            return;
                        }
                    } else {
                        tracing::info!("no member of the Raft group any more; following the log");
                        self.stop_core().await;
                        if let Err(error) = self.inner.log.drop_uncommitted().await {
                            self.inner.failed.send_replace(Some(error.to_string()));
                            return;
                        }
                    }
                }
                None => {
                    self.keep_following().await;
                    tracing::info!("becoming a member of the Raft group");
                    if let Err(error) = self.start_core().await {
                        self.inner.failed.send_replace(Some(error.to_string()));
                        return;
                    }
                }
            }
        }
    }

    /// Returns `Ok` when this node is no member any more, an error when its core has ended.
    async fn keep_member(&self, core: &Core) -> Result<(), String> {
        let mut metrics = core.metrics();
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        let mut was_member = false;
        let mut next_probe = Instant::now() + LOST_AFTER;
        loop {
            tokio::select! {
                biased;
                _ = metrics.changed() => {}
                _ = ticks.tick() => {}
            }
            let seen = metrics.borrow_watched().clone();
            if let Err(error) = &seen.running_state {
                return Err(error.to_string());
            }
            self.inner.refresh(Some(&seen));
            let member = self.is_member();
            if was_member && !member {
                return Ok(());
            }
            was_member |= member;
            let lost = self.inner.status.borrow().leaderless_since;
            if lost.is_some_and(|since| since.elapsed() > LOST_AFTER) && Instant::now() >= next_probe {
                next_probe = Instant::now() + LOST_AFTER;
                if self.is_removed().await {
                    return Ok(());
                }
            }
        }
    }

    /// Asks the other voters' committed log whether this node was removed while it was away.
    async fn is_removed(&self) -> bool {
        let after = self.inner.machine.applied().map_or(0, |applied| applied.index);
        let me = self.inner.settings.raft_id;
        for source in self.inner.voter_names().into_iter().filter(|name| *name != self.inner.settings.name) {
            let stream = timeout(CHANGE_TIMEOUT / 10, self.inner.peers.follow(source, FollowRequest { after })).await;
            let Ok(Ok(mut events)) = stream else { continue };
            let event = timeout(CHANGE_TIMEOUT / 5, futures_util::StreamExt::next(&mut events)).await;
            let Ok(Some(Ok(FollowEvent { kind: Some(kind) }))) = event else { continue };
            let newest = match kind {
                messages::follow_event::Kind::Entries(entries) => {
                    let parsed = entries.entries.into_iter().filter_map(|entry| wire::parse_entry(entry).ok());
                    parsed
                        .filter_map(|entry| match entry.payload {
                            EntryPayload::Membership(membership) => Some(membership),
                            _ => None,
                        })
                        .last()
                }
                messages::follow_event::Kind::Snapshot(snapshot) => wire::parse_snapshot(snapshot)
                    .ok()
                    .map(|snapshot| snapshot.meta.last_membership.membership().clone()),
                messages::follow_event::Kind::Error(_) => None,
            };
            if newest.is_some_and(|membership| membership.get_node(&me).is_none()) {
                return true;
            }
        }
        false
    }

    /// Follows until this node is taken for a member.
    async fn keep_following(&self) {
        let mut pause = RETRY_MIN;
        let mut turn = usize::try_from(self.inner.settings.raft_id).unwrap_or_default();
        loop {
            let sources = self.inner.sources();
            turn = turn.wrapping_add(1);
            let attempt = async {
                let Some(source) = sources.get(turn % sources.len().max(1)) else {
                    return sleep(RETRY_MAX).await;
                };
                let started = Instant::now();
                let inner = &self.inner;
                let heard = |leader| {
                    *inner.heard_leader.lock() = leader;
                    inner.refresh(None);
                };
                let error = follow::follow(&*inner.peers, source, &inner.log, &inner.machine, heard).await;
                tracing::debug!(%source, %error, "following ended; turning to another");
                if started.elapsed() > RETRY_MAX {
                    return;
                }
                sleep(pause).await;
            };
            tokio::select! {
                biased;
                () = self.inner.promoted.notified() => return,
                () = attempt => pause = (pause * 2).min(RETRY_MAX),
            }
            self.inner.compact().await;
        }
    }
}

impl Inner {
    pub(crate) fn voter_names(&self) -> Vec<NodeName> {
        let members = self.machine.members().borrow().clone();
        let voters: BTreeSet<RaftId> = members.membership().voter_ids().collect();
        let named = members.membership().nodes().filter(|(id, _)| voters.contains(id));
        named.filter_map(|(_, member)| member.node()).collect()
    }

    /// Whom to follow: the voters; before the first state, whoever is known.
    fn sources(&self) -> Vec<NodeName> {
        let voters = self.voter_names();
        let sources = if voters.is_empty() { self.settings.seeds.clone() } else { voters };
        sources.into_iter().filter(|name| *name != self.settings.name).collect()
    }

    /// Writes a snapshot and purges the log when a follower has gone far enough; a core does it by itself.
    async fn compact(&self) {
        let applied = self.machine.applied();
        let Some(applied) =
            applied.filter(|id| id.index > self.machine.snapshot_index() + self.settings.snapshot_after)
        else {
            return;
        };
        let saved = self.machine.save_snapshot().await;
        let upto = applied.index.saturating_sub(self.settings.keep);
        let entry = self.log.entries(upto, upto, 1).ok().and_then(|entries| entries.first().map(RaftEntry::log_id));
        if let (Ok(_), Some(id)) = (saved, entry)
            && let Err(error) = self.log.purge_to(id).await
        {
            self.failed.send_replace(Some(error.to_string()));
        }
    }

    fn refresh(&self, metrics: Option<&RaftMetrics<TypeConfig>>) {
        let members = self.machine.members().borrow().clone();
        let name = |id: RaftId| members.membership().get_node(&id).and_then(Member::node);
        let (role, leader, term) = match metrics {
            None => (
                Role::Replica,
                self.heard_leader.lock().clone(),
                self.machine.applied().map_or(0, |id| id.leader_id.term),
            ),
            Some(metrics) => {
                let role = match metrics.state {
                    ServerState::Leader => Role::Leader,
                    ServerState::Learner => Role::Learner,
                    _ => Role::Voter,
                };
                (role, metrics.current_leader.and_then(name), metrics.current_term)
            }
        };
        let voters = self.voter_names();
        let applied = self.machine.applied().map_or(0, |id| id.index);
        let last = self.log.last().map_or(0, |id| id.index);
        self.status.send_if_modified(|status| {
            let leaderless_since = match (&leader, status.leaderless_since) {
                (Some(_), _) => None,
                (None, Some(since)) => Some(since),
                (None, None) => Some(Instant::now()),
            };
            let next = RaftStatus { role, leader, term, applied, last, voters, leaderless_since };
            let changed = *status != next;
            *status = next;
            changed
        });
    }
}
