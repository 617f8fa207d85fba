//! The data plane of a node: what the node says to its cores.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use weft_proto::identity::{Identity, NodeName};
use weft_proto::service::{InstanceId, ServiceName};

use crate::core::Core;
use crate::decide::relation::{Current, Ground, Place};
use crate::explain::{self, Explanation, Spoken};
use crate::net::Net;
use crate::record::{Record, Recorder, metrics};
use crate::room::Room;
use crate::shared::{Problems, Shared};
use crate::table::Table;
use crate::tls::{Identities, Revoked};
use crate::upstream::Upstreams;
use crate::worker;

pub use crate::connect::transport::Transport;
pub use crate::shared::{ControlAlpn, Handover, PlaneSettings};
pub use crate::tls::Clock;

/// The data plane of a node.
pub struct Plane<N: Net> {
    shared: Arc<Shared<N>>,
    cores: Vec<Arc<Core<N>>>,
    problems: Problems,
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
        let (cores, sample, seed) = (settings.workers.max(1), settings.access_sample, settings.seed);
        let shared = Arc::new(Shared {
            room: Room::new(settings.connections_max),
            strangers: Arc::default(),
            upstreams: Upstreams::default(),
            beats: (0..cores).map(|_| AtomicU64::new(0)).collect(),
            settings,
            net,
            identities,
            table: ArcSwap::from_pointee(table),
            tables: watch::channel(()).0,
            draining: watch::channel(false).0,
            listening: AtomicUsize::new(0),
            stays: OnceLock::new(),
            alone: watch::channel(0).0,
            handover,
        });
        let core = |core: usize| {
            let recorder = Arc::new(Recorder::new(records.clone(), sample, seed.wrapping_add(core as u64)));
            Core::new(&shared, recorder, Place { core, cores })
        };
        Arc::new(Self { cores: (0..cores).map(core).collect(), shared, problems: Mutex::default() })
    }

    /// Puts a table in force. New exchanges see it at once; open ones are judged again by their workers.
    pub fn swap(&self, table: Table) {
        self.shared.identities.name_accounts(table.accounts());
        self.shared.table.store(Arc::new(table));
        self.shared.tables.send_replace(());
    }

    /// Certificates by serial number that are not trusted from now on, in handshakes and on what is open.
    pub fn revoke(&self, serials: Revoked) {
        self.shared.identities.revoke(serials);
    }

    /// The table in force.
    pub fn table(&self) -> Arc<Table> {
        self.shared.table.load_full()
    }

    /// Runs a worker on the runtime that polls this; it ends once the plane drains.
    pub async fn run_worker(self: Arc<Self>, index: usize) {
        if let Some(core) = self.cores.get(index) {
            worker::run(core.clone(), &self.problems).await;
        }
    }

    /// How often each worker has said that it lives, which it does every 5 s. One that hangs says it no more.
    pub fn beats(&self) -> Vec<u64> {
        self.shared.beats.iter().map(|beats| beats.load(Ordering::Relaxed)).collect()
    }

    /// What does not work, with the remedy.
    pub fn problems(&self) -> Vec<String> {
        let table = self.shared.table.load();
        let own = table.services().flat_map(|service| service.instances.iter().map(move |own| (service, own)));
        let slow = own.filter_map(|(service, own)| {
            let (name, most) = (&own.description.id.name, own.overload.most()?);
            Some(format!(
                "{} {name} answers too late: of its calls {most} at once are let through and the others get 503: \
                 give it more instances, or fewer calls",
                service.name
            ))
        });
        let known = self.problems.lock().clone().into_iter();
        known.chain(self.shared.room.problem()).chain(slow).chain(table.gateways.problems()).collect()
    }

    /// Nodes that the table takes for live and that calls from here do not reach, and for how long.
    pub fn unreached(&self) -> BTreeMap<NodeName, Duration> {
        let table = self.shared.table.load();
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

    /// How many open exchanges an instance of this node serves.
    pub fn served_by(&self, instance: &InstanceId) -> usize {
        let own = |current: &Current| {
            let served = current.instance.and_then(|own| current.relation.service.instances.get(own));
            served.is_some_and(|own| own.description.id == *instance)
        };
        self.cores.iter().map(|core| core.holds.count(own)).sum()
    }

    /// Whether every worker listens where the table in force says, as far as it can.
    pub fn is_listening(&self) -> bool {
        self.shared.listening.load(Ordering::Relaxed) >= self.cores.len()
    }

    /// What is open when the node drains may last so long beyond that: its process stays.
    pub fn stay(&self, bound: Duration) {
        // The first word counts.
        let _ = self.shared.stays.set(bound);
    }

    /// Waits until a node that drains and stays has nothing left but what is open.
    pub async fn alone(&self) {
        let all = self.cores.len();
        // Its other end is held here.
        let _ = self.shared.alone.subscribe().wait_for(|alone| *alone >= all).await;
    }

    /// Ends all that is open.
    pub fn cut(&self) {
        for core in &self.cores {
            core.holds.end(|_| true);
        }
    }

    /// Takes no more connections and lets exchanges end.
    pub fn drain(&self) {
        self.shared.draining.send_replace(true);
    }

    /// Appends the metrics of all workers in Prometheus' text format.
    pub fn render_metrics(&self, out: &mut String) {
        metrics::render(&self.cores.iter().map(|core| core.recorder.clone()).collect::<Vec<_>>(), out)
            .expect("a string takes all that is written");
        let name = "weft_connections_refused_total";
        out.push_str(&format!(
            "# HELP {name} Connections of applications that found no room.\n# TYPE {name} counter\n{name} {}\n",
            self.shared.room.refused()
        ));
    }

    /// What would happen to a call, by the code that decides about calls.
    pub fn explain(
        &self,
        caller: &Identity,
        service: &ServiceName,
        port: Option<u16>,
        spoken: Spoken<'_>,
    ) -> Result<Explanation, String> {
        let core = self.cores.first().ok_or("no worker runs")?;
        let table = self.shared.table.load_full();
        explain::explain(self.ground(core, &table), caller, (service, port), spoken)
    }

    /// What would happen to a call from outside of a host, from an address, at a gateway that this node serves.
    pub fn explain_entry(
        &self,
        gateway: (&ServiceName, Option<u16>),
        call: (&str, IpAddr),
        spoken: Spoken<'_>,
    ) -> Result<Explanation, String> {
        let core = self.cores.first().ok_or("no worker runs")?;
        let table = self.shared.table.load_full();
        explain::enter(self.ground(core, &table), gateway, call, spoken)
    }

    fn ground<'a>(&'a self, core: &Core<N>, table: &'a Table) -> Ground<'a> {
        Ground { table, place: core.place, upstreams: &self.shared.upstreams }
    }
}
