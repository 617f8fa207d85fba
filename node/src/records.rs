//! Access records: one JSON object a line in `access.log` under the data directory.
//!
//! The file is turned over at 64 MiB; one older file is kept.

use std::fs::{File, OpenOptions, rename};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::sleep;
use weft_proto::UnixMillis;
use weft_proxy::record::Record;

use crate::os;

/// The receiving end of access records.
pub type Recorded = mpsc::Receiver<Record>;

/// Size at which the file is turned over.
const FILE_LENGTH_MAX: u64 = 64 << 20;
/// How long records are gathered before they are written; as many as come meanwhile find room.
const GATHER_TIME: Duration = Duration::from_millis(50);

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
    // The first record of a while wakes this; those that follow are gathered, so that no exchange wakes another thread.
    while let Some(first) = recorded.recv().await {
        let mut next = Some(first);
        while let Some(record) = next {
            if let Err(error) = log.append(&record) {
                lost(&error);
            }
            next = recorded.try_recv().ok();
        }
        if let Err(error) = log.file.flush() {
            lost(&error);
        }
        sleep(GATHER_TIME).await;
    }
}

fn lost(error: &io::Error) {
    metrics::counter!("weft_access_records_lost_total").increment(1);
    tracing::debug!(%error, "access records were lost");
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
