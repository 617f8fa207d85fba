//! Raft, the replicated state, gossip and membership.
//!
//! A decision lives in this order: [`propose`](replica::Replica::propose) → the leader's log → the voters' [`disk`]s →
//! committed → [`apply`] (pure) → published to the node ([`machine`]). Voters run Raft; every other node follows the
//! committed log as a stream ([`follow`]). Facts travel by [`gossip`] and are never in the log.

pub mod apply;
mod core;
pub mod disk;
pub mod follow;
pub mod gossip;
pub mod log;
pub mod machine;
pub mod membership;
pub mod network;
pub mod raft;
pub mod replica;
pub mod settings;
pub mod state;
pub mod status;
pub mod wire;

mod keep;
mod propose;
mod propose_error;
