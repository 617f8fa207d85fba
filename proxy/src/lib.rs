//! The data plane. The life of a request, in the order of the steps:
//!
//! accept → identify → route → authorize → balance → connect → forward → record,
//!
//! the same at the caller's node (from an application, to a link) and at the callee's node (from a link, to the
//! application), where the link says who is called and nothing is routed. `exchange` strings the steps together. Each step
//! takes by value what the step before made, so an exchange that was not authorized cannot be forwarded: it does not compile.
//!
//! The modules stand in floors, and a file imports from those below it only.

// What the node holds, and a core at work.
pub mod plane;
mod worker;

// Connections in, and the steps in a row.
mod accept;
mod exchange;
pub mod explain;
mod identify;
mod revoke;

mod connection;
mod core;
mod shared;

// Send and carry, and perhaps again.
mod attempt;
mod forward;
mod reach;
mod retry;

// What a core keeps for a caller and a callee; connections out; records.
mod connect;
mod inform;
mod lane;
pub mod record;
mod upload;

// Pure: what becomes of an exchange, and which endpoint gets it.
mod balance;
mod decide;
mod hold;

// The immutable compiled form of all that is needed to decide.
pub mod table;

// The vocabulary of an exchange, and what everything stands on.
mod body;
mod call;
mod copied;
mod date;
mod edge;
mod fields;
mod framing;
mod headers;
mod host;
mod interim;
mod limits;
pub mod net;
mod overload;
pub mod path;
mod place;
pub mod quic;
mod reject;
mod request;
mod room;
mod speech;
mod stream;
mod task;
pub mod tls;
mod upgrade;
mod upstream;

#[cfg(test)]
#[path = "../../proto/tests/support/golden.rs"]
mod golden;
