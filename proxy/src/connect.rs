//! Step 6: a pooled or fresh connection to the endpoint.

mod answers;
pub(crate) mod carry;
pub(crate) mod instance;
pub(crate) mod link;
mod pulse;
pub(crate) mod transport;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use weft_proto::identity::Identity;
use weft_proto::service::{InstanceId, Protocol};

use crate::balance::Chosen;
use crate::net::Net;
use crate::reject::Reject;
use crate::retry::{Again, Failure};
use crate::route::Route;
use crate::table::Table;
use crate::tls::Target;
use crate::worker::Worker;
use instance::{InstanceSlot, Lease, Reuse};
use link::{LinkError, LinkSlot, Ticket, Way};
use transport::Transports;

/// Where an HTTP exchange is forwarded to.
#[derive(Debug)]
pub(crate) enum Upstream {
    /// Another node.
    Link(Ticket),
    /// This node's instance, over HTTP/1.1.
    Instance(Lease),
    /// This node's instance, over HTTP/2.
    InstanceHttp2(Ticket),
}

impl Upstream {
    /// Whether its connection had to be made.
    pub(crate) fn is_new(&self) -> bool {
        match self {
            Self::Link(ticket) | Self::InstanceHttp2(ticket) => ticket.is_new(),
            Self::Instance(lease) => lease.idle().is_none(),
        }
    }
}

/// Where an opaque stream is forwarded to.
pub(crate) enum StreamUpstream<S> {
    /// Another node.
    Link(Ticket),
    /// This node's instance.
    Instance(S),
}

/// Reaches the endpoint for an HTTP exchange. `http2` is what an instance is spoken to with whose port does not say;
/// `reuse` says which connections that were used before will do.
pub(crate) async fn http<N: Net>(
    worker: &Arc<Worker<N>>,
    route: &Route,
    chosen: &Chosen,
    (http2, reuse): (bool, Reuse),
) -> Result<Upstream, Failure> {
    let limit = route.settings().connect_timeout;
    let Some(instance) = chosen.instance() else {
        return link(worker, chosen, limit).await.map(Upstream::Link);
    };
    let (slot, protocol) = instance_slot(worker, chosen, instance)?;
    let http2 = matches!(protocol, Protocol::Http2 | Protocol::Grpc) || (protocol == Protocol::Auto && http2);
    let reached = if http2 {
        link::ticket(worker, &slot.http2, limit).await.map(Upstream::InstanceHttp2)
    } else {
        instance::lease(worker, slot, reuse, limit).await.map(Upstream::Instance)
    };
    reached.map_err(|error| failed(chosen, error))
}

/// Reaches the endpoint for an opaque stream.
pub(crate) async fn stream<N: Net>(
    worker: &Arc<Worker<N>>,
    route: &Route,
    chosen: &Chosen,
) -> Result<StreamUpstream<N::Stream>, Failure> {
    let limit = route.settings().connect_timeout;
    let Some(instance) = chosen.instance() else {
        return link(worker, chosen, limit).await.map(StreamUpstream::Link);
    };
    let (slot, _) = instance_slot(worker, chosen, instance)?;
    match timeout(limit, worker.plane.net.dial(slot.target)).await {
        Ok(Ok(stream)) => Ok(StreamUpstream::Instance(stream)),
        Ok(Err(error)) => Err(failed(chosen, LinkError::io(slot.target, &error))),
        Err(_) => Err(failed(chosen, LinkError::late(slot.target, limit))),
    }
}

async fn link<N: Net>(worker: &Arc<Worker<N>>, chosen: &Chosen, limit: Duration) -> Result<Ticket, Failure> {
    let index = chosen.endpoint().expect("only endpoints are elsewhere");
    let relation = chosen.relation();
    let slot = relation.links[index].get_or_init(|| {
        let endpoint = &relation.service.endpoints[index];
        let instance =
            InstanceId { service: relation.service.name.clone(), name: endpoint.description.instance.clone() };
        worker.link_slot(Way::Mutual {
            transports: Transports::of(worker.plane.settings.transport, endpoint.same_zone),
            from: relation.caller.identity().clone(),
            to: relation.service.identity.clone(),
            server_name: Target::Instance { instance, port: relation.port.port }.server_name().to_str().into(),
            address: endpoint.description.address,
        })
    });
    // One that could not be reached lately is probed by an exchange that somebody waits for; and where there are others the
    // host may have gone without a word.
    let hurries = relation.slot(index).has_failed() || chosen.has_spare();
    let limit = if hurries { limit.min(HURRIED_TIMEOUT) } else { limit };
    link::ticket(worker, slot, limit).await.map_err(|error| failed(chosen, error))
}

fn instance_slot<'c, N: Net>(
    worker: &Worker<N>,
    chosen: &'c Chosen,
    instance: usize,
) -> Result<(&'c Arc<InstanceSlot>, Protocol), Failure> {
    let relation = chosen.relation();
    let Some(port) = relation.service.instances[instance].port(relation.port.port) else {
        return Err(Failure { reject: Reject::NoInstance, again: Again::Elsewhere });
    };
    let slot = relation.instance_slots[instance].get_or_init(|| worker.instance_slot(port.target));
    Ok((slot, port.protocol))
}

fn failed(chosen: &Chosen, error: LinkError) -> Failure {
    match error {
        LinkError::NoCertificate(why) => Failure::never(Reject::NoCertificate(why.to_string())),
        LinkError::Unreachable(why) => {
            chosen.lost();
            Failure::unreachable(why.to_string())
        }
    }
}

impl<N: Net> Worker<N> {
    fn link_slot(&self, way: Way) -> Arc<LinkSlot> {
        let mut links = self.links.lock();
        let slot = links.entry(way.clone()).or_insert_with(|| Arc::new(LinkSlot::new(way)));
        slot.clone()
    }

    fn instance_slot(&self, target: SocketAddr) -> Arc<InstanceSlot> {
        self.instances.lock().entry(target).or_insert_with(|| Arc::new(InstanceSlot::new::<N>(target))).clone()
    }

    /// Links to places that the table no longer names take no new exchanges: a node that died and comes back is reached on
    /// a new one, not on what it knows nothing of.
    pub(crate) fn retire_links(&self, table: &Table) {
        let links = self.links.lock();
        if links.is_empty() {
            return;
        }
        let places = table.services().flat_map(|service| {
            service.endpoints.iter().map(|endpoint| (&service.identity, endpoint.description.address))
        });
        let named: BTreeSet<(&Identity, SocketAddr)> = places.collect();
        for (way, slot) in &*links {
            let Way::Mutual { to, address, .. } = way else { continue };
            if !named.contains(&(to, *address)) {
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

/// Bound on reaching an endpoint that could not be reached before, or in whose place another may be tried.
const HURRIED_TIMEOUT: Duration = Duration::from_secs(1);
