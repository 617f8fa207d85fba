//! Step 7: sends the exchange to where the steps before decided, in the protocol that is spoken there.

pub(crate) mod answer;
pub(crate) mod bytes;
pub(crate) mod disguise;
pub(crate) mod http;
pub(crate) mod http1;
pub(crate) mod made;
pub(crate) mod multiplexed;
pub(crate) mod outgoing;
pub(crate) mod pipe;
pub(crate) mod refusal;
