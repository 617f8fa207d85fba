//! The node: the only place where the replicated state, the data plane and the host are wired together.
//!
//! A policy change lives in this order: [`cli`] → [`client`] → [`api`] → (proposed, committed and applied by the
//! consensus crate) → [`publish`] → [`compile`] → swapped into the data plane, which judges open exchanges again.
//! A node lives in this order: [`join`] → [`start()`] → [`registry`] and [`certificates`] → perhaps voter
//! ([`reconcile`]) → stopped.

pub(crate) mod acme;
pub(crate) mod advertise;
pub mod analyze;
pub mod api;
pub mod authority;
pub mod book;
pub mod certificates;
pub mod checks;
pub mod cli;
pub mod client;
pub mod compile;
pub mod config;
pub mod control;
pub mod credentials;
pub mod demo;
mod dns;
pub mod frame;
pub mod health;
pub mod intercept;
pub mod issue;
pub mod join;
pub mod keys;
pub mod member;
pub mod node;
pub mod os;
pub mod publish;
pub mod reconcile;
pub mod records;
pub mod registry;
pub mod run;
pub mod serve;
pub mod start;
pub mod start_error;
pub mod store;
pub(crate) mod tasks;
pub mod telemetry;
pub mod vault;
pub mod world;

pub use node::Node;
pub use run::run;
pub use start::start;
pub use start_error::StartError;
