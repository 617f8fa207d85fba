//! Informational answers (1xx) on their way to the caller, and what waits for one (RFC 9110, 10.1.1 and 15.2).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use http::{Response, StatusCode};
use parking_lot::Mutex;
use tokio::time::{Sleep, sleep};

/// Informational answers that have come for a caller and are still to be passed on.
#[derive(Debug, Default)]
pub(crate) struct Interims {
    any: AtomicBool,
    waiting: Mutex<Vec<Response<()>>>,
    /// How many have come for the exchange.
    heard: AtomicU32,
}

impl Interims {
    /// Another exchange begins.
    pub(crate) fn begin(&self) {
        self.heard.store(0, Ordering::Relaxed);
    }

    /// One more has come. False where there are more than anybody means.
    pub(crate) fn count(&self) -> bool {
        self.heard.fetch_add(1, Ordering::Relaxed) < HEARD_MAX
    }

    /// Adds one; beyond the bound they are left out.
    pub(crate) fn add(&self, response: Response<()>) {
        let mut waiting = self.waiting.lock();
        if waiting.len() < WAITING_MAX {
            waiting.push(response);
            self.any.store(true, Ordering::Relaxed);
        }
    }

    /// All that have come since.
    pub(crate) fn take(&self) -> Vec<Response<()>> {
        if !self.any.swap(false, Ordering::Relaxed) {
            return Vec::new();
        }
        std::mem::take(&mut *self.waiting.lock())
    }
}

/// Stands in front of the body of a request whose caller waits to be told to send it (`Expect: 100-continue`): not asked
/// for, it is not sent, and the caller is not told to go on.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: AtomicU8,
    task: AtomicWaker,
}

const WAITING: u8 = 0;
const OPEN: u8 = 1;
/// The answer has come, and it was not for the body.
const SHUT: u8 = 2;
/// The exchange is over.
const ABANDONED: u8 = 3;

impl Gate {
    /// The body is wanted. True where it was waited for.
    pub(crate) fn open(&self) -> bool {
        self.turn(&[WAITING], OPEN)
    }

    /// The exchange's answer is there. A refusal does not want the body; what else is answered may come from whoever reads
    /// it at the same time.
    pub(crate) fn answered(&self, status: StatusCode) {
        let _ = self.turn(&[WAITING], if status.is_success() { OPEN } else { SHUT });
    }

    /// Whether the body was never wanted.
    pub(crate) fn is_shut(&self) -> bool {
        self.state.load(Ordering::Acquire) != OPEN
    }

    /// Ends what still waits.
    pub(crate) fn abandon(&self) {
        let _ = self.turn(&[WAITING, SHUT], ABANDONED);
    }

    fn turn(&self, from: &[u8], to: u8) -> bool {
        let turned =
            from.iter().any(|from| self.state.compare_exchange(*from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok());
        if turned {
            self.task.wake();
        }
        turned
    }
}

/// Waits at a gate, and not for ever: a server need not say anything, and then the caller sends all the same.
#[derive(Debug)]
pub(crate) struct AtGate {
    gate: Arc<Gate>,
    patience: Pin<Box<Sleep>>,
}

/// A gate that will not open.
#[derive(Debug)]
pub(crate) struct Abandoned;

impl AtGate {
    pub(crate) fn new() -> Self {
        Self { gate: Arc::default(), patience: Box::pin(sleep(PATIENCE)) }
    }

    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Ready when the body may pass.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Abandoned>> {
        self.gate.task.register(cx.waker());
        match self.gate.state.load(Ordering::Acquire) {
            OPEN => Poll::Ready(Ok(())),
            ABANDONED => Poll::Ready(Err(Abandoned)),
            WAITING if self.patience.as_mut().poll(cx).is_ready() => {
                self.gate.open();
                Poll::Ready(Ok(()))
            }
            _ => Poll::Pending,
        }
    }
}

/// How long a server may take to say that it wants the body, before it is sent unasked; curl waits as long.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most informational answers of one exchange.
const HEARD_MAX: u32 = 1000;
/// Most informational answers that wait for one caller.
const WAITING_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_gate_opens_when_asked_or_after_a_while_and_stays_shut_after_a_refusal() {
        let mut noop = Context::from_waker(std::task::Waker::noop());
        let mut asked = AtGate::new();
        assert!(asked.poll(&mut noop).is_pending());
        assert!(asked.gate().open() && !asked.gate().open());
        assert!(matches!(asked.poll(&mut noop), Poll::Ready(Ok(()))));
        let mut silent = AtGate::new();
        tokio::time::advance(PATIENCE).await;
        assert!(matches!(silent.poll(&mut noop), Poll::Ready(Ok(()))));
        let mut refused = AtGate::new();
        refused.gate().answered(StatusCode::EXPECTATION_FAILED);
        tokio::time::advance(PATIENCE).await;
        assert!(refused.poll(&mut noop).is_pending() && refused.gate().is_shut());
        refused.gate().abandon();
        assert!(matches!(refused.poll(&mut noop), Poll::Ready(Err(Abandoned))));
    }
}
