//! Access records: one JSON object a line in `access.log` under the data directory.
//!
//! The file is turned over at 64 MiB; one older file is kept.

use std::fs::{File, OpenOptions, rename};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use weft_proto::UnixMillis;
use weft_proxy::record::Record;

use crate::os;

/// The receiving end of access records.
pub type Recorded = mpsc::Receiver<Record>;

/// Size at which the file is turned over.
const FILE_LENGTH_MAX: u64 = 64 << 20;
/// How long a record may wait in memory.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Serialize)]
struct Line<'a> {
    time_ms: UnixMillis,
    #[serde(flatten)]
    record: &'a Record,
}

struct Log {
    path: PathBuf,
    file: BufWriter<File>,
    length: u64,
}

/// Writes records until the data plane has ended.
pub async fn write(mut recorded: Recorded, path: PathBuf) {
    let mut log = match Log::open(path.clone()) {
        Ok(log) => log,
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "access records cannot be written");
            return;
        }
    };
    let mut ticks = interval(FLUSH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let written = tokio::select! {
            biased;
            record = recorded.recv() => match record {
                Some(record) => log.append(&record),
                None => break,
            },
            _ = ticks.tick() => log.file.flush(),
        };
        if let Err(error) = written {
            metrics::counter!("weft_access_records_lost_total").increment(1);
            tracing::debug!(%error, "an access record was lost");
        }
    }
    let _ = log.file.flush();
}

impl Log {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let length = file.metadata()?.len();
        Ok(Self { path, file: BufWriter::new(file), length })
    }

    fn append(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Line { time_ms: os::now(), record })?;
        line.push(b'\n');
        if self.length + line.len() as u64 > FILE_LENGTH_MAX {
            self.file.flush()?;
            rename(&self.path, self.path.with_extension("log.1"))?;
            *self = Self::open(self.path.clone())?;
        }
        self.length += line.len() as u64;
        self.file.write_all(&line)
    }
}
