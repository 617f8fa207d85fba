//! What the cores of a node know together of where one caller's calls go: how many are under way, who waits for its turn,
//! and which instances are out. It outlives the table.

mod outliers;
mod turns;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use parking_lot::Mutex;

use crate::call::Parties;

pub(crate) use outliers::{Host, Outcome, Outliers};
pub(crate) use turns::{Turn, Turns};

/// What is known of them, by who calls whom.
#[derive(Debug, Default)]
pub(crate) struct Upstreams(Mutex<BTreeMap<Parties, Arc<Upstream>>>);

/// What is known of one.
#[derive(Debug, Default)]
pub(crate) struct Upstream {
    pub(crate) turns: Arc<Turns>,
    pub(crate) outliers: Outliers,
    /// Exchanges that are being retried.
    pub(crate) retrying: AtomicU32,
}

impl Upstreams {
    /// That of these parties, made if need be.
    pub(crate) fn of(&self, parties: &Parties) -> Arc<Upstream> {
        let mut all = self.0.lock();
        if let Some(known) = all.get(parties) {
            return known.clone();
        }
        if all.len() >= UPSTREAMS_MAX {
            all.retain(|_, upstream| Arc::strong_count(upstream) > 1);
        }
        let upstream = Arc::new(Upstream::default());
        if all.len() < UPSTREAMS_MAX {
            all.insert(parties.clone(), upstream.clone());
        }
        upstream
    }
}

/// Most that are kept; what is in use is known beyond that to who uses it.
const UPSTREAMS_MAX: usize = 8192;
