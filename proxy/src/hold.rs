//! What is open: each task that may have an exchange holds a place, by which its exchange can be judged again and ended.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

use futures_util::future::poll_fn;
use futures_util::task::AtomicWaker;
use http::Response;
use parking_lot::Mutex;

use crate::call::Asked;
use crate::decide::relation::Current;
use crate::interim::Interims;
use crate::reject::Reject;

/// What one task holds open: a connection's or stream's task, with at most one exchange at a time.
#[derive(Debug)]
pub(crate) struct Hold {
    /// Bytes of the request body that have passed.
    pub(crate) request_bytes: AtomicU64,
    pub(crate) interims: Interims,
    ended: AtomicBool,
    task: AtomicWaker,
    current: Mutex<Option<Current>>,
}

/// The holds of a worker.
#[derive(Debug, Default)]
pub(crate) struct Holds(Mutex<Places>);

#[derive(Debug, Default)]
struct Places {
    taken: Vec<Option<Arc<Hold>>>,
    free: Vec<usize>,
}

/// A hold's place among its worker's; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    holds: Arc<Holds>,
    index: usize,
    pub(crate) hold: Arc<Hold>,
}

impl Holds {
    /// Takes a place for a task.
    pub(crate) fn enter(self: &Arc<Self>) -> Place {
        let hold = Arc::new(Hold {
            request_bytes: AtomicU64::new(0),
            interims: Interims::default(),
            ended: AtomicBool::new(false),
            task: AtomicWaker::new(),
            current: Mutex::default(),
        });
        let mut places = self.0.lock();
        let index = places.free.pop().unwrap_or(places.taken.len());
        if index == places.taken.len() {
            places.taken.push(Some(hold.clone()));
        } else {
            places.taken[index] = Some(hold.clone());
        }
        drop(places);
        Place { holds: self.clone(), index, hold }
    }

    /// Ends the open exchanges that are meant; how many those were.
    pub(crate) fn end(&self, meant: impl Fn(&Current) -> bool) -> usize {
        let all: Vec<Arc<Hold>> = self.0.lock().taken.iter().flatten().cloned().collect();
        let meant = |hold: &&Arc<Hold>| hold.current.lock().as_ref().is_some_and(&meant);
        all.iter().filter(meant).map(|hold| hold.end()).count()
    }

    /// How many open exchanges are meant.
    pub(crate) fn count(&self, meant: impl Fn(&Current) -> bool) -> usize {
        let places = self.0.lock();
        places.taken.iter().flatten().filter(|hold| hold.current.lock().as_ref().is_some_and(&meant)).count()
    }

    /// Whether any task has a place, be its exchange open or yet to come.
    pub(crate) fn any(&self) -> bool {
        self.0.lock().taken.iter().any(Option::is_some)
    }

    /// How many exchanges are open.
    pub(crate) fn open(&self) -> usize {
        self.count(|_| true)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.holds.0.lock();
        places.taken[self.index] = None;
        places.free.push(self.index);
    }
}

impl Hold {
    /// The task's exchange from here on.
    pub(crate) fn open(&self, current: Current) {
        *self.current.lock() = Some(current);
    }

    /// What was asked of the task's exchange.
    pub(crate) fn asked(&self, asked: Option<Asked>) {
        if let Some(current) = &mut *self.current.lock() {
            current.asked = asked;
        }
    }

    /// The task's exchange is over.
    pub(crate) fn close(&self) -> Option<Current> {
        self.current.lock().take()
    }

    /// Whether the exchange was ended; the task is woken when that changes.
    pub(crate) fn poll_ended(&self, cx: &std::task::Context<'_>) -> bool {
        self.task.register(cx.waker());
        self.is_ended()
    }

    /// Whether the exchange was ended by a change of policy.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// An informational answer for the caller; the task is woken to pass it on.
    pub(crate) fn inform(&self, response: Response<()>) {
        self.interims.add(response);
        // The task says once whom to wake, and is woken as often as there is something.
        if let Some(task) = self.task.take() {
            self.task.register(&task);
            task.wake();
        }
    }

    /// This instance of this node serves it, or another node's.
    pub(crate) fn served_by(&self, instance: Option<usize>) {
        if let Some(current) = &mut *self.current.lock() {
            current.instance = instance;
        }
    }

    /// The request's body broke off.
    pub(crate) fn request_broke(&self, why: Reject) {
        if let Some(current) = &mut *self.current.lock() {
            current.request_fault = Some(why);
        }
    }

    /// What the exchange ends with: where its own request broke off, that is why, whatever followed from it.
    pub(crate) fn blame(&self, reject: Reject) -> Reject {
        self.current.lock().as_mut().and_then(|current| current.request_fault.take()).unwrap_or(reject)
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.task.wake();
    }
}

/// Runs a task's work; none if it was ended by a change of policy, and then the work is dropped with all that it holds.
pub(crate) async fn revocable<F: Future>(hold: &Hold, mut work: Pin<&mut F>) -> Option<F::Output> {
    let mut watched = false;
    poll_fn(|cx| {
        if !watched {
            hold.task.register(cx.waker());
            watched = true;
        }
        if hold.is_ended() {
            return Poll::Ready(None);
        }
        work.as_mut().poll(cx).map(Some)
    })
    .await
}
