//! What may have been acted on is not sent again: all but a GET arrives at most once.

use std::collections::BTreeSet;

use super::Breach;

/// Calls that have arrived, by number.
#[derive(Debug, Default)]
pub struct Once(BTreeSet<u64>);

impl Once {
    /// A call that is no GET reached an application.
    pub fn arrived(&mut self, number: u64) -> Result<(), Breach> {
        if self.0.insert(number) {
            return Ok(());
        }
        Err(Breach { invariant: "a POST arrives at most once", text: format!("call {number} came again") })
    }
}
