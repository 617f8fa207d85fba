//! How a replica behaves.

use std::time::Duration;

use weft_proto::RaftId;
use weft_proto::identity::NodeName;

/// How a replica behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This disk's Raft node id.
    pub raft_id: RaftId,
    /// This node.
    pub name: NodeName,
    /// How often a leader shows that it lives.
    pub heartbeat: Duration,
    /// Silence after which a voter stands for election, drawn between the two.
    pub election: (Duration, Duration),
    /// Entries after which a snapshot is written.
    pub snapshot_after: u64,
    /// Entries kept before a snapshot.
    pub keep: u64,
    /// Members known before the first state has arrived.
    pub seeds: Vec<NodeName>,
}

impl Settings {
    /// The defaults.
    pub fn new(raft_id: RaftId, name: NodeName) -> Self {
        Self {
            raft_id,
            name,
            heartbeat: Duration::from_millis(100),
            election: (Duration::from_millis(500), Duration::from_millis(1000)),
            snapshot_after: 5000,
            keep: 1000,
            seeds: Vec::new(),
        }
    }
}
