//! What the cores of a node share: read without a lock on the path of an exchange.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_rustls::StartHandshake;

use crate::connect::transport::Transport;
use crate::net::Net;
use crate::room::{Room, Strangers};
use crate::table::Table;
use crate::tls::{Clock, Identities};
use crate::upstream::Upstreams;

/// What does not change while the node runs.
pub struct PlaneSettings {
    /// Where links arrive, on TCP and UDP.
    pub mesh_address: SocketAddr,
    /// Where the forward proxy listens.
    pub proxy_address: Option<SocketAddr>,
    /// Where connections to services' loopback addresses arrive, if they all arrive at one place.
    pub captured: Option<SocketAddr>,
    /// Cores.
    pub workers: usize,
    /// Share of access records that are written, 0 to 1.
    pub access_sample: f64,
    /// What links to other nodes run over.
    pub transport: Transport,
    /// Wall clock.
    pub clock: Clock,
    /// Seed of choices that need not be secret.
    pub seed: u64,
    /// Most connections of applications at once: those that come in. As many may go out to instances.
    pub connections_max: usize,
}

/// What a connection for the control plane is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlAlpn {
    /// A member's control link.
    Control,
    /// A node that wants to join.
    Join,
}

/// A connection for the control plane that arrived on the mesh port.
pub enum Handover<N: Net> {
    /// On TCP; its handshake is yet to be done.
    Tcp {
        /// The handshake.
        handshake: Box<StartHandshake<N::Stream>>,
        /// What it is for.
        alpn: ControlAlpn,
        /// Where it comes from.
        from: SocketAddr,
    },
    /// On QUIC, from a holder of an SVID.
    Quic {
        /// The connection.
        connection: quinn::Connection,
    },
}

/// What cannot be listened on, and why.
pub(crate) type Problems = Mutex<Vec<String>>;

/// What the cores share.
pub(crate) struct Shared<N: Net> {
    pub(crate) settings: PlaneSettings,
    pub(crate) net: N,
    pub(crate) identities: Arc<Identities>,
    pub(crate) table: ArcSwap<Table>,
    pub(crate) tables: watch::Sender<()>,
    pub(crate) draining: watch::Sender<bool>,
    /// How many workers listen where the table in force says.
    pub(crate) listening: AtomicUsize,
    /// How long what is open may last when the node drains and its process stays for that.
    pub(crate) stays: OnceLock<Duration>,
    /// How many workers have nothing left but that.
    pub(crate) alone: watch::Sender<usize>,
    pub(crate) handover: mpsc::Sender<Handover<N>>,
    pub(crate) room: Arc<Room>,
    pub(crate) strangers: Arc<Strangers>,
    pub(crate) upstreams: Upstreams,
    /// How often each worker has said that it lives.
    pub(crate) beats: Box<[AtomicU64]>,
}

impl<N: Net> Shared<N> {
    /// Waits until a table is in force: a node that has been started again does not know what it runs before.
    pub(crate) async fn in_force(&self) {
        let mut tables = self.tables.subscribe();
        while !self.table.load().is_in_force() && tables.changed().await.is_ok() {}
    }
}
