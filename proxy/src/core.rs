//! One core's own: its links, lanes, counters and open exchanges. Nothing of it is shared with another core.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use weft_proto::service::ServicePort;

use crate::call::{End, Parties};
use crate::connect::Dialer;
use crate::date::Dates;
use crate::decide::relation::{Ground, Place, Relation};
use crate::hold::{self, Holds};
use crate::lane::{Lanes, Leg};
use crate::net::Net;
use crate::record::Recorder;
use crate::shared::Shared;
use crate::table::{Service, Table};

/// One core's own.
pub(crate) struct Core<N: Net> {
    pub(crate) place: Place,
    pub(crate) shared: Arc<Shared<N>>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) holds: Arc<Holds>,
    pub(crate) lanes: Lanes,
    pub(crate) dates: Dates,
    pub(crate) dialer: Arc<Dialer<N>>,
    /// Held once by each exchange that has come over QUIC: on another node's link, or in HTTP/3.
    pub(crate) over_quic: Arc<()>,
    /// Copies of requests that are under way.
    copies: Arc<AtomicUsize>,
}

/// A copy under way; given back when dropped.
#[derive(Debug)]
pub(crate) struct Copying(Arc<AtomicUsize>);

impl Drop for Copying {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<N: Net> Core<N> {
    /// Whether exchanges that have come over QUIC are open.
    pub(crate) fn serves_over_quic(&self) -> bool {
        Arc::strong_count(&self.over_quic) > 1
    }

    pub(crate) fn new(shared: &Arc<Shared<N>>, recorder: Arc<Recorder>, place: Place) -> Arc<Self> {
        let dialer = Dialer::new(&shared.net, &shared.identities, &recorder, shared.settings.transport);
        Arc::new(Self {
            place,
            shared: shared.clone(),
            recorder,
            holds: Arc::default(),
            lanes: Lanes::default(),
            over_quic: Arc::default(),
            dates: Dates::default(),
            dialer,
            copies: Arc::default(),
        })
    }

    /// A place for a copy of a request; none where there are too many.
    pub(crate) fn copying(&self) -> Option<Copying> {
        let copying = Copying(self.copies.clone());
        (self.copies.fetch_add(1, Ordering::Relaxed) < COPIES_MAX).then_some(copying)
    }

    /// A place for a task that may have an exchange.
    pub(crate) fn enter(&self) -> hold::Place {
        self.holds.enter()
    }

    /// The leg of these parties under a table.
    pub(crate) fn leg(&self, table: &Table, parties: Parties, service: &Arc<Service>, port: ServicePort) -> Arc<Leg> {
        self.lanes.leg(table.generation, parties, &self.recorder, |parties| {
            let ground = Ground { table, place: self.place, upstreams: &self.shared.upstreams };
            let relation = Relation::new(ground, parties, service, port);
            let certified = parties.end == End::Callee || self.shared.identities.holds(relation.onward());
            (relation, certified)
        })
    }
}

/// Most copies of requests that a core has under way.
const COPIES_MAX: usize = 1024;
