//! Endpoints, and what each worker has learned about them.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::description::EndpointDescription;

/// An instance of a service, and where it is reached.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) description: EndpointDescription,
    /// Which of the service's authorizations is its own.
    pub(crate) group: usize,
    /// Whether it is on this node.
    pub(crate) own: bool,
    /// Whether this node dials it itself: it is on it, and no gateway, which is entered by a link on its own node too.
    pub(crate) here: bool,
    /// Whether it is in this node's failure domain.
    pub(crate) same_zone: bool,
    pub(crate) statistics: Arc<Statistics>,
}

/// What workers have learned about an endpoint, one slot a worker so that none waits for another.
#[derive(Debug)]
pub(crate) struct Statistics {
    /// Since when the endpoint is known.
    pub(crate) since: Instant,
    slots: OnceLock<Box<[Slot]>>,
}

/// What one worker has learned. Kept a cache line apart from its neighbours.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Slot(Mutex<Measured>);

#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    /// Peak-sensitive moving average of the time to the first byte, in seconds; 0 until measured.
    latency: f64,
    measured_at: Option<Instant>,
    in_flight: u32,
    /// Connect failures in a row.
    failures: u32,
    avoid_until: Option<Instant>,
    /// Since when no link to it comes about or lasts; none while one does.
    lost_since: Option<Instant>,
}

impl Default for Statistics {
    fn default() -> Self {
        Self { since: Instant::now(), slots: OnceLock::new() }
    }
}

impl Statistics {
    /// Since when no worker that has called it reaches it, and when one of them did last.
    pub(crate) fn reach(&self) -> (Option<Instant>, Option<Instant>) {
        let slots = self.slots.get().map(|slots| &slots[..]).unwrap_or_default();
        let measured = || slots.iter().map(|slot| *slot.0.lock());
        (measured().filter_map(|one| one.lost_since).min(), measured().filter_map(|one| one.measured_at).max())
    }

    /// The slot of a worker, of all workers of the process.
    pub(crate) fn slot(&self, worker: usize, workers: usize) -> &Slot {
        let slots = self.slots.get_or_init(|| (0..workers.max(1)).map(|_| Slot::default()).collect());
        &slots[worker % slots.len()]
    }
}

impl Slot {
    /// What another exchange would cost here: expected latency times the queue it joins.
    pub(crate) fn cost(&self, now: Instant) -> f64 {
        let measured = *self.0.lock();
        let queue = f64::from(measured.in_flight) + 1.0;
        let latency = match measured.measured_at {
            Some(at) => measured.latency * decay(now - at),
            // Unknown: tried once, and then not again until it has answered.
            None if measured.in_flight > 0 => UNKNOWN_LATENCY,
            None => 0.0,
        };
        latency.max(LATENCY_FLOOR) * queue
    }

    /// It is tried. One that is tried again after a failure is a probe, and is avoided by others until that tells.
    pub(crate) fn start(&self, now: Instant) {
        let mut measured = self.0.lock();
        measured.in_flight += 1;
        if measured.avoid_until.is_some_and(|until| now >= until) {
            measured.avoid_until = Some(now + backoff(measured.failures));
        }
    }

    /// Whether it could not be reached the last time.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.lock().failures > 0
    }

    /// Whether it failed so recently that it is not worth a try.
    pub(crate) fn is_avoided(&self, now: Instant) -> bool {
        self.0.lock().avoid_until.is_some_and(|until| now < until)
    }

    pub(crate) fn finish(&self) {
        let mut measured = self.0.lock();
        measured.in_flight = measured.in_flight.saturating_sub(1);
    }

    /// An answer came after `latency`.
    pub(crate) fn observe(&self, latency: Duration, now: Instant) {
        let mut measured = self.0.lock();
        let (old, new) = (measured.latency, latency.as_secs_f64());
        measured.latency = match measured.measured_at {
            Some(at) if new < old => {
                let keep = decay(now - at);
                old * keep + new * (1.0 - keep)
            }
            _ => new,
        };
        measured.measured_at = Some(now);
        measured.failures = 0;
        measured.avoid_until = None;
        measured.lost_since = None;
    }

    /// Its node has refused what was asked: it is there, and no faster than it was for that.
    pub(crate) fn refused(&self, now: Instant) {
        let mut measured = self.0.lock();
        if measured.measured_at.is_none() {
            measured.latency = REFUSED_LATENCY;
        }
        measured.measured_at = Some(now);
        measured.failures = 0;
        measured.avoid_until = None;
        measured.lost_since = None;
    }

    /// No link to it came about, or it was lost.
    pub(crate) fn lose(&self, now: Instant) {
        self.fail(now);
        self.0.lock().lost_since.get_or_insert(now);
    }

    /// It could not be reached, or had no instance.
    pub(crate) fn fail(&self, now: Instant) {
        let mut measured = self.0.lock();
        measured.failures = measured.failures.saturating_add(1);
        measured.avoid_until = Some(now + backoff(measured.failures));
    }

    /// Expected latency, once measured, and exchanges in flight.
    pub(crate) fn read(&self) -> (Option<Duration>, u32) {
        let measured = *self.0.lock();
        (measured.measured_at.map(|_| Duration::from_secs_f64(measured.latency)), measured.in_flight)
    }
}

fn decay(elapsed: Duration) -> f64 {
    (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
}

fn backoff(failures: u32) -> Duration {
    AVOID_MIN.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(AVOID_MAX)
}

/// Time constant of the moving average.
const DECAY: Duration = Duration::from_secs(10);
/// Seconds assumed of an endpoint that was tried and has not answered yet.
const UNKNOWN_LATENCY: f64 = 1.0;
/// Seconds assumed of an endpoint that has only ever refused.
const REFUSED_LATENCY: f64 = 0.001;
/// Seconds below which latencies count as equal, so that queues decide.
const LATENCY_FLOOR: f64 = 0.000_1;
const AVOID_MIN: Duration = Duration::from_secs(1);
const AVOID_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_are_avoided_longer_each_time_and_probed_once() {
        let slot = Slot::default();
        let now = Instant::now();
        slot.fail(now);
        assert!(slot.is_avoided(now));
        let later = now + Duration::from_secs(1);
        assert!(!slot.is_avoided(later) && !slot.is_avoided(later), "a look is no probe");
        slot.start(later);
        assert!(slot.is_avoided(later), "one probes, and others don't");
        for _ in 0..20 {
            slot.fail(later);
        }
        assert!(slot.is_avoided(later + Duration::from_secs(29)));
        assert!(!slot.is_avoided(later + Duration::from_secs(30)));
        slot.observe(Duration::from_millis(1), later);
        assert!(!slot.is_avoided(later));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peak_counts_at_once_and_fades() {
        let slot = Slot::default();
        let now = Instant::now();
        slot.observe(Duration::from_millis(1), now);
        slot.observe(Duration::from_millis(100), now);
        assert!(slot.cost(now) > 0.09);
        assert!(slot.cost(now + Duration::from_secs(60)) < 0.01);
    }
}
