//! Step 5: from a backend to an endpoint. Power of two choices on expected latency and queue.

use std::sync::Arc;

use tokio::time::Instant;

use crate::accept::End;
use crate::identify::Relation;
use crate::reject::Reject;
use crate::retry::{Again, Failure, Tries};
use crate::route::Route;
use crate::table::endpoints::Slot;
use crate::task::Random;

/// The endpoint of a try.
#[derive(Debug)]
pub(crate) struct Chosen {
    relation: Arc<Relation>,
    endpoint: Option<usize>,
    here: bool,
    /// Whether another try may follow.
    repeats: bool,
}

/// An exchange under way at an endpoint.
#[derive(Debug)]
pub(crate) struct Flight {
    relation: Arc<Relation>,
    endpoint: usize,
    started: Instant,
}

/// The endpoint of the next try: of two at random the cheaper one, and none twice if there is another.
pub(crate) fn choose(route: &Route, tries: &Tries, random: &Random) -> Result<Chosen, Reject> {
    let relation = route.relation();
    if relation.end == End::Callee {
        let healthy = relation.instance.is_some_and(|(_, healthy)| healthy);
        let chosen = Chosen { relation: relation.clone(), endpoint: None, here: true, repeats: false };
        return if healthy { Ok(chosen) } else { Err(Reject::NoInstance) };
    }
    let eligible = |index: usize| route.permit().here() || !relation.service.endpoints[index].here;
    let picked = pick(relation, &relation.candidates, |index| eligible(index) && !tries.tried(index), random)
        .or_else(|| pick(relation, &relation.candidates, eligible, random));
    match picked {
        Some(endpoint) => {
            relation.slot(endpoint).probe(Instant::now());
            let here = relation.service.endpoints[endpoint].here;
            Ok(Chosen { relation: relation.clone(), endpoint: Some(endpoint), here, repeats: tries.may_repeat() })
        }
        None => Err(Reject::NoInstance),
    }
}

/// One of the candidates that pass; one that failed lately only if all did.
pub(crate) fn pick(
    relation: &Relation,
    candidates: &[usize],
    passes: impl Fn(usize) -> bool,
    random: &Random,
) -> Option<usize> {
    if let [only] = candidates {
        return passes(*only).then_some(*only);
    }
    if candidates.is_empty() {
        return None;
    }
    let now = Instant::now();
    let first = random.below(candidates.len());
    let second = (first + 1 + random.below(candidates.len() - 1)) % candidates.len();
    let (first, second) = (candidates[first], candidates[second]);
    let usable = |index: usize| passes(index) && !relation.slot(index).is_avoided(now);
    match (usable(first), usable(second)) {
        (true, true) => Some(cheaper(relation, first, second, now)),
        (true, false) => Some(first),
        (false, true) => Some(second),
        (false, false) => {
            let start = random.below(candidates.len());
            let around = || candidates[start..].iter().chain(&candidates[..start]).copied();
            around().find(|index| usable(*index)).or_else(|| around().find(|index| passes(*index)))
        }
    }
}

fn cheaper(relation: &Relation, first: usize, second: usize, now: Instant) -> usize {
    let cost = |index: usize| relation.slot(index).cost(relation.service.endpoints[index].description.weight, now);
    if cost(second) < cost(first) { second } else { first }
}

impl Chosen {
    pub(crate) fn relation(&self) -> &Arc<Relation> {
        &self.relation
    }

    /// Its index among the service's endpoints; none at the callee's own node.
    pub(crate) fn endpoint(&self) -> Option<usize> {
        self.endpoint
    }

    /// Whether this node's own instance serves it.
    pub(crate) fn here(&self) -> bool {
        self.here
    }

    /// Whether a failed try may be followed by one of an endpoint that nothing speaks against.
    pub(crate) fn has_spare(&self) -> bool {
        let now = Instant::now();
        let sound = |index: usize| Some(index) != self.endpoint && !self.relation.slot(index).is_avoided(now);
        self.repeats && self.relation.candidates.iter().any(|index| sound(*index))
    }

    /// Counts the try until it ends.
    pub(crate) fn flight(&self) -> Option<Flight> {
        let endpoint = self.endpoint?;
        self.relation.slot(endpoint).start();
        Some(Flight { relation: self.relation.clone(), endpoint, started: Instant::now() })
    }

    /// The endpoint could not be reached.
    pub(crate) fn lost(&self) {
        if let Some(endpoint) = self.endpoint {
            self.relation.slot(endpoint).lose(Instant::now());
        }
    }

    /// The try failed: the endpoint is avoided where it is to blame.
    pub(crate) fn blame(&self, failure: &Failure) {
        match self.endpoint {
            _ if failure.again == Again::Lost => self.lost(),
            Some(endpoint) if failure.reject == Reject::NoInstance => self.relation.slot(endpoint).fail(Instant::now()),
            _ => {}
        }
    }
}

impl Flight {
    fn slot(&self) -> &Slot {
        self.relation.slot(self.endpoint)
    }

    /// The answer has begun.
    pub(crate) fn answered(&self) {
        let now = Instant::now();
        self.slot().observe(now - self.started, now);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.slot().finish();
    }
}
