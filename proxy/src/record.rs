//! The last step: one record of every exchange, at its true end, whether it finished, failed or was dropped.

mod account;
mod line;
pub mod metrics;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Version;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::balance::{Chosen, Flight};
use crate::call::{Answerer, Asked};
use crate::decide::judge::Noting;
use crate::decide::relation::Current;
use crate::decide::route::Ruled;
use crate::hold::Hold;
use crate::reject::Reject;
use crate::table::authz::{PolicyId, verb};
use crate::task::Random;
use crate::upstream::Turn;
use metrics::{Finished, Key, Series};

pub use line::Record;

/// Where a worker's exchanges are counted and recorded.
#[derive(Debug)]
pub(crate) struct Recorder {
    series: Mutex<BTreeMap<Key, Arc<Series>>>,
    /// For exchanges whose callee was never found.
    unmatched: Arc<Series>,
    notes: Mutex<BTreeMap<(PolicyId, &'static str, bool), u64>>,
    records: mpsc::Sender<Record>,
    /// Records lost because the channel was full.
    lost: AtomicU64,
    /// Exchanges whose random number is below this are sampled.
    sample_below: u64,
    pub(crate) random: Random,
    pub(crate) links: metrics::Links,
}

impl Recorder {
    pub(crate) fn new(records: mpsc::Sender<Record>, access_sample: f64, seed: u64) -> Self {
        Self {
            series: Mutex::default(),
            unmatched: Arc::new(Series::new(Key::unmatched())),
            notes: Mutex::default(),
            records,
            lost: AtomicU64::new(0),
            sample_below: threshold(access_sample),
            random: Random::new(seed),
            links: metrics::Links::default(),
        }
    }

    /// The series of who calls whom, made if need be. Past the bound the one that was idle longest goes.
    pub(crate) fn series(&self, key: Key) -> Arc<Series> {
        let mut all = self.series.lock();
        if let Some(series) = all.get(&key) {
            return series.clone();
        }
        if all.len() >= SERIES_MAX {
            let idle = all.values().filter(|series| Arc::strong_count(series) == 1);
            let oldest = idle.min_by_key(|series| series.last()).map(|series| series.key.clone());
            oldest.map(|key| all.remove(&key));
        }
        let series = Arc::new(Series::new(key.clone()));
        if all.len() < SERIES_MAX {
            all.insert(key, series.clone());
        }
        series
    }

    fn note(&self, noting: &Noting) {
        let mut notes = self.notes.lock();
        for noted in &noting.noted {
            let key = (noted.policy.clone(), verb(noted.says), noted.dry_run);
            if notes.len() < NOTES_MAX || notes.contains_key(&key) {
                *notes.entry(key).or_default() += 1;
            }
        }
    }

    fn send(&self, record: Record) {
        if self.records.try_send(record).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What is told of an opaque stream that falls under a rule.
#[derive(Debug)]
struct Falls {
    rule: Box<str>,
    /// The name that it asks for by SNI; empty where it asks for none.
    name: Box<str>,
}

/// The record of an exchange in the making; it is completed when this is dropped.
#[derive(Debug)]
pub(crate) struct Open {
    hold: Arc<Hold>,
    recorder: Arc<Recorder>,
    /// Where it is counted, once its callee is known.
    series: Option<Arc<Series>>,
    started: Instant,
    protocol: &'static str,
    code: u16,
    reason: &'static str,
    fault: &'static str,
    detail: Option<String>,
    noting: Noting,
    ruled: Option<Arc<Ruled>>,
    /// Of an opaque stream that falls under a rule.
    falls: Option<Box<Falls>>,
    /// Whether it is a copy that the rule makes.
    copy: bool,
    /// By what it has passed a gateway.
    gate: Option<Box<Current>>,
    pub(crate) endpoint: Option<usize>,
    flight: Option<Flight>,
    /// Its turn among those that may run at once.
    turn: Option<Turn>,
    response_bytes: u64,
    /// Whether an instance of this node was tried, at the caller's node.
    tries_own: bool,
    /// Whether the answer was complete.
    whole: bool,
    /// Whether it is an opaque stream, or has become one.
    stream: bool,
    /// Whether it may come to nothing, and then leaves no trace.
    trial: bool,
}

impl Open {
    /// Of an exchange in HTTP, by what it came over.
    pub(crate) fn http(hold: &Arc<Hold>, recorder: &Arc<Recorder>, version: Version, link: bool) -> Self {
        match version {
            // Links over QUIC have what HTTP/3 has, and a form of their own.
            Version::HTTP_3 if link => Self::new(hold, recorder, "quic"),
            Version::HTTP_3 => Self::new(hold, recorder, "h3"),
            Version::HTTP_2 => Self::new(hold, recorder, "h2"),
            _ => Self::new(hold, recorder, "http/1.1"),
        }
    }

    pub(crate) fn new(hold: &Arc<Hold>, recorder: &Arc<Recorder>, protocol: &'static str) -> Self {
        hold.request_bytes.store(0, Ordering::Relaxed);
        Self {
            hold: hold.clone(),
            recorder: recorder.clone(),
            series: None,
            started: Instant::now(),
            protocol,
            code: 0,
            reason: "",
            fault: "",
            detail: None,
            noting: Noting::default(),
            ruled: None,
            falls: None,
            copy: false,
            gate: None,
            endpoint: None,
            flight: None,
            turn: None,
            response_bytes: 0,
            tries_own: false,
            whole: false,
            stream: false,
            trial: false,
        }
    }

    /// What its policy decision is remembered by.
    pub(crate) fn hold(&self) -> &Hold {
        &self.hold
    }

    /// The hold itself.
    pub(crate) fn shared_hold(&self) -> Arc<Hold> {
        self.hold.clone()
    }

    /// It may come to nothing.
    pub(crate) fn on_trial(&mut self) {
        self.trial = true;
    }

    /// It has come to something, and counts from now on.
    pub(crate) fn certain(&mut self) {
        if std::mem::take(&mut self.trial)
            && let Some(series) = self.series.as_ref().filter(|_| self.stream)
        {
            series.stream_opened();
        }
    }

    /// It may be judged again from now on.
    pub(crate) fn enter(&mut self, mut current: Current, series: &Arc<Series>) {
        self.series = Some(series.clone());
        current.gate = self.gate.take();
        self.hold.open(current);
    }

    /// It has passed a gateway by this.
    pub(crate) fn passes(&mut self, gate: Current) {
        self.gate = Some(Box::new(gate));
    }

    /// What was asked of it.
    pub(crate) fn asked(&self, asked: Option<Asked>) {
        self.hold.asked(asked);
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    pub(crate) fn noted(&mut self, noting: Noting) {
        let mut noted = std::mem::take(&mut self.noting.noted);
        self.noting = noting;
        if !noted.is_empty() {
            noted.append(&mut self.noting.noted);
            self.noting.noted = noted;
        }
    }

    /// It falls under a rule.
    pub(crate) fn ruled(&mut self, ruled: &Arc<Ruled>) {
        self.ruled = Some(ruled.clone());
    }

    /// It is an opaque stream that falls under a rule; of TLS with the name that it asks for.
    pub(crate) fn falls_under(&mut self, rule: &str, tls: Option<&str>) {
        self.falls = Some(Box::new(Falls { rule: rule.into(), name: tls.unwrap_or_default().into() }));
    }

    /// It is a copy that a rule makes.
    pub(crate) fn mirrors(&mut self, ruled: &Arc<Ruled>) {
        self.ruled(ruled);
        self.copy = true;
    }

    /// A try begins.
    pub(crate) fn sent_to(&mut self, chosen: &Chosen) {
        self.endpoint = chosen.endpoint();
        self.flight = chosen.flight();
        // At the callee's node that is known from the beginning.
        let own = chosen.instance().filter(|_| chosen.endpoint().is_some());
        if own.is_some() || self.tries_own {
            self.hold.served_by(own);
        }
        self.tries_own |= own.is_some();
    }

    /// It has its turn until it ends.
    pub(crate) fn has_turn(&mut self, turn: Turn) {
        self.turn = Some(turn);
    }

    /// No answer came in time.
    pub(crate) fn timed_out(&self) {
        self.flight.iter().for_each(Flight::timed_out);
    }

    /// The connection for it had to be made, and its answer is waited for from now on.
    pub(crate) fn connected(&mut self) {
        if let Some(flight) = &mut self.flight {
            flight.connected();
        }
    }

    /// The answer has begun.
    pub(crate) fn answered(&mut self, code: u16, by: Answerer) {
        self.code = code;
        match (&self.flight, by) {
            (Some(flight), Answerer::Application) => flight.answered(),
            (Some(flight), Answerer::Node) => flight.refused(),
            (None, _) => {}
        }
    }

    pub(crate) fn rejected(&mut self, reject: &Reject) {
        self.code = reject.status().as_u16();
        self.reason = reject.reason();
        self.fault = reject.fault().as_str();
        self.detail = reject.detail().map(str::to_owned);
    }

    pub(crate) fn passed(&mut self, bytes: usize) {
        self.response_bytes += bytes as u64;
    }

    /// The answer has been given in full.
    pub(crate) fn whole(&mut self) {
        self.whole = true;
    }

    /// It is an opaque stream, or has become one.
    pub(crate) fn streaming(&mut self) {
        if let Some(series) = self.series.as_ref().filter(|_| !self.trial) {
            series.stream_opened();
        }
        self.stream = true;
    }

    /// Bytes that passed on a stream, towards the callee and back.
    pub(crate) fn streamed(&mut self, request: u64, response: u64) {
        self.hold.request_bytes.store(request, Ordering::Relaxed);
        self.response_bytes = response;
    }

    fn ended_early(&mut self) {
        if self.hold.is_ended() {
            self.reason = Reject::Revoked.reason();
        } else if self.code == 0 && !self.stream {
            self.rejected(&Reject::Gone);
        } else if self.reason.is_empty() {
            self.reason = CUT;
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.trial {
            drop(self.hold.close());
            return;
        }
        if !self.whole && self.reason.is_empty() {
            self.ended_early();
        }
        let recorder = self.recorder.clone();
        let (current, at) = (self.hold.close(), Instant::now());
        let finished = Finished {
            code: self.code,
            reason: self.reason,
            duration: at - self.started,
            request_bytes: self.hold.request_bytes.load(Ordering::Relaxed),
            response_bytes: self.response_bytes,
            at,
        };
        let series = self.series.as_ref().unwrap_or(&recorder.unmatched);
        series.finished(&finished);
        if self.stream {
            series.stream_closed();
        }
        if !self.noting.noted.is_empty() {
            recorder.note(&self.noting);
        }
        // Denials and what Weft ended itself are always recorded; a caller that goes away is daily life.
        let notable = !(self.reason.is_empty() || self.reason == CUT) || !self.noting.noted.is_empty();
        if notable || recorder.random.next() < recorder.sample_below {
            recorder.send(self.record(current.as_ref(), &finished));
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The number below which a share of all 64-bit numbers lies.
fn threshold(share: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=1; `as` saturates")]
    let below = (share.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
    below
}

/// Reason of an exchange that broke off after its answer had begun.
const CUT: &str = "cut";
/// Most series a worker keeps.
const SERIES_MAX: usize = 4096;
/// Most policies whose notes a worker counts.
const NOTES_MAX: usize = 1024;
