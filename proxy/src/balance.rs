//! Step 5: from a backend to an endpoint. Power of two choices on expected latency and queue, of which the worse one is
//! taken the more rarely the worse it is: where they are alike each gets its share, and none is left out because of the
//! microseconds that it once was slower.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;
use weft_proto::kinds::destination_rule::Simple;
use weft_proto::kinds::service::OnOverload;

use crate::call::End;
use crate::decide::Permit;
use crate::decide::localities::Spread;
use crate::decide::relation::Relation;
use crate::overload::Place;
use crate::reject::Reject;
use crate::table::endpoints::Slot;
use crate::task::{Random, on_part};
use crate::upstream::Outcome;

/// The endpoint of a try, and the permit by which it may be used.
#[derive(Debug)]
pub(crate) struct Chosen {
    permit: Permit,
    endpoint: Option<usize>,
    /// The instance of this node that it is.
    instance: Option<usize>,
    /// When it was chosen.
    at: Instant,
}

/// An exchange under way at an endpoint.
#[derive(Debug)]
pub(crate) struct Flight {
    relation: Arc<Relation>,
    endpoint: usize,
    started: Instant,
}

/// What leads an exchange to its endpoint.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Aim {
    /// It goes anywhere.
    #[default]
    Any,
    /// To the same as others with the key.
    Key(u64),
    /// To this one, as long as it is well.
    Endpoint(usize),
}

/// The endpoint of the next try: of two at random rather the cheaper one, and none twice if there is another.
pub(crate) fn choose(
    permit: &Permit,
    tried: impl Fn(usize) -> bool,
    aim: Aim,
    at: Instant,
    random: &Random,
) -> Result<Chosen, Reject> {
    let relation = permit.relation();
    if relation.end == End::Callee {
        let port = relation.port.port;
        let instance = relation.instance.filter(|own| relation.service.instances[*own].serves(port));
        let instance = instance.ok_or(Reject::NoInstance)?;
        return Ok(Chosen { permit: permit.clone(), endpoint: None, instance: Some(instance), at });
    }
    let eligible = |index: usize| permit.here() || !relation.service.endpoints[index].here;
    let key = if let Aim::Key(key) = aim { Some(key) } else { None };
    let well = |index: &usize| eligible(*index) && !tried(*index) && relation.standing(at).is_well(*index);
    let own = if let Aim::Endpoint(own) = aim { Some(own).filter(well) } else { None };
    let picked = own
        .or_else(|| pick(relation, |index| eligible(index) && !tried(index), key, at, random))
        .or_else(|| pick(relation, eligible, key, at, random));
    let endpoint = picked.ok_or_else(|| relation.nowhere())?;
    let picked = &relation.service.endpoints[endpoint];
    if picked.here && !permit.covers(picked.group) {
        return Err(Reject::Denied);
    }
    let instance = if picked.here { relation.service.instance(&picked.description.instance) } else { None };
    Ok(Chosen { permit: permit.clone(), endpoint: Some(endpoint), instance, at })
}

/// One of the candidates that pass; one that failed lately only if all did, and none that is out. A key leads to the same one
/// again.
pub(crate) fn pick(
    relation: &Relation,
    passes: impl Fn(usize) -> bool,
    key: Option<u64>,
    now: Instant,
    random: &Random,
) -> Option<usize> {
    // By Weft's own way those that are out are the last resort; by Istio's there is none.
    let last = relation.treatment.ejection.probes;
    let standing = relation.standing(now);
    let there = |index: usize| passes(index) && !standing.is_out(index);
    if let [only] = relation.candidates[..] {
        return (there(only) || last && passes(only)).then_some(only);
    }
    let usable = |index: usize| passes(index) && standing.is_well(index);
    if let Some((keyed, key)) = relation.keyed.as_ref().zip(key) {
        return keyed
            .pick(key, usable)
            .or_else(|| keyed.pick(key, there))
            .or_else(|| keyed.pick(key, &passes).filter(|_| last));
    }
    let groups: Vec<&[usize]> = match &relation.spread {
        Spread::Even => {
            return best(relation, &relation.candidates, &usable, now, random)
                .or_else(|| best(relation, &relation.candidates, &there, now, random))
                .or_else(|| best(relation, &relation.candidates, &passes, now, random).filter(|_| last));
        }
        Spread::Priorities(groups) => groups.iter().map(Vec::as_slice).collect(),
        Spread::Shares(groups) => groups.iter().map(|(_, group)| group.as_slice()).collect(),
    };
    let first = first_group(relation, &groups, now, random);
    let groups = || groups[first..].iter().chain(&groups[..first]);
    groups()
        .find_map(|group| best(relation, group, &usable, now, random))
        .or_else(|| groups().find_map(|group| best(relation, group, &there, now, random)))
        .or_else(|| groups().find_map(|group| best(relation, group, &passes, now, random)).filter(|_| last))
}

/// The group that a call goes to: by its share, or the first one as far as it can serve.
fn first_group(relation: &Relation, groups: &[&[usize]], now: Instant, random: &Random) -> usize {
    let loads = relation.loads(groups, now);
    let parts: Vec<f64> = match &relation.spread {
        Spread::Shares(shares) => {
            shares.iter().zip(&*loads).map(|((weight, _), load)| f64::from(*weight) * load).collect()
        }
        _ => {
            let mut left = 1.0;
            let take = |load: &f64| {
                let part = load.min(left);
                left -= part;
                part
            };
            loads.iter().map(take).collect()
        }
    };
    let mut number = random.share() * parts.iter().sum::<f64>();
    let place = parts.iter().position(|part| {
        number -= part;
        number < 0.0
    });
    place.unwrap_or(0)
}

/// One of these that pass.
fn best(
    relation: &Relation,
    among: &[usize],
    passes: &impl Fn(usize) -> bool,
    now: Instant,
    random: &Random,
) -> Option<usize> {
    if let [only] = among {
        return passes(*only).then_some(*only);
    }
    if among.is_empty() {
        return None;
    }
    if let Some(way @ (Simple::Random | Simple::RoundRobin)) = relation.treatment.balancer {
        let passing: Vec<usize> = among.iter().copied().filter(|index| passes(*index)).collect();
        return by_weight(relation, &passing, way, (now, random));
    }
    let first = random.below(among.len());
    let second = (first + 1 + random.below(among.len() - 1)) % among.len();
    let (first, second) = (among[first], among[second]);
    match (passes(first), passes(second)) {
        (true, true) => Some(cheaper(relation, (first, second), now, random)),
        (true, false) => Some(first),
        (false, true) => Some(second),
        (false, false) => {
            let start = random.below(among.len());
            among[start..].iter().chain(&among[..start]).copied().find(|index| passes(*index))
        }
    }
}

/// Any of these, or the next one, each as often as its weight says.
fn by_weight(relation: &Relation, among: &[usize], way: Simple, (now, random): (Instant, &Random)) -> Option<usize> {
    let own = |index: &usize| relation.service.endpoints[*index].description.weight.max(1);
    let weight = |index: &usize| usize::from(own(index));
    if relation.treatment.warmup.is_some() && among.iter().any(|index| relation.warmth(*index, now) < 1.0) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a 16-bit weight")]
        let part = |index: &usize| (f64::from(own(index)) * relation.warmth(*index, now) * 1000.0) as usize;
        let number = random.below(among.iter().map(part).sum::<usize>().max(1));
        return on_part(among.iter().map(part), number).map(|place| among[place]);
    }
    let unit = among.iter().map(weight).reduce(gcd)?;
    let parts = || among.iter().map(|index| weight(index) / unit);
    let sum = parts().sum();
    let number = match way {
        Simple::RoundRobin => relation.turn.fetch_add(1, Ordering::Relaxed) % sum,
        Simple::Random | Simple::LeastRequest => random.below(sum),
    };
    on_part(parts(), number).map(|place| among[place])
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One of two, the first one with a chance of `w1/c1² : w2/c2²` for weights `w` and costs `c`.
fn cheaper(relation: &Relation, (first, second): (usize, usize), now: Instant, random: &Random) -> usize {
    let worth = |index: usize| {
        let weight = f64::from(relation.service.endpoints[index].description.weight.max(1));
        let weight = weight * relation.warmth(index, now);
        match relation.treatment.balancer {
            None => weight / relation.slot(index).cost(now).powi(2),
            Some(_) => weight / (f64::from(relation.slot(index).read().1) + 1.0).powi(2),
        }
    };
    let (one, other) = (worth(first), worth(second));
    if random.share() * (one + other) < one { first } else { second }
}

impl Chosen {
    pub(crate) fn relation(&self) -> &Arc<Relation> {
        self.permit.relation()
    }

    /// Its index among the service's endpoints; none at the callee's own node.
    pub(crate) fn endpoint(&self) -> Option<usize> {
        self.endpoint
    }

    /// Which of this node's own instances serves it; none where another node's does.
    pub(crate) fn instance(&self) -> Option<usize> {
        self.instance
    }

    /// A place at the instance of this node that it is; none where another node's is meant, or it takes all.
    pub(crate) fn place(&self) -> Result<Option<Place>, Reject> {
        let service = &self.relation().service;
        let own = self.instance.filter(|_| service.settings.overload == OnOverload::Shed);
        own.map(|own| service.instances[own].overload.enter(self.at).ok_or(Reject::Overloaded)).transpose()
    }

    /// Whether there is another endpoint that nothing speaks against.
    pub(crate) fn has_spare(&self) -> bool {
        let (now, relation) = (Instant::now(), self.relation());
        let standing = relation.standing(now);
        relation.candidates.iter().any(|index| Some(*index) != self.endpoint && standing.is_well(*index))
    }

    /// Whether it could not be reached the last time.
    pub(crate) fn has_failed(&self) -> bool {
        self.endpoint.is_some_and(|endpoint| self.relation().slot(endpoint).has_failed())
    }

    /// The name of the instance of this node that it is.
    pub(crate) fn own_name(&self) -> Option<&str> {
        self.instance.map(|own| self.relation().service.instances[own].description.id.name.as_str())
    }

    /// Counts the try until it ends. One that was avoided is probed by it.
    pub(crate) fn flight(&self) -> Option<Flight> {
        let (endpoint, relation) = (self.endpoint?, self.relation());
        relation.started(endpoint, self.at);
        Some(Flight { relation: relation.clone(), endpoint, started: self.at })
    }

    /// The endpoint could not be reached: nor can the other instances of its node, which are avoided with it.
    pub(crate) fn lost(&self) {
        let Some(endpoint) = self.endpoint else { return };
        let (now, relation) = (Instant::now(), self.relation());
        let endpoints = &relation.service.endpoints;
        let node = &endpoints[endpoint].description.node;
        let together = |index: &usize| {
            *index == endpoint || !endpoints[*index].here && endpoints[*index].description.node == *node
        };
        (0..endpoints.len()).filter(together).for_each(|index| relation.slot(index).lose(now));
    }

    /// What came of the try.
    pub(crate) fn ended(&self, outcome: Outcome) {
        if let Some(endpoint) = self.endpoint {
            self.relation().ended(endpoint, outcome, Instant::now());
        }
    }

    /// It had no instance.
    pub(crate) fn failed(&self) {
        if let Some(endpoint) = self.endpoint {
            self.relation().slot(endpoint).fail(Instant::now());
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

    /// No answer came in time.
    pub(crate) fn timed_out(&self) {
        self.relation.ended(self.endpoint, Outcome::NoAnswer, Instant::now());
    }

    /// Its node has refused it, which says nothing of how fast the instance is.
    pub(crate) fn refused(&self) {
        self.slot().refused(Instant::now());
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.slot().finish();
    }
}
