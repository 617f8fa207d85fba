//! What may have been acted on is not sent again: a POST arrives at most once.

use std::collections::BTreeSet;

use super::Breach;

/// The POSTs that have arrived, by number.
#[derive(Debug, Default)]
pub struct Once(BTreeSet<u64>);

impl Once {
    /// A POST reached an application.
    pub fn arrived(&mut self, number: u64) -> Result<(), Breach> {
        if self.0.insert(number) {
            return Ok(());
        }
        Err(Breach { invariant: "a POST arrives at most once", text: format!("call {number} came again") })
    }
}
