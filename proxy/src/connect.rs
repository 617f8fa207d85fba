//! Connections out of a core: made, kept, retired.

mod answers;
pub(crate) mod carry;
pub(crate) mod instance;
pub(crate) mod link;
mod pulse;
pub(crate) mod transport;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::net::Net;
use crate::place::Place;
use crate::quic::QuicClient;
use crate::record::Recorder;
use crate::table::Table;
use crate::tls::{Identities, Target};
use instance::InstanceSlot;
use link::{LinkSlot, Way};
use transport::Transport;

/// What connections of one core are made with, and those that are open.
pub(crate) struct Dialer<N: Net> {
    pub(crate) net: N,
    identities: Arc<Identities>,
    quic: QuicClient,
    recorder: Arc<Recorder>,
    pub(crate) transport: Transport,
    links: Mutex<BTreeMap<Way, Arc<LinkSlot>>>,
    instances: Mutex<BTreeMap<Place, Arc<InstanceSlot>>>,
}

impl<N: Net> Dialer<N> {
    pub(crate) fn new(
        net: &N,
        identities: &Arc<Identities>,
        recorder: &Arc<Recorder>,
        transport: Transport,
    ) -> Arc<Self> {
        Arc::new(Self {
            net: net.clone(),
            identities: identities.clone(),
            quic: QuicClient::new(net, identities.clone()),
            recorder: recorder.clone(),
            transport,
            links: Mutex::default(),
            instances: Mutex::default(),
        })
    }

    pub(crate) fn link_slot(&self, way: Way) -> Arc<LinkSlot> {
        let mut links = self.links.lock();
        let slot = links.entry(way.clone()).or_insert_with(|| Arc::new(LinkSlot::new(way)));
        slot.clone()
    }

    pub(crate) fn instance_slot(&self, place: &Place) -> Arc<InstanceSlot> {
        let mut instances = self.instances.lock();
        if let Some(slot) = instances.get(place) {
            return slot.clone();
        }
        let slot = Arc::new(InstanceSlot::new::<N>(place.clone()));
        instances.insert(place.clone(), slot.clone());
        slot
    }

    /// Links to places that the table no longer names take no new exchanges: a node that died and comes back is reached on
    /// a new one, not on what it knows nothing of.
    pub(crate) fn retire_links(&self, table: &Table) {
        for (way, slot) in &*self.links.lock() {
            let Way::Mutual { to, server_name, address, .. } = way else { continue };
            let Some(Target::Instance { instance, .. }) = Target::parse(server_name) else { continue };
            let named = table.service(&instance.service).is_some_and(|service| {
                service.identity == *to && service.endpoints.iter().any(|one| one.description.address == *address)
            });
            if !named {
                slot.retire();
            }
        }
    }

    /// Forgets connections that have ended or were idle too long, and places that nobody refers to any more.
    pub(crate) fn sweep(&self) {
        self.links.lock().retain(|_, slot| !slot.sweep() || Arc::strong_count(slot) > 1);
        self.instances.lock().retain(|_, slot| !slot.sweep() || Arc::strong_count(slot) > 1);
    }
}
