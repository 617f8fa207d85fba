//! Tries until one succeeds or none may follow: the same for requests and for opaque streams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use tokio::time::{Instant, timeout};
use weft_proto::service::Protocol;

use crate::balance::{self, Aim, Chosen};
use crate::connect::instance::Reuse;
use crate::core::Core;
use crate::decide::Permit;
use crate::decide::route::Ruled;
use crate::forward;
use crate::forward::bytes::End as Far;
use crate::forward::multiplexed::{self, Purpose};
use crate::forward::outgoing::{Answer, Outgoing};
use crate::lane::Leg;
use crate::net::Net;
use crate::overload::Change;
use crate::reach::{self, StreamUpstream, Wanted};
use crate::record::Open;
use crate::reject::Reject;
use crate::retry::{Again, Failure, Tries};
use crate::upstream::{Outcome, Turn};

/// What is tried.
pub(crate) trait Attempt<N: Net> {
    /// What comes of a try that succeeds.
    type Got;
    /// Whether it may wait for its turn where there are too many.
    const WAITS: bool;

    /// One try, at what was chosen.
    fn once(
        &mut self,
        core: &Core<N>,
        leg: &Leg,
        chosen: Chosen,
        tries: &Tries<'_>,
        open: &mut Open,
    ) -> impl Future<Output = Result<Self::Got, Failure>> + Send;
}

/// An exchange that may be sent, and its way. The permit is for the leg.
pub(crate) struct Route {
    leg: Arc<Leg>,
    permit: Permit,
    /// The rule that it falls under.
    ruled: Option<Arc<Ruled>>,
    /// What leads to its instance.
    aim: Aim,
    /// Whether there is but one try.
    once: bool,
}

impl Route {
    /// The way of an exchange that is permitted.
    pub(crate) fn new(leg: Arc<Leg>, permit: Permit, ruled: Option<Arc<Ruled>>) -> Self {
        assert!(Arc::ptr_eq(&leg.relation, permit.relation()), "a permit is used for what it was given for");
        Self { leg, permit, ruled, aim: Aim::Any, once: false }
    }

    /// Leads to this instance, or that of other calls with the key.
    pub(crate) fn aimed(&mut self, aim: Aim) {
        self.aim = aim;
    }

    /// There is but one try.
    pub(crate) fn once(&mut self) {
        self.once = true;
    }

    /// Whether only so many of its calls may run at once.
    fn is_limited(&self) -> bool {
        self.leg.relation.treatment.limits.are_set() && self.leg.relation.upstream.is_some()
    }

    /// Its turn among the calls that may run at once; an error where there are too many.
    async fn turn(&self, waits: bool) -> Result<Turn, Reject> {
        let relation = &self.leg.relation;
        let limits = relation.treatment.limits;
        let turns = &relation.upstream.as_ref().ok_or(Reject::Overflow)?.turns;
        let turn = match waits {
            // Only HTTP/1.1 has one call a connection.
            true => turns.take(limits, !matches!(relation.port.protocol, Protocol::Http2 | Protocol::Grpc)).await,
            false => turns.try_take(limits),
        };
        turn.ok_or(Reject::Overflow)
    }

    pub(crate) fn ruled(&self) -> Option<&Ruled> {
        self.ruled.as_deref()
    }

    /// Whether its rule may ask for another try though the callee may have acted.
    pub(crate) fn asks_more(&self) -> bool {
        self.ruled.as_ref().and_then(|ruled| ruled.rule().retries.as_ref()).is_some_and(|policy| policy.on.is_any())
    }

    pub(crate) fn leg(&self) -> &Arc<Leg> {
        &self.leg
    }
}

/// Tries. `now` is when the first one begins, which is not when the exchange began where its rule has delayed it.
pub(crate) async fn attempt<N: Net, A: Attempt<N>>(
    core: &Core<N>,
    route: &Route,
    what: &mut A,
    open: &mut Open,
    mut now: Instant,
) -> Result<A::Got, Reject> {
    if route.is_limited() {
        open.has_turn(Box::pin(route.turn(A::WAITS)).await?);
    }
    let mut tries = if route.once { Tries::single(&route.leg) } else { Tries::new(&route.leg, route.ruled()) };
    let random = &core.recorder.random;
    loop {
        let chosen = balance::choose(&route.permit, |endpoint| tries.tried(endpoint), route.aim, now, random)?;
        tries.begin(&chosen);
        open.sent_to(&chosen);
        // What it has got is not kept while the next one is waited for.
        let failure = match what.once(core, &route.leg, chosen, &tries, open).await {
            Ok(got) => return Ok(got),
            Err(failure) => failure,
        };
        tries.again(failure, random).await?;
        now = Instant::now();
    }
}

/// A request: the head of its answer.
impl<N: Net> Attempt<N> for Outgoing {
    type Got = Answer;
    const WAITS: bool = true;

    async fn once(
        &mut self,
        core: &Core<N>,
        leg: &Leg,
        chosen: Chosen,
        tries: &Tries<'_>,
        open: &mut Open,
    ) -> Result<Answer, Failure> {
        if !tries.are_ruled() {
            return send(core, leg, &chosen, tries, (self, open)).await;
        }
        let limit = tries.bound().unwrap_or(Duration::MAX);
        let sent = Box::pin(timeout(limit, send(core, leg, &chosen, tries, (self, open)))).await;
        let sent = sent.unwrap_or_else(|_| {
            chosen.ended(Outcome::NoAnswer);
            Err(Failure::never(Reject::Timeout))
        });
        match &sent {
            Ok(answer) if !tries.wants(answer) => sent,
            _ => self.again(sent, tries),
        }
    }
}

impl Outgoing {
    /// What a try comes to that failed, or after whose answer its rule asks for another one.
    fn again(&mut self, sent: Result<Answer, Failure>, tries: &Tries<'_>) -> Result<Answer, Failure> {
        match sent {
            Ok(answer) if self.recover() => {
                let reject = Reject::Broken(format!("it answered {}", answer.response.status()));
                Err(Failure { reject, again: Again::Told })
            }
            Ok(answer) => Ok(answer),
            Err(failure) => Err(match tries.judge(failure) {
                Failure { reject, again: Again::Told } if !self.recover() => Failure::never(reject),
                failure => failure,
            }),
        }
    }
}

async fn send<N: Net>(
    core: &Core<N>,
    leg: &Leg,
    chosen: &Chosen,
    tries: &Tries<'_>,
    (outgoing, open): (&mut Outgoing, &mut Open),
) -> Result<Answer, Failure> {
    let overloaded = |reject| blamed(Failure { reject, again: Again::Later }, chosen, false);
    let place = chosen.place().map_err(overloaded)?;
    let reuse = if tries.fresh() { Reuse::Never } else { outgoing.reuse() };
    let wanted = Wanted { http2: outgoing.http2, reuse, repeats: tries.may_repeat(), client: outgoing.client };
    let reached = reach::http(&core.dialer, leg, chosen, wanted).await;
    let upstream = reached.map_err(|error| blamed(Failure::of_link(error), chosen, false))?;
    if upstream.is_new() {
        open.connected();
    }
    let answer = forward::http::send(chosen, upstream, outgoing, tries.may_repeat()).await;
    let answer = answer.map_err(|failure| blamed(failure, chosen, true))?;
    if let Some(change) = place.and_then(|place| place.answered(Instant::now())) {
        tell(chosen, change);
    }
    chosen.ended(answer.outcome());
    Ok(answer)
}

/// An opaque stream that is being opened.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) purpose: Purpose,
    /// Who calls.
    pub(crate) client: SocketAddr,
}

/// An opaque stream: its other end.
impl<N: Net> Attempt<N> for Opening {
    type Got = Far;
    const WAITS: bool = false;

    async fn once(
        &mut self,
        core: &Core<N>,
        leg: &Leg,
        chosen: Chosen,
        tries: &Tries<'_>,
        _: &mut Open,
    ) -> Result<Far, Failure> {
        let reached = reach::stream(&core.dialer, leg, &chosen, tries.may_repeat(), self.client).await;
        let mut ticket = match reached.map_err(|error| blamed(Failure::of_link(error), &chosen, false))? {
            StreamUpstream::Instance(stream) => {
                chosen.ended(Outcome::Status(200));
                return Ok(Far::Io(stream));
            }
            StreamUpstream::Link(ticket) => ticket,
        };
        let relation = &leg.relation;
        let authority = format!("{}:{}", relation.service.name.host(), relation.port.port);
        let authority: Authority = authority.parse().expect("a host name and a port are an authority");
        let told = relation.treatment.tells_callers().map(|_| self.client);
        let far = multiplexed::connect(&mut ticket, &authority, (self.purpose, told)).await;
        let far = far.map_err(|failure| blamed(failure, &chosen, true))?.with(ticket);
        chosen.ended(Outcome::Status(200));
        Ok(far)
    }
}

/// An instance of this node has become too slow for all calls, or is not any more.
fn tell(chosen: &Chosen, change: Change) {
    let (service, instance) = (&chosen.relation().service.name, chosen.own_name());
    match change {
        Change::Bounded { most, quickest, usual } => tracing::warn!(
            %service, instance, most, quickest_ms = quickest.as_millis(), usual_ms = usual.as_millis(),
            "an instance answers too late: calls beyond what it can answer in time are refused"
        ),
        Change::Free => tracing::info!(%service, instance, "an instance takes all calls again"),
    }
}

fn blamed(mut failure: Failure, chosen: &Chosen, connected: bool) -> Failure {
    if failure.reject == Reject::Overloaded && !chosen.has_spare() {
        // The same instance would only have one more to refuse.
        failure.again = Again::Never;
    }
    failure.blame(chosen, connected);
    if let Some(outcome) = failure.outcome() {
        chosen.ended(outcome);
    }
    failure
}

#[cfg(test)]
mod tests;
