//! Retries can't storm: of the calls of one caller's node to one service only so many are tried again at a time, as the
//! applications see it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::Breach;
use crate::application::FAILING_WORK;
use crate::call::Call;
use crate::load::Load;
use crate::mesh::Mesh;
use crate::mesh::assertion::{Assertion, Claim};

/// What a call's end may be known later by than its node knows it, in milliseconds.
const GRACE: u64 = 100;
/// A call that is older does not count as open any more, whatever became of it.
const OPEN_MAX: u64 = 16_000;

/// A call that an application answers for the second time or more.
#[derive(Debug, Clone, Copy)]
struct Again {
    number: u64,
    host: usize,
    /// Which assertion speaks of it.
    claim: usize,
    /// When it arrived.
    at: u64,
}

/// Calls that are tried again.
pub struct Retries {
    mesh: Arc<Mesh>,
    /// How often calls have arrived, by number.
    arrived: BTreeMap<u64, u32>,
    /// Those that are not judged yet, and before them the ones that were at work with them.
    again: VecDeque<Again>,
    judged: usize,
    /// When the process of a host ended last: what it had under way is forgotten there.
    fell: BTreeMap<usize, u64>,
}

impl Retries {
    /// Nothing has arrived.
    pub fn new(mesh: Arc<Mesh>) -> Self {
        Self { mesh, arrived: BTreeMap::new(), again: VecDeque::new(), judged: 0, fell: BTreeMap::new() }
    }

    /// A call reached an application.
    pub fn arrived(&mut self, number: u64, call: &Call, now: u64) {
        let Some(claim) = call.claim_of_retries(&self.mesh) else { return };
        if self.fell.get(&call.host).is_some_and(|fell| call.began <= *fell) {
            return;
        }
        let count = self.arrived.entry(number).or_default();
        *count += 1;
        if *count > 1 {
            self.again.push_back(Again { number, host: call.host, claim, at: now });
        }
    }

    /// The process of a host ended.
    pub fn ended(&mut self, host: usize, now: u64) {
        self.fell.insert(host, now);
        let judged = self.again.iter().take(self.judged).filter(|again| again.host != host).count();
        self.again.retain(|again| again.host != host);
        self.judged = judged;
    }

    /// Judges those whose work is over: by now it is known which calls were still open when they arrived.
    pub fn judge(&mut self, load: &Load, now: u64) -> Result<(), Breach> {
        let work = u64::try_from(FAILING_WORK.as_millis()).unwrap_or(0);
        while let Some(next) = self.again.get(self.judged).copied().filter(|next| next.at + work <= now) {
            self.judged += 1;
            while self.again.front().is_some_and(|oldest| oldest.at + work <= next.at) {
                self.again.pop_front();
                self.judged -= 1;
            }
            self.check(next, load)?;
        }
        if let Some(oldest) = load.oldest() {
            self.arrived = self.arrived.split_off(&oldest);
        }
        Ok(())
    }

    fn check(&self, next: Again, load: &Load) -> Result<(), Breach> {
        let beside = |again: &&Again| (again.host, again.claim) == (next.host, next.claim) && again.at <= next.at;
        let open = |call: &&Call| call.ended.is_none_or(|(at, _)| at > next.at + GRACE);
        let mut numbers: Vec<u64> = self.again.iter().filter(beside).map(|again| again.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let calls: Vec<&Call> = numbers.iter().filter_map(|number| load.get(*number)).filter(open).collect();
        let Some((call, since)) = calls.first().zip(calls.iter().map(|call| call.began).min()) else { return Ok(()) };
        let assertion = &self.mesh.assertions[next.claim];
        let most = most(assertion, peak(load, call, (since, next.at)));
        if calls.len() <= most {
            return Ok(());
        }
        let text = format!("{} of n{} were tried again at once, {most} may: \"{assertion}\"", calls.len(), next.host);
        Err(Breach { invariant: "retries keep to their budget", text })
    }
}

/// Most calls of the same caller on the same host to the same service that were open at once in that time.
fn peak(load: &Load, like: &Call, (since, until): (u64, u64)) -> usize {
    let mut changes = Vec::new();
    for call in load.calls().filter(|call| (call.host, call.from, call.to) == (like.host, like.from, like.to)) {
        let end = call.ended.map_or(call.began + OPEN_MAX, |(at, _)| at) + GRACE;
        if call.began <= until && end >= since {
            changes.extend([(call.began, 1), (end, -1)]);
        }
    }
    changes.sort_unstable_by_key(|(at, change)| (*at, -change));
    let open = changes.iter().scan(0_isize, |open, (_, change)| {
        *open += change;
        Some(*open)
    });
    usize::try_from(open.max().unwrap_or(0)).unwrap_or(0)
}

/// How many of so many open calls may be tried again.
fn most(assertion: &Assertion, open: usize) -> usize {
    match assertion.claim {
        Claim::Retries { percent, least, .. } => ((open as f64 * percent / 100.0) as usize).max(least),
        _ => usize::MAX,
    }
}
