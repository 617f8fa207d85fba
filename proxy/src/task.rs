//! Small things about tasks.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::task::AbortHandle;

/// A task that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Aborting(pub(crate) AbortHandle);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Numbers that look random, from a seed: for choices and trace ids, never for secrets (splitmix64).
#[derive(Debug)]
pub(crate) struct Random(AtomicU64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The next number.
    pub(crate) fn next(&self) -> u64 {
        let mut mixed = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is at least 1.
    pub(crate) fn below(&self, bound: usize) -> usize {
        let wide = u128::from(self.next()) * bound as u128;
        usize::try_from(wide >> 64).unwrap_or(0)
    }
}

impl Random {
    /// A share: at least 0, less than 1.
    pub(crate) fn share(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits are kept, as many as there are")]
        let bits = (self.next() >> 11) as f64;
        bits / (1u64 << 53) as f64
    }
}

/// The place of the one on whose part of the sum of all weights a number falls; none where it is beyond them.
pub(crate) fn on_part(weights: impl IntoIterator<Item = usize>, mut number: usize) -> Option<usize> {
    weights.into_iter().position(|weight| match number.checked_sub(weight) {
        Some(rest) => {
            number = rest;
            false
        }
        None => true,
    })
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
