//! Serves HTTP/1.1.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Connection, Destination, named};
use crate::body::Body;
use crate::exchange::{self, Outcome, Tracked};
use crate::forward::bytes::End as Near;
use crate::net::Net;
use crate::revoke::Place;

/// Serves a connection until it ends or the node drains.
pub(crate) async fn serve<N: Net, S>(connection: Arc<Connection<N>>, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let worker = connection.worker.clone();
    // One exchange at a time has the place of the connection.
    let place = Arc::new(worker.holds.enter(&worker.recorder));
    let service = hyper::service::service_fn(move |request| {
        let (connection, place) = (connection.clone(), place.clone());
        async move { Ok::<_, Infallible>(respond(connection, place, request).await) }
    });
    let serving = builder().serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut serving = pin!(serving);
    let mut draining = worker.plane.draining.subscribe();
    tokio::select! {
        biased;
        _ = serving.as_mut() => return,
        _ = draining.wait_for(|draining| *draining) => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_header_size(HEADER_LENGTH_MAX)
        .auto_date_header(false)
        .pipeline_flush(false);
    builder
}

async fn respond<N: Net>(
    connection: Arc<Connection<N>>,
    place: Arc<Place>,
    mut request: Request<Incoming>,
) -> Response<Tracked> {
    if request.method() == Method::CONNECT {
        return tunnel(&connection, request);
    }
    let upgrades = request.headers().contains_key(http::header::UPGRADE);
    let upgrade = upgrades.then(|| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let Outcome { response, tunnel } = exchange::http(&connection, &place.hold, head, Body::http1(body)).await;
    if let (Some(tunnel), Some(upgrade)) = (tunnel, upgrade) {
        tokio::spawn(async move {
            if let Ok(upgraded) = upgrade.await {
                tunnel.join(Near::io(TokioIo::new(upgraded))).await;
            }
            drop(place);
        });
    }
    response
}

/// `CONNECT` to a forward proxy: what follows is the service's own protocol.
fn tunnel<N: Net>(connection: &Arc<Connection<N>>, mut request: Request<Incoming>) -> Response<Tracked> {
    if connection.destination != Destination::Named {
        return text(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is taken by the forward proxy only\n".into());
    }
    let authority = request.uri().authority().map(|authority| (authority.host().to_owned(), authority.port_u16()));
    let Some((host, port)) = authority else {
        return text(StatusCode::BAD_REQUEST, "CONNECT names HOST:PORT\n".into());
    };
    match named::target(connection, &host, port) {
        Err(why) => text(StatusCode::BAD_GATEWAY, why),
        Ok((connection, protocol)) => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                if let Ok(upgraded) = upgrade.await {
                    super::local::serve(connection, TokioIo::new(upgraded), protocol).await;
                }
            });
            text(StatusCode::OK, String::new())
        }
    }
}

fn text(status: StatusCode, text: String) -> Response<Tracked> {
    let mut response = Response::new(Tracked::text(text));
    *response.status_mut() = status;
    response
}

/// How long a head may take to arrive, and a connection may be idle before it.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest header section, in bytes; longer ones are answered with 431.
const HEADER_LENGTH_MAX: usize = 64 << 10;
