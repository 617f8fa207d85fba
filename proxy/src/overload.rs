//! How many calls an instance of this node is given at once. As long as it answers about as fast as it ever did there is no
//! bound. When even its quickest answers take much longer, calls only queue in it: from then on it gets as many as it can
//! answer about in time, and those beyond them are refused at once, while whoever called can still do something else.
//!
//! The bound goes down in proportion to the time that is too long, and up by a tenth: what congestion control by delay does
//! (Vegas, 1994; TIMELY, 2015). Where a lower bound makes nothing faster, no queue was the reason, and there is none again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What is known of an instance. It outlives the table.
#[derive(Debug)]
pub(crate) struct Overload {
    /// Calls whose answer has not begun.
    running: AtomicU32,
    /// How many there may be; `NONE` is no bound.
    most: AtomicU32,
    course: Mutex<Course>,
}

/// A call whose answer has not begun; over when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    overload: Arc<Overload>,
    began: Instant,
    /// Calls that were there before it.
    ahead: u32,
}

/// Whether there is a bound, as far as it changes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Change {
    /// There is one from now on.
    Bounded { most: u32, quickest: Duration, usual: Duration },
    /// There is none any more.
    Free,
}

/// How an instance has answered.
#[derive(Debug)]
struct Course {
    /// Since when answers are gathered.
    since: Instant,
    /// How long the newest ones took, in seconds, and among how many calls, and how many there were.
    answers: [(f32, f32); SAMPLES],
    count: usize,
    /// Time of the quickest answers while nothing queues, in seconds; none until known.
    usual: Option<f32>,
    /// Since when they take too long, and how many calls were running then.
    slow_since: Option<(Instant, u32)>,
    bound: Option<Bound>,
    /// Whether that there is one has been told.
    told: bool,
}

/// A bound, and what it was set for.
#[derive(Debug, Clone, Copy)]
struct Bound {
    most: f32,
    /// Calls that began before count for nothing: they have stood in the queue of before.
    set: Instant,
    /// Seconds of the quickest answers when there was none yet, and among how many calls those were.
    before: (f32, f32),
    /// When a call was refused last.
    shed: Instant,
}

impl Overload {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            running: AtomicU32::new(0),
            most: AtomicU32::new(NONE),
            course: Mutex::new(Course::new(Instant::now())),
        })
    }

    /// A place for a call that begins; none where it would only queue.
    pub(crate) fn enter(self: &Arc<Self>, now: Instant) -> Option<Place> {
        let ahead = self.running.fetch_add(1, Ordering::Relaxed);
        let place = Place { overload: self.clone(), began: now, ahead };
        if ahead >= self.most.load(Ordering::Relaxed) {
            if self.course.lock().refuses(now) {
                return None;
            }
            self.most.store(NONE, Ordering::Relaxed);
        }
        Some(place)
    }

    /// How many calls there may be at once, where that is bounded.
    pub(crate) fn most(&self) -> Option<u32> {
        let course = self.course.lock();
        course.bound.filter(|bound| !bound.is_over(Instant::now())).map(|bound| bound.most())
    }
}

impl Place {
    /// Its answer has begun. What is learned from it must wait for nobody: where another core is at it, it is left out.
    pub(crate) fn answered(self, now: Instant) -> Option<Change> {
        let overload = &self.overload;
        let mut course = overload.course.try_lock()?;
        course.note(now - self.began, self.ahead + 1, self.began);
        if !course.is_full(now) {
            return None;
        }
        course.judge(now, overload.running.load(Ordering::Relaxed));
        let bound = course.bound;
        let most = bound.map_or(NONE, |bound| bound.most());
        overload.most.store(most, Ordering::Relaxed);
        let usual = Duration::from_secs_f32(course.usual.unwrap_or(0.0));
        match (std::mem::replace(&mut course.told, bound.is_some()), bound) {
            (false, Some(bound)) => {
                Some(Change::Bounded { most, quickest: Duration::from_secs_f32(bound.before.0), usual })
            }
            (true, None) => Some(Change::Free),
            _ => None,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.overload.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Bound {
    /// In calls.
    fn most(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of calls")]
        let most = self.most as u32;
        most.max(LEAST)
    }

    /// Whether nothing was refused for so long that it is of no use any more.
    fn is_over(&self, now: Instant) -> bool {
        now - self.shed >= CALM
    }
}

impl Course {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            answers: [(0.0, 0.0); SAMPLES],
            count: 0,
            usual: None,
            slow_since: None,
            bound: None,
            told: false,
        }
    }

    /// Whether a call beyond the bound is refused: one that is over falls.
    fn refuses(&mut self, now: Instant) -> bool {
        if self.bound.is_some_and(|bound| bound.is_over(now)) {
            (self.slow_since, self.bound) = (None, None);
        }
        match &mut self.bound {
            Some(bound) => {
                bound.shed = now;
                true
            }
            None => false,
        }
    }

    /// An answer, among how many calls, and when its call began.
    fn note(&mut self, took: Duration, calls: u32, began: Instant) {
        if self.bound.is_none_or(|bound| began >= bound.set) {
            #[expect(clippy::cast_precision_loss, reason = "a number of calls")]
            let calls = calls as f32;
            self.answers[self.count % SAMPLES] = (took.as_secs_f32(), calls);
            self.count += 1;
        }
    }

    /// Whether enough has been seen to judge by.
    fn is_full(&self, now: Instant) -> bool {
        self.count >= ANSWERS_MIN && now - self.since >= WINDOW
    }

    /// Looks at a window, and begins the next one.
    fn judge(&mut self, now: Instant, running: u32) {
        let seen = self.count.min(SAMPLES);
        let mut answers = self.answers;
        answers[..seen].sort_unstable_by(|one, other| one.0.total_cmp(&other.0));
        let (quick, calls) = answers[seen / 10];
        let span = (now - self.since).as_secs_f32();
        (self.since, self.count) = (now, 0);
        let usual = *self.usual.get_or_insert(quick);
        let slow = quick > too_long(usual);
        match &mut self.bound {
            None if !slow => {
                self.slow_since = None;
                // A little slower from now on than ever is what it will soon have been for long.
                let rise = usual * (1.0 + DRIFT * span);
                self.usual = Some(if quick < rise { quick } else { rise });
            }
            None => {
                let (since, then) = *self.slow_since.get_or_insert((now, running));
                // A queue that becomes shorter was made by what is over.
                if now - since >= PATIENCE && running >= then / 10 * 9 && calls > LEAST_F {
                    let most = (calls * too_long(usual) / quick).max(LEAST_F);
                    self.bound = Some(Bound { most, set: now, before: (quick, calls), shed: now });
                }
            }
            Some(bound) => {
                let (time, then) = bound.before;
                let helps = quick < time * (1.0 + calls / then) / 2.0;
                if slow && (bound.most <= LEAST_F || calls <= then * TRIED && !helps) {
                    // It is as slow without a queue.
                    (self.usual, self.slow_since, self.bound) = (Some(quick), None, None);
                } else if slow {
                    bound.most = (bound.most * (too_long(usual) / quick).clamp(0.5, 0.95)).max(LEAST_F);
                    bound.set = now;
                } else if bound.is_over(now) {
                    (self.slow_since, self.bound) = (None, None);
                } else {
                    bound.most += (bound.most / 10.0).max(1.0);
                }
            }
        }
    }
}

/// From how many seconds on the quickest answers take too long, of those that they take usually.
fn too_long(usual: f32) -> f32 {
    2.0 * usual + SLACK
}

/// No bound.
const NONE: u32 = u32::MAX;
/// The least bound.
const LEAST: u32 = 2;
const LEAST_F: f32 = 2.0;
/// Answers that are remembered of a window.
const SAMPLES: usize = 64;
/// Fewer answers than that tell nothing.
const ANSWERS_MIN: usize = 5;
/// How long answers are gathered at least.
const WINDOW: Duration = Duration::from_millis(100);
/// How long they take too long before there is a bound.
const PATIENCE: Duration = Duration::from_millis(500);
/// Seconds by which answers may be later in any case.
const SLACK: f32 = 0.05;
/// By what part a second the usual time may rise.
const DRIFT: f32 = 0.02;
/// A bound this much lower than what there was must have made answers faster.
const TRIED: f32 = 0.6;
/// How long nothing was refused when the bound falls.
const CALM: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
