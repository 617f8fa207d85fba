//! Following the committed log: what a node does that has no vote, and how it is fed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt};
use openraft::entry::RaftEntry;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use weft_proto::Index;
use weft_proto::identity::NodeName;
use weft_proto::planted::{Bug, planted};
use weft_proto::wire::cluster::{self as messages, FollowEntries, FollowEvent, FollowRequest, follow_event};

use crate::log::Log;
use crate::machine::Machine;
use crate::network::{PeerError, Peers};
use crate::raft::Entry;
use crate::wire;

/// Entries in one event.
const ENTRIES_MAX: usize = 256;
/// How often a follower hears from its source at least.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Silence after which a follower turns to another source.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Feeds a follower from what is applied here.
pub(crate) fn feed(
    log: Log,
    machine: Machine,
    leader: impl Fn() -> Option<NodeName> + Send + 'static,
    mut stopping: watch::Receiver<bool>,
    request: FollowRequest,
) -> BoxStream<'static, FollowEvent> {
    let feeder = Feeder {
        changes: machine.states(),
        log,
        machine,
        leader: Box::new(leader),
        next: request.after + 1,
        first: true,
    };
    let events = stream::unfold(Some(feeder), |feeder| async move {
        let mut feeder = feeder?;
        match feeder.event().await {
            Ok(event) => Some((event, Some(feeder))),
            Err(error) => Some((FollowEvent { kind: Some(follow_event::Kind::Error(error)) }, None)),
        }
    });
    events.take_until(async move { stopping.wait_for(|stopping| *stopping).await.map(|_| ()) }).boxed()
}

struct Feeder {
    log: Log,
    machine: Machine,
    changes: watch::Receiver<Arc<crate::state::State>>,
    leader: Box<dyn Fn() -> Option<NodeName> + Send>,
    next: u64,
    first: bool,
}

impl Feeder {
    async fn event(&mut self) -> Result<FollowEvent, String> {
        let deadline = Instant::now() + HEARTBEAT;
        loop {
            self.changes.borrow_and_update();
            let applied = self.machine.applied().map_or(0, |applied| applied.index);
            let purged = self.log.purged().map_or(0, |purged| purged.index);
            if applied > 0 && self.next <= purged {
                let snapshot = self.machine.stored_snapshot().map_err(|error| error.to_string())?;
                let snapshot = snapshot.ok_or("the log begins later and there is no snapshot")?;
                self.next = snapshot.meta.last_log_id.map_or(0, |id| id.index) + 1;
                return Ok(FollowEvent { kind: Some(follow_event::Kind::Snapshot(wire::snapshot(&snapshot))) });
            }
            // A follower that asks from the beginning has nothing, not even the entry 0 of the first membership.
            let start = if self.first && self.next == 1 { 0 } else { self.next };
            let applied =
                if planted(Bug::UncommittedFed) { self.log.last().map_or(0, |last| last.index) } else { applied };
            if applied >= self.next {
                let entries = self.log.entries(start, applied, ENTRIES_MAX).map_err(|error| error.to_string())?;
                if let Some(last) = entries.last() {
                    self.next = last.index() + 1;
                    self.first = false;
                    return Ok(self.entries(&entries, applied));
                }
            }
            match tokio::time::timeout_at(deadline, self.changes.changed()).await {
                Err(_) => return Ok(self.entries(&[], applied)),
                Ok(Err(_)) => return Err("this node is stopping".into()),
                Ok(Ok(())) => {}
            }
        }
    }

    fn entries(&self, entries: &[Entry], committed: u64) -> FollowEvent {
        let leader = (self.leader)().map(|name| name.to_string()).unwrap_or_default();
        let entries = FollowEntries { entries: entries.iter().map(wire::entry).collect(), committed, leader };
        FollowEvent { kind: Some(follow_event::Kind::Entries(entries)) }
    }
}

/// Follows one source until it fails or falls silent. `heard` is told of the leader that the source knows, and
/// of what is committed.
pub(crate) async fn follow(
    peers: &dyn Peers,
    source: &NodeName,
    log: &Log,
    machine: &Machine,
    heard: impl Fn(Option<NodeName>, Index),
) -> PeerError {
    let after = machine.applied().map_or(0, |applied| applied.index);
    let mut events = match timeout(SILENCE_MAX, peers.follow(source.clone(), FollowRequest { after })).await {
        Err(_) => return PeerError::Unreachable(format!("{source} does not answer")),
        Ok(Err(error)) => return error,
        Ok(Ok(events)) => events,
    };
    let mut leaderless: Option<Instant> = None;
    loop {
        let event = match timeout(SILENCE_MAX, events.next()).await {
            Err(_) => return PeerError::Unreachable(format!("{source} has fallen silent")),
            Ok(None) => return PeerError::Unreachable(format!("{source} has ended the stream")),
            Ok(Some(Err(error))) => return error,
            Ok(Some(Ok(event))) => event,
        };
        let taken = match event.kind {
            Some(follow_event::Kind::Entries(entries)) => {
                let leader: Option<NodeName> = entries.leader.parse().ok();
                // A source that is cut off from the majority would keep its followers in the past.
                leaderless = leader.is_none().then(|| leaderless.unwrap_or_else(Instant::now));
                if leaderless.is_some_and(|since| since.elapsed() > SILENCE_MAX) {
                    return PeerError::Unreachable(format!("{source} knows of no leader"));
                }
                heard(leader, entries.committed);
                take_entries(log, machine, entries.entries).await
            }
            Some(follow_event::Kind::Snapshot(snapshot)) => take_snapshot(log, machine, snapshot).await,
            Some(follow_event::Kind::Error(error)) => Err(error),
            None => Err("an empty event".into()),
        };
        if let Err(error) = taken {
            return PeerError::Refused(format!("{source}: {error}"));
        }
    }
}

/// Durable first, then applied. Whatever does not continue the log is refused.
async fn take_entries(log: &Log, machine: &Machine, entries: Vec<messages::Entry>) -> Result<(), String> {
    let entries: Vec<Entry> =
        entries.into_iter().map(wire::parse_entry).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    if let Some(index) = *machine.outdated().borrow() {
        return Err(format!("the decision {index} is of a later version of weft"));
    }
    let applied = machine.applied();
    let fresh: Vec<Entry> =
        entries.into_iter().filter(|entry| applied.is_none_or(|applied| entry.index() > applied.index)).collect();
    let first = applied.map_or(0, |applied| applied.index + 1);
    if let Some((entry, due)) = fresh.iter().zip(first..).find(|(entry, due)| entry.index() != *due) {
        return Err(format!("entry {} came where {due} was due", entry.index()));
    }
    if fresh.is_empty() {
        return Ok(());
    }
    log.append_committed(&fresh).await.map_err(|error| error.to_string())?;
    machine.apply_all(&fresh);
    Ok(())
}

async fn take_snapshot(log: &Log, machine: &Machine, message: messages::Snapshot) -> Result<(), String> {
    let snapshot = wire::parse_snapshot(message).map_err(|error| error.to_string())?;
    let last = snapshot.meta.last_log_id.ok_or("the snapshot covers nothing")?;
    if machine.applied().is_some_and(|applied| applied.index >= last.index) {
        return Ok(());
    }
    machine.install(&snapshot).await.map_err(|error| error.to_string())?;
    log.restart_after(last).await.map_err(|error| error.to_string())
}
