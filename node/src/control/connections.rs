//! The QUIC connections with one node: made here or there, each used by both ends, ended when neither uses it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// How long a connection is kept that neither end uses.
const UNUSED_MAX: Duration = Duration::from_secs(45);

/// All with one node, the one to be used first.
#[derive(Default)]
pub(super) struct Connections(Vec<Kept>);

/// A QUIC connection with a node, on which both ends ask.
pub(super) struct Kept {
    pub(super) connection: quinn::Connection,
    made_here: bool,
    /// When it was last seen in use.
    used: Instant,
    /// Shared by what uses it.
    uses: Arc<()>,
}

impl Kept {
    pub(super) fn new(connection: &quinn::Connection, made_here: bool) -> Self {
        Self { connection: connection.clone(), made_here, used: Instant::now(), uses: Arc::default() }
    }

    fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Whether it leads to the address. One that the other end has made comes from a port of its own.
    fn leads_to(&self, address: SocketAddr) -> bool {
        let remote = self.connection.remote_address();
        remote == address || (!self.made_here && remote.ip().to_canonical() == address.ip().to_canonical())
    }
}

impl Connections {
    /// One more. Of two the one is used that the first of both nodes by name has made.
    pub(super) fn add(&mut self, new: Kept, here_first: bool) {
        if self.0.iter().all(|kept| kept.connection.stable_id() != new.connection.stable_id()) {
            self.0.push(new);
            self.0.sort_by_key(|kept| kept.made_here != here_first);
        }
    }

    /// One that leads to the address, and its use.
    pub(super) fn to(&mut self, address: SocketAddr) -> Option<(quinn::Connection, Arc<()>)> {
        let fit = self.0.iter_mut().find(|kept| kept.is_open() && kept.leads_to(address))?;
        fit.used = Instant::now();
        Some((fit.connection.clone(), fit.uses.clone()))
    }

    /// The use of one.
    pub(super) fn uses(&self, connection: &quinn::Connection) -> Option<Arc<()>> {
        let same = |kept: &&Kept| kept.connection.stable_id() == connection.stable_id();
        self.0.iter().find(same).map(|kept| kept.uses.clone())
    }

    /// Ends those from here that nobody has used for long, on either end, and forgets those that have ended.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.0.retain_mut(|kept| {
            if Arc::strong_count(&kept.uses) > 1 {
                kept.used = now;
            }
            let unused = kept.made_here && now - kept.used > UNUSED_MAX;
            if unused {
                kept.connection.close(0u32.into(), b"unused");
            }
            !unused && kept.is_open()
        });
    }

    /// Ends all.
    pub(super) fn close(&mut self, why: &'static [u8]) {
        self.0.drain(..).for_each(|kept| kept.connection.close(0u32.into(), why));
    }
}
