//! Connections to instances on this host, pooled where they speak HTTP/1.1.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::link::{LinkError, LinkSlot, Way};
use crate::body::Upload;
use crate::net::Net;
use crate::worker::Worker;

/// Where an instance listens, and the connections to it.
#[derive(Debug)]
pub(crate) struct InstanceSlot {
    pub(crate) target: SocketAddr,
    /// Newest last, and the newest is used first.
    idle: Mutex<Vec<Idle>>,
    pub(crate) http2: Arc<LinkSlot>,
}

#[derive(Debug)]
struct Idle {
    sender: SendRequest<Upload>,
    since: Instant,
}

/// A connection on loan. It goes back to the pool when its answer is complete.
#[derive(Debug)]
pub(crate) struct Lease {
    slot: Arc<InstanceSlot>,
    sender: Option<SendRequest<Upload>>,
    idle: Option<Duration>,
}

/// A pooled connection, or a fresh one.
pub(crate) async fn lease<N: Net>(
    worker: &Arc<Worker<N>>,
    slot: &Arc<InstanceSlot>,
    fresh: bool,
    limit: Duration,
) -> Result<Lease, LinkError> {
    if !fresh && let Some((sender, idle)) = slot.take() {
        return Ok(Lease { slot: slot.clone(), sender: Some(sender), idle: Some(idle) });
    }
    Box::pin(dial(worker, slot, limit)).await
}

async fn dial<N: Net>(worker: &Worker<N>, slot: &Arc<InstanceSlot>, limit: Duration) -> Result<Lease, LinkError> {
    let dialled = match timeout(limit, worker.plane.net.dial(slot.target)).await {
        Ok(dialled) => dialled.map_err(|error| LinkError::io(slot.target, &error))?,
        Err(_) => return Err(LinkError::late(slot.target, limit)),
    };
    let mut builder = Builder::new();
    builder.max_header_size(HEADER_LENGTH_MAX);
    let made = builder.handshake(TokioIo::new(dialled)).await;
    let (sender, connection) = made.map_err(|error| LinkError::Unreachable(error.to_string().into()))?;
    tokio::spawn(connection.with_upgrades());
    Ok(Lease { slot: slot.clone(), sender: Some(sender), idle: None })
}

impl InstanceSlot {
    pub(crate) fn new(target: SocketAddr) -> Self {
        Self { target, idle: Mutex::default(), http2: Arc::new(LinkSlot::new(Way::Plain(target))) }
    }

    fn take(&self) -> Option<(SendRequest<Upload>, Duration)> {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            let candidate = &idle[at];
            if candidate.sender.is_closed() || now - candidate.since >= IDLE_TIMEOUT {
                idle.remove(at);
            } else if candidate.sender.is_ready() {
                let taken = idle.remove(at);
                return Some((taken.sender, now - taken.since));
            }
        }
        None
    }

    /// Drops what is of no use any more; true if nothing is left.
    pub(crate) fn sweep(&self) -> bool {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        idle.retain(|idle| !idle.sender.is_closed() && now - idle.since < IDLE_TIMEOUT);
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

    /// The answer is complete: the connection may be used again.
    pub(crate) fn end(&mut self) {
        let Some(sender) = self.sender.take() else { return };
        if sender.is_closed() {
            return;
        }
        let mut idle = self.slot.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push(Idle { sender, since: Instant::now() });
        }
    }
}

/// Most idle connections to one instance.
const IDLE_MAX: usize = 256;
/// How long an idle connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest header section of an answer, in bytes.
const HEADER_LENGTH_MAX: usize = 64 << 10;
