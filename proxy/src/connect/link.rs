//! Connections that carry many exchanges at once: links to other nodes, and HTTP/2 to instances.
//!
//! A worker keeps few of them for each pair of identities, and opens them one at a time however many wait.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::poll_fn;
use h2::client::{Builder, SendRequest};
use h2::{Ping, PingPong};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use weft_proto::identity::Identity;

use crate::net::Net;
use crate::record::Recorder;
use crate::tls::{self, ALPN_H2, TlsError};
use crate::worker::Worker;

/// How a connection is made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// Mutual TLS with a node, from one service to another.
    Mutual {
        /// Whose certificate is shown.
        from: Identity,
        /// Whose is demanded.
        to: Identity,
        /// The service and port that are asked for.
        server_name: Box<str>,
        /// The node.
        address: SocketAddr,
    },
    /// Plain TCP to an instance on this host.
    Plain(SocketAddr),
}

/// The connections of one way.
#[derive(Debug)]
pub(crate) struct LinkSlot {
    way: Way,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    links: Vec<Arc<Shared>>,
    opening: Option<watch::Receiver<Opening>>,
}

type Opening = Option<Result<(), LinkError>>;

/// What exchanges are sent on.
#[derive(Debug)]
pub(crate) enum Link {
    /// HTTP/2 over TCP.
    Http2(SendRequest<Bytes>),
}

#[derive(Debug)]
struct Shared {
    link: Link,
    exchanges: AtomicUsize,
    closed: AtomicBool,
    retires: Instant,
}

/// An exchange's share of a connection.
#[derive(Debug)]
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    link: Link,
}

/// Why a connection could not be made.
#[derive(Debug, Clone)]
pub(crate) enum LinkError {
    /// This node does not hold the caller's certificate.
    NoCertificate(Arc<str>),
    /// Anything else.
    Unreachable(Arc<str>),
}

enum Taken {
    Ticket(Ticket),
    Wait(watch::Receiver<Opening>),
}

/// A share of a connection, which is opened if need be.
pub(crate) async fn ticket<N: Net>(
    worker: &Arc<Worker<N>>,
    slot: &Arc<LinkSlot>,
    limit: Duration,
) -> Result<Ticket, LinkError> {
    for _ in 0..OPENINGS_MAX {
        let mut opening = match slot.take(worker, limit) {
            Taken::Ticket(ticket) => return Ok(ticket),
            Taken::Wait(opening) => opening,
        };
        let opened = opening.wait_for(Option::is_some).await.map(|opened| opened.clone());
        if let Ok(Some(Err(error))) = opened {
            return Err(error);
        }
    }
    Err(LinkError::Unreachable("links closed as soon as they were open".into()))
}

impl LinkSlot {
    pub(crate) fn new(way: Way) -> Self {
        Self { way, state: Mutex::default() }
    }

    /// Drops what has ended; true if nothing is left.
    pub(crate) fn sweep(&self) -> bool {
        let mut state = self.state.lock();
        state.links.retain(|link| link.usable(Instant::now()));
        state.links.is_empty() && state.opening.is_none()
    }

    fn take<N: Net>(self: &Arc<Self>, worker: &Arc<Worker<N>>, limit: Duration) -> Taken {
        let mut state = self.state.lock();
        let now = if state.links.is_empty() { None } else { Some(Instant::now()) };
        state.links.retain(|link| now.is_some_and(|now| link.usable(now)));
        loop {
            let best = state.links.iter().min_by_key(|link| link.exchanges.load(Ordering::Relaxed));
            let Some(best) = best else {
                return Taken::Wait(state.opening.get_or_insert_with(|| self.open(worker, limit)).clone());
            };
            let busy = best.exchanges.load(Ordering::Relaxed) >= EXCHANGES_BUSY;
            let Some(ticket) = best.ticket() else {
                state.links.retain(|link| !link.closed.load(Ordering::Relaxed));
                continue;
            };
            if busy && state.links.len() < LINKS_MAX && state.opening.is_none() {
                state.opening = Some(self.open(worker, limit));
            }
            return Taken::Ticket(ticket);
        }
    }

    /// Opens one in a task of its own, so that the exchange that asked first may give up without failing the others.
    fn open<N: Net>(self: &Arc<Self>, worker: &Arc<Worker<N>>, limit: Duration) -> watch::Receiver<Opening> {
        let (sender, receiver) = watch::channel(None);
        let (slot, worker) = (self.clone(), worker.clone());
        tokio::spawn(async move {
            let opened = match timeout(limit, connect(&worker, &slot.way)).await {
                Ok(opened) => opened,
                Err(_) => Err(LinkError::late(slot.way.address(), limit)),
            };
            let mut state = slot.state.lock();
            state.opening = None;
            let result = match opened {
                Ok(shared) => {
                    state.links.push(shared);
                    Ok(())
                }
                Err(error) => {
                    worker.recorder.links.out_failed.fetch_add(1, Ordering::Relaxed);
                    Err(error)
                }
            };
            drop(state);
            sender.send_replace(Some(result));
        });
        receiver
    }
}

impl Shared {
    fn usable(&self, now: Instant) -> bool {
        !self.closed.load(Ordering::Relaxed) && now < self.retires
    }

    /// A share of it; none if the other end has said goodbye.
    fn ticket(self: &Arc<Self>) -> Option<Ticket> {
        let Link::Http2(sender) = &self.link;
        let mut sender = sender.clone();
        if let Poll::Ready(Err(_)) = sender.poll_ready(&mut Context::from_waker(Waker::noop())) {
            self.closed.store(true, Ordering::Relaxed);
            return None;
        }
        self.exchanges.fetch_add(1, Ordering::Relaxed);
        Some(Ticket { shared: self.clone(), link: Link::Http2(sender) })
    }
}

impl Ticket {
    /// What to send on.
    pub(crate) fn link(&mut self) -> &mut Link {
        &mut self.link
    }

    /// Whether the other end takes extended CONNECT, which it says in its first frame (RFC 8441, 3).
    pub(crate) async fn takes_upgrades(&self) -> bool {
        let Link::Http2(sender) = &self.link;
        for _ in 0..SETTINGS_WAITS_MAX {
            if sender.is_extended_connect_protocol_enabled() {
                return true;
            }
            sleep(SETTINGS_WAIT).await;
        }
        false
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.exchanges.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Way {
    fn address(&self) -> SocketAddr {
        match self {
            Self::Mutual { address, .. } | Self::Plain(address) => *address,
        }
    }
}

impl LinkError {
    pub(crate) fn io(address: SocketAddr, error: &io::Error) -> Self {
        Self::Unreachable(format!("{address}: {error}").into())
    }

    pub(crate) fn late(address: SocketAddr, limit: Duration) -> Self {
        Self::Unreachable(format!("{address}: no connection within {} ms", limit.as_millis()).into())
    }
}

async fn connect<N: Net>(worker: &Arc<Worker<N>>, way: &Way) -> Result<Arc<Shared>, LinkError> {
    let address = way.address();
    let fail = |error: io::Error| LinkError::io(address, &error);
    let Way::Mutual { from, to, server_name, .. } = way else {
        let stream = worker.plane.net.dial(address).await.map_err(fail)?;
        return http2(worker, stream, None).await.map_err(fail);
    };
    let config = worker.plane.identities.client_config(from, to, &[ALPN_H2]).map_err(|error| match error {
        TlsError::NoCertificate(_) => LinkError::NoCertificate(error.to_string().into()),
        other => LinkError::Unreachable(other.to_string().into()),
    })?;
    let name = ServerName::try_from(server_name.to_string()).expect("links are named by host names");
    let stream = worker.plane.net.dial(address).await.map_err(fail)?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(fail)?;
    let session = stream.get_ref().1;
    if session.alpn_protocol() != Some(ALPN_H2) {
        return Err(fail(io::Error::other("it does not speak HTTP/2 on links")));
    }
    let expires = tls::expiry(session.peer_certificates().unwrap_or_default());
    let ends = worker.plane.instant(expires.unwrap_or(0));
    http2(worker, stream, Some(ends)).await.map_err(fail)
}

/// Speaks HTTP/2 on the stream. `ends` is when the other end's certificate does; a stream without one is local.
async fn http2<N: Net, S>(worker: &Worker<N>, stream: S, ends: Option<Instant>) -> io::Result<Arc<Shared>>
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
    let (link, mut connection) = builder.handshake::<_, Bytes>(stream).await.map_err(into_io)?;
    let keepalive = ends.and_then(|_| connection.ping_pong());
    let age = LINK_AGE_MAX + Duration::from_millis(worker.recorder.random.below(LINK_AGE_SPREAD_MS) as u64);
    let shared = Arc::new(Shared {
        link: Link::Http2(link),
        exchanges: AtomicUsize::new(0),
        closed: AtomicBool::new(false),
        retires: Instant::now() + age,
    });
    let open = ends.map(|_| OpenCount::new(&worker.recorder));
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

/// Counts a link as open while it is.
struct OpenCount(Arc<Recorder>);

impl OpenCount {
    fn new(recorder: &Arc<Recorder>) -> Self {
        recorder.links.out_total.fetch_add(1, Ordering::Relaxed);
        recorder.links.out_open.fetch_add(1, Ordering::Relaxed);
        Self(recorder.clone())
    }
}

impl Drop for OpenCount {
    fn drop(&mut self) {
        let open: &AtomicU64 = &self.0.links.out_open;
        open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn into_io(error: h2::Error) -> io::Error {
    io::Error::other(error)
}

/// Connections of one way in a worker.
const LINKS_MAX: usize = 2;
/// Exchanges on a link beyond which a second one is opened.
const EXCHANGES_BUSY: usize = 100;
/// How often a wait for a link ends in a new wait.
const OPENINGS_MAX: usize = 3;
/// Bytes that may be under way on one stream.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
/// Bytes that may be under way on one link.
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;
/// Longest frame, in bytes.
pub(crate) const FRAME_LENGTH_MAX: u32 = 64 << 10;
/// Longest header section, in bytes.
pub(crate) const HEADER_LENGTH_MAX: u32 = 64 << 10;
/// How often a link is asked whether it still answers.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// How long it may take to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Age at which a link takes no new exchanges, so that renewed certificates come into use well before the old ones end.
const LINK_AGE_MAX: Duration = Duration::from_hours(1);
/// Links retire spread over this many milliseconds.
const LINK_AGE_SPREAD_MS: usize = 300_000;
/// How often the other end's first frame is looked for, and how long each time.
const SETTINGS_WAITS_MAX: usize = 200;
const SETTINGS_WAIT: Duration = Duration::from_millis(5);
