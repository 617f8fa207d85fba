//! The core of a member, and the timings with which it runs.

use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use weft_proto::UnixMillis;

use crate::machine::Machine;
use crate::raft::TypeConfig;
use crate::settings::Settings;

/// The core of a member.
pub(crate) type Core = openraft::Raft<TypeConfig, Machine>;
/// Bound on sending a snapshot.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(20);
/// Entries in one message.
const PAYLOAD_ENTRIES_MAX: u64 = 256;

/// openraft's configuration for these settings.
pub(crate) fn config(settings: &Settings) -> Result<Arc<Config>, String> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(UnixMillis::MAX);
    let config = Config {
        cluster_name: "weft".into(),
        heartbeat_interval: millis(settings.heartbeat),
        election_timeout_min: millis(settings.election.0),
        election_timeout_max: millis(settings.election.1),
        install_snapshot_timeout: millis(SNAPSHOT_TIMEOUT),
        max_payload_entries: PAYLOAD_ENTRIES_MAX,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(settings.snapshot_after),
        // Purging stays far behind what is applied: a purge must never overtake a queued apply.
        max_in_snapshot_log_to_keep: settings.keep,
        purge_batch_size: 256,
        enable_pre_vote: Some(true),
        // The mark of what is committed is not flushed, so a leader that comes back stands for election again.
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    config.validate().map(Arc::new).map_err(|error| error.to_string())
}
