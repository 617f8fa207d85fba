//! Facts: what is live, true at one node, and dies with it. What changes with every decision is none (the index that a node
//! enforces, the ends of its certificates): it is asked of the node, or each decision would cost every node a fact.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::identity::NodeName;
use crate::service::Instance;
use crate::{RaftId, UnixMillis};

/// What the nodes that live say about themselves. What one says is the same value as before until it says something else.
pub type Live = BTreeMap<NodeName, Arc<NodeFacts>>;

/// All that a node says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node that says it.
    pub name: NodeName,
    /// Its Raft node id.
    pub raft_id: RaftId,
    /// When its process started; a later one supersedes an earlier one.
    pub generation: UnixMillis,
    /// Grows with every change within a generation.
    pub sequence: u64,
    /// `host:port` at which it takes links, over UDP and TCP.
    pub address: String,
    /// Failure domain.
    pub zone: String,
    /// Version of its binary.
    pub version: String,
    /// What it does not enforce, and why; empty when there is nothing.
    pub refused: String,
    /// The instances it runs.
    pub instances: Vec<Instance>,
    /// Whether it is leaving.
    pub draining: bool,
    /// The newest version of the mesh's commands that it knows.
    pub commands: u32,
}
