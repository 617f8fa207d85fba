//! The handle on the replicated state: propose, read, watch, serve, stop.
//!
//! A node is a member of the Raft group and runs a core, or it follows the committed log. It changes from one to the
//! other by itself, on the same disk: a follower's log is a prefix of the committed one, so a core can start on it; a
//! core that is no member any more drops what was never committed and follows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::stream::BoxStream;
use openraft::ChangeMembers;
use tokio::sync::{Notify, RwLock, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use weft_proto::command::{Outcome, Proposal};
use weft_proto::identity::NodeName;
use weft_proto::wire::cluster::{
    self as messages, Consensus, ConsensusReply, FollowEvent, FollowRequest, consensus, consensus_reply,
};
use weft_proto::{Index, RaftId};

use crate::core::{self, Core};
use crate::disk::{Disk, Guarded};
use crate::follow;
use crate::log::{Corrupt, Log};
use crate::machine::Machine;
use crate::membership::{Candidate, Step, View};
use crate::network::Network;
pub use crate::network::{PeerError, Peers};
pub use crate::propose_error::ProposeError;
use crate::raft::Member;
pub use crate::settings::Settings;
use crate::state::State;
use crate::status::RaftStatus;
use crate::wire;

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
    pub(crate) status: watch::Sender<RaftStatus>,
    pub(crate) failed: watch::Sender<Option<String>>,
    /// Told when the node should become a member.
    pub(crate) promoted: Notify,
    pub(crate) stopping: watch::Sender<bool>,
    pub(crate) heard_leader: parking_lot::Mutex<Option<NodeName>>,
    /// When a leader was heard last; of a leader, when it became one.
    pub(crate) heard_at: parking_lot::Mutex<Instant>,
    /// The newest index that is known to be committed anywhere.
    pub(crate) committed: AtomicU64,
    keeper: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

/// Bound on a learner's catching up.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(30);
/// Bound on a change of the membership.
pub(crate) const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

impl Replica {
    /// Starts from what is on the disk.
    pub async fn start(settings: Settings, disk: Arc<dyn Disk>, peers: Arc<dyn Peers>) -> Result<Self, StartError> {
        let failed = watch::channel(None).0;
        let disk: Arc<dyn Disk> = Guarded::new(disk, failed.clone());
        let log = Log::open(disk.clone())?;
        let machine = Machine::open(disk, &log)?;
        // A crash between storing a snapshot and beginning the log after it.
        if let Some(applied) = machine.applied().filter(|applied| Some(*applied) > log.last()) {
            log.restart_after(applied).await.map_err(|error| Corrupt(error.to_string()))?;
        }
        let inner = Arc::new(Inner {
            settings,
            log,
            machine,
            peers,
            core: RwLock::new(None),
            status: watch::channel(RaftStatus::default()).0,
            failed,
            promoted: Notify::new(),
            stopping: watch::channel(false).0,
            heard_leader: parking_lot::Mutex::default(),
            heard_at: parking_lot::Mutex::new(Instant::now()),
            committed: AtomicU64::new(0),
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

    /// The index of the first decision that this version of weft does not know, and at which it has stopped.
    pub fn outdated(&self) -> watch::Receiver<Option<Index>> {
        self.inner.machine.outdated()
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
        self.check_sender(from, &kind)?;
        let core = self.member_core(from).await?;
        if matches!(kind, Kind::Append(_) | Kind::Snapshot(_)) {
            *self.inner.heard_at.lock() = Instant::now();
        }
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

    /// Every Raft message is sent in the name of a Raft node: it must be the sender's own, as far as is known here.
    fn check_sender(&self, from: &NodeName, kind: &consensus::Kind) -> Result<(), String> {
        let members = self.inner.machine.members().borrow().clone();
        let named = wire::spoken_for(kind).and_then(|id| members.membership().get_node(&id).and_then(Member::node));
        match named {
            Some(name) if name != *from => Err(format!("{from} speaks in the name of {name}")),
            _ => Ok(()),
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

    /// Whether the node takes part in Raft, as far as is known here.
    pub fn is_in_group(&self, name: &NodeName) -> bool {
        let members = self.inner.machine.members().borrow().clone();
        members.membership().nodes().any(|(_, member)| member.node().as_ref() == Some(name))
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

    pub(crate) fn is_member(&self) -> bool {
        let members = self.inner.machine.members().borrow().clone();
        members.membership().get_node(&self.inner.settings.raft_id).is_some()
    }

    pub(crate) async fn start_core(&self) -> Result<(), StartError> {
        let mut slot = self.inner.core.write().await;
        if slot.is_some() {
            return Ok(());
        }
        let config = core::config(&self.inner.settings).map_err(StartError::Core)?;
        // A log that was followed may be of a later term than this disk's vote. Without this a leader of an earlier term
        // could take entries back that are committed.
        self.inner
            .log
            .raise_vote(self.inner.settings.raft_id)
            .await
            .map_err(|error| StartError::Core(error.to_string()))?;
        let network = Network { peers: self.inner.peers.clone() };
        let (log, machine) = (self.inner.log.clone(), self.inner.machine.clone());
        let core = Core::new(self.inner.settings.raft_id, config, network, log, machine).await;
        *slot = Some(core.map_err(|error| StartError::Core(error.to_string()))?);
        Ok(())
    }

    pub(crate) async fn stop_core(&self) {
        if let Some(core) = self.inner.core.write().await.take() {
            let _ = core.shutdown().await;
        }
    }
}
