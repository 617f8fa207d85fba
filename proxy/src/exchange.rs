//! An exchange, step by step: identify → route → authorize → balance → connect → forward → record.

mod rules;
mod sticky;
mod tracked;
pub(crate) mod tunnel;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{DATE, HeaderValue, SET_COOKIE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Response, Version};
use http_body::Body as HttpBody;
use tokio::time::{Instant, sleep, timeout_at};
use weft_proto::service::Protocol;

use crate::attempt::{Route, attempt};
use crate::body::Body;
use crate::call::{Addresses, Answerer, Asked, Destination, End, Peer};
use crate::connection::Connection;
use crate::decide::relation::{Current, Relation};
use crate::decide::route::Ruled;
use crate::decide::{Decision, Question, decide, http_call};
use crate::forward::answer::AnswerBody;
use crate::forward::outgoing::{Answer, Outgoing};
use crate::forward::refusal;
use crate::headers;
use crate::hold::{Hold, revocable};
use crate::identify;
use crate::inform::Informed;
use crate::lane::Leg;
use crate::net::Net;
use crate::record::Open;
use crate::reject::Reject;
use crate::request::{self, Origin, Received};
use crate::retry::Tries;
use crate::table::Settings;
use crate::upload::Upload;
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
    let mut permitted = permit(connection, hold, request, open, grpc)?;
    let mut began = open.started();
    if let Some(delay) = permitted.delay {
        Box::pin(sleep(delay)).await;
        // The bound on the whole call does not count what is made here.
        began = Instant::now();
    }
    let deadline = permitted.limit.map(|limit| began + limit);
    let outgoing = &mut permitted.outgoing;
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
    if let Some(cookie) = permitted.cookie.filter(|_| answer.by == Answerer::Application) {
        answer.response.headers_mut().append(SET_COOKIE, cookie);
    }
    if let Some(ruled) = route.ruled().filter(|_| answer.by == Answerer::Application) {
        rules::change_answer(ruled, answer.response.headers_mut());
    }
    Ok(Done { answer, outgoing: permitted.outgoing, deadline, idle_timeout: route.leg().relation.idle_timeout() })
}

/// A request that may be sent, or is answered here.
struct Permitted {
    next: Next,
    outgoing: Outgoing,
    /// How long it waits first.
    delay: Option<Duration>,
    /// Bound on the whole call from then on.
    limit: Option<Duration>,
    /// What leads its caller's next ones to the same instance.
    cookie: Option<HeaderValue>,
}

/// What follows.
enum Next {
    Send(Route),
    Answer(Box<Response<AnswerBody>>),
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
    let (mut next, delay) = match &leg.relation.routes {
        None => (Next::Send(authorize(connection, (leg, None), Some((asked, &received.head.headers)), open)?), None),
        Some(_) => follow(connection, leg, (&mut received, asked), open)?,
    };
    let mut cookie = None;
    let (limit, repeats) = match &mut next {
        Next::Send(route) => {
            if let Some(hash) = &route.leg().relation.treatment.hash {
                let (head, source) = (&received.head, connection.theirs.ip());
                let sticky = sticky::sticky(hash, &head.headers, head.uri.query(), source, random);
                cookie = sticky.cookie;
                route.keyed(sticky.key);
            }
            *grpc |= route.leg().relation.port.protocol == Protocol::Grpc;
            (limit(route, grpc.then_some(&received.head.headers)), Tries::allowed(route.leg(), route.ruled()) > 0)
        }
        Next::Answer(_) => (None, false),
    };
    let expects = received.expects && !body.is_end_stream();
    let mut upload = Upload::new(body, hold, repeats);
    let gate = expects.then(|| upload.wait());
    let asks_more = matches!(&next, Next::Send(route) if route.asks_more());
    let spare = (asks_more && repeats).then(|| upload.spare());
    let informed = Informed::new(hold, received.head.version, gate);
    let mut outgoing = Outgoing::new(received, upload, informed);
    outgoing.spare = spare;
    Ok(Permitted { next, outgoing, delay, limit, cookie })
}

/// Follows the rules of the service that is asked for.
fn follow<N: Net>(
    connection: &Connection<N>,
    leg: Arc<Leg>,
    (received, asked): (&mut Received, Asked),
    open: &mut Open,
) -> Result<(Next, Option<Duration>), Reject> {
    match rules::find(&leg.relation, received, &asked, &connection.core.recorder.random) {
        Ok(Some(ruled)) => obey(connection, (leg, Arc::new(ruled)), (received, asked), open),
        Ok(None) => {
            let route = authorize(connection, (leg, None), Some((asked, &received.head.headers)), open)?;
            Ok((Next::Send(route), None))
        }
        Err(reject) => {
            enter(&leg, addresses(connection, &leg.relation), Some((asked, &received.head.headers)), open);
            Err(reject)
        }
    }
}

/// Does what the rule says: what it answers itself is no call of anybody.
fn obey<N: Net>(
    connection: &Connection<N>,
    (leg, ruled): (Arc<Leg>, Arc<Ruled>),
    (received, mut asked): (&mut Received, Asked),
    open: &mut Open,
) -> Result<(Next, Option<Duration>), Reject> {
    let random = &connection.core.recorder.random;
    open.ruled(&ruled);
    if let Some(mut response) = rules::answer(&ruled, &asked) {
        rules::change_answer(&ruled, response.headers_mut());
        enter(&leg, addresses(connection, &leg.relation), Some((asked, &received.head.headers)), open);
        return Ok((Next::Answer(Box::new(response)), None));
    }
    let changed = identify::backend(connection, &leg, &ruled).and_then(|to| {
        rules::change(received, &ruled, settings(&to).escaped_slashes, &mut asked)?;
        Ok(to)
    });
    let leg = match changed {
        Ok(to) => to,
        Err(reject) => {
            enter(&leg, addresses(connection, &leg.relation), Some((asked, &received.head.headers)), open);
            return Err(reject);
        }
    };
    let (delay, abort) = rules::fault(&ruled, random);
    let route = authorize(connection, (leg, Some(ruled)), Some((asked, &received.head.headers)), open)?;
    let next = match abort {
        Some(response) => Next::Answer(Box::new(response)),
        None => Next::Send(route),
    };
    Ok((next, delay))
}

/// Decides about an exchange, and enters it as open.
fn authorize<N: Net>(
    connection: &Connection<N>,
    (leg, ruled): (Arc<Leg>, Option<Arc<Ruled>>),
    request: Option<(Asked, &HeaderMap)>,
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
    enter(&leg, addresses, request, open);
    match decision {
        Decision::Forward(permit) => Ok(Route::new(leg, permit, ruled)),
        Decision::Refuse(reject) => Err(reject),
    }
}

/// It may be judged again from here on. Always inlined: what is asked is large, and would be moved twice more.
#[inline(always)]
#[expect(clippy::inline_always, reason = "counted: 300 instructions an exchange")]
fn enter(leg: &Leg, addresses: Addresses, request: Option<(Asked, &HeaderMap)>, open: &mut Open) {
    let relation = leg.relation.clone();
    let keeps_headers = relation.service.headers_matter;
    let asked = request.map(|(asked, headers)| Asked { headers: keeps_headers.then(|| headers.clone()), ..asked });
    let instance = relation.instance;
    open.enter(Current { relation, addresses, asked, request_fault: None, instance }, &leg.lane.series);
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

/// The least of the bound that the rule or else the service sets on a request, and of the caller's own, which a gRPC call
/// has in its headers.
fn limit(route: &Route, headers: Option<&HeaderMap>) -> Option<Duration> {
    let ruled = route.ruled().and_then(|ruled| ruled.rule().timeout);
    let own = ruled.or(settings(route.leg()).request_timeout).filter(|limit| !limit.is_zero());
    let callers = headers.and_then(|headers| headers.get(GRPC_TIMEOUT));
    let callers = callers.and_then(|value| grpc_timeout(value.as_bytes()));
    own.into_iter().chain(callers).min()
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
