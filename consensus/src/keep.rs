//! What a replica does by itself: runs as a member or follows, changes from one to the other, tells its status.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use openraft::entry::RaftEntry;
use openraft::{EntryPayload, RaftMetrics, ServerState};
use tokio::time::{Instant, sleep, timeout};
use weft_proto::RaftId;
use weft_proto::identity::NodeName;
use weft_proto::planted::{Bug, planted};
use weft_proto::wire::cluster::{self as messages, FollowEvent, FollowRequest};

use crate::core::Core;
use crate::follow;
use crate::raft::{Member, Membership, TypeConfig};
use crate::replica::{CHANGE_TIMEOUT, Inner, Replica};
use crate::status::{RaftStatus, Role};
use crate::wire;

/// How often the status is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Silence after which a leader is not taken for one any more: three of the longest election timeouts.
const LEADER_SILENCE_MAX: Duration = Duration::from_secs(3);
/// How often one that follows looks whether its source has fallen silent.
const FOLLOWING_LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a member may know of no leader before it asks whether it still is one.
const LOST_AFTER: Duration = Duration::from_secs(2);
/// Pause between sources that failed, doubled up to the second.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How often a follower looks whether a snapshot is due.
const COMPACT_INTERVAL: Duration = Duration::from_secs(1);
/// Restarts of a core that died, within [`RESTART_WINDOW`].
const RESTARTS_MAX: usize = 5;
const RESTART_WINDOW: Duration = Duration::from_secs(60);

impl Replica {
    /// Runs as a member or as a follower, whichever this node is, until the replica stops.
    pub(crate) async fn keep(self) {
        let mut restarts: Vec<Instant> = Vec::new();
        loop {
            // After a failure of the disk nothing here tells what is on it: only a new process that reads it may go on.
            if self.inner.failed.borrow().is_some() {
                return self.stop_core().await;
            }
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
                        if self.inner.failed.borrow().is_some() {
                            continue;
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
                    if self.inner.failed.borrow().is_some() {
                        continue;
                    }
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
                changed = metrics.changed() => if changed.is_err() { return Err("the Raft core has ended".into()) },
                _ = ticks.tick() => {}
            }
            if self.inner.failed.borrow().is_some() {
                return Err("the disk has failed".into());
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
            // Only the newest membership of all that the source has committed counts: this node may be back already.
            let mut newest = None;
            while let Ok(Some(Ok(FollowEvent { kind: Some(kind) }))) = timeout(CHANGE_TIMEOUT / 5, events.next()).await
            {
                let (membership, more) = membership_in(kind);
                newest = membership.or(newest);
                if !more {
                    break;
                }
            }
            if newest.is_some_and(|membership| membership.get_node(&me).is_none()) {
                return true;
            }
        }
        false
    }

    /// Follows until this node is taken for a member.
    async fn keep_following(&self) {
        // What was told before it followed is of no meaning now; a leader that means it says so again.
        let _ = self.inner.promoted.notified().now_or_never();
        let mut pause = RETRY_MIN;
        let mut compaction = tokio::time::interval(COMPACT_INTERVAL);
        let mut looks = tokio::time::interval(FOLLOWING_LOOK_INTERVAL);
        let mut turn = usize::try_from(self.inner.settings.raft_id).unwrap_or_default();
        loop {
            let sources = self.inner.sources();
            turn = turn.wrapping_add(1);
            let wait = pause;
            let attempt = async {
                let Some(source) = sources.get(turn % sources.len().max(1)) else {
                    return sleep(RETRY_MAX).await;
                };
                let started = Instant::now();
                let inner = &self.inner;
                let heard = |leader: Option<NodeName>, committed| {
                    if leader.is_some() {
                        *inner.heard_at.lock() = Instant::now();
                    }
                    *inner.heard_leader.lock() = leader;
                    inner.committed.fetch_max(committed, Ordering::Relaxed);
                    inner.refresh(None);
                };
                let error = follow::follow(&*inner.peers, source, &inner.log, &inner.machine, heard).await;
                tracing::debug!(%source, %error, "following ended; turning to another");
                if started.elapsed() > RETRY_MAX {
                    return;
                }
                sleep(wait).await;
            };
            let mut attempt = pin!(attempt);
            loop {
                tokio::select! {
                    biased;
                    () = self.inner.promoted.notified(), if !planted(Bug::PromotionIgnored) => return,
                    () = &mut attempt => break,
                    // Silence changes what is known of a leader.
                    _ = looks.tick() => self.inner.refresh(None),
                    _ = compaction.tick() => {
                        if self.inner.failed.borrow().is_some() {
                            return;
                        }
                        self.inner.compact().await;
                    }
                }
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }
}

/// The newest membership in an event, and whether more of what is committed follows.
fn membership_in(event: messages::follow_event::Kind) -> (Option<Membership>, bool) {
    match event {
        messages::follow_event::Kind::Entries(entries) => {
            let last = entries.entries.last().and_then(|entry| entry.id.as_ref()).map_or(u64::MAX, |id| id.index);
            let parsed = entries.entries.into_iter().filter_map(|entry| wire::parse_entry(entry).ok());
            let memberships = parsed.filter_map(|entry| match entry.payload {
                EntryPayload::Membership(membership) => Some(membership),
                _ => None,
            });
            (memberships.last(), last < entries.committed)
        }
        messages::follow_event::Kind::Snapshot(snapshot) => {
            let parsed = wire::parse_snapshot(snapshot).ok();
            (parsed.map(|snapshot| snapshot.meta.last_membership.membership().clone()), true)
        }
        messages::follow_event::Kind::Error(_) => (None, false),
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

    /// When the leader was last in touch: with this node, or, if it is this node, with a majority.
    fn contact(&self, metrics: &RaftMetrics<TypeConfig>) -> Instant {
        let mut heard = self.heard_at.lock();
        if metrics.state != ServerState::Leader {
            return *heard;
        }
        let alone = self.machine.members().borrow().membership().voter_ids().count() <= 1;
        if let Some(acknowledged) = metrics.last_quorum_acked.filter(|_| !alone) {
            *heard = (*heard).max(Instant::now() - acknowledged.elapsed());
        } else if alone {
            *heard = Instant::now();
        }
        *heard
    }

    pub(crate) fn refresh(&self, metrics: Option<&RaftMetrics<TypeConfig>>) {
        let members = self.machine.members().borrow().clone();
        let name = |id: RaftId| members.membership().get_node(&id).and_then(Member::node);
        let (role, leader, term) = match metrics {
            None => {
                let heard = self.heard_at.lock().elapsed() < LEADER_SILENCE_MAX;
                let leader = self.heard_leader.lock().clone().filter(|_| heard);
                (Role::Replica, leader, self.machine.applied().map_or(0, |id| id.leader_id.term))
            }
            Some(metrics) => {
                let role = match metrics.state {
                    ServerState::Leader => Role::Leader,
                    ServerState::Learner => Role::Learner,
                    _ => Role::Voter,
                };
                let leader = metrics.current_leader.and_then(name);
                let leader = leader.filter(|_| self.contact(metrics).elapsed() < LEADER_SILENCE_MAX);
                // One that no majority hears decides nothing.
                let role = if role == Role::Leader && leader.is_none() { Role::Voter } else { role };
                (role, leader, metrics.current_term)
            }
        };
        let silent_since = metrics.map_or_else(|| *self.heard_at.lock(), |metrics| self.contact(metrics));
        let voters = self.voter_names();
        let applied = self.machine.applied().map_or(0, |id| id.index);
        if let Some(committed) = metrics.and_then(|metrics| metrics.cluster_committed.as_ref()) {
            self.committed.fetch_max(committed.index, Ordering::Relaxed);
        }
        let is_behind = self.committed.load(Ordering::Relaxed) > applied;
        let last = self.log.last().map_or(0, |id| id.index);
        self.status.send_if_modified(|status| {
            let leaderless_since = match (&leader, status.leaderless_since) {
                (Some(_), _) => None,
                (None, Some(since)) => Some(since),
                (None, None) => Some(silent_since),
            };
            let behind_since = is_behind.then(|| status.behind_since.unwrap_or_else(Instant::now));
            let next = RaftStatus { role, leader, term, applied, last, voters, behind_since, leaderless_since };
            let changed = *status != next;
            *status = next;
            changed
        });
    }
}
