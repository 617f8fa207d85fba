//! The data plane. The life of a request, in the order of the modules:
//!
//! accept → identify → authorize → route → balance → connect → forward → record,
//!
//! the same at the caller's node (from an application, to a link) and at the callee's node (from a link, to the
//! application). `exchange` strings the steps together. Each step takes by value what the step before made, so an
//! exchange that was not authorized cannot be forwarded: it does not compile.

mod accept;
mod authorize;
mod balance;
mod body;
mod connect;
mod date;
mod exchange;
mod fields;
mod forward;
mod identify;
mod interim;
mod reject;
mod retry;
mod revoke;
mod route;
mod stream;
mod task;
mod worker;

pub mod explain;
pub mod net;
pub mod path;
pub mod plane;
pub mod quic;
pub mod record;
pub mod table;
pub mod tls;
