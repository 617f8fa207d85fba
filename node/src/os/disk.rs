//! The node's disk: ordered keys and durable batches on sled.
//!
//! sled makes a write readable at once and durable never quite: its flush ends in
//! `sync_file_range`, which flushes neither a file's length nor the device's cache, and large pages
//! go to files that it does not sync at all. One writer thread therefore takes every batch that
//! waits, flushes once, syncs those files itself, and only then says that the batches are durable.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use weft_consensus::disk::{Batch, Disk, Done};

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "the store {} is in use: is another weft running on this data directory? Stop it, or give this one its own",
        .0.display()
    )]
    Locked(PathBuf),
    /// The operating system refuses.
    #[error(
        "the store {} can't be opened: {error}: check that the user weft runs as owns it, and that the disk has room",
        path.display()
    )]
    Io {
        /// The store.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// It holds something else than what was written.
    #[error(
        "the store {} is damaged: {problem}: set the directory aside and join the mesh again as a new replica",
        path.display()
    )]
    Damaged {
        /// The store.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// A store on sled. Dropping it waits for the batches under way.
pub struct SledDisk {
    database: sled::Db,
    /// Held while a batch is applied and queued, so that batches become durable in the order in
    /// which they became readable.
    writes: Mutex<Writes>,
    failure: Arc<Mutex<Option<Failure>>>,
    writer: Option<JoinHandle<()>>,
}

struct Writes {
    waiting: Option<SyncSender<Done>>,
}

/// The first error; nothing is written after it, as what it has lost is not known.
#[derive(Clone)]
struct Failure {
    kind: io::ErrorKind,
    problem: String,
}

impl SledDisk {
    /// Opens the store in the directory `path`, or creates it. Takes at most 30 s.
    ///
    /// # Errors
    /// Each says what to do; none is worth a retry.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let database = open_bounded(path)?;
        let files = Files::open(path).map_err(|error| OpenError::Io { path: path.to_owned(), error })?;
        complete(path, &database, &files)?;
        let (sender, receiver) = mpsc::sync_channel(WAITING_MAX);
        let failure = Arc::new(Mutex::new(None));
        let writer = Writer { database: database.clone(), files, failure: Arc::clone(&failure) };
        let writer = std::thread::Builder::new()
            .name("disk".into())
            .spawn(move || writer.run(&receiver))
            .map_err(|error| OpenError::Io { path: path.to_owned(), error })?;
        let writes = Mutex::new(Writes { waiting: Some(sender) });
        Ok(Self { database, writes, failure, writer: Some(writer) })
    }

    /// Bytes that the store takes on disk.
    ///
    /// # Errors
    /// Fails when its files can't be looked at.
    pub fn size_on_disk(&self) -> io::Result<u64> {
        self.database.size_on_disk().map_err(to_io)
    }
}

impl Disk for SledDisk {
    fn read(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.database.get(key).map_err(to_io)?.map(|value| value.to_vec()))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        if from >= to {
            return Ok(Vec::new());
        }
        let found = self.database.range(from..to).take(limit);
        found.map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec())).map_err(to_io)).collect()
    }

    fn write(&self, batch: Batch, done: Done) {
        let batch = to_sled(batch);
        let refused = {
            let writes = self.writes.lock();
            let failure = self.failure.lock().clone();
            let applied = match failure {
                Some(failure) => Err(failure),
                None => self.database.apply_batch(batch).map_err(|error| fail(&self.failure, &to_io(error))),
            };
            match (applied, &writes.waiting) {
                (Ok(()), Some(waiting)) => waiting.send(done).err().map(|unsent| {
                    let gone = io::Error::other("the disk's writer thread is gone");
                    (unsent.0, fail(&self.failure, &gone))
                }),
                (Ok(()), None) => unreachable!("the queue is closed only when the disk is dropped"),
                (Err(failure), _) => Some((done, failure)),
            }
        };
        if let Some((done, failure)) = refused {
            done(Err(failure.into()));
        }
    }
}

impl Drop for SledDisk {
    fn drop(&mut self) {
        self.writes.get_mut().waiting = None;
        let writer = self.writer.take().expect("joined only here");
        // The last owner may be a callback that the writer itself runs.
        if writer.thread().id() != std::thread::current().id() {
            let _ = writer.join();
        }
    }
}

struct Writer {
    database: sled::Db,
    files: Files,
    failure: Arc<Mutex<Option<Failure>>>,
}

impl Writer {
    fn run(mut self, waiting: &Receiver<Done>) {
        while let Ok(first) = waiting.recv() {
            let group: Vec<Done> = std::iter::once(first).chain(waiting.try_iter().take(GROUP_MAX - 1)).collect();
            let outcome = self.make_durable();
            for done in group {
                let outcome = outcome.clone().map_err(Into::into);
                // A callback's panic is its owner's to notice; other writers' answers still come.
                if catch_unwind(AssertUnwindSafe(|| done(outcome))).is_err() {
                    tracing::error!("a callback of the disk panicked");
                }
            }
        }
    }

    fn make_durable(&mut self) -> Result<(), Failure> {
        if let Some(failure) = self.failure.lock().clone() {
            return Err(failure);
        }
        let flushed = catch_unwind(AssertUnwindSafe(|| {
            self.database.flush().map_err(to_io)?;
            self.files.sync()
        }));
        let flushed = flushed.unwrap_or_else(|_| Err(io::Error::other("sled panicked while it flushed")));
        flushed.map_err(|error| fail(&self.failure, &error))
    }
}

/// Own handles of sled's files, as syncing works by file and not by handle.
struct Files {
    path: PathBuf,
    log: File,
    blobs_synced: BTreeSet<OsString>,
}

impl Files {
    fn open(path: &Path) -> io::Result<Self> {
        let log = File::open(path.join("db"))?;
        Ok(Self { path: path.to_owned(), log, blobs_synced: BTreeSet::new() })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_blobs()?;
        self.log.sync_data()
    }

    /// Syncs pages that grew out of sled's log. Values are small enough that there are hardly any.
    fn sync_blobs(&mut self) -> io::Result<()> {
        let directory = self.path.join("blobs");
        let mut present = BTreeSet::new();
        for entry in std::fs::read_dir(&directory)? {
            present.insert(entry?.file_name());
        }
        self.blobs_synced.retain(|name| present.contains(name));
        let fresh: Vec<OsString> = present.difference(&self.blobs_synced).cloned().collect();
        for name in &fresh {
            match File::open(directory.join(name)) {
                Ok(blob) => blob.sync_all()?,
                // sled has collected it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if !fresh.is_empty() {
            sync_directory(&directory)?;
            self.blobs_synced.extend(fresh);
        }
        Ok(())
    }
}

/// Opens sled on a thread of its own, since on damaged files it may panic or never return.
fn open_bounded(path: &Path) -> Result<sled::Db, OpenError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let directory = path.to_owned();
    let io_error = |error| OpenError::Io { path: path.to_owned(), error };
    std::thread::Builder::new()
        .name("disk-open".into())
        .spawn(move || {
            let _ = sender.send(catch_unwind(|| open_sled(&directory)));
        })
        .map_err(io_error)?;
    let damaged = |problem| OpenError::Damaged { path: path.to_owned(), problem };
    match receiver.recv_timeout(OPEN_TIME_MAX) {
        Ok(Ok(Ok(database))) => Ok(database),
        Ok(Ok(Err(sled::Error::Io(error)))) if error.to_string().contains("could not acquire lock") => {
            Err(OpenError::Locked(path.to_owned()))
        }
        Ok(Ok(Err(sled::Error::Io(error)))) if error.kind() != io::ErrorKind::UnexpectedEof => Err(io_error(error)),
        Ok(Ok(Err(error))) => Err(damaged(error.to_string())),
        Ok(Err(_)) => Err(damaged("sled panicked while it read the files".into())),
        Err(_) => Err(damaged(format!("sled did not finish reading it within {} s", OPEN_TIME_MAX.as_secs()))),
    }
}

fn open_sled(path: &Path) -> sled::Result<sled::Db> {
    std::fs::create_dir_all(path)?;
    discard_unfinished(path)?;
    sled::Config::new()
        .path(path)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(CACHE_BYTES)
        .mode(sled::Mode::LowSpace)
        .flush_every_ms(None)
        .open()
}

/// Removes snapshots that sled was writing when the process ended or the disk was full. sled 0.34 would take the newest of
/// them for a finished one and call the store corrupt, although it is whole: a snapshot only shortens the reading of the
/// log, and the finished one before it is still there.
fn discard_unfinished(path: &Path) -> io::Result<()> {
    let log = match File::open(path.join("db")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        log => log?,
    };
    // The lock is sled's own: whoever has it may be writing one just now. That it is taken is for sled to tell.
    if log.try_lock().is_err() {
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("snap.") && name.ends_with(".generating")) {
            tracing::warn!(file = %name.display(), "a snapshot of the store was not finished, and is not needed");
            std::fs::remove_file(path.join(name))?;
        }
    }
    log.unlock()
}

/// Finishes the creation of a new store; makes sure that an old one is the one that was created.
///
/// sled reads a log that was overwritten as an empty one and reports no fault. A mark within the
/// log and a file beside it, made in this order, tell a lost log from one that is new.
fn complete(path: &Path, database: &sled::Db, files: &Files) -> Result<(), OpenError> {
    let io_error = |error| OpenError::Io { path: path.to_owned(), error };
    let damaged = |problem: &str| OpenError::Damaged { path: path.to_owned(), problem: problem.to_owned() };
    let marker = path.join(COMPLETE_FILE);
    let catch = |work: &dyn Fn() -> sled::Result<bool>| {
        let outcome =
            catch_unwind(AssertUnwindSafe(work)).map_err(|_| damaged("sled panicked while it read the log"))?;
        outcome.map_err(|error| damaged(&error.to_string()))
    };
    let marked = catch(&|| Ok(database.open_tree(MARK)?.get(MARK)?.is_some()))?;
    let completed = marker.try_exists().map_err(io_error)?;
    match (completed, marked) {
        (true, true) => return Ok(()),
        (true, false) => return Err(damaged("its log is empty or was overwritten")),
        (false, _) => {}
    }
    catch(&|| {
        database.open_tree(MARK)?.insert(MARK, MARK)?;
        database.flush()?;
        Ok(true)
    })?;
    let finish = || {
        files.log.sync_all()?;
        File::open(path.join("conf"))?.sync_all()?;
        File::create(&marker)?.sync_all()?;
        sync_directory(path)?;
        sync_directory(path.canonicalize()?.parent().unwrap_or(path))
    };
    finish().map_err(io_error)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn to_sled(batch: Batch) -> sled::Batch {
    let mut converted = sled::Batch::default();
    for (key, value) in batch {
        match value {
            Some(value) => converted.insert(key, value),
            None => converted.remove(key),
        }
    }
    converted
}

fn to_io(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

/// Keeps the first failure and answers with it.
fn fail(failure: &Mutex<Option<Failure>>, error: &io::Error) -> Failure {
    let mut first = failure.lock();
    let failure = first.get_or_insert_with(|| {
        tracing::error!(%error, "the disk failed; nothing more is written until weft starts again");
        Failure { kind: error.kind(), problem: error.to_string() }
    });
    failure.clone()
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        let Failure { kind, problem } = failure;
        Self::new(kind, format!("the disk failed and takes no more writes until weft starts again: {problem}"))
    }
}

const OPEN_TIME_MAX: Duration = Duration::from_secs(30);
/// Measured with values of 32 KiB: up to 1 MiB the pages outgrow the log into files of their own,
/// above 4 MiB the log takes more space and longer to open. An empty store takes 8 KiB on disk.
const SEGMENT_BYTES: usize = 4 << 20;
const CACHE_BYTES: u64 = 16 << 20;
/// Batches that wait to be durable; a writer beyond it waits for the disk.
const WAITING_MAX: usize = 4096;
/// Batches that become durable by one flush.
const GROUP_MAX: usize = 1024;
/// Exists once the store was created whole.
const COMPLETE_FILE: &str = "complete";
const MARK: &[u8] = b"weft";

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn batch(pairs: &[(&str, Option<&[u8]>)]) -> Batch {
        let mut batch = Batch::new();
        for (key, value) in pairs {
            match value {
                Some(value) => batch.put(key.as_bytes().to_vec(), value.to_vec()),
                None => batch.delete(key.as_bytes().to_vec()),
            }
        }
        batch
    }

    fn write(disk: &SledDisk, pairs: &[(&str, Option<&[u8]>)]) {
        let (sender, receiver) = channel();
        disk.write(batch(pairs), Box::new(move |outcome| sender.send(outcome).expect("awaited")));
        receiver.recv_timeout(Duration::from_secs(10)).expect("in time").expect("durable");
    }

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory")
    }

    #[test]
    fn reads_at_once_and_after_a_restart() {
        let directory = directory();
        let path = directory.path().join("store");
        let disk = SledDisk::open(&path).expect("created");
        disk.write(batch(&[("a", Some(b"1")), ("b", Some(b"2")), ("c", Some(b"3"))]), Box::new(|_| {}));
        assert_eq!(disk.read(b"a").expect("read"), Some(b"1".to_vec()));
        write(&disk, &[("b", None), ("d", Some(&[7; 32 << 10]))]);
        let keys = |disk: &SledDisk, limit| -> Vec<Vec<u8>> {
            disk.scan(b"a", b"d", limit).expect("scanned").into_iter().map(|(key, _)| key).collect()
        };
        assert_eq!(keys(&disk, 10), [b"a", b"c"]);
        assert_eq!(keys(&disk, 1), [b"a"]);
        assert!(disk.scan(b"d", b"a", 10).expect("scanned").is_empty());
        assert!(matches!(SledDisk::open(&path), Err(OpenError::Locked(_))));
        drop(disk);
        let disk = SledDisk::open(&path).expect("opened");
        assert_eq!(keys(&disk, 10), [b"a", b"c"]);
        assert_eq!(disk.read(b"d").expect("read"), Some(vec![7; 32 << 10]));
        assert_eq!(disk.read(b"b").expect("read"), None);
    }

    #[test]
    fn a_snapshot_that_was_not_finished_does_no_harm() {
        let directory = directory();
        let path = directory.path().join("store");
        let disk = SledDisk::open(&path).expect("created");
        write(&disk, &[("a", Some(b"1"))]);
        drop(disk);
        std::fs::write(path.join("snap.FFFFFFFFFFFFFFFF.generating"), b"half of one").expect("written");
        let disk = SledDisk::open(&path).expect("whole");
        assert_eq!(disk.read(b"a").expect("read"), Some(b"1".to_vec()));
    }

    #[test]
    fn answers_in_order_with_few_flushes() {
        let directory = directory();
        let disk = SledDisk::open(&directory.path().join("store")).expect("created");
        let (sender, receiver) = channel();
        for number in 0..3000u32 {
            let sender = sender.clone();
            let key = format!("k{:03}", number % 500);
            let done = move |outcome: io::Result<()>| sender.send(outcome.map(|()| number)).expect("awaited");
            disk.write(batch(&[(&key, Some(&number.to_be_bytes()))]), Box::new(done));
        }
        drop(sender);
        let answers: Vec<u32> = receiver.iter().map(|answer| answer.expect("durable")).collect();
        assert_eq!(answers, (0..3000).collect::<Vec<u32>>());
        assert_eq!(disk.read(b"k499").expect("read"), Some(2999u32.to_be_bytes().to_vec()));
    }

    #[test]
    fn an_empty_store_is_small_and_a_large_batch_survives() {
        let directory = directory();
        let path = directory.path().join("store");
        let disk = SledDisk::open(&path).expect("created");
        assert!(disk.size_on_disk().expect("size") < 1 << 20);
        let large: Vec<(String, Vec<u8>)> = (0..128).map(|n| (format!("{n:03}"), vec![n as u8; 32 << 10])).collect();
        let pairs: Vec<(&str, Option<&[u8]>)> =
            large.iter().map(|(key, value)| (key.as_str(), Some(value.as_slice()))).collect();
        write(&disk, &pairs);
        drop(disk);
        let disk = SledDisk::open(&path).expect("opened");
        for (key, value) in &large {
            assert_eq!(disk.read(key.as_bytes()).expect("read").as_ref(), Some(value));
        }
    }

    #[test]
    fn a_failure_is_final() {
        let directory = directory();
        let disk = SledDisk::open(&directory.path().join("store")).expect("created");
        write(&disk, &[("a", Some(b"1"))]);
        fail(&disk.failure, &io::Error::new(io::ErrorKind::StorageFull, "no room"));
        for _ in 0..2 {
            let (sender, receiver) = channel();
            disk.write(batch(&[("b", Some(b"2"))]), Box::new(move |outcome| sender.send(outcome).expect("awaited")));
            let error = receiver.recv().expect("answered").expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert!(error.to_string().contains("no room"), "{error}");
        }
        assert_eq!(disk.read(b"b").expect("read"), None);
    }

    #[test]
    fn a_damaged_log_is_an_error_or_holds_only_what_was_written() {
        type Damage = fn(&mut Vec<u8>);
        let damages: [(&str, Damage); 5] = [
            ("garbage", |log| log.fill(0xa5)),
            ("zeros", |log| log.fill(0)),
            ("empty", Vec::clear),
            ("cut", |log| log.truncate(log.len() / 2)),
            ("flipped", |log| log.iter_mut().step_by(4001).for_each(|byte| *byte ^= 0x10)),
        ];
        for (name, damage) in damages {
            let directory = directory();
            let path = directory.path().join("store");
            let disk = SledDisk::open(&path).expect("created");
            for number in 0..200u8 {
                write(&disk, &[(&format!("{number:03}"), Some(&[number; 2000]))]);
            }
            drop(disk);
            let mut log = std::fs::read(path.join("db")).expect("read");
            damage(&mut log);
            std::fs::write(path.join("db"), log).expect("written");
            match SledDisk::open(&path) {
                Err(OpenError::Damaged { problem, .. }) => assert!(!problem.is_empty()),
                Err(other) => panic!("{name}: {other}"),
                Ok(disk) => {
                    assert!(["cut", "flipped"].contains(&name), "{name} went unnoticed");
                    let found = disk.scan(b"", b"~", 1000).unwrap_or_default();
                    for (key, value) in found {
                        let number: u8 = std::str::from_utf8(&key).expect("a key").parse().expect("a number");
                        assert_eq!(value, [number; 2000], "{name}");
                    }
                }
            }
        }
    }
}
