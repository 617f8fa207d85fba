//! An exchange, step by step: identify → route → authorize → balance → connect → forward → record.

mod authorize;
mod mirror;
mod permit;
mod rules;
mod sticky;
mod tracked;
pub(crate) mod tunnel;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{DATE, SET_COOKIE};
use http::request::Parts;
use http::{Response, Version};
use tokio::time::{Instant, sleep, timeout_at};

use crate::attempt::attempt;
use crate::body::Body;
use crate::call::{Answerer, End};
use crate::connection::Connection;
use crate::forward::outgoing::{Answer, Outgoing};
use crate::forward::refusal;
use crate::headers;
use crate::hold::{Hold, revocable};
use crate::net::Net;
use crate::record::Open;
use crate::reject::Reject;
use permit::Next;
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
    let protocol = match version {
        Version::HTTP_3 => "quic",
        Version::HTTP_2 => "h2",
        _ => "http/1.1",
    };
    let mut open = Open::new(hold, &connection.core.recorder, protocol);
    let started = open.started();
    let mut grpc = headers::is_grpc_call(&head.headers);
    let result = {
        let run = pin!(run(connection, hold, (head, body), &mut open, &mut grpc));
        revocable(hold, run).await.unwrap_or(Err(Reject::Revoked))
    };
    let mut outcome = match result {
        Err(reject) => {
            let reject = hold.blame(reject);
            open.rejected(&reject);
            let response = refusal::response(&reject, version, grpc, connection.end() == End::Callee);
            Outcome { response: response.map(|body| Tracked::new(body, open, None)), tunnel: None, wanted: false }
        }
        Ok(done) => done.outcome(open, hold, version),
    };
    // Whoever passes an answer on that has none adds it (RFC 9110, 6.6.1).
    if connection.end() == End::Caller && outcome.tunnel.is_none() {
        let headers = outcome.response.headers_mut();
        let (dates, clock) = (&connection.core.dates, &connection.core.shared.settings.clock);
        headers.entry(DATE).or_insert_with(|| dates.at(started, &**clock));
    }
    outcome
}

struct Done {
    answer: Answer,
    outgoing: Outgoing,
    deadline: Option<Instant>,
    idle_timeout: Option<Duration>,
}

async fn run<N: Net>(
    connection: &Arc<Connection<N>>,
    hold: &Arc<Hold>,
    request: (Parts, Body),
    open: &mut Open,
    grpc: &mut bool,
) -> Result<Done, Reject> {
    let mut permitted = permit::permit(connection, hold, request, open, grpc)?;
    let mut began = open.started();
    if let Some(delay) = permitted.delay {
        Box::pin(sleep(delay)).await;
        // The bound on the whole call does not count what is made here.
        began = Instant::now();
    }
    let deadline = permitted.limit.map(|limit| began + limit);
    let outgoing = &mut permitted.outgoing;
    for mirror in permitted.mirrors {
        tokio::spawn(mirror.send());
    }
    let route = match permitted.next {
        Next::Send(route) => route,
        Next::Answer(response) => {
            let answer = Answer::made(*response);
            return Ok(Done { answer, outgoing: permitted.outgoing, deadline: None, idle_timeout: None });
        }
    };
    let core = &connection.core;
    let mut answer = match deadline {
        None => attempt(core, &route, outgoing, open, began).await?,
        Some(at) => {
            let attempts = Box::pin(timeout_at(at, attempt(core, &route, outgoing, open, began)));
            match attempts.await {
                Ok(answer) => answer?,
                Err(_) => {
                    open.timed_out();
                    return Err(Reject::Timeout);
                }
            }
        }
    };
    if let Some(cookie) = permitted.given.cookie.filter(|_| answer.by == Answerer::Application) {
        answer.response.headers_mut().append(SET_COOKIE, cookie);
    }
    if let Some(ruled) = route.ruled().filter(|_| answer.by == Answerer::Application) {
        rules::change_answer(ruled, permitted.given.origin, answer.response.headers_mut());
    }
    Ok(Done { answer, outgoing: permitted.outgoing, deadline, idle_timeout: route.leg().relation.idle_timeout() })
}

impl Done {
    fn outcome(self, mut open: Open, hold: &Arc<Hold>, version: Version) -> Outcome {
        let wanted = self.outgoing.informed.wants();
        let Answer { mut response, tunnel, by, .. } = self.answer;
        *response.version_mut() = version;
        if let (Some(taken), Some(upgrade)) = (tunnel, &self.outgoing.upgrade) {
            if version < Version::HTTP_2 {
                let (mut parts, body) = response.into_parts();
                upgrade.grant(taken.protocol.as_ref(), &mut parts.status, &mut parts.headers);
                response = Response::from_parts(parts, body);
            }
            open.answered(response.status().as_u16(), by);
            let tunnel = Tunnel::new(taken, open, hold, self.idle_timeout);
            return Outcome { response: response.map(Tracked::untracked), tunnel: Some(tunnel), wanted };
        }
        open.answered(response.status().as_u16(), by);
        let deadline = self.deadline;
        Outcome { response: response.map(|body| Tracked::new(body, open, deadline)), tunnel: None, wanted }
    }
}
