//! An exchange, step by step: identify → route → authorize → balance → connect → forward → record.

mod authorize;
mod gate;
mod mirror;
mod permit;
mod rules;
mod session;
mod sticky;
mod tracked;
pub(crate) mod tunnel;

use std::pin::pin;
use std::sync::Arc;

use http::header::{DATE, SET_COOKIE};
use http::request::Parts;
use http::{HeaderMap, Response, Version};
use tokio::time::{Instant, sleep, timeout_at};

use crate::attempt::{Route, attempt};
use crate::body::Body;
use crate::call::{Answerer, Bounds, Destination, Peer};
use crate::connection::Connection;
use crate::core::Core;
use crate::edge;
use crate::forward::outgoing::{Answer, Outgoing};
use crate::forward::refusal;
use crate::headers;
use crate::hold::{Hold, revocable};
use crate::net::Net;
use crate::record::Open;
use crate::reject::Reject;
use permit::{Next, Permitted};
use session::Token;
use tunnel::Tunnel;

pub(crate) use tracked::Tracked;

/// What the caller gets.
pub(crate) struct Outcome {
    pub(crate) response: Response<Tracked>,
    /// What follows on the same connection once the response is out.
    pub(crate) tunnel: Option<Tunnel>,
    /// Whether the request's body was wanted, if its caller waits to be told so.
    pub(crate) wanted: bool,
}

/// An HTTP exchange, up to the head of its answer.
pub(crate) async fn http<N: Net>(
    connection: &Arc<Connection<N>>,
    hold: &Arc<Hold>,
    head: Parts,
    body: Body,
) -> Outcome {
    let version = head.version;
    let mut open = Open::http(hold, &connection.core.recorder, version, connection.is_link());
    let started = open.started();
    let mut grpc = headers::is_grpc_call(&head.headers);
    let mut permitted = permit::permit(connection, hold, (head, body), &mut open, &mut grpc);
    let result = match &mut permitted {
        Err(reject) => Err(reject.clone()),
        Ok(permitted) => {
            let run = pin!(run(&connection.core, permitted, &mut open));
            revocable(hold, run).await.unwrap_or(Err(Reject::Revoked))
        }
    };
    let mut outcome = match (result, permitted) {
        (Ok(done), Ok(permitted)) => done.outcome(&permitted.outgoing, (open, hold), version),
        (Err(reject), _) | (_, Err(reject)) => {
            let reject = hold.blame(reject);
            open.rejected(&reject);
            let response = refusal::response(&reject, version, grpc, connection.is_told(&reject));
            Outcome { response: response.map(|body| Tracked::new(body, open, None)), tunnel: None, wanted: false }
        }
    };
    // Whoever passes an answer on that has none adds it (RFC 9110, 6.6.1).
    if !connection.is_link() && outcome.tunnel.is_none() {
        let headers = outcome.response.headers_mut();
        let (dates, clock) = (&connection.core.dates, &connection.core.shared.settings.clock);
        headers.entry(DATE).or_insert_with(|| dates.at(started, &**clock));
    }
    if let (Peer::Outside(outside), Destination::Gateway(door)) = (&connection.peer, &connection.destination)
        && outside.http3
    {
        edge::offer_http3(outcome.response.headers_mut(), door.port);
    }
    outcome
}

struct Done {
    answer: Answer,
    deadline: Option<Instant>,
    bounds: Bounds,
}

/// What waits. It has what is permitted by reference: every exchange under way is moved several times.
async fn run<N: Net>(core: &Core<N>, permitted: &mut Permitted<N>, open: &mut Open) -> Result<Done, Reject> {
    let mut began = open.started();
    if let Some(delay) = permitted.delay {
        Box::pin(sleep(delay)).await;
        // The bound on the whole call does not count what is made here.
        began = Instant::now();
    }
    let deadline = permitted.limit.map(|limit| began + limit);
    if let Some(extras) = &mut permitted.extras {
        extras.mirrors.drain(..).for_each(|mirror| drop(tokio::spawn(mirror.send())));
    }
    let route = match &mut permitted.next {
        Next::Send(route) => &*route,
        Next::Answer(response) => {
            let answer = Answer::made(std::mem::take(&mut **response));
            return Ok(Done { answer, deadline: None, bounds: Bounds::default() });
        }
    };
    let outgoing = &mut permitted.outgoing;
    let mut answer = match deadline {
        None => attempt(core, route, outgoing, open, began).await?,
        Some(at) => {
            let attempts = Box::pin(timeout_at(at, attempt(core, route, outgoing, open, began)));
            match attempts.await {
                Ok(answer) => answer?,
                Err(_) => {
                    open.timed_out();
                    return Err(Reject::Timeout);
                }
            }
        }
    };
    if answer.by == Answerer::Application {
        let extras = permitted.extras.take();
        let headers = answer.response.headers_mut();
        let session = extras.as_ref().and_then(|extras| extras.session);
        if let Some(had) = session {
            give(core, route, (had, open), headers);
        }
        let (cookie, origin) = extras.map_or((None, None), |extras| (extras.cookie, extras.origin));
        if let Some(cookie) = cookie {
            headers.append(SET_COOKIE, cookie);
        }
        if let Some(ruled) = route.ruled() {
            rules::change_answer(ruled, origin, headers);
        }
    }
    Ok(Done { answer, deadline, bounds: route.leg().relation.bounds() })
}

/// Tells the caller what leads its next calls to the same instance.
fn give<N: Net>(core: &Core<N>, route: &Route, (had, open): (Option<Token>, &Open), headers: &mut HeaderMap) {
    let session = route.ruled().and_then(|ruled| ruled.rule().session.as_ref());
    if let Some((session, endpoint)) = session.zip(open.endpoint) {
        session::give(session, had, (&route.leg().relation, endpoint), session::seconds(core), headers);
    }
}

impl Done {
    fn outcome(self, outgoing: &Outgoing, (mut open, hold): (Open, &Arc<Hold>), version: Version) -> Outcome {
        let wanted = outgoing.informed.wants();
        let Answer { mut response, tunnel, by, .. } = self.answer;
        *response.version_mut() = version;
        if let (Some(taken), Some(upgrade)) = (tunnel, &outgoing.upgrade) {
            if version < Version::HTTP_2 {
                let (mut parts, body) = response.into_parts();
                upgrade.grant(taken.protocol.as_ref(), &mut parts.status, &mut parts.headers);
                response = Response::from_parts(parts, body);
            }
            open.answered(response.status().as_u16(), by);
            let tunnel = Tunnel::new(taken, open, hold, self.bounds);
            return Outcome { response: response.map(Tracked::untracked), tunnel: Some(tunnel), wanted };
        }
        open.answered(response.status().as_u16(), by);
        let deadline = self.deadline;
        Outcome { response: response.map(|body| Tracked::new(body, open, deadline)), tunnel: None, wanted }
    }
}
