//! Instances that fail get no calls for a while: after failures in a row, or where fewer of their answers succeed than of the
//! others'. An ejection lasts the longer the more there were, and only so many instances may be out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use weft_proto::identity::NodeName;
use weft_proto::service::InstanceName;

use crate::table::destinations::Ejection;

/// The instances that calls may go to.
#[derive(Debug)]
pub(crate) struct Outliers {
    /// What times are counted from.
    base: Instant,
    hosts: Mutex<BTreeMap<(NodeName, InstanceName), Arc<Host>>>,
    /// Those that were ejected and have not returned.
    out: AtomicU32,
    /// When successes are next compared, in milliseconds.
    compared_at: AtomicU64,
    /// What those that are out were taken out by.
    by: Mutex<Option<Ejection>>,
}

/// One instance, as calls of one caller know it.
#[derive(Debug, Default)]
pub(crate) struct Host {
    /// Until when it is out, in milliseconds; 0: it is not.
    until: AtomicU64,
    /// Failures in a row.
    errors: AtomicU32,
    gateway_errors: AtomicU32,
    local_errors: AtomicU32,
    /// Answers of this interval, and those that were no failure.
    answers: AtomicU32,
    successes: AtomicU32,
    /// How often it was ejected, less what was forgiven.
    ejections: AtomicU32,
    /// When it returned last, in milliseconds.
    returned: AtomicU64,
    /// Whether one call is to tell whether it returns.
    probed: AtomicBool,
}

/// What came of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// An answer with this status.
    Status(u16),
    /// None came.
    NoAnswer,
}

impl Default for Outliers {
    fn default() -> Self {
        Self {
            base: Instant::now(),
            hosts: Mutex::default(),
            out: AtomicU32::new(0),
            compared_at: AtomicU64::new(0),
            by: Mutex::default(),
        }
    }
}

impl Outliers {
    /// Another policy counts from now on, if it is another one: all begin anew.
    pub(crate) fn under(&self, ejection: &Ejection) {
        let mut by = self.by.lock();
        if by.replace(*ejection).is_some_and(|before| before != *ejection) {
            self.hosts.lock().values().for_each(|host| host.forget());
            self.out.store(0, Ordering::Relaxed);
        }
    }

    /// What is known of an instance.
    pub(crate) fn host(&self, node: &NodeName, instance: &InstanceName) -> Arc<Host> {
        let mut hosts = self.hosts.lock();
        if hosts.len() >= HOSTS_MAX {
            // Those of former tables begin anew if they come back.
            hosts.retain(|_, host| {
                let kept = Arc::strong_count(host) > 1;
                if !kept {
                    self.restore(host, host.until.load(Ordering::Relaxed), 0);
                }
                kept
            });
        }
        hosts.entry((node.clone(), instance.clone())).or_default().clone()
    }

    /// Whether any is out, or was and has not been called since.
    pub(crate) fn any(&self) -> bool {
        self.out.load(Ordering::Relaxed) > 0
    }

    /// Whether an instance gets no calls.
    pub(crate) fn is_out(&self, host: &Host, now: Instant) -> bool {
        self.any() && self.millis(now) < host.until.load(Ordering::Relaxed)
    }

    /// How much longer an instance gets no calls, and how often it was ejected.
    pub(crate) fn read(&self, host: &Host, now: Instant) -> Option<(Duration, u32)> {
        let left = host.until.load(Ordering::Relaxed).saturating_sub(self.millis(now));
        (left > 0).then(|| (Duration::from_millis(left), host.ejections.load(Ordering::Relaxed)))
    }

    /// A call goes to an instance: one that was out has returned by that, or is probed by it alone.
    pub(crate) fn started(&self, host: &Host, ejection: &Ejection, now: Instant) {
        if !self.any() {
            return;
        }
        let (until, millis) = (host.until.load(Ordering::Relaxed), self.millis(now));
        if until == 0 || millis < until {
            return;
        }
        if !ejection.probes {
            self.restore(host, until, until);
            return;
        }
        let next = self.millis(now + PROBE);
        if host.until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            host.probed.store(true, Ordering::Relaxed);
        }
    }

    /// What came of a try: who is out by it, and for how long. `hosts` are all that calls may go to.
    pub(crate) fn ended(
        &self,
        (at, outcome): (usize, Outcome),
        (hosts, candidates): (&[Arc<Host>], &[usize]),
        ejection: &Ejection,
        now: Instant,
    ) -> Vec<(usize, Duration)> {
        // By Weft's own way what cannot be reached is avoided for a second, then two, and so on: it is back as soon as it
        // is there.
        if ejection.probes && outcome == Outcome::NoAnswer {
            return Vec::new();
        }
        let host = &hosts[at];
        let failed = ejection.is_failure(outcome);
        let mut ejected = Vec::new();
        if ejection.by_success_rate && candidates.len() >= COMPARED_MIN {
            host.answers.fetch_add(1, Ordering::Relaxed);
            host.successes.fetch_add(u32::from(!failed), Ordering::Relaxed);
            ejected = self.compare((hosts, candidates), ejection, now);
        }
        if !failed {
            for count in host.counts() {
                if count.load(Ordering::Relaxed) > 0 {
                    count.store(0, Ordering::Relaxed);
                }
            }
            if self.any() && host.probed.swap(false, Ordering::Relaxed) {
                self.restore(host, host.until.load(Ordering::Relaxed), self.millis(now));
            }
            return ejected;
        }
        let probed = self.any() && host.probed.swap(false, Ordering::Relaxed);
        if probed {
            // Its time is over, and begins again.
            host.until.store(self.millis(now), Ordering::Relaxed);
        }
        if ejection.counts(host, outcome) || probed {
            ejected.extend(self.eject(host, (hosts, candidates), ejection, now).map(|span| (at, span)));
        }
        ejected
    }

    /// Takes an instance out, if that leaves enough; for how long.
    fn eject(
        &self,
        host: &Host,
        (hosts, candidates): (&[Arc<Host>], &[usize]),
        ejection: &Ejection,
        now: Instant,
    ) -> Option<Duration> {
        // One at a time: each counts those before it.
        let _guard = self.hosts.lock();
        let millis = self.millis(now);
        let out = |host: &Host| millis < host.until.load(Ordering::Relaxed);
        let others = candidates.iter().filter(|at| out(&hosts[**at]) && !std::ptr::eq(&*hosts[**at], host)).count();
        let before = host.until.load(Ordering::Relaxed);
        if before > millis || (others + 1) * 100 > ejection.percent_max * candidates.len() {
            return None;
        }
        // Each interval that it was there is one forgiven.
        let since = if before > 0 { before } else { host.returned.load(Ordering::Relaxed) };
        let interval = u64::try_from(ejection.interval.as_millis()).unwrap_or(u64::MAX).max(1);
        let forgiven = u32::try_from(millis.saturating_sub(since) / interval).unwrap_or(u32::MAX);
        let ejections = host.ejections.load(Ordering::Relaxed).saturating_sub(forgiven) + 1;
        let span = ejection.base.saturating_mul(ejections).min(ejection.most);
        host.ejections.store(ejections, Ordering::Relaxed);
        host.until.store(self.millis(now + span), Ordering::Relaxed);
        host.counts().iter().for_each(|count| count.store(0, Ordering::Relaxed));
        if before == 0 {
            self.out.fetch_add(1, Ordering::Relaxed);
        }
        Some(span)
    }

    fn restore(&self, host: &Host, until: u64, at: u64) {
        if until > 0 && host.until.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            host.returned.store(at, Ordering::Relaxed);
            let _ = self.out.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |out| out.checked_sub(1));
        }
    }

    /// Once an interval: the instances of whose answers fewer succeeded than the mean less some deviations.
    fn compare(
        &self,
        (hosts, candidates): (&[Arc<Host>], &[usize]),
        ejection: &Ejection,
        now: Instant,
    ) -> Vec<(usize, Duration)> {
        let (due, millis) = (self.compared_at.load(Ordering::Relaxed), self.millis(now));
        if millis < due {
            return Vec::new();
        }
        let next = self.millis(now + ejection.interval);
        if self.compared_at.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return Vec::new();
        }
        let rate = |at: &usize| {
            let host = &hosts[*at];
            let answers = host.answers.swap(0, Ordering::Relaxed);
            let successes = host.successes.swap(0, Ordering::Relaxed);
            (answers >= ANSWERS_MIN).then(|| (*at, f64::from(successes) / f64::from(answers)))
        };
        let rates: Vec<(usize, f64)> = candidates.iter().filter_map(rate).collect();
        if due == 0 || rates.len() < COMPARED_MIN {
            return Vec::new();
        }
        #[expect(clippy::cast_precision_loss, reason = "a number of instances")]
        let count = rates.len() as f64;
        let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
        let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
        let least = mean - DEVIATIONS * variance.sqrt();
        let below = rates.iter().filter(|(_, rate)| *rate < least);
        below.filter_map(|(at, _)| Some((*at, self.eject(&hosts[*at], (hosts, candidates), ejection, now)?))).collect()
    }

    /// At least 1, so that 0 means never.
    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.base).as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

impl Host {
    /// Failures in a row, of each kind.
    fn counts(&self) -> [&AtomicU32; 3] {
        [&self.errors, &self.gateway_errors, &self.local_errors]
    }

    fn forget(&self) {
        [&self.until, &self.returned].iter().for_each(|at| at.store(0, Ordering::Relaxed));
        let others = [&self.answers, &self.successes, &self.ejections];
        self.counts().iter().chain(&others).for_each(|count| count.store(0, Ordering::Relaxed));
        self.probed.store(false, Ordering::Relaxed);
    }
}

impl Ejection {
    fn is_failure(&self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::NoAnswer => true,
            Outcome::Status(status) if self.codes.is_some() => self.codes.is_some_and(|codes| codes.contain(status)),
            Outcome::Status(status) if self.errors.is_none() => matches!(status, 502..=504),
            Outcome::Status(status) => status >= 500,
        }
    }

    /// Counts a failure; whether it is one too many.
    fn counts(&self, host: &Host, outcome: Outcome) -> bool {
        let local = outcome == Outcome::NoAnswer;
        let reaches = |count: &AtomicU32, most: Option<u32>| {
            let so_far = count.fetch_add(1, Ordering::Relaxed).saturating_add(1);
            most.is_some_and(|most| so_far >= most)
        };
        if local && self.local_errors.is_some() {
            return reaches(&host.local_errors, self.local_errors);
        }
        let gateway = local || matches!(outcome, Outcome::Status(502..=504));
        if !gateway {
            host.gateway_errors.store(0, Ordering::Relaxed);
        }
        let gateway = gateway && reaches(&host.gateway_errors, self.gateway_errors);
        reaches(&host.errors, self.errors) || gateway
    }
}

/// How long others wait for what a probe tells.
const PROBE: Duration = Duration::from_secs(5);
/// Most instances that are remembered without being called by the newest table.
const HOSTS_MAX: usize = 4096;
/// Instances that are compared at least.
const COMPARED_MIN: usize = 5;
/// Answers that an instance has at least to be compared.
const ANSWERS_MIN: u32 = 100;
/// Standard deviations below the mean.
const DEVIATIONS: f64 = 1.9;
