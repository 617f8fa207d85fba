//! The port to a disk: ordered keys, durable batches.
//!
//! [`contract`] is what every implementation passes.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Called once a batch is durable, or has failed for good.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// A key with its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// An ordered map of bytes that outlives the process.
pub trait Disk: Send + Sync + 'static {
    /// The value of a key.
    fn read(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// At most `limit` pairs with keys in `[from, to)`, ascending.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> io::Result<Vec<Pair>>;

    /// Writes a batch, all or nothing. It can be read on return; `done` is called, in order of submission, once it
    /// is durable. After a failure every later write fails too.
    fn write(&self, batch: Batch, done: Done);
}

/// Puts and deletes that belong together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// In order; `None` deletes.
    pub changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.changes.push((key, Some(value)));
    }

    /// Removes a key.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.changes.push((key, None));
    }
}

impl IntoIterator for Batch {
    type Item = (Vec<u8>, Option<Vec<u8>>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.changes.into_iter()
    }
}

/// Writes a batch and waits until it is durable.
pub async fn write_durably(disk: &dyn Disk, batch: Batch) -> io::Result<()> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    disk.write(batch, Box::new(move |result| drop(sender.send(result))));
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the disk has stopped")))
}

/// A disk whose first failure is told: nothing that was in memory may be trusted to be on it any more.
pub(crate) struct Guarded {
    disk: Arc<dyn Disk>,
    failed: watch::Sender<Option<String>>,
}

impl Guarded {
    pub(crate) fn new(disk: Arc<dyn Disk>, failed: watch::Sender<Option<String>>) -> Arc<Self> {
        Arc::new(Self { disk, failed })
    }
}

fn tell(failed: &watch::Sender<Option<String>>, error: &io::Error) {
    failed.send_if_modified(|told| {
        let first = told.is_none();
        if first {
            *told = Some(format!("the disk has failed: {error}"));
        }
        first
    });
}

impl Disk for Guarded {
    fn read(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.disk.read(key).inspect_err(|error| tell(&self.failed, error))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> io::Result<Vec<Pair>> {
        self.disk.scan(from, to, limit).inspect_err(|error| tell(&self.failed, error))
    }

    fn write(&self, batch: Batch, done: Done) {
        let failed = self.failed.clone();
        let done = move |result: io::Result<()>| {
            if let Err(error) = &result {
                tell(&failed, error);
            }
            done(result);
        };
        self.disk.write(batch, Box::new(done));
    }
}

/// A disk in memory; it forgets when it is dropped.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    pairs: Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>,
}

impl Disk for MemoryDisk {
    fn read(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.pairs.lock().get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> io::Result<Vec<Pair>> {
        if from >= to {
            return Ok(Vec::new());
        }
        let pairs = self.pairs.lock();
        let range = pairs.range::<[u8], _>((std::ops::Bound::Included(from), std::ops::Bound::Excluded(to)));
        Ok(range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn write(&self, batch: Batch, done: Done) {
        {
            let mut pairs = self.pairs.lock();
            for (key, value) in batch.changes {
                match value {
                    Some(value) => drop(pairs.insert(key, value)),
                    None => drop(pairs.remove(&key)),
                }
            }
        }
        done(Ok(()));
    }
}

/// The contract that every [`Disk`] keeps.
pub mod contract {
    use super::{Batch, Disk, write_durably};
    use std::sync::Arc;

    /// Panics where an empty disk does not keep the contract.
    pub async fn check(disk: Arc<dyn Disk>) {
        let key = |n: u8| vec![b'k', n];
        let mut batch = Batch::new();
        for n in [3, 1, 2] {
            batch.put(key(n), vec![n]);
        }
        write_durably(&*disk, batch).await.expect("written");
        assert_eq!(disk.read(&key(2)).expect("read"), Some(vec![2]));
        assert_eq!(disk.read(b"other").expect("read"), None);
        let keys = |from: u8, to: u8, limit| -> Vec<u8> {
            disk.scan(&key(from), &key(to), limit).expect("scanned").into_iter().map(|(_, value)| value[0]).collect()
        };
        assert_eq!(keys(1, 3, 10), [1, 2], "the upper bound is outside");
        assert_eq!(keys(0, 9, 2), [1, 2], "the limit holds");
        assert_eq!(keys(3, 1, 10), [] as [u8; 0], "an empty range is empty");

        let mut batch = Batch::new();
        batch.put(key(2), vec![22]);
        batch.delete(key(1));
        batch.put(key(4), vec![4]);
        batch.delete(key(4));
        disk.write(batch, Box::new(|_| {}));
        assert_eq!(keys(0, 9, 10), [22, 3], "changes apply in order and are seen on return");

        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        for n in 0..100u32 {
            let sender = sender.clone();
            let mut batch = Batch::new();
            batch.put(b"counter".to_vec(), n.to_be_bytes().to_vec());
            disk.write(batch, Box::new(move |result| drop(sender.send(result.map(|()| n)))));
        }
        for n in 0..100 {
            assert_eq!(receiver.recv().await.expect("called").expect("durable"), n, "done is called in order");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_keeps_the_contract() {
        contract::check(Arc::new(MemoryDisk::default())).await;
    }
}
