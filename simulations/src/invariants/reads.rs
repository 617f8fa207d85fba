//! A read that waits for what was acknowledged before it sees that.

use super::Breach;

/// What operators were told, by the index of the newest decision.
#[derive(Debug, Default)]
pub struct Reads {
    acknowledged: u64,
    done: usize,
}

impl Reads {
    /// A decision was acknowledged.
    pub fn acknowledged(&mut self, index: u64) {
        self.acknowledged = self.acknowledged.max(index);
    }

    /// How many were answered.
    pub fn done(&self) -> usize {
        self.done
    }

    /// A read begins now: what it has to see.
    pub fn begin(&self) -> u64 {
        self.acknowledged
    }

    /// A read that had to see `wanted` was of the state at `index`, on a host.
    pub fn check(&mut self, host: usize, wanted: u64, index: u64) -> Result<(), Breach> {
        if index >= wanted {
            self.done += 1;
            return Ok(());
        }
        let text =
            format!("a consistent read on n{host} was of index {index}; {wanted} was acknowledged before it began");
        Err(Breach { invariant: "consistent reads see what was acknowledged", text })
    }
}
