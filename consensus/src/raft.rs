//! The types and timings with which openraft is used.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use openraft::impls::leader_id_std::LeaderId;
use openraft::{Config, SnapshotPolicy, alias};
use weft_proto::command::{Outcome, Proposal};
use weft_proto::identity::NodeName;
use weft_proto::{Index, RaftId, UnixMillis};

use crate::machine::Machine;
use crate::replica::Settings;

openraft::declare_raft_types!(
    /// One leader a term, proposals as data, outcomes as answers.
    pub TypeConfig:
        D = Proposal,
        R = Answered,
        NodeId = RaftId,
        Node = Member,
        LeaderId = LeaderId<u64, RaftId>,
);

/// What the log answers to an entry: the outcome of a proposal and where it was applied, nothing for its own entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered(pub Option<(Index, Outcome)>);

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A member of the Raft group; where it is, gossip tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    /// Its name; empty only in values that openraft makes by default.
    pub name: String,
}

impl Member {
    /// The member of that name.
    pub fn new(name: &NodeName) -> Self {
        Self { name: name.to_string() }
    }

    /// Its name, checked.
    pub fn node(&self) -> Option<NodeName> {
        self.name.parse().ok()
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The core of a member.
pub type Core = openraft::Raft<TypeConfig, Machine>;
/// An entry of the log.
pub type Entry = alias::EntryOf<TypeConfig>;
/// Position in the log.
pub type LogId = alias::LogIdOf<TypeConfig>;
/// A vote.
pub type Vote = alias::VoteOf<TypeConfig>;
/// Who votes and who learns.
pub type Membership = openraft::Membership<RaftId, Member>;
/// A membership with its place in the log.
pub type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot says of itself.
pub type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
/// A snapshot: an encoded state.
pub type Snapshot = alias::SnapshotOf<TypeConfig, Vec<u8>>;

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
