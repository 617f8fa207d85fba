//! chitchat's transport over the node's links: bounded queues in both directions.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Serializable as _};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::vet::Gate;
use super::{GossipLink, Verifier};

/// One life's transport: what links bring goes through the gate to chitchat, and its answers out.
#[derive(Clone)]
pub(super) struct Post {
    pub(super) inbox: Arc<Inbox>,
    pub(super) outboxes: Arc<Outboxes>,
    pub(super) gate: Arc<Mutex<Gate>>,
    pub(super) verifier: Arc<dyn Verifier>,
}

impl Transport for Post {
    fn open<'s, 'f>(&'s self, _listen: SocketAddr) -> BoxFuture<'f, anyhow::Result<Box<dyn Socket>>>
    where
        's: 'f,
        Self: 'f,
    {
        let socket: Box<dyn Socket> = Box::new(self.clone());
        Box::pin(async { Ok(socket) })
    }
}

impl Socket for Post {
    fn send<'s, 'f>(&'s mut self, to: SocketAddr, message: ChitchatMessage) -> BoxFuture<'f, anyhow::Result<()>>
    where
        's: 'f,
        Self: 'f,
    {
        let message = self.gate.lock().leave_out_old(message.serialize_to_vec());
        self.outboxes.send(to, message.into());
        Box::pin(async { Ok(()) })
    }

    fn recv<'s, 'f>(&'s mut self) -> BoxFuture<'f, anyhow::Result<(SocketAddr, ChitchatMessage)>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async {
            loop {
                let (from, bytes) = self.inbox.next().await;
                match self.gate.lock().vet(&bytes, |name| self.verifier.admitted(name)) {
                    Ok(message) => return Ok((from, message)),
                    Err(fault) => {
                        metrics::counter!("weft_gossip_refused_total", "reason" => fault.as_str()).increment(1);
                        tracing::debug!(%from, reason = fault.as_str(), "a gossip message was refused");
                    }
                }
            }
        })
    }
}

/// Messages that links have brought. It outlives the chitchat task that reads it.
pub(super) struct Inbox {
    messages: tokio::sync::Mutex<mpsc::Receiver<(SocketAddr, Bytes)>>,
    senders: Mutex<Senders>,
}

#[derive(Default)]
struct Senders {
    last: Option<SocketAddr>,
    shunned: BTreeMap<SocketAddr, Instant>,
}

impl Inbox {
    /// An inbox and the end at which links put messages in.
    pub(super) fn new() -> (mpsc::Sender<(SocketAddr, Bytes)>, Self) {
        let (sender, receiver) = mpsc::channel(INBOX_MESSAGES_MAX);
        (sender, Self { messages: tokio::sync::Mutex::new(receiver), senders: Mutex::default() })
    }

    /// The next message of a sender who is not shunned.
    async fn next(&self) -> (SocketAddr, Bytes) {
        loop {
            let Some((from, bytes)) = self.messages.lock().await.recv().await else {
                return std::future::pending().await;
            };
            let mut senders = self.senders.lock();
            let now = Instant::now();
            senders.shunned.retain(|_, until| now < *until);
            if senders.shunned.contains_key(&from) {
                metrics::counter!("weft_gossip_refused_total", "reason" => "shunned").increment(1);
                continue;
            }
            senders.last = Some(from);
            return (from, bytes);
        }
    }

    /// Listens no more, for a while, to the sender whose message came last: chitchat died of it.
    pub(super) fn shun_last(&self) -> Option<SocketAddr> {
        let mut senders = self.senders.lock();
        let last = senders.last.take()?;
        if senders.shunned.len() < SHUNNED_MAX {
            senders.shunned.insert(last, Instant::now() + SHUN_TIME);
        }
        Some(last)
    }
}

/// Messages on their way out: one sending task a destination, and few messages behind it.
pub(super) struct Outboxes {
    link: Arc<dyn GossipLink>,
    waiting: Mutex<BTreeMap<SocketAddr, VecDeque<Bytes>>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Outboxes {
    /// Empty outboxes over `link`.
    pub(super) fn new(link: Arc<dyn GossipLink>) -> Self {
        Self { link, waiting: Mutex::default(), tasks: Mutex::default() }
    }

    fn send(self: &Arc<Self>, to: SocketAddr, message: Bytes) {
        let mut waiting = self.waiting.lock();
        if let Some(queue) = waiting.get_mut(&to) {
            if queue.len() == OUTBOX_MESSAGES_MAX {
                queue.pop_front();
                metrics::counter!("weft_gossip_dropped_total", "direction" => "out").increment(1);
            }
            queue.push_back(message);
            return;
        }
        if waiting.len() == DESTINATIONS_MAX {
            metrics::counter!("weft_gossip_dropped_total", "direction" => "out").increment(1);
            return;
        }
        waiting.insert(to, VecDeque::from([message]));
        drop(waiting);
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(Arc::clone(self).empty(to));
    }

    /// Sends what waits for `to`, one after the other, until nothing does.
    async fn empty(self: Arc<Self>, to: SocketAddr) {
        while let Some(message) = self.next(to) {
            match tokio::time::timeout(SEND_TIME_MAX, self.link.send(to, message)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%to, %error, "a gossip message was not sent"),
                Err(_) => tracing::debug!(%to, "a gossip message was not sent in time"),
            }
        }
    }

    fn next(&self, to: SocketAddr) -> Option<Bytes> {
        let mut waiting = self.waiting.lock();
        let message = waiting.get_mut(&to).and_then(VecDeque::pop_front);
        if message.is_none() {
            waiting.remove(&to);
        }
        message
    }

    /// Ends every sending task.
    pub(super) fn close(&self) {
        self.tasks.lock().abort_all();
    }
}

/// Messages that may wait for chitchat; it reads one in well under a millisecond.
const INBOX_MESSAGES_MAX: usize = 256;
/// A gossip message is soon outdated by the next, so few may wait behind the one being sent.
const OUTBOX_MESSAGES_MAX: usize = 4;
/// Above the number of members that a digest has room for.
const DESTINATIONS_MAX: usize = 1024;
const SEND_TIME_MAX: Duration = Duration::from_secs(5);
const SHUN_TIME: Duration = Duration::from_secs(10);
const SHUNNED_MAX: usize = 64;
