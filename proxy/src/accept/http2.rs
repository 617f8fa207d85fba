//! Serves HTTP/2: links of other nodes, and callers that speak it.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::streams;
use crate::connection::Connection;
use crate::limits::{CONNECTION_WINDOW, FRAME_LENGTH_MAX, HEADER_LIST_MAX, LINK_STREAMS_MAX, STREAM_WINDOW};
use crate::net::Net;
use crate::stream::{Responder, Source};
use crate::tls::Validity;

/// Serves a connection until it ends. `validity` is that of the other end's certificate.
pub(crate) async fn serve<N: Net, S>(connection: Arc<Connection<N>>, stream: S, validity: Option<Validity>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (streams_max, header_list_max) = match connection.is_link() {
        false => (CALLER_STREAMS_MAX, CALLER_HEADER_LIST_MAX),
        true => (LINK_STREAMS_MAX, HEADER_LIST_MAX),
    };
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_LENGTH_MAX)
        .max_header_list_size(header_list_max)
        .max_concurrent_streams(streams_max)
        .enable_connect_protocol();
    if connection.is_link() {
        // Admitted nodes may give up all that they have asked for at once; the bounds against floods are for strangers.
        builder.max_pending_accept_reset_streams(LINK_RESETS_MAX).max_local_error_reset_streams(None);
    }
    let Ok(Ok(mut serving)) = timeout(HANDSHAKE_TIMEOUT, builder.handshake::<_, Bytes>(stream)).await else { return };
    let mut draining = connection.core.shared.draining.subscribe();
    let mut leaving = false;
    let mut end = pin!(async move {
        match validity {
            Some(validity) => validity.over().await,
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

/// Exchanges at once on a caller's connection.
const CALLER_STREAMS_MAX: u32 = 256;
/// Longest header section of a caller, in bytes as HTTP/2 counts them; longer ones are answered with 431.
const CALLER_HEADER_LIST_MAX: u32 = 64 << 10;
/// Exchanges of a link that may have been given up before they were looked at.
const LINK_RESETS_MAX: usize = 4 * LINK_STREAMS_MAX as usize;
/// Bound on the first frames.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
