//! The types with which openraft is used.

use std::fmt;

use openraft::alias;
use openraft::impls::leader_id_std::LeaderId;
use weft_proto::command::{Outcome, Proposal};
use weft_proto::identity::NodeName;
use weft_proto::{Index, RaftId};

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
