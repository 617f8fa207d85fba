//! The care for voters: who votes, which the leader sees to, and who holds the authority's key, which is seen to by the
//! leader too unless it does not hold it yet itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use weft_consensus::membership::{self, Candidate, View};
use weft_consensus::replica::Replica;
use weft_consensus::status::{RaftStatus, Role};
use weft_proto::command::Command;
use weft_proto::facts::Live;
use weft_proto::identity::NodeName;

use crate::issue::Issuer;
use crate::world::World;

/// How often the leader looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Bound on the log's decision about a grant.
const DECISION_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs on every node; acts on one.
pub struct Reconciler<W: World> {
    pub(crate) name: NodeName,
    pub(crate) replica: Replica,
    pub(crate) issuer: Arc<Issuer<W>>,
    pub(crate) live: watch::Receiver<Arc<Live>>,
    /// Voters wanted.
    pub(crate) wanted: usize,
}

impl<W: World> Reconciler<W> {
    /// Runs until the node stops.
    pub async fn run(mut self) {
        let mut seen: BTreeMap<NodeName, Instant> = BTreeMap::new();
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let live = self.live.borrow_and_update().clone();
            let now = Instant::now();
            seen.extend(live.keys().map(|name| (name.clone(), now)));
            let status = self.replica.status().borrow().clone();
            if self.gives_keys(&status, &live) {
                self.grant(&status.voters, &live).await;
            }
            if status.role != Role::Leader {
                // A new leader gives everyone the benefit of the doubt from the moment it leads.
                seen.values_mut().for_each(|at| *at = now);
                continue;
            }
            self.raise(&live).await;
            self.step(&live, &mut seen, now).await;
        }
    }

    /// Whether it is this node that gives the authority's key to others: the leader, or the first that lives of those who
    /// hold it where the leader does not.
    fn gives_keys(&self, status: &RaftStatus, live: &Live) -> bool {
        let state = self.replica.state().borrow().clone();
        let holders = &state.sealed_authority;
        match &status.leader {
            Some(leader) if holders.contains_key(leader) => *leader == self.name,
            Some(_) => holders.keys().find(|name| live.contains_key(*name)) == Some(&self.name),
            None => false,
        }
    }

    async fn grant(&self, voters: &[NodeName], live: &Live) {
        let state = self.replica.state().borrow().clone();
        if let Some(proposal) = self.issuer.grant_due(&state, voters, live) {
            let command = proposal.command.to_string();
            match self.replica.propose(proposal, DECISION_TIMEOUT).await {
                Ok(_) => tracing::info!(command, "the authority's key is granted"),
                Err(error) => tracing::warn!(command, %error, "the authority's key could not be granted"),
            }
        }
    }

    /// Raises the version of the mesh's commands to what every admitted node has said that it knows.
    async fn raise(&self, live: &Live) {
        let state = self.replica.state().borrow().clone();
        let known = state.nodes.keys().map(|name| live.get(name).map_or(0, |facts| facts.commands)).min();
        let Some(version) = known.filter(|known| *known > state.version) else { return };
        match self.replica.propose(self.issuer.proposal(Command::Raise { version }), DECISION_TIMEOUT).await {
            Ok(_) => tracing::info!(version, "every node knows this version of the mesh's commands, and it is in use"),
            Err(error) => tracing::warn!(version, %error, "the version of the mesh's commands could not be raised"),
        }
    }

    async fn step(&self, live: &Live, seen: &mut BTreeMap<NodeName, Instant>, now: Instant) {
        let state = self.replica.state().borrow().clone();
        seen.retain(|name, _| state.nodes.contains_key(name));
        let candidates = state.nodes.iter().map(|(name, record)| {
            let facts = live.get(name);
            let since = *seen.entry(name.clone()).or_insert(now);
            Candidate {
                raft_id: record.raft_id,
                name: name.clone(),
                zone: facts.map(|facts| facts.zone.clone()).unwrap_or_default(),
                dead_for: facts.is_none().then(|| now.duration_since(since)),
                draining: facts.is_some_and(|facts| facts.draining),
            }
        });
        let view: View = self.replica.view(candidates.collect(), self.wanted);
        if let Some(step) = membership::plan(&view) {
            let text = format!("{step:?}");
            match self.replica.change_voters(step).await {
                Ok(()) => tracing::info!(step = text, "voters changed"),
                Err(error) => tracing::warn!(step = text, %error, "voters could not be changed"),
            }
        }
    }
}
