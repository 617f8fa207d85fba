//! What is asked about the host of a node: the way to others, what it listens on, what stops.

use serde::{Deserialize, Serialize};

/// What a node found of the way to the others, and back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Every other live node.
    pub nodes: Vec<CheckedNode>,
}

/// What was found of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedNode {
    /// Its name.
    pub node: String,
    /// Where it is reached.
    pub address: String,
    /// The way there.
    pub there: Way,
    /// The way back, as it says; none where it could not be asked.
    #[serde(default)]
    pub back: Option<Way>,
    /// How much its clock is ahead, in milliseconds.
    #[serde(default)]
    pub clock_ms: Option<i64>,
    /// Why it could not be asked.
    #[serde(default)]
    pub problem: Option<String>,
}

/// What went wrong on a way; nothing where it is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// Over TCP.
    #[serde(default)]
    pub tcp: Option<String>,
    /// Over UDP.
    #[serde(default)]
    pub udp: Option<String>,
}

/// Instances that are given no more calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Their names: `namespace/name` or `namespace/name@instance`.
    pub instances: Vec<String>,
    /// Calls that they have still not answered.
    pub open: usize,
}

/// Services whose loopback addresses this host is to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// Their names; none asks what it listens for.
    #[serde(default)]
    pub services: Vec<String>,
    /// Whether it is to listen for them no more.
    #[serde(default)]
    pub remove: bool,
}

/// Services whose loopback addresses this host was asked to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listened {
    /// All of them.
    pub services: Vec<ListenedService>,
    /// Whether every service is called at its address all the same, without a port that is listened on.
    pub captured: bool,
}

/// A service whose loopback address this host was asked to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenedService {
    /// Its name.
    pub name: String,
    /// Its loopback address; empty where the mesh has no such service.
    pub address: String,
}
