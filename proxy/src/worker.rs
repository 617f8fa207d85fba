//! One core of the data plane: its listeners, links, pools and counters. Nothing of it is shared with another core.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use crate::accept::links;
use crate::accept::listeners::{Listeners, wanted};
use crate::connect::instance::InstanceSlot;
use crate::connect::link::{LinkSlot, Way};
use crate::date::Dates;
use crate::identify::Relations;
use crate::net::Net;
use crate::plane::Plane;
use crate::quic::{QuicClient, QuicServer};
use crate::record::Recorder;
use crate::revoke::Holds;

/// One core's own.
pub(crate) struct Worker<N: Net> {
    pub(crate) index: usize,
    pub(crate) plane: Arc<Plane<N>>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) holds: Arc<Holds>,
    pub(crate) relations: Relations,
    pub(crate) dates: Dates,
    pub(crate) quic: QuicClient,
    pub(crate) links: Mutex<BTreeMap<Way, Arc<LinkSlot>>>,
    pub(crate) instances: Mutex<BTreeMap<SocketAddr, Arc<InstanceSlot>>>,
}

impl<N: Net> Worker<N> {
    pub(crate) fn new(plane: &Arc<Plane<N>>, index: usize) -> Arc<Self> {
        Arc::new(Self {
            index,
            plane: plane.clone(),
            recorder: plane.recorders[index].clone(),
            holds: Arc::default(),
            relations: Relations::default(),
            dates: Dates::default(),
            quic: QuicClient::new(&plane.net, plane.identities.clone()),
            links: Mutex::default(),
            instances: Mutex::default(),
        })
    }

    /// Serves until the node drains and its exchanges have ended, or their time is over.
    pub(crate) async fn run(self: Arc<Self>) {
        let (mut tables, mut draining) = (self.plane.tables.subscribe(), self.plane.draining.subscribe());
        let mut listeners = Listeners::default();
        let quic = self.listen_quic();
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tables.borrow_and_update();
            self.take_up(&mut listeners);
            tokio::select! {
                biased;
                _ = draining.wait_for(|draining| *draining) => break,
                changed = tables.changed() => if changed.is_err() { break },
                _ = ticks.tick() => self.sweep(),
            }
        }
        listeners.close();
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        let mut ticks = interval(DRAIN_LOOK_INTERVAL);
        while self.holds.open() > 0 && timeout_at(deadline, ticks.tick()).await.is_ok() {}
        drop(quic);
    }

    /// Brings listeners and open exchanges in step with the newest table.
    fn take_up(self: &Arc<Self>, listeners: &mut Listeners) {
        let table = self.plane.table.load_full();
        let settings = &self.plane.settings;
        let problems = listeners.update(self, &wanted(settings, &table));
        if self.index == 0 {
            *self.plane.problems.lock() = problems;
        }
        self.retire_links(&table);
        let ended = self.holds.judge(&table);
        if ended > 0 {
            tracing::info!(ended, "open exchanges are denied by the newest policies");
        }
    }

    fn listen_quic(self: &Arc<Self>) -> Option<crate::task::Aborting> {
        match QuicServer::bind(&self.plane.net, self.plane.settings.mesh_address, &self.plane.identities) {
            Ok(server) => {
                let task = tokio::spawn(links::serve_quic(self.clone(), server));
                Some(crate::task::Aborting(task.abort_handle()))
            }
            Err(error) => {
                tracing::warn!(%error, "no QUIC on this node: its mesh port cannot be opened for UDP");
                None
            }
        }
    }
}

/// How often idle connections are swept and listeners that failed are tried again.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How long exchanges may take to end when the node drains.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
const DRAIN_LOOK_INTERVAL: Duration = Duration::from_millis(20);
