//! The data plane of a node: what its workers share, and what the node says to it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderMap;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_rustls::StartHandshake;
use weft_proto::UnixMillis;
use weft_proto::identity::{Identity, NodeName};
use weft_proto::service::ServiceName;

use crate::accept::room::{Room, Strangers};
use crate::explain::{self, Explanation};
use crate::identify::NO_ADDRESS;
use crate::net::Net;
use crate::record::{Record, Recorder, metrics};
use crate::table::Table;
use crate::tls::{Identities, Revoked, Validity};
use crate::worker::Worker;

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

/// What links to other nodes run over. A node takes both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// TCP within a zone, QUIC between zones; the other one where the first does not connect.
    #[default]
    Auto,
    /// HTTP/2 over TCP alone.
    Tcp,
    /// QUIC alone.
    Quic,
}

/// Reads the wall clock.
pub type Clock = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

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

/// What the workers share: read without a lock on the path of an exchange.
pub struct Plane<N: Net> {
    pub(crate) settings: PlaneSettings,
    pub(crate) net: N,
    pub(crate) identities: Arc<Identities>,
    pub(crate) table: ArcSwap<Table>,
    pub(crate) tables: watch::Sender<()>,
    pub(crate) draining: watch::Sender<bool>,
    pub(crate) handover: mpsc::Sender<Handover<N>>,
    pub(crate) recorders: Vec<Arc<Recorder>>,
    pub(crate) problems: Mutex<BTreeMap<SocketAddr, String>>,
    pub(crate) room: Arc<Room>,
    pub(crate) strangers: Arc<Strangers>,
    workers: Mutex<Vec<Arc<Worker<N>>>>,
}

impl<N: Net> Plane<N> {
    /// A data plane that enforces `table`. Records and connections that find no room are dropped.
    pub fn new(
        settings: PlaneSettings,
        net: N,
        identities: Arc<Identities>,
        table: Table,
        records: &mpsc::Sender<Record>,
        handover: mpsc::Sender<Handover<N>>,
    ) -> Arc<Self> {
        let recorder = |index: usize| {
            let seed = settings.seed.wrapping_add(index as u64);
            Arc::new(Recorder::new(records.clone(), settings.access_sample, seed))
        };
        let plane = Arc::new(Self {
            recorders: (0..settings.workers.max(1)).map(recorder).collect(),
            room: Room::new(settings.connections_max),
            strangers: Arc::default(),
            settings,
            net,
            identities,
            table: ArcSwap::from_pointee(table),
            tables: watch::channel(()).0,
            draining: watch::channel(false).0,
            handover,
            problems: Mutex::default(),
            workers: Mutex::default(),
        });
        let workers = (0..plane.recorders.len()).map(|index| Worker::new(&plane, index)).collect();
        *plane.workers.lock() = workers;
        plane
    }

    /// Puts a table in force. New exchanges see it at once; open ones are judged again by their workers.
    pub fn swap(&self, table: Table) {
        self.identities.name_accounts(table.accounts());
        self.table.store(Arc::new(table));
        self.tables.send_replace(());
    }

    /// Certificates by serial number that are not trusted from now on, in handshakes and on what is open.
    pub fn revoke(&self, serials: Revoked) {
        self.identities.revoke(serials);
    }

    /// The table in force.
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Runs a worker on the runtime that polls this; it ends once the plane drains.
    pub async fn run_worker(self: Arc<Self>, index: usize) {
        let worker = self.workers.lock().get(index).cloned();
        if let Some(worker) = worker {
            worker.run().await;
        }
    }

    /// What does not work, with the remedy.
    pub fn problems(&self) -> Vec<String> {
        self.problems.lock().values().cloned().chain(self.room.problem()).collect()
    }

    /// Nodes that the table takes for live and that calls from here do not reach, and for how long.
    pub fn unreached(&self) -> BTreeMap<NodeName, Duration> {
        let table = self.table.load();
        let endpoints = table.services().flat_map(|service| &service.endpoints).filter(|endpoint| !endpoint.here);
        let mut reach: BTreeMap<NodeName, (Option<Instant>, Option<Instant>)> = BTreeMap::new();
        for endpoint in endpoints {
            let (lost, reached) = endpoint.statistics.reach();
            let known = reach.entry(endpoint.description.node.clone()).or_default();
            *known = (known.0.into_iter().chain(lost).min(), known.1.max(reached));
        }
        let lost = reach.into_iter().filter_map(|(node, (lost, reached))| Some((node, lost?, reached)));
        lost.filter(|(_, lost, reached)| reached.is_none_or(|reached| reached < *lost))
            .map(|(node, lost, _)| (node, lost.elapsed()))
            .collect()
    }

    /// Takes no more connections and lets exchanges end.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Appends the metrics of all workers in Prometheus' text format.
    pub fn render_metrics(&self, out: &mut String) {
        metrics::render(&self.recorders, out).expect("a string takes all that is written");
        let name = "weft_connections_refused_total";
        out.push_str(&format!(
            "# HELP {name} Connections of applications that found no room.\n# TYPE {name} counter\n{name} {}\n",
            self.room.refused()
        ));
    }

    /// What would happen to a call, by the code that decides about calls. `http` is a method and a path.
    pub fn explain(
        &self,
        caller: &Identity,
        service: &ServiceName,
        port: Option<u16>,
        http: Option<(&str, &str)>,
        headers: &HeaderMap,
    ) -> Result<Explanation, String> {
        let worker = self.workers.lock().first().cloned().ok_or("no worker runs")?;
        explain::explain(&worker, caller, service, port, http, headers)
    }

    /// Whether this node holds a certificate of that identity.
    pub(crate) fn holds(&self, identity: &Identity) -> bool {
        self.identities.current().certificates.contains_key(identity)
    }

    /// Where this node is reached.
    pub(crate) fn own_ip(&self, table: &Table) -> IpAddr {
        table.node_ip.unwrap_or(NO_ADDRESS)
    }

    /// How long the holder of these certificates is trusted.
    pub(crate) fn validity(&self, chain: &[CertificateDer<'_>]) -> Validity {
        self.identities.validity(chain, |at| self.instant(at))
    }

    /// When a moment of the wall clock comes.
    fn instant(&self, at: UnixMillis) -> Instant {
        Instant::now() + Duration::from_millis(at.saturating_sub((self.settings.clock)()).min(YEAR_MS))
    }
}

/// Far enough away for any timer.
const YEAR_MS: u64 = 365 * 24 * 60 * 60 * 1000;
