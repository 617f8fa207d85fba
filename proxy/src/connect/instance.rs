//! Connections to instances on this host, pooled where they speak HTTP/1.1.

use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;

use super::Dialer;
use super::answers::{Answers, Heads, under};
use super::link::{LinkError, LinkSlot, Way};
use crate::fields::HEAD_LENGTH_MAX;
use crate::interim::Gate;
use crate::net::{Handle, Net, Stream};
use crate::place::{Dialled, Place};
use crate::table::destinations::Keeping;
use crate::upload::Upload;

/// Where an instance listens, and the connections to it.
#[derive(Debug)]
pub(crate) struct InstanceSlot {
    pub(crate) place: Place,
    /// Newest last, and the newest is used first.
    idle: Mutex<Vec<Idle>>,
    pub(crate) http2: Arc<LinkSlot>,
    /// What is below an upgraded connection.
    under: fn(Upgraded) -> Option<Box<dyn Stream>>,
}

#[derive(Debug)]
struct Idle {
    sender: SendRequest<Upload>,
    heads: Arc<Heads>,
    handle: Option<Handle>,
    since: Instant,
    /// Calls that it has had.
    served: u32,
    /// How long it is kept.
    kept: Duration,
    made: Instant,
}

/// A connection on loan. It goes back to the pool when its answer is complete.
#[derive(Debug)]
pub(crate) struct Lease {
    slot: Arc<InstanceSlot>,
    sender: Option<SendRequest<Upload>>,
    pub(crate) heads: Arc<Heads>,
    handle: Option<Handle>,
    idle: Option<Duration>,
    /// Calls that the connection has had, this one included.
    served: u32,
    made: Instant,
    keeping: Keeping,
    /// Of an upload that may never have been wanted.
    gate: Option<Arc<Gate>>,
}

/// How old a connection may be that was used before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// Any that is still open: what is sent may be sent again.
    Any,
    /// Only one that was used just now: the instance may be about to close others, and what is sent then is lost.
    Young,
    /// None.
    Never,
}

/// A pooled connection, or a fresh one.
pub(crate) async fn lease<N: Net>(
    dialer: &Arc<Dialer<N>>,
    slot: &Arc<InstanceSlot>,
    (reuse, keeping): (Reuse, Keeping),
    limit: Duration,
) -> Result<Lease, LinkError> {
    let age_max = match reuse {
        Reuse::Any => Duration::MAX,
        Reuse::Young => RACE,
        Reuse::Never => Duration::ZERO,
    };
    if let Some((taken, idle)) = slot.take(age_max) {
        let Idle { sender, heads, handle, served, made, .. } = taken;
        let (slot, sender, served) = (slot.clone(), Some(sender), served.saturating_add(1));
        return Ok(Lease { slot, sender, heads, handle, idle: Some(idle), served, made, keeping, gate: None });
    }
    let mut lease = Box::pin(dial(dialer, slot, limit)).await?;
    lease.keeping = keeping;
    Ok(lease)
}

async fn dial<N: Net>(dialer: &Dialer<N>, slot: &Arc<InstanceSlot>, limit: Duration) -> Result<Lease, LinkError> {
    match slot.reach(&dialer.net, limit).await? {
        Dialled::Plain(stream) => begin(slot, stream).await,
        Dialled::Secure(stream) => begin(slot, *stream).await,
    }
}

/// HTTP/1.1 on a new connection.
async fn begin<S: Stream>(slot: &Arc<InstanceSlot>, dialled: S) -> Result<Lease, LinkError> {
    let handle = dialled.handle();
    let mut builder = Builder::new();
    builder.max_header_size(HEAD_LENGTH_MAX);
    let (answers, heads) = Answers::new(dialled);
    let made = builder.handshake(TokioIo::new(answers)).await;
    let (sender, connection) = made.map_err(|error| LinkError::Unreachable(error.to_string().into()))?;
    tokio::spawn(connection.with_upgrades());
    Ok(Lease {
        slot: slot.clone(),
        sender: Some(sender),
        heads,
        handle,
        idle: None,
        served: 1,
        made: Instant::now(),
        keeping: Keeping::default(),
        gate: None,
    })
}

impl InstanceSlot {
    pub(crate) fn new<N: Net>(place: Place) -> Self {
        let http2 = Arc::new(LinkSlot::new(Way::Instance(place.clone())));
        let under = if place.secure.is_some() { under::<TlsStream<N::Stream>> } else { under::<N::Stream> };
        Self { place, idle: Mutex::default(), http2, under }
    }

    /// A new connection, within a bound.
    pub(crate) async fn reach<N: Net>(&self, net: &N, limit: Duration) -> Result<Dialled<N::Stream>, LinkError> {
        match timeout(limit, self.place.dial(net)).await {
            Ok(dialled) => dialled.map_err(|error| LinkError::io(&self.place, &error)),
            Err(_) => Err(LinkError::late(&self.place, limit)),
        }
    }

    /// The one that was used last, and how long ago, if that is less than `age_max`.
    fn take(&self, age_max: Duration) -> Option<(Idle, Duration)> {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            let candidate = &idle[at];
            let age = now - candidate.since;
            if candidate.sender.is_closed() || age >= candidate.kept {
                idle.remove(at);
            } else if age >= age_max {
                return None;
            } else if candidate.sender.is_ready() {
                let taken = idle.remove(at);
                if !taken.handle.as_ref().is_some_and(|handle| handle.is_spent()) {
                    return Some((taken, age));
                }
            }
        }
        None
    }

    /// Drops what is of no use any more; true if nothing is left.
    pub(crate) fn sweep(&self) -> bool {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        idle.retain(|idle| !idle.sender.is_closed() && now - idle.since < idle.kept);
        idle.is_empty() && self.http2.sweep()
    }
}

impl Lease {
    /// How long the connection had been idle; none if it is new.
    pub(crate) fn idle(&self) -> Option<Duration> {
        self.idle
    }

    pub(crate) fn sender(&mut self) -> &mut SendRequest<Upload> {
        self.sender.as_mut().expect("a lease has its connection until its answer is complete")
    }

    /// The answer's head is there. The connection can't be used again where the request's body was not wanted.
    pub(crate) fn keep_gate(&mut self, gate: Arc<Gate>) {
        self.gate = Some(gate);
    }

    /// What is below the connection, which has been upgraded.
    pub(crate) fn unwrap(&self, upgraded: Upgraded) -> Result<Box<dyn Stream>, String> {
        (self.slot.under)(upgraded).ok_or_else(|| "the upgraded connection is not the one that was made".to_owned())
    }

    /// The answer is complete: the connection may be used again.
    pub(crate) fn end(&mut self) {
        let Some(sender) = self.sender.take() else { return };
        if sender.is_closed() || self.gate.as_ref().is_some_and(|gate| gate.is_shut()) {
            return;
        }
        if self.keeping.requests_max.is_some_and(|most| self.served >= most) {
            return;
        }
        let (now, made) = (Instant::now(), self.made);
        if self.keeping.age.is_some_and(|age| now - made >= age) {
            return;
        }
        let mut idle = self.slot.idle.lock();
        if idle.len() < IDLE_MAX {
            let (heads, handle, served) = (self.heads.clone(), self.handle.take(), self.served);
            let kept = self.keeping.idle.unwrap_or(IDLE_TIMEOUT);
            idle.push(Idle { sender, heads, handle, since: now, served, kept, made });
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Else the connection would wait for the rest of the request.
        if let Some(gate) = self.gate.take() {
            gate.abandon();
        }
    }
}

/// Idle time from which on a connection may be on the point of being closed by the instance.
pub(crate) const RACE: Duration = Duration::from_millis(100);
/// Most idle connections to one instance.
const IDLE_MAX: usize = 256;
/// How long an idle connection is kept, unless set.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
