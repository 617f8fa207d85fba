//! A disk in memory that takes its time to flush, can be full, and forgets what was not flushed when the power fails.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use weft_consensus::disk::{Batch, Disk, Done, Pair};

use super::network::Network;
use crate::dice::Dice;

/// One host's disk.
pub struct SimDisk {
    network: Arc<Network>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// What a reader sees.
    seen: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What outlives a loss of power.
    durable: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Written and not flushed, with the moment at which each is.
    pending: Vec<(u64, Batch, Done)>,
    flush: (u64, u64),
    full: bool,
    broken: bool,
    dice: Dice,
    /// A planted bug: acknowledges before the flush.
    lies: bool,
}

/// How long a flush takes, in milliseconds, when nothing is wrong.
const FLUSH: (u64, u64) = (1, 6);

impl SimDisk {
    /// An empty disk.
    pub fn new(network: Arc<Network>, seed: u64, lies: bool) -> Arc<Self> {
        let (seen, durable) = (BTreeMap::new(), BTreeMap::new());
        let dice = Dice::new(seed, "disk");
        let inner = Inner { seen, durable, pending: Vec::new(), flush: FLUSH, full: false, broken: false, dice, lies };
        Arc::new(Self { network, inner: Mutex::new(inner) })
    }

    /// Acknowledges what is due.
    pub fn tick(&self) {
        let now = self.network.now();
        let due: Vec<Done> = {
            let mut inner = self.inner.lock();
            let count = inner.pending.iter().take_while(|(at, ..)| *at <= now).count();
            let due: Vec<_> = inner.pending.drain(..count).collect();
            due.into_iter()
                .map(|(_, batch, done)| {
                    put(&mut inner.durable, batch);
                    done
                })
                .collect()
        };
        for done in due {
            done(Ok(()));
        }
    }

    /// The power fails: of what was not flushed a part, from the first on, may have made it.
    pub fn lose_power(&self) {
        let mut inner = self.inner.lock();
        let pending = std::mem::take(&mut inner.pending);
        let kept = inner.dice.below(pending.len() + 1);
        for (_, batch, _) in pending.into_iter().take(kept) {
            put(&mut inner.durable, batch);
        }
        inner.seen = inner.durable.clone();
        inner.broken = false;
    }

    /// The process ends: the system writes what it was given.
    pub fn end_process(&self) {
        let mut inner = self.inner.lock();
        for (_, batch, _) in std::mem::take(&mut inner.pending) {
            put(&mut inner.durable, batch);
        }
        inner.seen = inner.durable.clone();
        inner.broken = false;
    }

    /// How long flushes take, in milliseconds.
    pub fn slow(&self, flush: Option<(u64, u64)>) {
        self.inner.lock().flush = flush.unwrap_or(FLUSH);
    }

    /// Whether there is room.
    pub fn fill_up(&self, full: bool) {
        self.inner.lock().full = full;
    }

    /// A sector goes bad: one bit of one value is another one. Tells which key, if there is any.
    pub fn flip_bit(&self) -> Option<String> {
        let mut inner = self.inner.lock();
        let count = inner.durable.len();
        if count == 0 {
            return None;
        }
        let (at, bit) = (inner.dice.below(count), inner.dice.draw());
        let (key, value) = inner.durable.iter_mut().nth(at)?;
        let length = value.len() as u64 * 8;
        if length == 0 {
            return None;
        }
        let bit = usize::try_from(bit % length).unwrap_or(0);
        value[bit / 8] ^= 1 << (bit % 8);
        let key = key.escape_ascii().to_string();
        inner.seen = inner.durable.clone();
        Some(key)
    }
}

fn put(into: &mut BTreeMap<Vec<u8>, Vec<u8>>, batch: Batch) {
    for (key, value) in batch {
        match value {
            Some(value) => drop(into.insert(key, value)),
            None => drop(into.remove(&key)),
        }
    }
}

impl Disk for SimDisk {
    fn read(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.inner.lock().seen.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> io::Result<Vec<Pair>> {
        if from >= to {
            return Ok(Vec::new());
        }
        let inner = self.inner.lock();
        let range = inner.seen.range::<[u8], _>((std::ops::Bound::Included(from), std::ops::Bound::Excluded(to)));
        Ok(range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn write(&self, batch: Batch, done: Done) {
        let now = self.network.now();
        let mut inner = self.inner.lock();
        if inner.broken || inner.full {
            inner.broken = true;
            drop(inner);
            return done(Err(io::ErrorKind::StorageFull.into()));
        }
        put(&mut inner.seen, batch.clone());
        let (from, to) = inner.flush;
        let last = inner.pending.last().map_or(0, |(at, ..)| *at);
        let at = (now + inner.dice.range(from, to)).max(last);
        if inner.lies {
            inner.pending.push((at + LIE_MS, batch, Box::new(|_| {})));
            drop(inner);
            return done(Ok(()));
        }
        inner.pending.push((at, batch, done));
    }
}

/// How long a disk that lies keeps what it has acknowledged in memory.
const LIE_MS: u64 = 2000;
