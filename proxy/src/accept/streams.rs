//! Exchanges that come on streams, of HTTP/2 or of QUIC.

use std::future::poll_fn;
use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use http_body::Body as HttpBody;

use super::{Connection, Destination, named};
use crate::body::Body;
use crate::exchange::{self, Outcome};
use crate::forward::bytes::End as Near;
use crate::forward::pipe::Pipe;
use crate::net::Net;
use crate::reject::Reject;
use crate::stream::{Responder, Source};

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
    let worker = &connection.worker;
    let place = worker.holds.enter(&worker.recorder);
    let (head, received) = request.into_parts();
    let (body, received) = if upgrade { (Body::Empty, Some(received)) } else { (Body::request(received), None) };
    let outcome = tokio::select! {
        biased;
        outcome = exchange::http(&connection, &place.hold, head, body) => outcome,
        () = poll_fn(|cx| responder.poll_gone(cx)) => return,
    };
    let Outcome { response, tunnel } = outcome;
    let (parts, body) = response.into_parts();
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

/// An opaque stream: on a link to the link's own service, at the forward proxy to the one that is named.
async fn connect<N: Net>(mut connection: Arc<Connection<N>>, request: Request<Source>, mut responder: Responder) {
    let refuse = async |responder: &mut Responder, reject: &Reject| {
        let (parts, _) = reject.response(http::Version::HTTP_2, false, true).into_parts();
        if let Ok(mut sink) = responder.send(Response::from_parts(parts, ()), true) {
            let _ = poll_fn(|cx| sink.poll_flush(cx)).await;
        }
    };
    let worker = connection.worker.clone();
    if connection.destination == Destination::Named {
        let authority = request.uri().authority().cloned();
        let target = authority.map(|authority| named::target(&connection, authority.host(), authority.port_u16()));
        let Some(Ok((target, _))) = target else {
            return refuse(&mut responder, &Reject::UnknownHost("what CONNECT names".into())).await;
        };
        connection = target;
    }
    let place = worker.holds.enter(&worker.recorder);
    let opened = tokio::select! {
        biased;
        opened = exchange::stream(&connection, &place.hold, None) => opened,
        () = poll_fn(|cx| responder.poll_gone(cx)) => return,
    };
    match opened {
        Err(reject) => refuse(&mut responder, &reject).await,
        Ok(tunnel) => {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::OK;
            if let Ok(sink) = responder.send(response, false) {
                tunnel.join(Near::stream(request.into_body(), sink)).await;
            }
        }
    }
}
