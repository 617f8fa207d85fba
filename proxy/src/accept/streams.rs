//! Exchanges that come on streams, of HTTP/2 or of QUIC.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response};
use http_body::Body as HttpBody;
use tokio::time::timeout;
use weft_proto::service::{Protocol, ServiceName};

use super::{local, named};
use crate::body::Body;
use crate::call::{Destination, End};
use crate::connection::Connection;
use crate::exchange::{self, Outcome};
use crate::forward::bytes::End as Near;
use crate::forward::pipe::Pipe;
use crate::forward::refusal;
use crate::headers::{self, PROBE_HEADER};
use crate::net::Net;
use crate::reject::Reject;
use crate::stream::{Responder, Source};
use crate::table::gateways::Port;
use crate::upgrade::{UPGRADE_HEADER, carried, tell, tell_node};

/// Serves one exchange to its end.
pub(crate) async fn respond_to<N: Net>(connection: Arc<Connection<N>>, request: Request<Source>, responder: Responder) {
    let is_connect = request.method() == Method::CONNECT;
    match (is_connect, request.extensions().get::<h2::ext::Protocol>().is_some()) {
        (true, false) => Box::pin(connect(connection, request, responder)).await,
        (_, upgrade) => exchange(connection, request, responder, upgrade).await,
    }
}

async fn exchange<N: Net>(
    connection: Arc<Connection<N>>,
    request: Request<Source>,
    mut responder: Responder,
    upgrade: bool,
) {
    let core = &connection.core;
    let place = core.enter();
    let (head, mut received) = request.into_parts();
    let (body, received) = match upgrade {
        false => (Body::stream(received), None),
        true => {
            let length = carried(&head.headers).map_or(0, |(_, length)| length);
            let Ok(Some(body)) = timeout(OFFER_TIMEOUT, received.take(length)).await else { return };
            (if body.is_empty() { Body::Empty } else { Body::full(body) }, Some(received))
        }
    };
    let carried = upgrade && head.headers.contains_key(UPGRADE_HEADER);
    let outcome = {
        let mut exchanged = pin!(exchange::http(&connection, &place.hold, head, body));
        poll_fn(|cx| {
            let polled = exchanged.as_mut().poll(cx);
            place.hold.interims.take().into_iter().for_each(|interim| responder.inform(interim));
            match polled {
                Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
                Poll::Pending => responder.poll_gone(cx).map(|()| None),
            }
        })
        .await
    };
    let Some(Outcome { response, tunnel, .. }) = outcome else { return };
    let (mut parts, body) = response.into_parts();
    if connection.is_link() {
        tell_node(&mut parts);
    }
    if carried {
        tell(&mut parts.headers, tunnel.as_ref().map(|tunnel| tunnel.protocol.as_ref()));
    }
    let empty = tunnel.is_none() && body.is_end_stream();
    let Ok(sink) = responder.send(Response::from_parts(parts, ()), empty) else { return };
    if let (Some(tunnel), Some(received)) = (tunnel, received) {
        return Box::pin(tunnel.join(Near::stream(received, sink))).await;
    }
    let mut pipe = if empty { Pipe::ended(body, sink) } else { Pipe::new(body, sink) };
    if let Err(error) = poll_fn(|cx| pipe.poll(cx)).await {
        tracing::trace!(?error, "a response was not sent in full");
    }
}

/// A tunnel: on a link to the link's own service, at the forward proxy to the one that is named, and nowhere else.
async fn connect<N: Net>(connection: Arc<Connection<N>>, request: Request<Source>, responder: Responder) {
    match &connection.destination {
        Destination::Gateway(door) if connection.is_link() => {
            let port = connection.core.shared.table.load().gateways.port(door).cloned();
            enter(connection, (request, responder), port).await;
        }
        _ => tunnel(connection, request, responder).await,
    }
}

/// A stream at a gateway. Its caller is told that it is open before it is known where it leads: only what it sends tells.
async fn enter<N: Net>(
    connection: Arc<Connection<N>>,
    (request, mut responder): (Request<Source>, Responder),
    port: Option<Arc<Port>>,
) {
    let (head, mut received) = request.into_parts();
    let probe = head.headers.contains_key(PROBE_HEADER);
    let port = match port {
        None => return refuse(&mut responder, &mut received, &Reject::NoRoute).await,
        Some(port) if matches!(*port, Port::Http(_)) && !probe => {
            return refuse(&mut responder, &mut received, &Reject::BadRequest(SPEAKS_HTTP)).await;
        }
        Some(port) => port,
    };
    if let Some(near) = tell_open(responder, received, probe).await {
        super::enter(connection, near, port).await;
    }
}

/// Tells the other end that its stream is open; of a probe that is all.
async fn tell_open(mut responder: Responder, mut received: Source, probe: bool) -> Option<Near> {
    let response = Response::new(());
    if probe {
        answer(&mut responder, &mut received, response).await;
        return None;
    }
    let mut sink = responder.send(response, false).ok()?;
    // The caller's node sends nothing before it has heard that the callee is there; neither does a silent callee.
    poll_fn(|cx| sink.poll_flush(cx)).await.ok()?;
    Some(Near::stream(received, sink))
}

async fn tunnel<N: Net>(mut connection: Arc<Connection<N>>, request: Request<Source>, mut responder: Responder) {
    let (head, mut received) = request.into_parts();
    let target = match &connection.destination {
        // An application's connection to a service is one already.
        Destination::Fixed(..) if !connection.is_link() => Err(Reject::Method),
        Destination::Gateway(_) | Destination::Intercepted(_) => Err(Reject::Method),
        Destination::Fixed(service, port) => fixed(&connection, service, *port).map(|protocol| (connection, protocol)),
        Destination::Named => {
            let asked = head.uri.authority().ok_or(Reject::BadRequest("CONNECT names HOST:PORT"));
            asked.and_then(|asked| named::target(&connection, asked.host(), asked.port_u16()))
        }
    };
    let protocol;
    (connection, protocol) = match target {
        Ok(target) => target,
        Err(reject) => return refuse(&mut responder, &mut received, &reject).await,
    };
    let from_node = connection.end() == End::Callee;
    let probe = from_node && head.headers.contains_key(PROBE_HEADER);
    if let Some(client) = headers::client(&head.headers).filter(|_| from_node) {
        connection = connection.on_behalf_of(client);
    }
    if from_node && !probe && !matches!(protocol, Protocol::Tcp | Protocol::Auto) {
        // Fields that only Weft sets would be the other end's.
        return refuse(&mut responder, &mut received, &Reject::BadRequest(SPEAKS_HTTP)).await;
    }
    let open = async {
        match probe {
            true => local::probe(&connection).await,
            false => local::open(&connection, protocol).await,
        }
    };
    let opened = tokio::select! {
        biased;
        opened = open => opened,
        () = poll_fn(|cx| responder.poll_gone(cx)) => return,
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(reject) => return refuse(&mut responder, &mut received, &reject).await,
    };
    if let Some(near) = tell_open(responder, received, probe).await {
        local::serve_opened(connection, near, protocol, opened).await;
    }
}

async fn refuse(responder: &mut Responder, received: &mut Source, reject: &Reject) {
    let (mut parts, _) = refusal::response(reject, http::Version::HTTP_2, false, true).into_parts();
    // The text stays here.
    parts.headers.remove(CONTENT_LENGTH);
    answer(responder, received, Response::from_parts(parts, ())).await;
}

/// Answers without a stream. The other end's half is kept until it has seen the answer: let go before, it would be reset
/// in front of it.
async fn answer(responder: &mut Responder, received: &mut Source, response: Response<()>) {
    let Ok(mut sink) = responder.send(response, true) else { return };
    let _ = poll_fn(|cx| sink.poll_flush(cx)).await;
    let ended = async { while let Ok(Some(_)) = poll_fn(|cx| received.poll_bytes(cx, 0)).await {} };
    let _ = timeout(ANSWER_TIMEOUT, ended).await;
}

/// What the port speaks: at the callee's node as its instance declares it.
fn fixed<N: Net>(connection: &Connection<N>, service: &ServiceName, port: u16) -> Result<Protocol, Reject> {
    let table = connection.core.shared.table.load();
    let service = table.service(service).ok_or_else(|| Reject::UnknownHost(service.host()))?;
    let known = service.declared(port).or_else(|| service.port(port).map(|port| port.protocol));
    known.ok_or_else(|| Reject::UnknownPort(format!("{} has no port {port}", service.name)))
}

const SPEAKS_HTTP: &str = "the port speaks HTTP, and takes no opaque streams";
/// Bound on the body of a request that offers an upgrade, which is at most 64 KiB.
const OFFER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the other end may take to see that a stream was refused.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
