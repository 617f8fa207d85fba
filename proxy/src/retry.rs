//! Another try, where the callee can't have acted on the one before.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use weft_proto::planted::{Bug, planted};

use crate::balance::Chosen;
use crate::call::{Answerer, End};
use crate::connect::link::LinkError;
use crate::decide::route::Ruled;
use crate::forward::outgoing::Answer;
use crate::lane::{Budget, Leg};
use crate::reject::Reject;
use crate::table::routes::RetryPolicy;
use crate::task::Random;
use crate::upstream::Outcome;

/// Why a try failed, and whether another one is safe.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) reject: Reject,
    pub(crate) again: Again,
}

/// Whether another try is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// The callee may have acted.
    Never,
    /// The endpoint was not reached: at once, elsewhere.
    Elsewhere,
    /// The link ended under a request that may be sent twice: at once, elsewhere, and outside the budget. All that waited on
    /// it come at once, and the endpoint that they burdened is gone.
    Lost,
    /// The endpoint refused without having acted: after a while.
    Later,
    /// The callee has answered, or may be about to, and the rule asks for another try all the same: after a while.
    Told,
    /// A pooled connection turned out to be closed: at once, at the same place, on a fresh one.
    Fresh,
}

/// The tries of one exchange.
#[derive(Debug)]
pub(crate) struct Tries<'r> {
    budget: Budget,
    /// What the rule says of them.
    policy: Option<&'r RetryPolicy>,
    tried: [usize; TRIES_MAX],
    count: usize,
    left: u8,
    fresh: bool,
}

impl Failure {
    pub(crate) fn never(reject: Reject) -> Self {
        Self { reject, again: Again::Never }
    }

    /// No connection to the endpoint came about.
    pub(crate) fn of_link(error: LinkError) -> Self {
        match error {
            LinkError::NoCertificate(why) => Self::never(Reject::NoCertificate(why.to_string())),
            LinkError::NoInstance => Self { reject: Reject::NoInstance, again: Again::Elsewhere },
            LinkError::Unreachable(why) => {
                Self { reject: Reject::Unreachable(why.to_string()), again: Again::Elsewhere }
            }
        }
    }

    /// Takes it out on the endpoint where that is to blame.
    pub(crate) fn blame(&self, chosen: &Chosen, connected: bool) {
        match (&self.reject, self.again) {
            (_, Again::Lost) => chosen.lost(),
            (Reject::Unreachable(_), Again::Elsewhere) if !connected => chosen.lost(),
            (Reject::NoInstance, _) if connected => chosen.failed(),
            _ => {}
        }
    }

    /// What it says of the instance; none where it says nothing.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        match (&self.reject, self.again) {
            (_, Again::Fresh) => None,
            (Reject::Unreachable(_) | Reject::Broken(_) | Reject::Timeout, _) => Some(Outcome::NoAnswer),
            (Reject::NoInstance, _) => Some(Outcome::Status(503)),
            _ => None,
        }
    }

    /// The link ended under a request that may be sent twice.
    pub(crate) fn lost(why: String) -> Self {
        Self { reject: Reject::Unreachable(why), again: Again::Lost }
    }

    /// The answer broke off before it began.
    pub(crate) fn broken(why: String) -> Self {
        Self::never(Reject::Broken(why))
    }
}

impl<'r> Tries<'r> {
    /// No try yet. What comes from another node is not repeated here: its node does that.
    pub(crate) fn new(leg: &Arc<Leg>, ruled: Option<&'r Ruled>) -> Self {
        let left = Self::allowed(leg, ruled);
        let policy = ruled.and_then(|ruled| ruled.rule().retries.as_ref());
        Self { budget: leg.begin(), policy, tried: [usize::MAX; TRIES_MAX], count: 0, left, fresh: false }
    }

    /// One and no other.
    pub(crate) fn single(leg: &Arc<Leg>) -> Self {
        Self { left: 0, ..Self::new(leg, None) }
    }

    /// How many tries may follow the first one.
    pub(crate) fn allowed(leg: &Leg, ruled: Option<&Ruled>) -> u8 {
        match leg.relation.end {
            End::Caller => {
                let ruled = ruled.and_then(|ruled| ruled.rule().retries.as_ref());
                ruled.and_then(|policy| policy.attempts).unwrap_or(leg.relation.service.settings.retries)
            }
            End::Callee => 0,
        }
    }

    /// Whether others go before the endpoint.
    pub(crate) fn tried(&self, endpoint: usize) -> bool {
        let (previous, remote) = self.policy.map_or((false, false), |policy| (policy.previous, policy.remote));
        let endpoints = &self.budget.leg.relation.service.endpoints;
        let zone = |at: usize| endpoints.get(at).map(|one| one.description.zone.as_str()).filter(|_| remote);
        (!previous && self.tried.contains(&endpoint)) || shares_place(endpoint, &self.tried, zone)
    }

    /// Whether a rule says something of them.
    pub(crate) fn are_ruled(&self) -> bool {
        self.policy.is_some()
    }

    /// Bound on one try.
    pub(crate) fn bound(&self) -> Option<Duration> {
        self.policy.and_then(|policy| policy.per_try)
    }

    /// Whether a rule asks for another try after an answer, and there may be one.
    pub(crate) fn wants(&self, answer: &Answer) -> bool {
        let Some(policy) = self.policy else { return false };
        let (status, headers) = (answer.response.status(), answer.response.headers());
        let wants = match answer.by {
            Answerer::Application => answer.tunnel.is_none() && policy.on.wants(status, headers),
            Answerer::Node => answer.broke && policy.on.reset,
        };
        wants && self.left > 0 && self.budget.allows()
    }

    /// What a failure is where a rule asks for more tries.
    pub(crate) fn judge(&self, failure: Failure) -> Failure {
        let broke = matches!(failure.reject, Reject::Broken(_) | Reject::Timeout);
        let resets = self.policy.is_some_and(|policy| policy.on.reset);
        match failure.again {
            Again::Never if broke && resets && self.left > 0 && self.budget.allows() => {
                Failure { again: Again::Told, ..failure }
            }
            _ => failure,
        }
    }

    /// Whether the next try must not take a pooled connection.
    pub(crate) fn fresh(&self) -> bool {
        self.fresh
    }

    /// Whether a try on a link may be followed by another, so that its head and body must be kept.
    pub(crate) fn may_repeat(&self) -> bool {
        self.left > 0
    }

    /// A try begins.
    pub(crate) fn begin(&mut self, chosen: &Chosen) {
        if let Some(endpoint) = chosen.endpoint() {
            self.tried[self.count % TRIES_MAX] = endpoint;
        }
    }

    /// Waits until the next try may begin; an error ends the exchange.
    pub(crate) async fn again(&mut self, failure: Failure, random: &Random) -> Result<(), Reject> {
        let pause = match failure.again {
            Again::Never if planted(Bug::RetriedBlindly) => Duration::ZERO,
            Again::Never => return Err(failure.reject),
            Again::Fresh if self.fresh => return Err(failure.reject),
            Again::Fresh => {
                self.fresh = true;
                return Ok(());
            }
            Again::Lost => Duration::ZERO,
            Again::Elsewhere if self.count == 0 => Duration::ZERO,
            Again::Elsewhere | Again::Later | Again::Told => self.backoff(random),
        };
        if self.left == 0 || !(failure.again == Again::Lost || self.budget.allows()) {
            return Err(failure.reject);
        }
        self.left -= 1;
        self.count += 1;
        self.budget.take();
        if !pause.is_zero() {
            sleep(pause).await;
        }
        Ok(())
    }

    /// Doubles from 25 ms, or what the rule says, to ten times that; somewhere in its upper half.
    fn backoff(&self, random: &Random) -> Duration {
        let least = self.policy.and_then(|policy| policy.backoff).unwrap_or(BACKOFF_MIN);
        let doubled = least.saturating_mul(1 << self.count.min(8)).min(least.saturating_mul(BACKOFF_GROWTH));
        let half = doubled / 2;
        let spread = usize::try_from(half.as_micros()).unwrap_or(usize::MAX).max(1);
        half + Duration::from_micros(random.below(spread) as u64)
    }
}

/// Whether an endpoint is where one of those is that were tried.
fn shares_place<'z>(endpoint: usize, tried: &[usize], place: impl Fn(usize) -> Option<&'z str>) -> bool {
    place(endpoint).is_some_and(|own| tried.iter().any(|tried| place(*tried) == Some(own)))
}

/// Endpoints that are remembered as tried.
const TRIES_MAX: usize = 4;
const BACKOFF_MIN: Duration = Duration::from_millis(25);
const BACKOFF_GROWTH: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_where_a_try_failed_comes_after_what_is_elsewhere() {
        let places = ["eu/a", "eu/a", "us/a", ""];
        let place = |at: usize| places.get(at).copied();
        let passed = |tried: &[usize]| (0..4).filter(|at| shares_place(*at, tried, place)).collect::<Vec<_>>();
        assert_eq!(passed(&[0, usize::MAX]), [0, 1]);
        assert_eq!(passed(&[0, 2]), [0, 1, 2]);
        assert!(passed(&[usize::MAX; 4]).is_empty(), "nothing was tried");
        assert!(!shares_place(1, &[0], |_| None), "nobody asked where they are");
    }
}
