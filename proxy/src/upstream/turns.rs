//! Calls at once, and those that wait for their turn, first come first served.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::table::destinations::Limits;

/// The calls under way and those that wait.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<Calls>);

#[derive(Debug, Default)]
struct Calls {
    running: usize,
    /// How many there may be, as the last one to come had it.
    most: usize,
    waiting: VecDeque<oneshot::Sender<Turn>>,
}

/// A call under way; over when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Turns>);

/// What a call is told that comes.
enum Entry {
    Turn(Turn),
    Wait(oneshot::Receiver<Turn>),
}

impl Turns {
    /// A turn, at once or after a wait; none where there is no room to wait. `queues` says whether connections are for one
    /// call each, and calls wait for one.
    pub(crate) async fn take(self: &Arc<Self>, limits: Limits, queues: bool) -> Option<Turn> {
        match self.enter(limits, queues)? {
            Entry::Turn(turn) => Some(turn),
            Entry::Wait(turn) => turn.await.ok(),
        }
    }

    fn enter(self: &Arc<Self>, limits: Limits, queues: bool) -> Option<Entry> {
        let requests = limits.requests.unwrap_or(usize::MAX);
        let connections = limits.connections.filter(|_| queues).unwrap_or(usize::MAX);
        let mut calls = self.0.lock();
        calls.most = requests.min(connections);
        // Who waits is older.
        if calls.running < calls.most && calls.waiting.is_empty() {
            calls.running += 1;
            return Some(Entry::Turn(Turn(self.clone())));
        }
        calls.waiting.retain(|waiting| !waiting.is_closed());
        if calls.running >= requests || calls.waiting.len() >= limits.pending.unwrap_or(WAITING_MAX) {
            return None;
        }
        let (turn, next) = oneshot::channel();
        calls.waiting.push_back(turn);
        drop(calls);
        // There is room for those that wait where the limit has become larger.
        self.hand();
        Some(Entry::Wait(next))
    }

    /// A turn where one is free: opaque streams do not wait.
    pub(crate) fn try_take(self: &Arc<Self>, limits: Limits) -> Option<Turn> {
        match self.enter(Limits { requests: limits.connections, ..Limits::default() }, false)? {
            Entry::Turn(turn) => Some(turn),
            Entry::Wait(_) => None,
        }
    }

    /// How many are under way, and how many wait.
    pub(crate) fn read(&self) -> (usize, usize) {
        let calls = self.0.lock();
        (calls.running, calls.waiting.iter().filter(|waiting| !waiting.is_closed()).count())
    }
}

impl Turns {
    /// Gives turns to those that wait, as far as there are any.
    fn hand(self: &Arc<Self>) {
        while let Some(next) = self.0.lock().next() {
            // Where it has gone meanwhile its turn is dropped, and with that goes to the next.
            drop(next.send(Turn(self.clone())));
        }
    }
}

impl Calls {
    /// The next one whose turn it is.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        if self.running >= self.most {
            return None;
        }
        while let Some(next) = self.waiting.pop_front() {
            if !next.is_closed() {
                self.running += 1;
                return Some(next);
            }
        }
        None
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.0.lock().running -= 1;
        self.0.hand();
    }
}

/// Most that wait where no bound is set.
const WAITING_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn one_runs_one_waits_and_the_third_is_refused() {
        let turns = Arc::new(Turns::default());
        let limits = Limits { connections: Some(1), pending: Some(1), requests: None };
        let first = turns.take(limits, true).now_or_never().flatten().expect("free");
        let mut second = pin!(turns.take(limits, true));
        assert!(second.as_mut().now_or_never().is_none(), "it waits");
        assert!(turns.take(limits, true).now_or_never().expect("at once").is_none(), "refused");
        assert_eq!(turns.read(), (1, 1));
        drop(first);
        let second = second.now_or_never().flatten().expect("its turn");
        assert_eq!(turns.read(), (1, 0));
        drop(second);
        assert_eq!(turns.read(), (0, 0));
    }

    #[test]
    fn who_has_gone_is_passed_over_and_a_larger_limit_counts_at_once() {
        let turns = Arc::new(Turns::default());
        let limits = Limits { connections: Some(1), ..Limits::default() };
        let first = turns.take(limits, true).now_or_never().flatten().expect("free");
        let mut third = pin!(turns.take(limits, true));
        {
            let mut second = pin!(turns.take(limits, true));
            assert!(second.as_mut().now_or_never().is_none());
            assert!(third.as_mut().now_or_never().is_none());
        }
        drop(first);
        let third = third.now_or_never().flatten().expect("the next that is there");
        let requests = Limits { requests: Some(2), ..Limits::default() };
        let fourth = turns.take(requests, true).now_or_never().flatten().expect("two may run now");
        assert!(
            turns.take(requests, true).now_or_never().expect("at once").is_none(),
            "and no third, nor does it wait"
        );
        drop((third, fourth));
        assert_eq!(turns.read(), (0, 0));
    }
}
