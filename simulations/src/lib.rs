//! Disasters on demand: the shipped node in a world of memory, with faults from a seed, and what must hold all the time.
//!
//! [`run`] starts the hosts of a [`mesh`], whose nodes are those of production ([`weft::start()`]) in a [`world`] of our own, lets
//! [`faults`] strike while operators and callers go on, and looks at every [`invariants`] file in every step. The same
//! seed in a fresh process gives the same [`trace`].

pub mod application;
pub mod call;
pub mod caller;
pub mod chaos;
pub mod dice;
pub mod entropy;
pub mod faults;
pub mod host;
pub mod invariants;
pub mod load;
pub mod mesh;
pub mod run;
pub mod tasks;
pub mod timeline;
pub mod trace;
pub mod world;
