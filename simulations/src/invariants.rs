//! What must hold at every moment, one file each.

pub mod admission;
pub mod agreement;
pub mod bounds;
pub mod claims;
pub mod departures;
pub mod durability;
pub mod leadership;
pub mod once;
pub mod reads;
pub mod retries;
pub mod strangers;
pub mod waiting;

use weft_consensus::state::State;
use weft_proto::resource::ResourceKey;

/// The decisions that a node has applied.
pub trait Decisions {
    /// Index of the last one.
    fn index(&self) -> u64;
    /// The version of a resource; none where it is not there.
    fn version(&self, key: &ResourceKey) -> Option<u64>;
}

impl Decisions for State {
    fn index(&self) -> u64 {
        self.index
    }

    fn version(&self, key: &ResourceKey) -> Option<u64> {
        self.resources.get(key).map(|resource| resource.version)
    }
}

/// An invariant that broke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// Which.
    pub invariant: &'static str,
    /// How.
    pub text: String,
}

impl std::fmt::Display for Breach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.invariant, self.text)
    }
}
