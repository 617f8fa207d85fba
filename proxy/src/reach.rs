//! Step 6: a pooled or fresh connection to the endpoint that was chosen.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use weft_proto::service::{InstanceId, Protocol};

use crate::balance::Chosen;
use crate::connect::Dialer;
use crate::connect::instance::{self, InstanceSlot, Lease, Reuse};
use crate::connect::link::{self, LinkError, Ticket, Way};
use crate::connect::transport::Transports;
use crate::lane::Leg;
use crate::net::{Net, Stream};
use crate::place::{Dialled, Place, Said};
use crate::table::description::LocalPort;
use crate::table::destinations::Preamble;
use crate::tls::Target;

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
pub(crate) enum StreamUpstream {
    /// Another node.
    Link(Ticket),
    /// This node's instance, or a host outside the mesh.
    Instance(Box<dyn Stream>),
}

/// Which connections will do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// Whether an instance is spoken to in HTTP/2 whose port does not say.
    pub(crate) http2: bool,
    /// Of those that were used before.
    pub(crate) reuse: Reuse,
    /// Whether another try may follow where this one fails.
    pub(crate) repeats: bool,
    /// Who calls.
    pub(crate) client: SocketAddr,
}

/// Reaches the endpoint for an HTTP exchange.
pub(crate) async fn http<N: Net>(
    dialer: &Arc<Dialer<N>>,
    leg: &Leg,
    chosen: &Chosen,
    wanted: Wanted,
) -> Result<Upstream, LinkError> {
    let limit = leg.relation.connect_timeout();
    let Some(instance) = chosen.instance() else {
        return link(dialer, leg, chosen, wanted.repeats).await.map(Upstream::Link);
    };
    let (slot, protocol) = instance_slot(dialer, leg, instance, wanted.client)?;
    let http2 = match protocol {
        Protocol::Http2 | Protocol::Grpc => true,
        Protocol::Auto => wanted.http2 || leg.relation.treatment.http2,
        _ => leg.relation.treatment.http2,
    };
    if http2 {
        link::ticket(dialer, &slot.http2, limit).await.map(Upstream::InstanceHttp2)
    } else {
        instance::lease(dialer, &slot, (wanted.reuse, leg.relation.treatment.keeping), limit)
            .await
            .map(Upstream::Instance)
    }
}

/// Reaches the endpoint for an opaque stream.
pub(crate) async fn stream<N: Net>(
    dialer: &Arc<Dialer<N>>,
    leg: &Leg,
    chosen: &Chosen,
    repeats: bool,
    client: SocketAddr,
) -> Result<StreamUpstream, LinkError> {
    let limit = leg.relation.connect_timeout();
    let Some(instance) = chosen.instance() else {
        return link(dialer, leg, chosen, repeats).await.map(StreamUpstream::Link);
    };
    let dialled = match &leg.relation.treatment.preamble {
        None => instance_slot(dialer, leg, instance, client)?.0.reach(&dialer.net, limit).await?,
        // Not one that is used again.
        Some(preamble) => {
            let mut place = place(leg, instance, client)?.0;
            if let Preamble::Connect(target) = preamble {
                place.preamble = Some(Said::Connect(target.clone()));
            }
            InstanceSlot::new::<N>(place).reach(&dialer.net, limit).await?
        }
    };
    Ok(StreamUpstream::Instance(match dialled {
        Dialled::Plain(stream) => Box::new(stream),
        Dialled::Secure(stream) => stream,
    }))
}

async fn link<N: Net>(dialer: &Arc<Dialer<N>>, leg: &Leg, chosen: &Chosen, repeats: bool) -> Result<Ticket, LinkError> {
    let relation = &leg.relation;
    let index = chosen.endpoint().expect("only endpoints are elsewhere");
    let slot = leg.links[index].get_or_init(|| {
        let endpoint = &relation.service.endpoints[index];
        let instance =
            InstanceId { service: relation.service.name.clone(), name: endpoint.description.instance.clone() };
        dialer.link_slot(Way::Mutual {
            transports: Transports::of(dialer.transport, endpoint.same_zone),
            from: relation.caller.identity().clone(),
            to: relation.service.identity.clone(),
            server_name: Target::Instance { instance, port: relation.port.port }.server_name().to_str().into(),
            address: endpoint.description.address,
        })
    });
    // One that could not be reached lately is probed by an exchange that somebody waits for; and where there are others the
    // host may have gone without a word.
    let hurries = chosen.has_failed() || (repeats && chosen.has_spare());
    let limit = relation.connect_timeout();
    let limit = if hurries { limit.min(HURRIED_TIMEOUT) } else { limit };
    link::ticket(dialer, slot, limit).await
}

fn instance_slot<N: Net>(
    dialer: &Dialer<N>,
    leg: &Leg,
    instance: usize,
    client: SocketAddr,
) -> Result<(Arc<InstanceSlot>, Protocol), LinkError> {
    if leg.relation.treatment.tells_callers().is_some() {
        // A connection is one client's.
        let (place, protocol) = place(leg, instance, SocketAddr::new(client.ip(), 0))?;
        return Ok((dialer.instance_slot(&place), protocol));
    }
    if let Some(slot) = leg.instances[instance].get() {
        return Ok((slot.clone(), port(leg, instance)?.protocol));
    }
    let (place, protocol) = place(leg, instance, client)?;
    Ok((leg.instances[instance].get_or_init(|| dialer.instance_slot(&place)).clone(), protocol))
}

fn place(leg: &Leg, instance: usize, client: SocketAddr) -> Result<(Place, Protocol), LinkError> {
    let port = port(leg, instance)?;
    let place = leg.relation.place(instance, port, client).map_err(|why| LinkError::Unreachable(why.into()))?;
    Ok((place, port.protocol))
}

fn port(leg: &Leg, instance: usize) -> Result<LocalPort, LinkError> {
    leg.relation.service.instances[instance].port(leg.relation.port.port).ok_or(LinkError::NoInstance)
}

/// Bound on reaching an endpoint that could not be reached before, or in whose place another may be tried.
const HURRIED_TIMEOUT: Duration = Duration::from_secs(1);
