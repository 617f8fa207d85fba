//! Serves HTTP/2: links of other nodes, and callers that speak it.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::poll_fn;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as HttpBody;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Connection, Destination, End, named};
use crate::body::Body;
use crate::connect::link::{CONNECTION_WINDOW, FRAME_LENGTH_MAX, HEADER_LENGTH_MAX, STREAM_WINDOW};
use crate::exchange::{self, Outcome};
use crate::forward::bytes::End as Near;
use crate::forward::pipe::Pipe;
use crate::net::Net;
use crate::reject::Reject;

/// Serves a connection until it ends. `ends` is when the other end's certificate does.
pub(crate) async fn serve<N: Net, S>(connection: Arc<Connection<N>>, stream: S, ends: Option<Instant>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let streams_max = match connection.end() {
        End::Caller => CALLER_STREAMS_MAX,
        End::Callee => LINK_STREAMS_MAX,
    };
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_LENGTH_MAX)
        .max_header_list_size(HEADER_LENGTH_MAX)
        .max_concurrent_streams(streams_max)
        .enable_connect_protocol();
    let Ok(Ok(mut serving)) = timeout(HANDSHAKE_TIMEOUT, builder.handshake::<_, Bytes>(stream)).await else { return };
    let mut draining = connection.worker.plane.draining.subscribe();
    let mut leaving = false;
    let mut end = pin!(async move {
        match ends {
            Some(at) => sleep_until(at).await,
            None => pending().await,
        }
    });
    loop {
        tokio::select! {
            biased;
            arrived = serving.accept() => match arrived {
                Some(Ok((request, respond))) => drop(tokio::spawn(respond_to(connection.clone(), request, respond))),
                Some(Err(_)) | None => return,
            },
            _ = draining.wait_for(|draining| *draining), if !leaving => {
                leaving = true;
                serving.graceful_shutdown();
            }
            () = &mut end => return serving.abrupt_shutdown(Reason::NO_ERROR),
        }
    }
}

async fn respond_to<N: Net>(
    connection: Arc<Connection<N>>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let is_connect = request.method() == Method::CONNECT;
    match (is_connect, request.extensions().get::<h2::ext::Protocol>().is_some()) {
        (true, false) => connect(connection, request, respond).await,
        (_, upgrade) => exchange(connection, request, respond, upgrade).await,
    }
}

async fn exchange<N: Net>(
    connection: Arc<Connection<N>>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    upgrade: bool,
) {
    let worker = &connection.worker;
    let place = worker.holds.enter(&worker.recorder);
    let (head, received) = request.into_parts();
    let (body, received) = if upgrade { (Body::Empty, Some(received)) } else { (Body::http2(received), None) };
    let outcome = tokio::select! {
        biased;
        outcome = exchange::http(&connection, &place.hold, head, body) => outcome,
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    let Outcome { response, tunnel } = outcome;
    let (parts, body) = response.into_parts();
    let empty = tunnel.is_none() && body.is_end_stream();
    let Ok(stream) = respond.send_response(Response::from_parts(parts, ()), empty) else { return };
    if let (Some(tunnel), Some(received)) = (tunnel, received) {
        return tunnel.join(Near::http2(received, stream)).await;
    }
    if !empty {
        let mut pipe = Pipe::new(body, stream);
        if let Err(error) = poll_fn(|cx| pipe.poll(cx)).await {
            tracing::trace!(?error, "a response was not sent in full");
        }
    }
}

/// An opaque stream: on a link to the link's own service, at the forward proxy to the one that is named.
async fn connect<N: Net>(
    mut connection: Arc<Connection<N>>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let refuse = |respond: &mut SendResponse<Bytes>, reject: &Reject| {
        let (parts, _) = reject.response(http::Version::HTTP_2, false, true).into_parts();
        let _ = respond.send_response(Response::from_parts(parts, ()), true);
    };
    let worker = connection.worker.clone();
    if connection.destination == Destination::Named {
        let authority = request.uri().authority().cloned();
        let target = authority.map(|authority| named::target(&connection, authority.host(), authority.port_u16()));
        let Some(Ok((target, _))) = target else {
            return refuse(&mut respond, &Reject::UnknownHost("what CONNECT names".into()));
        };
        connection = target;
    }
    let place = worker.holds.enter(&worker.recorder);
    let opened = tokio::select! {
        biased;
        opened = exchange::stream(&connection, &place.hold, None) => opened,
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    match opened {
        Err(reject) => refuse(&mut respond, &reject),
        Ok(tunnel) => {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::OK;
            if let Ok(stream) = respond.send_response(response, false) {
                tunnel.join(Near::http2(request.into_body(), stream)).await;
            }
        }
    }
}

/// Exchanges at once on a caller's connection, and on a link.
const CALLER_STREAMS_MAX: u32 = 256;
const LINK_STREAMS_MAX: u32 = 1024;
/// Bound on the first frames.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
