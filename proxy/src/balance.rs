//! Step 5: from a backend to an endpoint. Power of two choices on expected latency and queue, of which the worse one is
//! taken the more rarely the worse it is: where they are alike each gets its share, and none is left out because of the
//! microseconds that it once was slower.

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
    /// The instance of this node that it is.
    instance: Option<usize>,
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

/// The endpoint of the next try: of two at random rather the cheaper one, and none twice if there is another.
pub(crate) fn choose(route: &Route, tries: &Tries, random: &Random) -> Result<Chosen, Reject> {
    let relation = route.relation();
    if relation.end == End::Callee {
        let port = relation.port.port;
        let instance = relation.instance.filter(|own| relation.service.instances[*own].serves(port));
        let instance = instance.ok_or(Reject::NoInstance)?;
        return Ok(Chosen { relation: relation.clone(), endpoint: None, instance: Some(instance), repeats: false });
    }
    let eligible = |index: usize| route.permit().here() || !relation.service.endpoints[index].here;
    let picked = pick(relation, &relation.candidates, |index| eligible(index) && !tries.tried(index), random)
        .or_else(|| pick(relation, &relation.candidates, eligible, random));
    let endpoint = picked.ok_or(Reject::NoInstance)?;
    relation.slot(endpoint).probe(Instant::now());
    let picked = &relation.service.endpoints[endpoint];
    let instance = if picked.here { relation.service.instance(&picked.description.instance) } else { None };
    if picked.here && !route.permit().covers(picked.group) {
        return Err(Reject::Denied);
    }
    Ok(Chosen { relation: relation.clone(), endpoint: Some(endpoint), instance, repeats: tries.may_repeat() })
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
        (true, true) => Some(cheaper(relation, (first, second), now, random)),
        (true, false) => Some(first),
        (false, true) => Some(second),
        (false, false) => {
            let start = random.below(candidates.len());
            let around = || candidates[start..].iter().chain(&candidates[..start]).copied();
            around().find(|index| usable(*index)).or_else(|| around().find(|index| passes(*index)))
        }
    }
}

/// One of two, the first one with a chance of `w1/c1² : w2/c2²` for weights `w` and costs `c`.
fn cheaper(relation: &Relation, (first, second): (usize, usize), now: Instant, random: &Random) -> usize {
    let worth = |index: usize| {
        let weight = f64::from(relation.service.endpoints[index].description.weight.max(1));
        weight / relation.slot(index).cost(now).powi(2)
    };
    let (one, other) = (worth(first), worth(second));
    if random.share() * (one + other) < one { first } else { second }
}

impl Chosen {
    pub(crate) fn relation(&self) -> &Arc<Relation> {
        &self.relation
    }

    /// Its index among the service's endpoints; none at the callee's own node.
    pub(crate) fn endpoint(&self) -> Option<usize> {
        self.endpoint
    }

    /// Which of this node's own instances serves it; none where another node's does.
    pub(crate) fn instance(&self) -> Option<usize> {
        self.instance
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

    /// The endpoint could not be reached: nor can the other instances of its node, which are avoided with it.
    pub(crate) fn lost(&self) {
        let Some(endpoint) = self.endpoint else { return };
        let (now, endpoints) = (Instant::now(), &self.relation.service.endpoints);
        let node = &endpoints[endpoint].description.node;
        let together = |index: &usize| {
            *index == endpoint || !endpoints[*index].here && endpoints[*index].description.node == *node
        };
        (0..endpoints.len()).filter(together).for_each(|index| self.relation.slot(index).lose(now));
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

    /// The connection had to be made: that takes no part in what an answer takes.
    pub(crate) fn connected(&mut self) {
        self.started = Instant::now();
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
