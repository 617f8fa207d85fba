//! Serves HTTP/2: links of other nodes, and callers that speak it.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Connection, End, streams};
use crate::connect::link::{CONNECTION_WINDOW, FRAME_LENGTH_MAX, HEADER_LENGTH_MAX, STREAM_WINDOW};
use crate::net::Net;
use crate::stream::{Responder, Source};

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
                Some(Ok((request, respond))) => {
                    let (request, responder) = (request.map(Source::Http2), Responder::Http2(respond));
                    tokio::spawn(Box::pin(streams::respond_to(connection.clone(), request, responder)));
                }
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

/// Exchanges at once on a caller's connection, and on a link.
const CALLER_STREAMS_MAX: u32 = 256;
const LINK_STREAMS_MAX: u32 = 1024;
/// Bound on the first frames.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
