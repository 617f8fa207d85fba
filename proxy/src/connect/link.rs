//! Connections that carry many exchanges at once: links to other nodes, and HTTP/2 to instances.
//!
//! A dialer keeps few of them for each pair of identities, and opens them one at a time however many wait.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use weft_proto::identity::Identity;

use super::Dialer;
use super::pulse::Pulse;
use super::transport::Transports;
use crate::net::Net;
use crate::place::Place;
use crate::stream::Opener;
use crate::tls::TlsError;

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
        /// What it is reached over.
        transports: Transports,
    },
    /// To an instance on this host, or to a host outside the mesh.
    Instance(Place),
}

/// The connections of one way.
#[derive(Debug)]
pub(crate) struct LinkSlot {
    pub(super) way: Way,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    links: Vec<Arc<Shared>>,
    opening: Option<watch::Receiver<Opening>>,
    /// The first choice did not connect and the second one did: until then the second is the first.
    swapped_until: Option<Instant>,
}

type Opening = Option<Result<(), LinkError>>;

/// A connection.
#[derive(Debug)]
pub(super) struct Shared {
    opener: Opener,
    exchanges: AtomicUsize,
    pub(super) closed: AtomicBool,
    pub(super) pulse: Arc<Pulse>,
    retires: Instant,
    is_link: bool,
}

/// An exchange's share of a connection.
#[derive(Debug)]
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    opener: Opener,
    /// Whether the answer has not begun.
    waiting: bool,
    /// Whether the connection was waited for.
    new: bool,
}

/// Why a connection could not be made.
#[derive(Debug, Clone)]
pub(crate) enum LinkError {
    /// This node does not hold the caller's certificate.
    NoCertificate(Arc<str>),
    /// The instance of this node does not serve the port.
    NoInstance,
    /// Anything else.
    Unreachable(Arc<str>),
}

enum Taken {
    Ticket(Ticket),
    Wait(watch::Receiver<Opening>),
}

/// A share of a connection, which is opened if need be.
pub(crate) async fn ticket<N: Net>(
    dialer: &Arc<Dialer<N>>,
    slot: &Arc<LinkSlot>,
    limit: Duration,
) -> Result<Ticket, LinkError> {
    for waits in 0..OPENINGS_MAX {
        let mut opening = match slot.take(dialer, limit) {
            Taken::Ticket(mut ticket) => {
                ticket.new = waits > 0;
                return Ok(ticket);
            }
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

    /// Takes no new exchanges on what is open; those under way end as they would have.
    pub(crate) fn retire(&self) {
        self.state.lock().links.drain(..).for_each(|link| link.closed.store(true, Ordering::Relaxed));
    }

    /// Whether the second choice is the first at the moment.
    pub(super) fn is_swapped(&self) -> bool {
        self.state.lock().swapped_until.is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn swap(&self, until: Option<Instant>) {
        self.state.lock().swapped_until = until;
    }

    fn take<N: Net>(self: &Arc<Self>, dialer: &Arc<Dialer<N>>, limit: Duration) -> Taken {
        let mut state = self.state.lock();
        let now = if state.links.is_empty() { None } else { Some(Instant::now()) };
        state.links.retain(|link| now.is_some_and(|now| link.usable(now)));
        loop {
            let best = state.links.iter().min_by_key(|link| link.exchanges.load(Ordering::Relaxed));
            let Some(best) = best else {
                return Taken::Wait(state.opening.get_or_insert_with(|| self.open(dialer, limit)).clone());
            };
            let busy = best.exchanges.load(Ordering::Relaxed) >= EXCHANGES_BUSY;
            let Some(ticket) = best.ticket() else {
                state.links.retain(|link| !link.closed.load(Ordering::Relaxed));
                continue;
            };
            if busy && state.links.len() < LINKS_MAX && state.opening.is_none() {
                state.opening = Some(self.open(dialer, limit));
            }
            return Taken::Ticket(ticket);
        }
    }

    /// Opens one in a task of its own, so that the exchange that asked first may give up without failing the others.
    fn open<N: Net>(self: &Arc<Self>, dialer: &Arc<Dialer<N>>, limit: Duration) -> watch::Receiver<Opening> {
        let (sender, receiver) = watch::channel(None);
        let (slot, dialer) = (self.clone(), dialer.clone());
        tokio::spawn(async move {
            let opened = match timeout(limit, slot.connect(&dialer)).await {
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
                    dialer.recorder.links.out_failed.fetch_add(1, Ordering::Relaxed);
                    Err(error)
                }
            };
            drop(state);
            sender.send_replace(Some(result));
        });
        receiver
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // HTTP/2 does the same by itself.
        if let Opener::Quic(link) = &self.opener {
            link.close();
        }
    }
}

impl Shared {
    pub(super) fn new<N: Net>(dialer: &Dialer<N>, opener: Opener, is_link: bool) -> Arc<Self> {
        let age = LINK_AGE_MAX + Duration::from_millis(dialer.recorder.random.below(LINK_AGE_SPREAD_MS) as u64);
        Arc::new(Self {
            opener,
            exchanges: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            pulse: Arc::default(),
            retires: Instant::now() + age,
            is_link,
        })
    }

    fn usable(&self, now: Instant) -> bool {
        !self.closed.load(Ordering::Relaxed) && now < self.retires
    }

    /// A share of it; none if the other end has said goodbye.
    fn ticket(self: &Arc<Self>) -> Option<Ticket> {
        let mut opener = self.opener.clone();
        let closed = match &mut opener {
            Opener::Http2(sender) => {
                matches!(sender.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)))
            }
            Opener::Quic(link) => link.is_closed(),
        };
        if closed {
            self.closed.store(true, Ordering::Relaxed);
            return None;
        }
        self.exchanges.fetch_add(1, Ordering::Relaxed);
        self.pulse.begin();
        Some(Ticket { shared: self.clone(), opener, waiting: true, new: false })
    }
}

impl Ticket {
    /// What to send on.
    pub(crate) fn opener(&mut self) -> &mut Opener {
        &mut self.opener
    }

    /// Whether the connection was waited for.
    pub(crate) fn is_new(&self) -> bool {
        self.new
    }

    /// The answer has begun.
    pub(crate) fn answered(&mut self) {
        if std::mem::take(&mut self.waiting) {
            self.shared.pulse.end(true);
        }
    }

    /// Whether the connection has ended under the exchange.
    pub(crate) fn is_lost(&self) -> bool {
        self.shared.is_link && self.shared.closed.load(Ordering::Relaxed)
    }

    /// Whether the other end is a node.
    pub(crate) fn is_link(&self) -> bool {
        self.shared.is_link
    }

    /// Whether the other end takes extended CONNECT, which it says in its first frame (RFC 8441, 3). On QUIC it does.
    pub(crate) async fn takes_upgrades(&self) -> bool {
        let Opener::Http2(sender) = &self.opener else { return true };
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
        if self.waiting {
            self.shared.pulse.end(false);
        }
    }
}

impl Way {
    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Self::Mutual { address, .. } | Self::Instance(Place { address, .. }) => *address,
        }
    }
}

impl LinkError {
    pub(crate) fn io(address: impl Display, error: &io::Error) -> Self {
        Self::Unreachable(format!("{address}: {error}").into())
    }

    pub(super) fn tls(error: &TlsError) -> Self {
        match error {
            TlsError::NoCertificate(_) => Self::NoCertificate(error.to_string().into()),
            other => Self::Unreachable(other.to_string().into()),
        }
    }

    /// Both choices have failed.
    pub(super) fn and(&self, other: &Self) -> Self {
        let why = |error: &Self| match error {
            Self::NoCertificate(why) | Self::Unreachable(why) => why.clone(),
            Self::NoInstance => "no instance".into(),
        };
        Self::Unreachable(format!("{}; {}", why(self), why(other)).into())
    }

    pub(crate) fn late(address: impl Display, limit: Duration) -> Self {
        Self::Unreachable(format!("{address}: no connection within {} ms", limit.as_millis()).into())
    }
}

/// Connections of one way in a dialer.
const LINKS_MAX: usize = 2;
/// Exchanges on a link beyond which a second one is opened.
const EXCHANGES_BUSY: usize = 100;
/// How often a wait for a link ends in a new wait.
const OPENINGS_MAX: usize = 3;
/// Age at which a link takes no new exchanges, so that renewed certificates come into use well before the old ones end.
const LINK_AGE_MAX: Duration = Duration::from_hours(1);
/// Links retire spread over this many milliseconds.
const LINK_AGE_SPREAD_MS: usize = 300_000;
/// How often the other end's first frame is looked for, and how long each time.
const SETTINGS_WAITS_MAX: usize = 200;
const SETTINGS_WAIT: Duration = Duration::from_millis(5);
