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
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use weft_proto::identity::NodeName;

use super::packed::Packer;
use super::vet::{self, Gate};
use super::{GossipLink, Verifier};

/// One life's transport: what links bring goes through the gate to chitchat, and its messages out.
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
        let socket: Box<dyn Socket> = Box::new(Counter { post: self.clone(), packer: Packer::new(), asked: None });
        Box::pin(async { Ok(socket) })
    }
}

/// Where chitchat takes messages and gives its own. It takes one after the other, and answers each before it takes the
/// next.
struct Counter {
    post: Post,
    packer: Packer,
    /// Who asked last, and where its answer goes.
    asked: Option<(SocketAddr, oneshot::Sender<Bytes>)>,
}

impl Socket for Counter {
    fn send<'s, 'f>(&'s mut self, to: SocketAddr, message: ChitchatMessage) -> BoxFuture<'f, anyhow::Result<()>>
    where
        's: 'f,
        Self: 'f,
    {
        let message = self.post.gate.lock().leave_out_old(message.serialize_to_vec());
        let answer = self.asked.take_if(|(from, _)| *from == to && vet::answers(&message));
        if let Some((_, answer)) = answer {
            // Who asked may have stopped to wait, and asks again.
            let _ = answer.send(self.packer.pack(&message));
        } else if !vet::says_nothing(&message) {
            self.post.outboxes.send(to, self.packer.pack(&message));
        }
        Box::pin(async { Ok(()) })
    }

    fn recv<'s, 'f>(&'s mut self) -> BoxFuture<'f, anyhow::Result<(SocketAddr, ChitchatMessage)>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async {
            self.asked = None;
            loop {
                let Letter { from, message, answer } = self.post.inbox.next().await;
                let unpacked = self.packer.unpack(&message);
                let admitted = |name: &NodeName| self.post.verifier.admitted(name);
                let vetted = unpacked.and_then(|message| {
                    let asks = vet::asks(&message);
                    Ok((self.post.gate.lock().vet(&message, admitted)?, asks))
                });
                match vetted {
                    Ok((vetted, asks)) => {
                        self.asked = answer.filter(|_| asks).map(|answer| (from, answer));
                        return Ok((from, vetted));
                    }
                    Err(fault) => {
                        metrics::counter!("weft_gossip_refused_total", "reason" => fault.as_str()).increment(1);
                        tracing::debug!(%from, reason = fault.as_str(), "a gossip message was refused");
                    }
                }
            }
        })
    }
}

/// A message that a link brought.
pub(super) struct Letter {
    /// The address that its sender advertises.
    pub(super) from: SocketAddr,
    pub(super) message: Bytes,
    /// Where the sender waits for what is answered; dropped where nothing is.
    pub(super) answer: Option<oneshot::Sender<Bytes>>,
}

/// Messages that links have brought. It outlives the chitchat task that reads it.
pub(super) struct Inbox {
    messages: tokio::sync::Mutex<mpsc::Receiver<Letter>>,
    senders: Mutex<Senders>,
}

#[derive(Default)]
struct Senders {
    last: Option<SocketAddr>,
    shunned: BTreeMap<SocketAddr, Instant>,
}

impl Inbox {
    /// An inbox and the end at which links put messages in.
    pub(super) fn new() -> (mpsc::Sender<Letter>, Self) {
        let (sender, receiver) = mpsc::channel(INBOX_MESSAGES_MAX);
        (sender, Self { messages: tokio::sync::Mutex::new(receiver), senders: Mutex::default() })
    }

    /// The next message of a sender who is not shunned.
    async fn next(&self) -> Letter {
        loop {
            let Some(letter) = self.messages.lock().await.recv().await else {
                return std::future::pending().await;
            };
            let mut senders = self.senders.lock();
            let now = Instant::now();
            senders.shunned.retain(|_, until| now < *until);
            if senders.shunned.contains_key(&letter.from) {
                metrics::counter!("weft_gossip_refused_total", "reason" => "shunned").increment(1);
                continue;
            }
            senders.last = Some(letter.from);
            return letter;
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
    /// Takes what is answered.
    answers: mpsc::Sender<Letter>,
    waiting: Mutex<BTreeMap<SocketAddr, VecDeque<Bytes>>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Outboxes {
    /// Empty outboxes over `link`; what is answered goes to `answers`.
    pub(super) fn new(link: Arc<dyn GossipLink>, answers: mpsc::Sender<Letter>) -> Self {
        Self { link, answers, waiting: Mutex::default(), tasks: Mutex::default() }
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
                Ok(Ok(message)) if message.is_empty() => {}
                Ok(Ok(message)) => {
                    if self.answers.try_send(Letter { from: to, message, answer: None }).is_err() {
                        metrics::counter!("weft_gossip_dropped_total", "direction" => "in").increment(1);
                    }
                }
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
