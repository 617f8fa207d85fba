//! An exchange, step by step: identify → route → authorize → balance → connect → forward → record.

pub(crate) mod tunnel;

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::DATE;
use http::request::Parts;
use http::{HeaderMap, HeaderName, Response, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use weft_proto::service::Protocol;

use crate::attempt::{Route, attempt};
use crate::body::{Body, BodyError};
use crate::call::{Addresses, Destination, End, Peer};
use crate::connection::Connection;
use crate::decide::relation::{Current, Relation};
use crate::decide::{Decision, Question, decide, http_call};
use crate::forward::answer::AnswerBody;
use crate::forward::outgoing::{Answer, Outgoing};
use crate::forward::refusal;
use crate::hold::{Hold, revocable};
use crate::identify;
use crate::inform::Informed;
use crate::lane::Leg;
use crate::net::Net;
use crate::record::Open;
use crate::reject::Reject;
use crate::request::{self, Origin};
use crate::retry::Tries;
use crate::table::Settings;
use crate::upload::Upload;
use crate::{call, headers};
use tunnel::Tunnel;

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
    let Permitted { route, mut outgoing, deadline } = permit(connection, hold, request, open, grpc)?;
    let attempts = attempt(&connection.core, &route, &mut outgoing, open);
    let answer = match deadline {
        None => attempts.await?,
        Some(at) => Box::pin(timeout_at(at, attempts)).await.map_err(|_| Reject::Timeout)??,
    };
    Ok(Done { answer, outgoing, deadline, idle_timeout: settings(route.leg()).idle_timeout })
}

/// A request that may be sent, and where to.
struct Permitted {
    route: Route,
    outgoing: Outgoing,
    deadline: Option<Instant>,
}

/// Identify, route, authorize: what needs no waiting. Apart from the rest, so that what waits is small: every exchange
/// under way is moved several times and lies in memory.
fn permit<N: Net>(
    connection: &Connection<N>,
    hold: &Arc<Hold>,
    (head, body): (Parts, Body),
    open: &mut Open,
    grpc: &mut bool,
) -> Result<Permitted, Reject> {
    let random = &connection.core.recorder.random;
    let fixed = match &connection.destination {
        Destination::Fixed(service, _) if head.version < Version::HTTP_11 => Some(service.host()),
        _ => None,
    };
    let origin = Origin { from_node: connection.end() == End::Callee, host: fixed.as_deref() };
    let mut received = request::read(head, &mut connection.memory.lock().host, &origin, random)?;
    match (&mut received.upgrade, &body) {
        (Some(_), Body::Empty) | (None, _) => {}
        (Some(upgrade), Body::Full(whole)) => upgrade.with(whole.clone()),
        // What comes before what is spoken then has no end that is known.
        (upgrade, _) => *upgrade = None,
    }
    let leg = identify::leg(connection, Some(&received.host))?;
    received.check_names(settings(&leg).underscore_headers)?;
    let asked = received.normalise(settings(&leg).escaped_slashes)?;
    let route = authorize(connection, leg, Some((asked, &received.head.headers)), open)?;
    let (leg, relation) = (route.leg(), &route.leg().relation);
    *grpc |= relation.port.protocol == Protocol::Grpc;
    let deadline = deadline(leg, grpc.then_some(&received.head.headers), open.started());
    let expects = received.expects && !body.is_end_stream();
    let mut upload = Upload::new(body, hold, Tries::allowed(leg) > 0);
    let gate = expects.then(|| upload.wait());
    let informed = Informed::new(hold, received.head.version, gate);
    let outgoing = Outgoing::new(received, upload, informed);
    Ok(Permitted { route, outgoing, deadline })
}

/// Decides about an exchange, and enters it as open.
fn authorize<N: Net>(
    connection: &Connection<N>,
    leg: Arc<Leg>,
    request: Option<(call::Asked, &HeaderMap)>,
    open: &mut Open,
) -> Result<Route, Reject> {
    let relation = &leg.relation;
    let addresses = addresses(connection, relation);
    let sni = match &connection.peer {
        Peer::Local => &relation.server_name,
        Peer::Svid(caller) => &caller.server_name,
    };
    let http = request.as_ref().map(|(asked, headers)| http_call(asked, headers));
    let (decision, noting) = decide(&Question { relation, addresses, sni, http });
    open.noted(noting);
    let keeps_headers = relation.service.headers_matter;
    let asked =
        request.map(|(asked, headers)| call::Asked { headers: keeps_headers.then(|| headers.clone()), ..asked });
    let instance = relation.instance;
    let current = Current { relation: relation.clone(), addresses, asked, request_fault: None, instance };
    open.enter(current, &leg.lane.series);
    match decision {
        Decision::Forward(permit) => Ok(Route::new(leg, permit)),
        Decision::Refuse(reject) => Err(reject),
    }
}

fn addresses<N: Net>(connection: &Connection<N>, relation: &Relation) -> Addresses {
    match relation.end {
        End::Caller => relation.own_addresses(),
        End::Callee => Addresses {
            source: connection.theirs.ip().to_canonical(),
            destination: connection.ours.ip().to_canonical(),
        },
    }
}

fn settings(leg: &Leg) -> &Settings {
    &leg.relation.service.settings
}

/// The earlier of the service's request timeout and the caller's deadline, which a gRPC call has in its headers.
fn deadline(leg: &Leg, headers: Option<&HeaderMap>, started: Instant) -> Option<Instant> {
    let own = settings(leg).request_timeout;
    let callers = headers.and_then(|headers| headers.get(GRPC_TIMEOUT));
    let callers = callers.and_then(|value| grpc_timeout(value.as_bytes()));
    own.into_iter().chain(callers).min().map(|limit| started + limit)
}

/// Reads `grpc-timeout`: at most eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn grpc_timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

impl Done {
    fn outcome(self, mut open: Open, hold: &Arc<Hold>, version: Version) -> Outcome {
        let wanted = self.outgoing.informed.wants();
        let Answer { mut response, tunnel, by } = self.answer;
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

/// A response body that ends the exchange's record when it ends itself.
pub(crate) struct Tracked {
    body: AnswerBody,
    open: Option<Open>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Tracked {
    fn new(body: AnswerBody, mut open: Open, deadline: Option<Instant>) -> Self {
        if body.is_end_stream() {
            open.whole();
            return Self::untracked(body);
        }
        Self { body, open: Some(open), deadline: deadline.map(|at| Box::pin(sleep_until(at))) }
    }

    pub(crate) fn untracked(body: AnswerBody) -> Self {
        Self { body, open: None, deadline: None }
    }
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.open.as_ref().is_some_and(|open| open.hold().poll_ended(cx)) {
            this.open = None;
            return Poll::Ready(Some(Err(BodyError::Revoked)));
        }
        if this.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
            if let Some(mut open) = this.open.take() {
                open.rejected(&Reject::Timeout);
            }
            return Poll::Ready(Some(Err(BodyError::Deadline)));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(open), Some(data)) = (&mut this.open, frame.data_ref()) {
                    open.passed(data.len());
                }
                if this.body.is_end_stream() {
                    this.end();
                }
            }
            Some(Err(_)) => this.open = None,
            None => this.end(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Tracked {
    fn end(&mut self) {
        if let Some(mut open) = self.open.take() {
            open.whole();
        }
    }
}

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_deadlines_are_read() {
        for (text, expected) in [
            (&b"1S"[..], Some(Duration::from_secs(1))),
            (b"250m", Some(Duration::from_millis(250))),
            (b"2H", Some(Duration::from_secs(7200))),
            (b"123456789S", None),
            (b"S", None),
            (b"-1S", None),
            (b"1x", None),
            (b"", None),
        ] {
            assert_eq!(grpc_timeout(text), expected, "{}", text.escape_ascii());
        }
    }
}
