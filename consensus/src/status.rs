//! How the Raft group looks from a node.

use std::fmt;

use tokio::time::Instant;
use weft_proto::Index;
use weft_proto::identity::NodeName;

/// What a node is to the Raft group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// It leads.
    Leader,
    /// It votes.
    Voter,
    /// It is about to vote.
    Learner,
    /// It follows the committed log.
    #[default]
    Replica,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leader => "leader",
            Self::Voter => "voter",
            Self::Learner => "learner",
            Self::Replica => "replica",
        })
    }
}

/// How the Raft group looks from here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RaftStatus {
    /// What this node is.
    pub role: Role,
    /// The leader, as far as known: one that has been heard of late, by itself with a majority.
    pub leader: Option<NodeName>,
    /// The term.
    pub term: u64,
    /// Index of the last entry applied here.
    pub applied: Index,
    /// Index of the last entry in the log here.
    pub last: Index,
    /// The voters, by the newest membership applied here.
    pub voters: Vec<NodeName>,
    /// Since when there is more that is known to be committed than is applied here; none while there is not.
    pub behind_since: Option<Instant>,
    /// Since when no leader has been heard; none while one is known.
    pub leaderless_since: Option<Instant>,
}
