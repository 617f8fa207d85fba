//! What a core keeps for one caller and callee: counters, the budget of retries, connections. It outlives the table.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use weft_proto::identity::Identity;
use weft_proto::planted::{Bug, planted};
use weft_proto::service::ServiceName;

use crate::call::{End, Guest, Parties};
use crate::connect::instance::InstanceSlot;
use crate::connect::link::LinkSlot;
use crate::decide::relation::Relation;
use crate::record::Recorder;
use crate::record::metrics::{Key, Series};
use crate::upstream::Upstream;

/// What outlives the table.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) series: Arc<Series>,
    /// Exchanges, and those of them that are being retried.
    active: AtomicU32,
    retrying: AtomicU32,
}

/// A lane under one table.
#[derive(Debug)]
pub(crate) struct Leg {
    pub(crate) generation: u64,
    pub(crate) relation: Arc<Relation>,
    pub(crate) lane: Arc<Lane>,
    /// Where the rules that count for these calls lead, by their document's backends, those for streams last. A rule may lead back to what is asked
    /// for: a leg that held itself would never go.
    pub(crate) ways: Vec<OnceLock<Weak<Leg>>>,
    /// Where links lead, by endpoint.
    pub(crate) links: Vec<OnceLock<Arc<LinkSlot>>>,
    /// By instance of this node.
    pub(crate) instances: Vec<OnceLock<Arc<InstanceSlot>>>,
    /// Whether this node holds the caller's certificate.
    pub(crate) certified: bool,
}

/// The lanes of a core, and their legs under the newest table.
#[derive(Debug, Default)]
pub(crate) struct Lanes(Mutex<Known>);

/// A caller, a callee, and which of its instances.
type Way = (End, Option<Guest>, Identity, ServiceName, Option<Arc<str>>);

#[derive(Debug, Default)]
struct Known {
    lanes: BTreeMap<Way, Arc<Lane>>,
    generation: u64,
    legs: BTreeMap<Parties, Arc<Leg>>,
}

impl Lanes {
    /// The leg of these parties under a table, made if need be.
    pub(crate) fn leg(
        &self,
        generation: u64,
        parties: Parties,
        recorder: &Recorder,
        make: impl FnOnce(&Parties) -> (Relation, bool),
    ) -> Arc<Leg> {
        let mut known = self.0.lock();
        if known.generation != generation || known.legs.len() >= LEGS_MAX {
            known.legs.clear();
            known.generation = generation;
        }
        if let Some(leg) = known.legs.get(&parties) {
            return leg.clone();
        }
        let lane = known.lane(&parties, recorder);
        let (relation, certified) = make(&parties);
        let leg = Arc::new(Leg::new(generation, Arc::new(relation), lane, certified));
        known.legs.insert(parties, leg.clone());
        leg
    }
}

impl Known {
    fn lane(&mut self, parties: &Parties, recorder: &Recorder) -> Arc<Lane> {
        let key = (parties.end, parties.guest, parties.caller.clone(), parties.service.clone(), parties.subset.clone());
        if let Some(lane) = self.lanes.get(&key) {
            return lane.clone();
        }
        if self.lanes.len() >= LANES_MAX {
            self.lanes.retain(|_, lane| Arc::strong_count(lane) > 1);
        }
        let lane = Arc::new(Lane::new(recorder.series(Key::of(parties))));
        if self.lanes.len() < LANES_MAX {
            self.lanes.insert(key, lane.clone());
        }
        lane
    }
}

impl Leg {
    /// An exchange begins, which may ask for retries.
    pub(crate) fn begin(self: &Arc<Self>) -> Budget {
        self.lane.active.fetch_add(1, Ordering::Relaxed);
        Budget { leg: self.clone(), retrying: false }
    }

    /// Where the retries of all cores are counted together, if their number is bounded.
    fn together(&self) -> Option<(&Upstream, u32)> {
        let most = self.relation.treatment.retries.most?;
        self.relation.upstream.as_deref().map(|upstream| (upstream, most))
    }

    fn new(generation: u64, relation: Arc<Relation>, lane: Arc<Lane>, certified: bool) -> Self {
        let backends = relation.routes.as_ref().map_or(0, |routes| routes.backends.len())
            + relation.stream_routes.as_ref().map_or(0, |routes| routes.backends.len());
        Self {
            generation,
            ways: (0..backends).map(|_| OnceLock::new()).collect(),
            links: relation.service.endpoints.iter().map(|_| OnceLock::new()).collect(),
            instances: relation.service.instances.iter().map(|_| OnceLock::new()).collect(),
            relation,
            lane,
            certified,
        }
    }
}

impl Lane {
    fn new(series: Arc<Series>) -> Self {
        Self { series, active: AtomicU32::new(0), retrying: AtomicU32::new(0) }
    }
}

/// An exchange's part in the budget of its lane.
#[derive(Debug)]
pub(crate) struct Budget {
    pub(crate) leg: Arc<Leg>,
    retrying: bool,
}

impl Budget {
    /// Whether it may be retried: as it is already, or out of a share of the exchanges under way, and a few at least.
    pub(crate) fn allows(&self) -> bool {
        if self.retrying || planted(Bug::BudgetIgnored) {
            return true;
        }
        if let Some((upstream, most)) = self.leg.together() {
            return upstream.retrying.load(Ordering::Relaxed) < most;
        }
        let (lane, limits) = (&self.leg.lane, &self.leg.relation.treatment.retries);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a number of calls")]
        let share = (f64::from(lane.active.load(Ordering::Relaxed)) * limits.percent / 100.0) as u32;
        lane.retrying.load(Ordering::Relaxed) < share.max(limits.least)
    }

    /// It is retried.
    pub(crate) fn take(&mut self) {
        if !std::mem::replace(&mut self.retrying, true) {
            self.leg.lane.retrying.fetch_add(1, Ordering::Relaxed);
            if let Some((upstream, _)) = self.leg.together() {
                upstream.retrying.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.leg.lane.series.retried();
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.leg.lane.active.fetch_sub(1, Ordering::Relaxed);
        if self.retrying {
            self.leg.lane.retrying.fetch_sub(1, Ordering::Relaxed);
            if let Some((upstream, _)) = self.leg.together() {
                upstream.retrying.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// Most legs a core keeps; connections hold on to theirs beyond that.
const LEGS_MAX: usize = 8192;
/// Most lanes a core keeps.
const LANES_MAX: usize = 8192;
