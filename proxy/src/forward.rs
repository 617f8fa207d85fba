//! Step 7: sends the exchange to where the steps before decided, in the protocol that is spoken there.

pub(crate) mod bytes;
pub(crate) mod headers;
pub(crate) mod http;
pub(crate) mod http1;
pub(crate) mod inform;
pub(crate) mod multiplexed;
pub(crate) mod pipe;
pub(crate) mod upgrade;
