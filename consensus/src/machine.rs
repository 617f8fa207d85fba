//! The state machine: applies committed entries, announces the state, keeps the newest snapshot on the disk.
//!
//! A snapshot is stored as chunks of at most 32 KiB (`s/` and a number) and a head (`s/head`) with what it covers, its
//! length and its checksum, all in one batch.

use std::future::pending;
use std::io;
use std::sync::Arc;

use futures_util::{Stream, TryStreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::watch;
use weft_proto::Index;
use weft_proto::command::{Command, Proposal};
use weft_proto::planted::{Bug, planted};
use weft_proto::wire::cluster as messages;

use crate::apply::apply;
use crate::disk::{Batch, Disk, write_durably};
use crate::log::{Corrupt, Log, open, seal};
use crate::raft::{Answered, Entry, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::state::State;
use crate::wire;

const HEAD_KEY: &[u8] = b"s/head";
const CHUNK_PREFIX: &[u8] = b"s/c/";
const CHUNKS_END: &[u8] = b"s/c0";
const CHUNK_LENGTH: usize = 32 << 10;
/// Most chunks of a snapshot: 64 MiB.
const CHUNKS_MAX: usize = 2048;
/// Entries applied at once at the start.
const REPLAY_MAX: usize = 1024;

/// The machine. Clones share it.
#[derive(Clone)]
pub struct Machine {
    disk: Arc<dyn Disk>,
    inner: Arc<Mutex<Inner>>,
    published: watch::Sender<Arc<State>>,
    members: watch::Sender<StoredMembership>,
    outdated: watch::Sender<Option<Index>>,
}

struct Inner {
    state: State,
    applied: Option<LogId>,
    membership: StoredMembership,
    snapshot: Option<SnapshotMeta>,
}

#[derive(Message)]
struct Head {
    #[prost(message, optional, tag = "1")]
    meta: Option<messages::SnapshotMeta>,
    #[prost(uint64, tag = "2")]
    length: u64,
    #[prost(uint32, tag = "3")]
    checksum: u32,
}

impl Machine {
    /// Restores the newest snapshot and applies what the log knows to be committed after it.
    pub fn open(disk: Arc<dyn Disk>, log: &Log) -> Result<Self, Corrupt> {
        let stored = read_snapshot(&*disk)?;
        let mut inner =
            Inner { state: State::default(), applied: None, membership: StoredMembership::default(), snapshot: None };
        if let Some(snapshot) = stored {
            inner.state =
                State::decode(&snapshot.snapshot).map_err(|error| Corrupt(format!("the snapshot: {error}")))?;
            inner.applied = snapshot.meta.last_log_id;
            inner.membership = snapshot.meta.last_membership.clone();
            inner.snapshot = Some(snapshot.meta);
        }
        if log.purged() > inner.applied {
            return Err(Corrupt("the log begins after the newest snapshot ends".into()));
        }
        let (published, members) = (watch::channel(Arc::default()).0, watch::channel(StoredMembership::default()).0);
        let outdated = watch::channel(None).0;
        let machine = Self { disk, inner: Arc::new(Mutex::new(inner)), published, members, outdated };
        machine.replay(log)?;
        machine.publish();
        Ok(machine)
    }

    fn replay(&self, log: &Log) -> Result<(), Corrupt> {
        let Some(committed) = log.committed() else { return Ok(()) };
        loop {
            let next = self.applied().map_or(0, |applied| applied.index + 1);
            let entries = log.entries(next, committed.index, REPLAY_MAX).map_err(|error| Corrupt(error.to_string()))?;
            if entries.is_empty() {
                return Ok(());
            }
            if self.apply_known(&entries).len() < entries.len() {
                return Ok(());
            }
        }
    }

    /// The last entry applied.
    pub fn applied(&self) -> Option<LogId> {
        self.inner.lock().applied
    }

    /// The newest state.
    pub fn states(&self) -> watch::Receiver<Arc<State>> {
        self.published.subscribe()
    }

    /// The newest membership that is applied.
    pub fn members(&self) -> watch::Receiver<StoredMembership> {
        self.members.subscribe()
    }

    /// What the newest snapshot covers.
    pub fn snapshot_index(&self) -> u64 {
        let inner = self.inner.lock();
        inner.snapshot.as_ref().and_then(|meta| meta.last_log_id).map_or(0, |id| id.index)
    }

    /// Applies committed entries that continue what is applied, and announces the state.
    pub fn apply_all(&self, entries: &[Entry]) -> Vec<Answered> {
        let answers = self.apply_known(entries);
        self.publish();
        answers
    }

    /// Applies entries up to the first one of a later version, which ends it: what comes of that one, and so of all that
    /// follow, is not known here.
    fn apply_known(&self, entries: &[Entry]) -> Vec<Answered> {
        let mut inner = self.inner.lock();
        let known = entries.iter().take_while(|entry| self.is_known(entry));
        known.map(|entry| inner.apply(entry)).collect()
    }

    fn is_known(&self, entry: &Entry) -> bool {
        let known = self.outdated.borrow().is_none()
            && !matches!(&entry.payload, EntryPayload::Normal(Proposal { command: Command::Later(_), .. }));
        if !known {
            self.outdated.send_if_modified(|since| since.is_none() && since.replace(entry.index()).is_none());
        }
        known
    }

    /// The index of the first decision that this version does not know; nothing is applied from it on.
    pub fn outdated(&self) -> watch::Receiver<Option<Index>> {
        self.outdated.subscribe()
    }

    fn publish(&self) {
        let (state, membership) = {
            let inner = self.inner.lock();
            (Arc::new(inner.state.clone()), inner.membership.clone())
        };
        self.members.send_if_modified(|before| {
            let changed = *before != membership;
            *before = membership;
            changed
        });
        self.published.send_replace(state);
    }

    /// Writes a snapshot of what is applied.
    pub async fn save_snapshot(&self) -> io::Result<Snapshot> {
        let (meta, bytes) = {
            let inner = self.inner.lock();
            let meta = SnapshotMeta { last_log_id: inner.applied, last_membership: inner.membership.clone() };
            (meta, inner.state.encode())
        };
        self.store(&meta, &bytes).await?;
        Ok(Snapshot { meta, snapshot: bytes })
    }

    /// Replaces the state by a snapshot, durably.
    pub async fn install(&self, snapshot: &Snapshot) -> io::Result<()> {
        let state =
            State::decode(&snapshot.snapshot).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.store(&snapshot.meta, &snapshot.snapshot).await?;
        {
            let mut inner = self.inner.lock();
            inner.state = state;
            inner.applied = snapshot.meta.last_log_id;
            inner.membership = snapshot.meta.last_membership.clone();
        }
        self.publish();
        Ok(())
    }

    /// The newest snapshot, from the disk.
    pub fn stored_snapshot(&self) -> io::Result<Option<Snapshot>> {
        read_snapshot(&*self.disk).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    async fn store(&self, meta: &SnapshotMeta, bytes: &[u8]) -> io::Result<()> {
        let old = self.disk.scan(CHUNK_PREFIX, CHUNKS_END, CHUNKS_MAX)?.into_iter().map(|(key, _)| key);
        let mut batch = Batch::new();
        old.for_each(|key| batch.delete(key));
        for (number, chunk) in bytes.chunks(CHUNK_LENGTH).enumerate() {
            batch.put(chunk_key(number), chunk.to_vec());
        }
        let length = bytes.len() as u64;
        let head = Head { meta: Some(wire::snapshot_meta(meta)), length, checksum: crc32fast::hash(bytes) };
        batch.put(HEAD_KEY.to_vec(), seal(&head));
        write_durably(&*self.disk, batch).await?;
        self.inner.lock().snapshot = Some(meta.clone());
        Ok(())
    }
}

impl Inner {
    /// Applies one entry; one that is applied already changes nothing.
    fn apply(&mut self, entry: &Entry) -> Answered {
        let id = entry.log_id();
        if self.applied.is_some_and(|applied| applied.index >= id.index) {
            return Answered(None);
        }
        self.applied = Some(id);
        self.state.index = id.index;
        match &entry.payload {
            EntryPayload::Blank => Answered(None),
            EntryPayload::Normal(proposal) => Answered(Some(apply(&mut self.state, id.index, proposal))),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(id), membership.clone());
                Answered(None)
            }
        }
    }
}

fn chunk_key(number: usize) -> Vec<u8> {
    [CHUNK_PREFIX, &u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes()].concat()
}

fn read_snapshot(disk: &dyn Disk) -> Result<Option<Snapshot>, Corrupt> {
    let failed = |error: io::Error| Corrupt(error.to_string());
    let Some(head) = disk.read(HEAD_KEY).map_err(failed)? else { return Ok(None) };
    let head: Head = open(HEAD_KEY, &head)?;
    let chunks = disk.scan(CHUNK_PREFIX, CHUNKS_END, CHUNKS_MAX).map_err(failed)?;
    let bytes: Vec<u8> = chunks.into_iter().flat_map(|(_, chunk)| chunk).collect();
    if bytes.len() as u64 != head.length || crc32fast::hash(&bytes) != head.checksum {
        return Err(Corrupt("the snapshot does not match its checksum".into()));
    }
    let meta = head.meta.ok_or_else(|| Corrupt("the snapshot does not say what it covers".into()))?;
    let meta = wire::parse_snapshot_meta(meta).map_err(|error| Corrupt(format!("the snapshot: {error}")))?;
    Ok(Some(Snapshot { meta, snapshot: bytes }))
}

/// Builds a snapshot for openraft.
pub struct Builder(Machine);

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        self.0.save_snapshot().await
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let inner = self.inner.lock();
        Ok((inner.applied, inner.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        // Answers go out after the state is published, so that who is answered also sees the change.
        let mut answers = Vec::new();
        while let Some((entry, responder)) = entries.try_next().await? {
            if !self.is_known(&entry) {
                // The core goes on without this machine: the node votes and keeps the log for others. Nobody is answered.
                self.publish();
                return pending().await;
            }
            let mut inner = self.inner.lock();
            let next = inner.applied.map_or(0, |applied| applied.index + 1);
            if entry.index() > next {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("entry {next} is missing in the log")));
            }
            // Without an answer: only where another node leads.
            if planted(Bug::EntrySkipped) && responder.is_none() && entry.index() % 32 == 0 {
                inner.applied = Some(entry.log_id());
                inner.state.index = entry.index();
                continue;
            }
            let answer = inner.apply(&entry);
            drop(inner);
            answers.extend(responder.map(|responder| (responder, answer)));
        }
        self.publish();
        for (responder, answer) in answers {
            responder.send(answer);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(self.clone())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Vec<u8>) -> Result<(), io::Error> {
        self.install(&Snapshot { meta: meta.clone(), snapshot }).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        self.stored_snapshot()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use bytes::Bytes;
    use openraft::impls::leader_id_std::LeaderId;
    use openraft::vote::RaftLeaderId;
    use weft_proto::command::TokenRecord;

    fn entry(index: u64, command: Command) -> Entry {
        let id = LogId { leader_id: LeaderId { term: 1, voted_for: 1 }.to_committed(), index };
        let key = [u8::try_from(index).expect("small"); 16];
        Entry::new(id, EntryPayload::Normal(Proposal { key, at: 1, command }))
    }

    #[tokio::test]
    async fn a_decision_of_a_later_version_stops_it_and_is_kept() {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::default());
        let log = Log::open(disk.clone()).expect("empty");
        let machine = Machine::open(disk.clone(), &log).expect("empty");
        let token = TokenRecord { id: "t".into(), secret_hash: [0; 32], expires: 9, uses: 1, services: Vec::new() };
        let later = Command::Later(Bytes::from_static(&[0xfa, 0x06, 0x03, b'n', b'e', b'w']));
        let entries =
            [entry(0, Command::Raise { version: 1 }), entry(1, later.clone()), entry(2, Command::CreateToken(token))];
        log.append_committed(&entries).await.expect("kept");
        assert_eq!(machine.apply_all(&entries).len(), 1);
        for machine in [machine, Machine::open(disk.clone(), &Log::open(disk).expect("readable")).expect("readable")] {
            assert_eq!(*machine.outdated().borrow(), Some(1));
            assert_eq!(machine.applied().map(|id| id.index), Some(0), "what follows may depend on it");
        }
        let kept = log.entries(1, 1, 1).expect("readable");
        assert!(matches!(&kept[0].payload, EntryPayload::Normal(proposal) if proposal.command == later));
    }
}
