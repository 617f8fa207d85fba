//! Identify, route, authorize: what needs no waiting.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderValue;
use http::request::Parts;
use http::{HeaderMap, HeaderName, Response, StatusCode, Version};
use http_body::Body as HttpBody;
use weft_proto::service::Protocol;

use super::authorize::{addresses, authorize, enter, settings};
use super::mirror::Mirror;
use super::session::{self, Token};
use super::{gate, rules, sticky};
use crate::attempt::Route;
use crate::balance::Aim;
use crate::body::Body;
use crate::call::{Asked, Destination, End};
use crate::connection::Connection;
use crate::decide::route::Ruled;
use crate::forward::answer::AnswerBody;
use crate::forward::made;
use crate::forward::outgoing::Outgoing;
use crate::hold::Hold;
use crate::host::Host;
use crate::identify;
use crate::inform::Informed;
use crate::lane::Leg;
use crate::net::Net;
use crate::record::Open;
use crate::reject::Reject;
use crate::request::{self, Origin, Received};
use crate::retry::Tries;
use crate::table::challenges::WELL_KNOWN;
use crate::upload::Upload;

/// A request that may be sent, or is answered here.
pub(super) struct Permitted<N: Net> {
    pub(super) next: Next,
    pub(super) outgoing: Outgoing,
    /// How long it waits first.
    pub(super) delay: Option<Duration>,
    /// Bound on the whole call from then on.
    pub(super) limit: Option<Duration>,
    /// What few have, apart: every exchange that waits is moved several times and lies in memory.
    pub(super) extras: Option<Box<Extras<N>>>,
}

/// What few exchanges have.
pub(super) struct Extras<N: Net> {
    /// What leads its caller's next ones to the same instance: the answer is given it.
    pub(super) cookie: Option<HeaderValue>,
    /// The origin that may share the answer.
    pub(super) origin: Option<HeaderValue>,
    /// Copies that go elsewhere.
    pub(super) mirrors: Vec<Mirror<N>>,
    /// Where its rule keeps sessions: what it has said of its own.
    pub(super) session: Option<Option<Token>>,
}

/// What follows.
pub(super) enum Next {
    Send(Route),
    Answer(Box<Response<AnswerBody>>),
}

/// Identify, route, authorize: what needs no waiting. Apart from the rest, so that what waits is small: every exchange
/// under way is moved several times and lies in memory.
pub(super) fn permit<N: Net>(
    connection: &Arc<Connection<N>>,
    hold: &Arc<Hold>,
    (head, body): (Parts, Body),
    open: &mut Open,
    grpc: &mut bool,
) -> Result<Permitted<N>, Reject> {
    let random = &connection.core.recorder.random;
    let fixed = match &connection.destination {
        Destination::Fixed(service, _) if head.version < Version::HTTP_11 => Some(service.host()),
        _ => None,
    };
    let origin = Origin { from_node: connection.is_link(), host: fixed.as_deref(), client: connection.client() };
    let mut received = request::read(head, &mut connection.memory.lock().host, &origin, random)?;
    if let Some(host) = called_by_address(connection, &received.host) {
        received.host = host;
    }
    match (&mut received.upgrade, &body) {
        (Some(_), Body::Empty) | (None, _) => {}
        (Some(upgrade), Body::Full(whole)) => upgrade.with(whole.clone()),
        // What comes before what is spoken then has no end that is known.
        (upgrade, _) => *upgrade = None,
    }
    let Obeyed { mut next, delay, origin: shared, copies, session } = match proof(connection, &received) {
        Some(answer) => answer,
        None => judge(connection, &mut received, open)?,
    };
    let mut cookie = None;
    let (limit, repeats) = match &mut next {
        Next::Send(route) => {
            let relation = &route.leg().relation;
            let keyed = || relation.end == End::Caller && session.flatten().is_none();
            if let Some(hash) = relation.treatment.hash.as_ref().filter(|_| keyed()) {
                let (head, source) = (&received.head, connection.theirs.ip());
                let sticky = sticky::sticky(hash, &head.headers, head.uri.query(), source, random);
                cookie = sticky.cookie;
                route.aimed(sticky.key.map_or(Aim::Any, Aim::Key));
            }
            *grpc |= route.leg().relation.port.protocol == Protocol::Grpc;
            (limit(route, grpc.then_some(&received.head.headers)), Tries::allowed(route.leg(), route.ruled()) > 0)
        }
        Next::Answer(_) => (None, false),
    };
    let expects = received.expects && !body.is_end_stream();
    let mut upload = Upload::new(body, hold, repeats);
    let gate = expects.then(|| upload.wait());
    // What a connection becomes is not copied.
    let copies = copies.iter().filter(|_| received.upgrade.is_none());
    let mirrors = copies.filter_map(|(leg, ruled)| Mirror::new(connection, (leg, ruled), &received, upload.copy()));
    let mirrors: Vec<Mirror<N>> = mirrors.collect();
    let has_extras = cookie.is_some() || shared.is_some() || session.is_some() || !mirrors.is_empty();
    let extras = has_extras.then(|| Box::new(Extras { cookie, origin: shared, mirrors, session }));
    let asks_more = matches!(&next, Next::Send(route) if route.asks_more());
    let spare = (asks_more && repeats).then(|| upload.spare());
    let informed = Informed::new(hold, received.head.version, gate);
    let mut outgoing = Outgoing::new(received, upload, informed);
    outgoing.spare = spare;
    Ok(Permitted { next, outgoing, delay, limit, extras })
}

/// The host outside that is called at its loopback address, which it knows nothing of.
fn called_by_address<N: Net>(connection: &Connection<N>, said: &Host) -> Option<Arc<Host>> {
    let Destination::Fixed(name, _) = &connection.destination else { return None };
    if !name.is_outside() || !said.compare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) {
        return None;
    }
    let port = said.port().map(|port| format!(":{port}")).unwrap_or_default();
    Host::of(format!("{}{port}", name.name()).as_bytes(), &mut None)
}

/// The answer to a certificate authority that asks a gateway for proof that a name is ours: to anybody, whatever rules say.
fn proof<N: Net>(connection: &Connection<N>, received: &Received) -> Option<Obeyed> {
    let path = received.head.uri.path();
    if !matches!(connection.destination, Destination::Gateway(_)) || !path.starts_with(WELL_KNOWN) {
        return None;
    }
    let table = connection.core.shared.table.load();
    let answer = made::text(StatusCode::OK, table.challenges.answer(&received.host.compare, path)?);
    Some(Obeyed::with(Next::Answer(Box::new(answer)), None))
}

/// Where the request goes, and whether it may.
fn judge<N: Net>(connection: &Connection<N>, received: &mut Received, open: &mut Open) -> Result<Obeyed, Reject> {
    let leg = identify::leg(connection, Some(&received.host))?;
    received.check_names(settings(&leg).underscore_headers)?;
    let asked = received.normalise(settings(&leg).escaped_slashes)?;
    gate::pass(connection, &leg, Some((&asked, &mut received.head.headers)), open)?;
    match &leg.relation.routes {
        None => Ok(Obeyed::of(authorize(connection, (leg, None), Some((asked, &received.head.headers)), open)?)),
        Some(_) => follow(connection, leg, (received, asked), open),
    }
}

/// What a rule makes of a request.
struct Obeyed {
    next: Next,
    delay: Option<Duration>,
    /// The origin that may share the answer.
    origin: Option<HeaderValue>,
    copies: Vec<(Arc<Leg>, Arc<Ruled>)>,
    /// Where the rule keeps sessions: what the request says of its own.
    session: Option<Option<Token>>,
}

impl Obeyed {
    /// Nothing.
    fn of(route: Route) -> Self {
        Self::with(Next::Send(route), None)
    }

    fn with(next: Next, delay: Option<Duration>) -> Self {
        Self { next, delay, origin: None, copies: Vec::new(), session: None }
    }
}

/// Follows the rules of the service that is asked for.
fn follow<N: Net>(
    connection: &Connection<N>,
    leg: Arc<Leg>,
    (received, asked): (&mut Received, Asked),
    open: &mut Open,
) -> Result<Obeyed, Reject> {
    match rules::find(&leg.relation, received, &asked, &connection.core.recorder.random) {
        Ok(Some(ruled)) => obey(connection, (leg, Arc::new(ruled)), (received, asked), open),
        Ok(None) if leg.relation.is_gate() => {
            enter(&leg, addresses(connection, &leg.relation), Some((asked, &received.head.headers)), open);
            Err(Reject::NoRoute)
        }
        Ok(None) => Ok(Obeyed::of(authorize(connection, (leg, None), Some((asked, &received.head.headers)), open)?)),
        Err(reject) => {
            enter(&leg, addresses(connection, &leg.relation), Some((asked, &received.head.headers)), open);
            Err(reject)
        }
    }
}

/// Does what the rule says: what it answers itself is no call of anybody.
fn obey<N: Net>(
    connection: &Connection<N>,
    (leg, mut ruled): (Arc<Leg>, Arc<Ruled>),
    (received, mut asked): (&mut Received, Asked),
    open: &mut Open,
) -> Result<Obeyed, Reject> {
    let random = &connection.core.recorder.random;
    open.ruled(&ruled);
    let origin = match rules::answer((&ruled, leg.relation.scheme), &asked, &received.head.headers) {
        Ok(origin) => origin,
        Err(response) => {
            enter(&leg, addresses(connection, &leg.relation), Some((asked, &received.head.headers)), open);
            return Ok(Obeyed::with(Next::Answer(response), None));
        }
    };
    let kept = ruled.rule().session.as_ref();
    let session = kept.map(|kept| Token::of(kept, &received.head.headers, session::seconds(&connection.core)));
    let pinned = session.flatten().and_then(|token| token.find(connection, &leg, &ruled));
    if let Some(pinned) = &pinned {
        ruled = Arc::new(ruled.with_share(pinned.share));
    }
    let changed = identify::backend(connection, &leg, &ruled).and_then(|to| {
        rules::change(received, &ruled, settings(&to).escaped_slashes, &mut asked)?;
        Ok(to)
    });
    let to = match changed {
        Ok(to) => to,
        Err(reject) => {
            enter(&leg, addresses(connection, &leg.relation), Some((asked, &received.head.headers)), open);
            return Err(reject);
        }
    };
    let (delay, abort) = rules::fault(&ruled, random);
    let mut route = authorize(connection, (to, Some(ruled.clone())), Some((asked, &received.head.headers)), open)?;
    if let Some(pinned) = pinned {
        route.aimed(Aim::Endpoint(pinned.endpoint));
    }
    let mut obeyed = Obeyed::with(Next::Send(route), delay);
    obeyed.session = session;
    match abort {
        // What is aborted goes nowhere, nor do copies of it.
        Some(mut response) => {
            rules::change_answer(&ruled, origin, response.headers_mut());
            obeyed.next = Next::Answer(Box::new(response));
        }
        None => {
            obeyed.origin = origin;
            let way = |to| identify::way(connection, &leg, to).and_then(Result::ok);
            let legs = ruled.copies(|| random.share()).filter_map(way);
            obeyed.copies = legs.map(|leg| (leg, ruled.clone())).collect();
        }
    }
    Ok(obeyed)
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
