//! Proposing: to this node's core when it leads, else to the leader, until it is decided or the deadline has passed.
//!
//! A proposal carries a key, so asking again is harmless: what was applied once answers the same again.

use std::time::Duration;

use openraft::ReadPolicy;
use openraft::error::{ClientWriteError, RaftError};
use tokio::time::{Instant, sleep, timeout_at};
use weft_proto::Index;
use weft_proto::command::{Outcome, Proposal};
use weft_proto::identity::NodeName;
use weft_proto::planted::{Bug, planted};
use weft_proto::wire::cluster::{
    Committed, Consensus, NotLeader, Propose, ProposeReply, ReadIndex, ReadIndexReply, consensus, consensus_reply,
    propose_reply, read_index_reply,
};

use crate::propose_error::ProposeError;
use crate::replica::Replica;
use crate::status::Role;

/// Pause before the next attempt.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Bound on one attempt, so that a leader that has died does not use up the whole deadline.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a decision made elsewhere may take to be applied here before the answer goes out.
const APPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// A search for the leader.
#[derive(Default)]
struct Search {
    /// Named by whoever was asked last.
    hint: Option<NodeName>,
    /// Asked last.
    asked: Option<NodeName>,
    turn: usize,
}

enum Attempt<T> {
    Done(T),
    /// Someone else leads, perhaps this one.
    Elsewhere(Option<NodeName>),
    Failed(ProposeError),
}

impl Replica {
    /// Has a proposal decided. The answer is what every node's state says, wherever it was asked.
    pub async fn propose(&self, proposal: Proposal, bound: Duration) -> Result<(Index, Outcome), ProposeError> {
        let deadline = Instant::now() + bound;
        let (mut search, mut asked) = (Search::default(), false);
        loop {
            let until = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
            // What a leader has taken may be decided later, even where it hears of nobody now.
            asked |= self.status().borrow().role == Role::Leader;
            let attempt = match self.propose_here(&proposal, until).await {
                Attempt::Elsewhere(leader) => match self.next(&mut search, leader) {
                    Some(target) => {
                        asked = true;
                        self.propose_there(&target, &proposal, until).await
                    }
                    None => Attempt::Elsewhere(None),
                },
                here => {
                    asked = true;
                    here
                }
            };
            match attempt {
                Attempt::Done(done) => {
                    self.wait_applied(done.0, deadline.min(Instant::now() + APPLY_TIMEOUT)).await;
                    return Ok(done);
                }
                Attempt::Failed(error) => return Err(error),
                Attempt::Elsewhere(leader) => search.hint = leader,
            }
            if Instant::now() + RETRY_PAUSE >= deadline && planted(Bug::TimeoutAsSuccess) {
                return Ok((self.status().borrow().applied, Outcome::Changed(Vec::new())));
            }
            if Instant::now() + RETRY_PAUSE >= deadline {
                return Err(if asked { ProposeError::Timeout } else { ProposeError::NoLeader });
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    /// The index up to which a read must wait to see everything decided before it was asked; waits for it here.
    pub async fn read_index(&self, bound: Duration) -> Result<Index, ProposeError> {
        if planted(Bug::StaleRead) {
            return Ok(self.status().borrow().applied);
        }
        let deadline = Instant::now() + bound;
        let mut search = Search::default();
        loop {
            let until = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
            let attempt = match self.read_index_here(until).await {
                Attempt::Elsewhere(leader) => match self.next(&mut search, leader) {
                    Some(target) => self.read_index_there(&target, until).await,
                    None => Attempt::Elsewhere(None),
                },
                here => here,
            };
            match attempt {
                Attempt::Done(index) if self.wait_applied(index, deadline).await => return Ok(index),
                Attempt::Failed(error) => return Err(error),
                Attempt::Elsewhere(leader) => search.hint = leader,
                Attempt::Done(_) => return Err(ProposeError::Timeout),
            }
            if Instant::now() + RETRY_PAUSE >= deadline {
                return Err(ProposeError::NoLeader);
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    pub(crate) async fn answer_propose(&self, message: Propose) -> ProposeReply {
        use propose_reply::Kind;
        let proposal: Result<Proposal, String> = match message.proposal {
            Some(proposal) => proposal.try_into().map_err(|error: weft_proto::convert::ConvertError| error.to_string()),
            None => Err("an empty proposal".into()),
        };
        let kind = match proposal {
            Err(error) => Kind::Error(error),
            Ok(proposal) => match self.propose_here(&proposal, Instant::now() + ATTEMPT_TIMEOUT).await {
                Attempt::Done((index, outcome)) => Kind::Committed(Committed { index, outcome: Some(outcome.into()) }),
                Attempt::Elsewhere(leader) => Kind::NotLeader(not_leader(leader)),
                Attempt::Failed(error) => Kind::Error(error.to_string()),
            },
        };
        ProposeReply { kind: Some(kind) }
    }

    pub(crate) async fn answer_read_index(&self) -> ReadIndexReply {
        use read_index_reply::Kind;
        let kind = match self.read_index_here(Instant::now() + ATTEMPT_TIMEOUT).await {
            Attempt::Done(index) => Kind::Index(index),
            Attempt::Elsewhere(leader) => Kind::NotLeader(not_leader(leader)),
            Attempt::Failed(error) => Kind::Error(error.to_string()),
        };
        ReadIndexReply { kind: Some(kind) }
    }

    async fn propose_here(&self, proposal: &Proposal, until: Instant) -> Attempt<(Index, Outcome)> {
        let leader = self.status().borrow().leader.clone();
        let core = self.inner.core.read().await.clone();
        let Some(core) = core else { return Attempt::Elsewhere(leader) };
        if proposal.command.since() > self.state().borrow().version.max(1) {
            return Attempt::Failed(ProposeError::TooNew);
        }
        if planted(Bug::AcknowledgedEarly) && self.status().borrow().role == Role::Leader {
            let (last, proposal) = (self.status().borrow().last, proposal.clone());
            tokio::spawn(async move { core.client_write(proposal).await.map(drop) });
            return Attempt::Done((last + 1, Outcome::Changed(Vec::new())));
        }
        match timeout_at(until, core.client_write(proposal.clone())).await {
            Ok(Ok(response)) => match response.data.0 {
                Some(done) => Attempt::Done(done),
                None => Attempt::Elsewhere(None),
            },
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Attempt::Elsewhere(forward.leader_node.and_then(|member| member.node()))
            }
            Ok(Err(RaftError::Fatal(error))) => Attempt::Failed(ProposeError::Failed(error.to_string())),
            Ok(Err(RaftError::APIError(_))) | Err(_) => Attempt::Elsewhere(None),
        }
    }

    async fn propose_there(&self, to: &NodeName, proposal: &Proposal, until: Instant) -> Attempt<(Index, Outcome)> {
        let kind = consensus::Kind::Propose(Propose { proposal: Some(proposal.clone().into()) });
        let Some(consensus_reply::Kind::Propose(reply)) = self.ask(to, kind, until).await else {
            return Attempt::Elsewhere(None);
        };
        match reply.kind {
            Some(propose_reply::Kind::Committed(Committed { index, outcome: Some(outcome) })) => {
                outcome.try_into().map_or(Attempt::Elsewhere(None), |outcome| Attempt::Done((index, outcome)))
            }
            Some(propose_reply::Kind::NotLeader(other)) => Attempt::Elsewhere(other.name.parse().ok()),
            _ => Attempt::Elsewhere(None),
        }
    }

    async fn read_index_here(&self, until: Instant) -> Attempt<Index> {
        let leader = self.status().borrow().leader.clone();
        let core = self.inner.core.read().await.clone();
        let Some(core) = core.filter(|_| self.status().borrow().role == Role::Leader) else {
            return Attempt::Elsewhere(leader);
        };
        // Always a round to a majority: a lease would trust the clocks.
        match timeout_at(until, core.ensure_linearizable(ReadPolicy::ReadIndex)).await {
            Ok(Ok(read)) => Attempt::Done(read.log_id().index),
            Ok(Err(RaftError::Fatal(error))) => Attempt::Failed(ProposeError::Failed(error.to_string())),
            _ => Attempt::Elsewhere(None),
        }
    }

    async fn read_index_there(&self, to: &NodeName, until: Instant) -> Attempt<Index> {
        let reply = self.ask(to, consensus::Kind::ReadIndex(ReadIndex {}), until).await;
        let Some(consensus_reply::Kind::ReadIndex(reply)) = reply else { return Attempt::Elsewhere(None) };
        match reply.kind {
            Some(read_index_reply::Kind::Index(index)) => Attempt::Done(index),
            Some(read_index_reply::Kind::NotLeader(other)) => Attempt::Elsewhere(other.name.parse().ok()),
            _ => Attempt::Elsewhere(None),
        }
    }

    async fn ask(&self, to: &NodeName, kind: consensus::Kind, until: Instant) -> Option<consensus_reply::Kind> {
        if *to == self.inner.settings.name {
            return None;
        }
        let call = self.inner.peers.call(to.clone(), Consensus { to: 0, kind: Some(kind) });
        timeout_at(until, call).await.ok()?.ok()?.kind
    }

    /// Whom to ask next: who was named last, else who leads as far as is known here, else another voter each time.
    /// Whoever has just been asked in vain is not asked twice running.
    fn next(&self, search: &mut Search, known: Option<NodeName>) -> Option<NodeName> {
        let fresh = |name: &NodeName| search.asked.as_ref() != Some(name) && *name != self.inner.settings.name;
        let named = search.hint.take().filter(fresh).or(known.filter(fresh));
        search.asked = named.or_else(|| {
            let mut voters = self.inner.voter_names();
            if voters.is_empty() {
                voters = self.inner.settings.seeds.clone();
            }
            voters.retain(|name| *name != self.inner.settings.name);
            search.turn += 1;
            voters.get(search.turn % voters.len().max(1)).cloned()
        });
        search.asked.clone()
    }

    async fn wait_applied(&self, index: Index, until: Instant) -> bool {
        let mut states = self.state();
        timeout_at(until, states.wait_for(|state| state.index >= index)).await.is_ok_and(|state| state.is_ok())
    }
}

fn not_leader(leader: Option<NodeName>) -> NotLeader {
    NotLeader { leader: 0, name: leader.map(|name| name.to_string()).unwrap_or_default() }
}
