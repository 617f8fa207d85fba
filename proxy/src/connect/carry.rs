//! What keeps a connection alive and watches for its end, by what it speaks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use h2::client::Builder;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Dialer;
use super::link::Shared;
use super::pulse::{self, Asking, Pulse};
use crate::call::Over;
use crate::limits::{CONNECTION_WINDOW, FRAME_LENGTH_MAX, HEADER_LIST_MAX, STREAM_WINDOW};
use crate::net::Net;
use crate::quic::QuicLink;
use crate::record::metrics::OpenLink;
use crate::stream::Opener;
use crate::tls::Validity;

/// Speaks HTTP/2 on the stream. `validity` is that of the other end's certificate; a stream without one is local.
pub(super) async fn http2<N: Net, S>(
    dialer: &Dialer<N>,
    stream: S,
    validity: Option<Validity>,
) -> io::Result<Arc<Shared>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_LENGTH_MAX)
        .max_header_list_size(HEADER_LIST_MAX)
        .enable_push(false);
    let is_link = validity.is_some();
    if is_link {
        // Bounds against servers that break the rules; the other end of a link is a node of the mesh.
        builder.max_local_error_reset_streams(None);
    }
    let (link, mut connection) = builder.handshake::<_, Bytes>(stream).await.map_err(into_io)?;
    let keepalive = if is_link { connection.ping_pong() } else { None };
    let shared = Shared::new(dialer, Opener::Http2(link), is_link);
    let open = is_link.then(|| OpenLink::out(&dialer.recorder, Over::Tcp));
    let watched = Arc::downgrade(&shared);
    let pulse = shared.pulse.clone();
    tokio::spawn(async move {
        tokio::select! {
            biased;
            ended = connection => drop(ended),
            () = lasts(&pulse, keepalive.map(Asking::Ping), validity) => {}
        }
        if let Some(shared) = watched.upgrade() {
            shared.closed.store(true, Ordering::Relaxed);
        }
        drop(open);
    });
    Ok(shared)
}

/// Exchanges on a QUIC connection, which keeps itself alive.
pub(super) fn quic<N: Net>(dialer: &Dialer<N>, link: QuicLink, validity: Validity) -> Arc<Shared> {
    let shared = Shared::new(dialer, Opener::Quic(link.clone()), true);
    let open = OpenLink::out(&dialer.recorder, Over::Quic);
    let watched = Arc::downgrade(&shared);
    let pulse = shared.pulse.clone();
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = link.closed() => {}
            () = lasts(&pulse, Some(Asking::Datagram(link.clone())), Some(validity.clone())) => link.close(),
            () = link.goodbye() => {
                // Exchanges under way end as they would have.
                if let Some(shared) = watched.upgrade() {
                    shared.closed.store(true, Ordering::Relaxed);
                }
                tokio::select! {
                    biased;
                    () = link.closed() => {}
                    () = validity.over() => link.close(),
                }
            }
        }
        if let Some(shared) = watched.upgrade() {
            shared.closed.store(true, Ordering::Relaxed);
        }
        drop(open);
    });
    shared
}

/// Ends when the other end has stopped answering, or is not trusted any more.
async fn lasts(pulse: &Pulse, asking: Option<Asking>, validity: Option<Validity>) {
    let end = async {
        match validity {
            Some(validity) => validity.over().await,
            None => std::future::pending().await,
        }
    };
    let silence = async {
        match asking {
            Some(asking) => pulse::watch(pulse, asking).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = end => {}
        () = silence => tracing::info!("a link was given up: its other end does not answer"),
    }
}

fn into_io(error: h2::Error) -> io::Error {
    io::Error::other(error)
}
