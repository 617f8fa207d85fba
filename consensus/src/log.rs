//! The Raft log and vote on a [`Disk`]: self-describing records, each with its checksum, durable before acknowledged.
//!
//! Keys: `l/` and the index, big-endian; `m/vote`, `m/committed`, `m/purged`.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::entry::RaftEntry;
use openraft::impls::leader_id_std::LeaderId;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use prost::Message;
use weft_proto::RaftId;
use weft_proto::planted::{Bug, planted};
use weft_proto::wire::cluster as messages;

use crate::disk::{Batch, Disk, write_durably};
use crate::raft::{Entry, LogId, TypeConfig, Vote};
use crate::wire;

const ENTRY_PREFIX: &[u8] = b"l/";
const ENTRIES_END: &[u8] = b"l0";
const VOTE_KEY: &[u8] = b"m/vote";
const COMMITTED_KEY: &[u8] = b"m/committed";
const PURGED_KEY: &[u8] = b"m/purged";
const CHECKSUM_LENGTH: usize = 4;
/// Entries read from the disk at once.
const SCAN_MAX: usize = 1024;

/// A record that cannot be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Corrupt(pub String);

/// The log. Clones share it.
#[derive(Clone)]
pub struct Log {
    disk: Arc<dyn Disk>,
    marks: Arc<Mutex<Marks>>,
}

#[derive(Debug, Clone, Default)]
struct Marks {
    purged: Option<LogId>,
    last: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
}

impl Log {
    /// Reads the log and verifies every record of it: checksums, and no hole from the purged index on.
    pub fn open(disk: Arc<dyn Disk>) -> Result<Self, Corrupt> {
        let read = |key: &[u8]| disk.read(key).map_err(|error| Corrupt(error.to_string()));
        let mark = |key: &[u8]| -> Result<Option<LogId>, Corrupt> {
            Ok(read(key)?
                .map(|value| open::<messages::LogId>(key, &value))
                .transpose()?
                .map(|id| wire::parse_log_id(&id)))
        };
        let vote = read(VOTE_KEY)?.map(|value| open::<messages::Vote>(VOTE_KEY, &value)).transpose()?;
        let purged = mark(PURGED_KEY)?;
        let mut marks = Marks {
            purged,
            last: purged,
            vote: vote.map(|vote| wire::parse_vote(&vote)),
            committed: mark(COMMITTED_KEY)?,
        };
        let mut from = ENTRY_PREFIX.to_vec();
        loop {
            let pairs = disk.scan(&from, ENTRIES_END, SCAN_MAX).map_err(|error| Corrupt(error.to_string()))?;
            let Some((last_key, _)) = pairs.last() else { break };
            from = [last_key.as_slice(), &[0]].concat();
            for (key, value) in &pairs {
                let entry = decode(key, value)?;
                let expected = marks.last.map_or(0, |last| last.index + 1);
                // Entries at or below the purged index are remains of a purge that a crash cut short.
                if marks.purged.is_some_and(|purged| entry.index() <= purged.index) {
                    continue;
                }
                if entry.index() != expected {
                    return Err(Corrupt(format!("the log misses the entries {expected} to {}", entry.index() - 1)));
                }
                marks.last = Some(entry.log_id());
            }
        }
        if marks.committed > marks.last {
            return Err(Corrupt("the log ends before what it says is committed".into()));
        }
        Ok(Self { disk, marks: Arc::new(Mutex::new(marks)) })
    }

    /// The last entry.
    pub fn last(&self) -> Option<LogId> {
        self.marks.lock().last
    }

    /// The last entry known to be committed.
    pub fn committed(&self) -> Option<LogId> {
        self.marks.lock().committed
    }

    /// The last entry that is gone.
    pub fn purged(&self) -> Option<LogId> {
        self.marks.lock().purged
    }

    /// At most `limit` entries from `start` up to and including `end`, of those that are there: neither purged nor yet to
    /// come. A hole between them is an error.
    pub fn entries(&self, start: u64, end: u64, limit: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let Some(last) = self.last() else { return Ok(entries) };
        let end = end.min(last.index);
        let mut next = start.max(self.first_kept());
        while next <= end && entries.len() < limit {
            let want = SCAN_MAX.min(limit - entries.len());
            let pairs = self.disk.scan(&entry_key(next), &entry_key(end.saturating_add(1)), want)?;
            let before = next;
            for (key, value) in pairs {
                let entry = decode(&key, &value).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                if entry.index() != next {
                    break;
                }
                next += 1;
                entries.push(entry);
            }
            if next == before {
                // What was purged meanwhile is no hole.
                if self.first_kept() > next && entries.is_empty() {
                    next = self.first_kept();
                } else {
                    let text = format!("the log misses entry {next}");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
            }
        }
        Ok(entries)
    }

    fn first_kept(&self) -> u64 {
        self.purged().map_or(0, |purged| purged.index + 1)
    }

    /// Appends entries that are committed already, durably. They continue the log.
    pub async fn append_committed(&self, entries: &[Entry]) -> io::Result<()> {
        let Some(last) = entries.last().map(RaftEntry::log_id) else { return Ok(()) };
        let mut batch = Batch::new();
        for entry in entries {
            batch.put(entry_key(entry.index()), encode(entry));
        }
        batch.put(COMMITTED_KEY.to_vec(), seal(&wire::log_id(&last)));
        write_durably(&*self.disk, batch).await?;
        let mut marks = self.marks.lock();
        marks.last = Some(last);
        marks.committed = Some(last);
        Ok(())
    }

    /// Makes the vote at least as new as the last entry, as Raft's rules have it: the term never falls behind the log.
    pub async fn raise_vote(&self, me: RaftId) -> io::Result<()> {
        let (last, vote) = {
            let marks = self.marks.lock();
            (marks.last, marks.vote)
        };
        if planted(Bug::VoteNotKept) {
            return Ok(());
        }
        let Some(last) = last.filter(|last| vote.is_none_or(|vote| vote.leader_id.term < last.leader_id.term)) else {
            return Ok(());
        };
        let vote = Vote { leader_id: LeaderId { term: last.leader_id.term, voted_for: me }, committed: false };
        let mut batch = Batch::new();
        batch.put(VOTE_KEY.to_vec(), seal(&wire::vote(&vote)));
        self.marks.lock().vote = Some(vote);
        write_durably(&*self.disk, batch).await
    }

    /// Removes what follows the committed entries. Only for a node that is no member: nobody counts on them.
    pub async fn drop_uncommitted(&self) -> io::Result<()> {
        let committed = self.marks.lock().committed;
        self.remove_after(committed).await
    }

    /// Forgets every entry and continues after `id`, the end of a snapshot.
    pub async fn restart_after(&self, id: LogId) -> io::Result<()> {
        let (from, last) = self.span();
        let mut batch = Batch::new();
        for index in from..=last {
            batch.delete(entry_key(index));
        }
        batch.put(PURGED_KEY.to_vec(), seal(&wire::log_id(&id)));
        batch.put(COMMITTED_KEY.to_vec(), seal(&wire::log_id(&id)));
        write_durably(&*self.disk, batch).await?;
        let mut marks = self.marks.lock();
        (marks.purged, marks.last, marks.committed) = (Some(id), Some(id), Some(id));
        Ok(())
    }

    /// Removes entries up to and including `id`, which a snapshot covers.
    pub async fn purge_to(&self, id: LogId) -> io::Result<()> {
        let (from, _) = self.span();
        let mut batch = Batch::new();
        batch.put(PURGED_KEY.to_vec(), seal(&wire::log_id(&id)));
        for index in from..=id.index {
            batch.delete(entry_key(index));
        }
        {
            let mut marks = self.marks.lock();
            marks.purged = marks.purged.max(Some(id));
            marks.last = marks.last.max(Some(id));
        }
        write_durably(&*self.disk, batch).await
    }

    async fn remove_after(&self, id: Option<LogId>) -> io::Result<()> {
        let (_, last) = self.span();
        let mut batch = Batch::new();
        let first = id.map_or(0, |id| id.index + 1);
        for index in first..=last {
            batch.delete(entry_key(index));
        }
        self.marks.lock().last = id;
        write_durably(&*self.disk, batch).await
    }

    /// Index of the first and of the last entry on the disk.
    fn span(&self) -> (u64, u64) {
        let marks = self.marks.lock();
        (marks.purged.map_or(0, |purged| purged.index + 1), marks.last.map_or(0, |last| last.index))
    }
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => *end,
            Bound::Excluded(0) => return Ok(Vec::new()),
            Bound::Excluded(end) => end - 1,
            Bound::Unbounded => u64::MAX - 1,
        };
        self.entries(start, end, usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.marks.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let marks = self.marks.lock();
        Ok(LogState { last_purged_log_id: marks.purged, last_log_id: marks.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let mut batch = Batch::new();
        batch.put(VOTE_KEY.to_vec(), seal(&wire::vote(vote)));
        self.marks.lock().vote = Some(*vote);
        if planted(Bug::VoteNotKept) {
            return Ok(());
        }
        write_durably(&*self.disk, batch).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(id) = committed else { return Ok(()) };
        let mut batch = Batch::new();
        batch.put(COMMITTED_KEY.to_vec(), seal(&wire::log_id(&id)));
        self.marks.lock().committed = Some(id);
        // A lost mark is found again from the leader, so nothing waits for it.
        self.disk.write(batch, Box::new(|_| {}));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.committed())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (mut batch, mut last) = (Batch::new(), None);
        for entry in entries {
            last = Some(entry.log_id());
            batch.put(entry_key(entry.index()), encode(&entry));
        }
        if last.is_some() {
            self.marks.lock().last = last;
        }
        if planted(Bug::FlushSkipped) {
            callback.io_completed(Ok(()));
            self.disk.write(batch, Box::new(|_| {}));
            return Ok(());
        }
        self.disk.write(batch, Box::new(move |result| callback.io_completed(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.remove_after(last_log_id).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.purge_to(log_id).await
    }
}

fn entry_key(index: u64) -> Vec<u8> {
    [ENTRY_PREFIX, &index.to_be_bytes()].concat()
}

fn encode(entry: &Entry) -> Vec<u8> {
    seal(&wire::entry(entry))
}

fn decode(key: &[u8], value: &[u8]) -> Result<Entry, Corrupt> {
    let name = String::from_utf8_lossy(key).into_owned();
    let entry = wire::parse_entry(open(key, value)?).map_err(|error| Corrupt(format!("entry {name:?}: {error}")))?;
    if entry_key(entry.index()) != key {
        return Err(Corrupt(format!("entry {} stands in another's place", entry.index())));
    }
    Ok(entry)
}

/// A message with its checksum in front.
pub(crate) fn seal(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    [&crc32fast::hash(&body).to_be_bytes()[..], &body].concat()
}

/// Reads what [`seal`] wrote; `key` names the record in errors.
pub(crate) fn open<M: Message + Default>(key: &[u8], value: &[u8]) -> Result<M, Corrupt> {
    let damaged = |what: &str| Corrupt(format!("the record {} {what}", key.escape_ascii()));
    let (checksum, body) = value.split_at_checked(CHECKSUM_LENGTH).ok_or_else(|| damaged("is cut short"))?;
    if crc32fast::hash(body).to_be_bytes() != checksum && !planted(Bug::ChecksumIgnored) {
        return Err(damaged("does not match its checksum"));
    }
    M::decode(body).map_err(|_| damaged("cannot be decoded"))
}
