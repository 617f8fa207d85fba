//! Counters of exchanges, one set a worker and pair of services, and their text for Prometheus.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use weft_proto::identity::Identity;
use weft_proto::service::ServiceName;

use super::Recorder;
use crate::call::{End, Guest, Over, Parties};

/// Whom a series is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) direction: &'static str,
    pub(crate) source: String,
    pub(crate) destination: String,
}

/// Counters of who calls whom in one worker.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) key: Key,
    counts: Mutex<Counts>,
}

#[derive(Debug, Clone, Default)]
struct Counts {
    /// Few enough to be searched from the front.
    codes: Vec<Code>,
    /// Not cumulative; the last one is without bound.
    buckets: [u64; BUCKETS.len() + 1],
    duration: Duration,
    request_bytes: u64,
    response_bytes: u64,
    streams: u64,
    streams_open: u64,
    retries: u64,
    last: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Code {
    code: u16,
    reason: &'static str,
    count: u64,
}

/// What came of one exchange.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: u16,
    pub(crate) reason: &'static str,
    pub(crate) duration: Duration,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    pub(crate) at: Instant,
}

/// Links of one worker.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// Opened to other nodes, over TCP and over QUIC.
    pub(crate) out: [LinkCounts; 2],
    /// That could not be opened.
    pub(crate) out_failed: AtomicU64,
    /// Taken from other nodes, over TCP and over QUIC.
    pub(crate) taken: [LinkCounts; 2],
    /// Handshakes that failed.
    pub(crate) in_failed: AtomicU64,
}

/// Links of one kind.
#[derive(Debug, Default)]
pub(crate) struct LinkCounts {
    /// Now.
    pub(crate) open: AtomicU64,
    /// Ever.
    pub(crate) total: AtomicU64,
}

/// Links of one direction and kind.
type OfLinks = fn(&Links) -> &LinkCounts;

/// Counts a link as open while it is.
pub(crate) struct OpenLink(Arc<Recorder>, bool, Over);

impl OpenLink {
    /// A link that this node has opened.
    pub(crate) fn out(recorder: &Arc<Recorder>, over: Over) -> Self {
        Self::new(recorder, true, over)
    }

    /// A link that this node has taken.
    pub(crate) fn taken(recorder: &Arc<Recorder>, over: Over) -> Self {
        Self::new(recorder, false, over)
    }

    fn new(recorder: &Arc<Recorder>, out: bool, over: Over) -> Self {
        let link = Self(recorder.clone(), out, over);
        link.counts().total.fetch_add(1, Ordering::Relaxed);
        link.counts().open.fetch_add(1, Ordering::Relaxed);
        link
    }

    fn counts(&self) -> &LinkCounts {
        let links = &self.0.links;
        let both = if self.1 { &links.out } else { &links.taken };
        &both[usize::from(self.2 == Over::Quic)]
    }
}

impl Drop for OpenLink {
    fn drop(&mut self) {
        self.counts().open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Key {
    pub(crate) fn new(end: End, caller: &Identity, callee: &ServiceName) -> Self {
        let direction = match end {
            End::Caller => "outbound",
            End::Callee => "inbound",
        };
        let source = match caller {
            Identity::Service { service, .. } => service.to_string(),
            other => other.principal(),
        };
        Self { direction, source, destination: callee.to_string() }
    }

    /// Of these parties; who is not known is nobody.
    pub(crate) fn of(parties: &Parties) -> Self {
        let key = Self::new(parties.end, &parties.caller, &parties.service);
        match parties.guest {
            Some(Guest::Plain) => Self { source: UNKNOWN.to_owned(), ..key },
            Some(Guest::Outside | Guest::Mesh) | None => key,
        }
    }

    pub(super) fn unmatched() -> Self {
        Self { direction: "unmatched", source: String::new(), destination: String::new() }
    }
}

impl Series {
    pub(super) fn new(key: Key) -> Self {
        Self { key, counts: Mutex::default() }
    }

    pub(super) fn last(&self) -> Option<Instant> {
        self.counts.lock().last
    }

    pub(crate) fn finished(&self, finished: &Finished) {
        let bucket = BUCKETS.iter().position(|(bound, _)| finished.duration <= *bound).unwrap_or(BUCKETS.len());
        let mut counts = self.counts.lock();
        counts.buckets[bucket] += 1;
        counts.duration += finished.duration;
        counts.request_bytes += finished.request_bytes;
        counts.response_bytes += finished.response_bytes;
        counts.last = Some(finished.at);
        counts.code(finished.code, finished.reason).count += 1;
    }

    pub(crate) fn retried(&self) {
        self.counts.lock().retries += 1;
    }

    pub(crate) fn stream_opened(&self) {
        let mut counts = self.counts.lock();
        counts.streams += 1;
        counts.streams_open += 1;
    }

    pub(crate) fn stream_closed(&self) {
        let mut counts = self.counts.lock();
        counts.streams_open = counts.streams_open.saturating_sub(1);
    }
}

impl Counts {
    fn code(&mut self, code: u16, reason: &'static str) -> &mut Code {
        let found = self.codes.iter().position(|known| known.code == code && known.reason == reason);
        let index = found.unwrap_or_else(|| {
            self.codes.push(Code { code, reason, count: 0 });
            self.codes.len() - 1
        });
        &mut self.codes[index]
    }

    fn add(&mut self, other: &Self) {
        for one in &other.codes {
            self.code(one.code, one.reason).count += one.count;
        }
        self.buckets.iter_mut().zip(other.buckets).for_each(|(sum, more)| *sum += more);
        self.duration += other.duration;
        self.request_bytes += other.request_bytes;
        self.response_bytes += other.response_bytes;
        self.streams += other.streams;
        self.streams_open += other.streams_open;
        self.retries += other.retries;
    }
}

/// Name, kind, help and value of a metric that is one number a series.
type Simple = (&'static str, &'static str, &'static str, fn(&Counts) -> u64);

/// Writes the metrics of all workers, summed, in Prometheus' text format.
pub(crate) fn render(recorders: &[Arc<Recorder>], out: &mut String) -> fmt::Result {
    let mut sums: BTreeMap<Key, Counts> = BTreeMap::new();
    for recorder in recorders {
        let mut all: Vec<Arc<Series>> = recorder.series.lock().values().cloned().collect();
        all.push(recorder.unmatched.clone());
        for series in all {
            sums.entry(series.key.clone()).or_default().add(&series.counts.lock());
        }
    }
    let labelled: Vec<(String, Counts)> = sums.into_iter().map(|(key, counts)| (labels(&key), counts)).collect();
    requests(&labelled, out)?;
    durations(&labelled, out)?;
    let simple: [Simple; 5] = [
        ("weft_request_bytes_total", "counter", "Bytes of request bodies.", |c| c.request_bytes),
        ("weft_response_bytes_total", "counter", "Bytes of response bodies.", |c| c.response_bytes),
        ("weft_streams_total", "counter", "Opaque streams, ever.", |c| c.streams),
        ("weft_streams_open", "gauge", "Opaque streams, now.", |c| c.streams_open),
        ("weft_retries_total", "counter", "Tries that were repeated.", |c| c.retries),
    ];
    for (name, kind, help, value) in simple {
        head(out, name, kind, help)?;
        for (labels, counts) in &labelled {
            writeln!(out, "{name}{{{labels}}} {}", value(counts))?;
        }
    }
    notes(recorders, out)?;
    links(recorders, out)
}

fn requests(labelled: &[(String, Counts)], out: &mut String) -> fmt::Result {
    head(out, "weft_requests_total", "counter", "Exchanges, by status and by why Weft ended them.")?;
    for (labels, counts) in labelled {
        for one in &counts.codes {
            let (code, reason, count) = (one.code, one.reason, one.count);
            writeln!(out, "weft_requests_total{{{labels},code=\"{code}\",reason=\"{reason}\"}} {count}")?;
        }
    }
    Ok(())
}

fn durations(labelled: &[(String, Counts)], out: &mut String) -> fmt::Result {
    let name = "weft_request_duration_seconds";
    head(out, name, "histogram", "From the first to the last moment of an exchange.")?;
    for (labels, counts) in labelled {
        let mut below = 0;
        for ((_, bound), count) in BUCKETS.iter().zip(counts.buckets) {
            below += count;
            writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}")?;
        }
        below += counts.buckets[BUCKETS.len()];
        writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {below}")?;
        writeln!(out, "{name}_sum{{{labels}}} {}", counts.duration.as_secs_f64())?;
        writeln!(out, "{name}_count{{{labels}}} {below}")?;
    }
    Ok(())
}

fn notes(recorders: &[Arc<Recorder>], out: &mut String) -> fmt::Result {
    let name = "weft_policy_notes_total";
    head(out, name, "counter", "What AUDIT policies and policies in dry run said.")?;
    let mut sums = BTreeMap::new();
    for recorder in recorders {
        for (key, count) in &*recorder.notes.lock() {
            *sums.entry(key.clone()).or_insert(0) += count;
        }
    }
    for ((policy, says, dry_run), count) in sums {
        writeln!(
            out,
            "{name}{{policy=\"{}\",says=\"{says}\",dry_run=\"{dry_run}\"}} {count}",
            Escaped(policy.as_str())
        )?;
    }
    Ok(())
}

fn links(recorders: &[Arc<Recorder>], out: &mut String) -> fmt::Result {
    let sum = |value: fn(&Recorder) -> &AtomicU64| -> u64 {
        recorders.iter().map(|recorder| value(recorder).load(Ordering::Relaxed)).sum()
    };
    let kinds: [(&str, &str, OfLinks); 4] = [
        ("outbound", "tcp", |links| &links.out[0]),
        ("outbound", "quic", |links| &links.out[1]),
        ("inbound", "tcp", |links| &links.taken[0]),
        ("inbound", "quic", |links| &links.taken[1]),
    ];
    let of = |counts: OfLinks, value: fn(&LinkCounts) -> &AtomicU64| -> u64 {
        recorders.iter().map(|recorder| value(counts(&recorder.links)).load(Ordering::Relaxed)).sum()
    };
    head(out, "weft_links_open", "gauge", "Links with other nodes, now.")?;
    for (direction, transport, counts) in kinds {
        let open = of(counts, |counts| &counts.open);
        writeln!(out, "weft_links_open{{direction=\"{direction}\",transport=\"{transport}\"}} {open}")?;
    }
    head(out, "weft_links_total", "counter", "Links with other nodes, ever.")?;
    for (direction, transport, counts) in kinds {
        let total = of(counts, |counts| &counts.total);
        writeln!(out, "weft_links_total{{direction=\"{direction}\",transport=\"{transport}\"}} {total}")?;
    }
    let (opened, taken) = ("direction=\"outbound\"", "direction=\"inbound\"");
    head(out, "weft_link_failures_total", "counter", "Links that could not be opened or were refused.")?;
    writeln!(out, "weft_link_failures_total{{{opened}}} {}", sum(|r| &r.links.out_failed))?;
    writeln!(out, "weft_link_failures_total{{{taken}}} {}", sum(|r| &r.links.in_failed))?;
    head(out, "weft_records_lost_total", "counter", "Access records dropped because their writer was behind.")?;
    writeln!(out, "weft_records_lost_total {}", sum(|r| &r.lost))
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

fn labels(key: &Key) -> String {
    let (source, destination) = (Escaped(&key.source), Escaped(&key.destination));
    format!("direction=\"{}\",source=\"{source}\",destination=\"{destination}\"", key.direction)
}

/// The value of a label, escaped as Prometheus' text format wants it.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            other => f.write_char(other),
        })
    }
}

/// Bounds of the histogram's buckets, and how they are written in seconds.
const BUCKETS: [(Duration, &str); 14] = [
    (Duration::from_micros(250), "0.00025"),
    (Duration::from_micros(500), "0.0005"),
    (Duration::from_millis(1), "0.001"),
    (Duration::from_micros(2500), "0.0025"),
    (Duration::from_millis(5), "0.005"),
    (Duration::from_millis(10), "0.01"),
    (Duration::from_millis(25), "0.025"),
    (Duration::from_millis(50), "0.05"),
    (Duration::from_millis(100), "0.1"),
    (Duration::from_millis(250), "0.25"),
    (Duration::from_millis(500), "0.5"),
    (Duration::from_secs(1), "1"),
    (Duration::from_millis(2500), "2.5"),
    (Duration::from_secs(10), "10"),
];

/// The source of calls in plain text at the own ports of instances.
const UNKNOWN: &str = "unknown";
