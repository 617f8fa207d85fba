//! `weft demo`: three nodes on this machine, from nothing to a renewed certificate, every step measured.
//!
//! The nodes are real processes of this binary with directories and ports of their own; the services are small servers
//! in the demo itself. What was started is ended and removed however the demo ends.

mod applications;
mod stage;
mod story;
mod traffic;
mod words;

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use stage::Stage;

/// Bound on the whole demo.
const TOTAL_TIMEOUT: Duration = Duration::from_mins(1);

/// Runs the demo; fails if a step did not do what it says.
pub(crate) fn main() -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| format!("no runtime: {error}"))?.block_on(run())
}

async fn run() -> Result<(), String> {
    let mut stage = Stage::open()?;
    let ended = stage.node_ended();
    let outcome = tokio::select! {
        biased;
        why = interrupted() => Err(why),
        why = ended => Err(why),
        outcome = timeout(TOTAL_TIMEOUT, story::tell(&mut stage)) => {
            outcome.unwrap_or_else(|_| Err(format!("the demo took longer than {} s", TOTAL_TIMEOUT.as_secs())))
        }
    };
    outcome.map_err(|why| stage.explain(&why))
}

/// Ends when the user or the system wants the demo to end.
async fn interrupted() -> String {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = kinds.map(signal) else {
        return "signals cannot be listened for".to_owned();
    };
    tokio::select! {
        biased;
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    "interrupted".to_owned()
}
