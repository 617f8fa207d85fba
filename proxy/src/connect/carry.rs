//! What keeps a connection alive and watches for its end, by what it speaks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::poll_fn;
use h2::client::Builder;
use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::link::{CONNECTION_WINDOW, FRAME_LENGTH_MAX, HEADER_LENGTH_MAX, STREAM_WINDOW, Shared};
use super::transport::Over;
use crate::net::Net;
use crate::quic::QuicLink;
use crate::record::metrics::OpenLink;
use crate::stream::Opener;
use crate::worker::Worker;

/// Speaks HTTP/2 on the stream. `ends` is when the other end's certificate does; a stream without one is local.
pub(super) async fn http2<N: Net, S>(worker: &Worker<N>, stream: S, ends: Option<Instant>) -> io::Result<Arc<Shared>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_LENGTH_MAX)
        .max_header_list_size(HEADER_LENGTH_MAX)
        .enable_push(false);
    if ends.is_some() {
        // Bounds against servers that break the rules; the other end of a link is a node of the mesh.
        builder.max_local_error_reset_streams(None);
    }
    let (link, mut connection) = builder.handshake::<_, Bytes>(stream).await.map_err(into_io)?;
    let keepalive = ends.and_then(|_| connection.ping_pong());
    let shared = Shared::new(worker, Opener::Http2(link), ends.is_some());
    let open = ends.map(|_| OpenLink::out(&worker.recorder, Over::Tcp));
    let watched = Arc::downgrade(&shared);
    tokio::spawn(async move {
        let alive = keep_alive(keepalive, ends);
        tokio::select! {
            biased;
            ended = connection => drop(ended),
            () = alive => {}
        }
        if let Some(shared) = watched.upgrade() {
            shared.closed.store(true, Ordering::Relaxed);
        }
        drop(open);
    });
    Ok(shared)
}

/// Exchanges on a QUIC connection, which keeps itself alive.
pub(super) fn quic<N: Net>(worker: &Worker<N>, link: QuicLink, ends: Instant) -> Arc<Shared> {
    let shared = Shared::new(worker, Opener::Quic(link.clone()), true);
    let open = OpenLink::out(&worker.recorder, Over::Quic);
    let watched = Arc::downgrade(&shared);
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = link.closed() => {}
            () = sleep_until(ends) => link.close(),
            () = link.goodbye() => {
                // Exchanges under way end as they would have.
                if let Some(shared) = watched.upgrade() {
                    shared.closed.store(true, Ordering::Relaxed);
                }
                tokio::select! {
                    biased;
                    () = link.closed() => {}
                    () = sleep_until(ends) => link.close(),
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

/// Ends when the other end has stopped answering, or its certificate ends.
async fn keep_alive(pings: Option<PingPong>, ends: Option<Instant>) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    let end = async move {
        match ends {
            Some(ends) => sleep_until(ends).await,
            None => std::future::pending().await,
        }
    };
    let silence = async move {
        let mut ticks = interval(KEEPALIVE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            if pings.send_ping(Ping::opaque()).is_err() {
                return;
            }
            let answered = timeout(KEEPALIVE_TIMEOUT, poll_fn(|cx| pings.poll_pong(cx))).await;
            if !matches!(answered, Ok(Ok(_))) {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        () = end => {}
        () = silence => {}
    }
}

fn into_io(error: h2::Error) -> io::Error {
    io::Error::other(error)
}

/// How often a link is asked whether it still answers.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// How long it may take to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
