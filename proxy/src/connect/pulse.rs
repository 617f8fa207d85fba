//! Whether the other end of a link still lives. A link on which an exchange waits is asked soon: a host that vanishes says
//! nothing, and TCP would go on for minutes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::poll_fn;
use h2::{Ping, PingPong};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::quic::QuicLink;

/// What the exchanges of a link tell its watcher.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// Exchanges whose answer has not begun.
    waiting: AtomicUsize,
    /// Answers that have begun.
    answers: AtomicUsize,
    /// Whether the watcher looks often.
    watched: AtomicBool,
    wake: Notify,
}

impl Pulse {
    /// An exchange begins to wait.
    pub(super) fn begin(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if !self.watched.load(Ordering::Relaxed) && !self.watched.swap(true, Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    /// It waits no more.
    pub(super) fn end(&self, answered: bool) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if answered {
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Asks the other end.
pub(super) enum Asking {
    /// By a PING of HTTP/2.
    Ping(PingPong),
    /// By a datagram, which has to be acknowledged; the connection keeps itself alive while nobody waits.
    Datagram(QuicLink),
}

impl Asking {
    /// Whether an answer comes in time. A process that was itself not run for so long asks again.
    async fn answers(&mut self) -> bool {
        for _ in 0..ASKED_MAX {
            let began = Instant::now();
            if self.answers_once().await {
                return true;
            }
            if began.elapsed() < ANSWER_TIMEOUT + LATE {
                return false;
            }
        }
        false
    }

    async fn answers_once(&mut self) -> bool {
        match self {
            Self::Ping(pings) => {
                // One that is still under way is waited for.
                let _ = pings.send_ping(Ping::opaque());
                let pong = timeout(ANSWER_TIMEOUT, poll_fn(|cx| pings.poll_pong(cx))).await;
                matches!(pong, Ok(Ok(_)))
            }
            Self::Datagram(link) => {
                let before = link.datagrams_received();
                link.ask();
                let began = Instant::now();
                while began.elapsed() < ANSWER_TIMEOUT {
                    sleep(ANSWER_LOOK).await;
                    if link.datagrams_received() > before {
                        return true;
                    }
                }
                false
            }
        }
    }

    /// Whether a link is asked while nobody waits on it.
    fn when_idle(&self) -> bool {
        matches!(self, Self::Ping(_))
    }
}

/// Ends when the other end does not answer any more.
pub(super) async fn watch(pulse: &Pulse, mut asking: Asking) {
    loop {
        if pulse.waiting.load(Ordering::Relaxed) == 0 {
            pulse.watched.store(false, Ordering::Relaxed);
            let woken = timeout(IDLE_ASK, pulse.wake.notified()).await.is_ok();
            if !woken && asking.when_idle() && !asking.answers().await {
                return;
            }
            continue;
        }
        let before = pulse.answers.load(Ordering::Relaxed);
        sleep(WAITING_LOOK).await;
        let silent = pulse.answers.load(Ordering::Relaxed) == before && pulse.waiting.load(Ordering::Relaxed) > 0;
        if silent && !asking.answers().await {
            return;
        }
    }
}

/// How often a link on which exchanges wait is looked at: it is asked at most two such times after one began to wait.
const WAITING_LOOK: Duration = Duration::from_millis(150);
/// How often a link is asked on which nothing waits.
const IDLE_ASK: Duration = Duration::from_secs(5);
/// How long the answer may take: several round trips around the world.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(800);
/// By how much a timer may be late before this process is taken for the one that was stopped.
const LATE: Duration = Duration::from_millis(400);
/// How often a process that is late itself asks again.
const ASKED_MAX: usize = 3;
const ANSWER_LOOK: Duration = Duration::from_millis(50);
