//! Who calls whom, with all that follows from it and a table alone.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderValue;
use weft_proto::service::ServicePort;

use crate::call::{Addresses, Asked, End, Parties};
use crate::reject::Reject;
use crate::table::authz::Caller;
use crate::table::endpoints::Slot;
use crate::table::{Service, Table};
use crate::tls::Target;

/// Who calls whom. One core makes it once for a table and shares it between its connections.
#[derive(Debug)]
pub(crate) struct Relation {
    pub(crate) end: End,
    pub(crate) caller: Caller,
    pub(crate) service: Arc<Service>,
    pub(crate) port: ServicePort,
    /// Name under which policies know what is asked for.
    pub(crate) server_name: Box<str>,
    /// Where this node is reached, for policies.
    pub(crate) own_ip: IpAddr,
    /// Indices of the endpoints that may be chosen, own node included.
    pub(crate) candidates: Vec<usize>,
    /// At the callee's node: which of its instances is called; none where it has not the one that is asked for.
    pub(crate) instance: Option<usize>,
    /// What the instance is told of both ends.
    pub(crate) forwarded: Option<HeaderValue>,
    place: Place,
}

/// A core among those of its node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) core: usize,
    pub(crate) cores: usize,
}

/// An exchange that is open.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) relation: Arc<Relation>,
    pub(crate) addresses: Addresses,
    /// None on an opaque stream.
    pub(crate) asked: Option<Asked>,
    /// What the request's body broke off with.
    pub(crate) request_fault: Option<Reject>,
    /// Which of the relation's own instances serves it; none where another node's does, or none has been chosen yet.
    pub(crate) instance: Option<usize>,
}

impl Relation {
    pub(crate) fn new(
        table: &Table,
        parties: &Parties,
        service: &Arc<Service>,
        port: ServicePort,
        place: Place,
    ) -> Self {
        let serves = |index: &usize| {
            let endpoint = &service.endpoints[*index];
            let own = || service.instance(&endpoint.description.instance);
            let ready = !endpoint.here || own().is_some_and(|own| service.instances[own].serves(port.port));
            endpoint.description.healthy && endpoint.description.ports.contains(&port.port) && ready
        };
        let candidates = match parties.end {
            End::Caller => (0..service.endpoints.len()).filter(serves).collect(),
            End::Callee => Vec::new(),
        };
        let target = Target::Service { service: service.name.clone(), port: Some(port.port) };
        let forwarded = format!("By={};URI={}", service.identity, parties.caller);
        Self {
            end: parties.end,
            caller: Caller::new(parties.caller.clone()),
            service: service.clone(),
            port,
            server_name: target.server_name().to_str().into(),
            own_ip: table.own_ip(),
            candidates,
            instance: parties.instance.as_ref().and_then(|name| service.instance(name)),
            forwarded: HeaderValue::from_str(&forwarded).ok(),
            place,
        }
    }

    /// What this core has learned about an endpoint.
    pub(crate) fn slot(&self, endpoint: usize) -> &Slot {
        self.service.endpoints[endpoint].statistics.slot(self.place.core, self.place.cores)
    }

    /// Whether another node may serve it.
    pub(crate) fn leads_elsewhere(&self) -> bool {
        self.candidates.iter().any(|index| !self.service.endpoints[*index].here)
    }

    /// Both ends as this node sees them where the call begins here.
    pub(crate) fn own_addresses(&self) -> Addresses {
        Addresses { source: self.own_ip, destination: self.own_ip }
    }
}
