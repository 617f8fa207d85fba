//! What happened, in order, and its hash: the same seed gives the same trace.

use std::fmt::Write;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Milliseconds since the run began.
    pub at: u64,
    /// The host it happened on; none: to the whole mesh.
    pub host: Option<usize>,
    /// What kind of thing it was.
    pub kind: Kind,
    /// What it was.
    pub text: String,
}

/// Kinds of events, as a timeline tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A fault begins or ends.
    Fault,
    /// A node starts, stops, or changes its role.
    Node,
    /// A decision.
    Decision,
    /// A call that was allowed.
    Allowed,
    /// A call that was denied.
    Denied,
    /// A call that failed.
    Failed,
    /// An invariant broke.
    Broken,
}

/// The events of a run.
#[derive(Debug, Default)]
pub struct Trace {
    events: Vec<Event>,
    hash: u64,
}

impl Trace {
    /// Adds an event.
    pub fn add(&mut self, at: u64, host: Option<usize>, kind: Kind, text: impl Into<String>) {
        let event = Event { at, host, kind, text: text.into() };
        let mut line = String::new();
        let _ = write!(line, "{event}");
        let start = if self.hash == 0 { 0xcbf2_9ce4_8422_2325 } else { self.hash };
        self.hash = line.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        self.events.push(event);
    }

    /// All events so far.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The hash of all events so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = self.host.map_or_else(|| "    ".to_owned(), |host| format!("n{host:<3}"));
        write!(f, "{:>7}.{:03} {host} {:?}: {}", self.at / 1000, self.at % 1000, self.kind, self.text)
    }
}
