//! Equal states at equal indexes, and no node goes back.

use std::collections::BTreeMap;

use weft_consensus::state::State;

use super::Breach;

/// The states seen, by index, and where each node was.
#[derive(Debug, Default)]
pub struct Agreement {
    hashes: BTreeMap<u64, (u64, usize)>,
    applied: BTreeMap<usize, u64>,
}

impl Agreement {
    /// A host has this state; its process has not ended since the last time.
    pub fn saw(&mut self, host: usize, state: &State) -> Result<bool, Breach> {
        let before = self.applied.insert(host, state.index).unwrap_or(0);
        if before == state.index {
            return Ok(false);
        }
        if before > state.index {
            let text = format!("n{host} went back from index {before} to {}", state.index);
            return Err(Breach { invariant: "states do not go back", text });
        }
        let hash = state.encode().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let (first, by) = *self.hashes.entry(state.index).or_insert((hash, host));
        if first != hash {
            let text = format!("n{host} and n{by} have different states at index {}", state.index);
            return Err(Breach { invariant: "equal states at equal indexes", text });
        }
        Ok(true)
    }

    /// The host's process ended: what it had applied and not kept it applies again.
    pub fn ended(&mut self, host: usize) {
        self.applied.remove(&host);
    }
}
