//! Who calls whom, with all that follows from it and a table alone.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use http::HeaderValue;
use weft_proto::identity::Identity;
use weft_proto::kinds::destination_rule::Simple;
use weft_proto::service::{Labels, ServicePort};

use crate::call::{Addresses, Asked, End, Parties};
use crate::reject::Reject;
use crate::table::authz::Caller;
use crate::table::endpoints::Slot;
use crate::table::routes::Routes;
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
    /// The labels that the instances must have which are meant: none of a subset that is not defined.
    subset: Option<Option<Labels>>,
    /// The rules that count for these calls, at the caller's node: those that stand first of what it sees.
    pub(crate) routes: Option<Arc<Routes>>,
    /// How instances are chosen; none: Weft's own way.
    pub(crate) balancer: Option<Simple>,
    /// Whose turn it is where they are chosen one after the other.
    pub(crate) turn: AtomicUsize,
    /// The caller's labels, where a rule asks for them.
    pub(crate) labels: Labels,
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
        let target = Target::Service { service: service.name.clone(), port: Some(port.port) };
        let forwarded = format!("By={};URI={}", service.identity, parties.caller);
        let mut relation = Self {
            end: parties.end,
            caller: Caller::new(parties.caller.clone()),
            service: service.clone(),
            port,
            server_name: target.server_name().to_str().into(),
            own_ip: table.own_ip(),
            candidates: Vec::new(),
            subset: parties.subset.as_deref().map(|name| {
                let labels = service.subset(name, namespace(&parties.caller));
                labels.cloned()
            }),
            instance: parties.instance.as_ref().and_then(|name| service.instance(name)),
            forwarded: HeaderValue::from_str(&forwarded).ok(),
            routes: routes(parties, service),
            balancer: service.balancer(parties.subset.as_deref(), namespace(&parties.caller)),
            turn: AtomicUsize::new(0),
            labels: labels(table, parties, service),
            place,
        };
        if relation.end == End::Caller {
            let candidate = |index: &usize| relation.serves(*index) && relation.is_in_subset(*index);
            relation.candidates = (0..service.endpoints.len()).filter(candidate).collect();
        }
        relation
    }

    /// Whether an instance may be called at the port.
    pub(crate) fn serves(&self, index: usize) -> bool {
        let (service, port) = (&self.service, self.port.port);
        let endpoint = &service.endpoints[index];
        let own = || service.instance(&endpoint.description.instance);
        let ready = !endpoint.here || own().is_some_and(|own| service.instances[own].serves(port));
        endpoint.description.healthy && endpoint.description.ports.contains(&port) && ready
    }

    /// Whether an instance is among those that are meant.
    pub(crate) fn is_in_subset(&self, index: usize) -> bool {
        let own = &self.service.endpoints[index].description.labels;
        match &self.subset {
            None => true,
            Some(labels) => labels.as_ref().is_some_and(|labels| self.service.is_in(own, labels)),
        }
    }

    /// The caller's namespace; that of the mesh itself for a node.
    pub(crate) fn namespace(&self) -> &str {
        namespace(self.caller.identity())
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

/// The namespace of an identity; empty for a node.
fn namespace(identity: &Identity) -> &str {
    identity.namespace().unwrap_or_default()
}

fn routes(parties: &Parties, service: &Service) -> Option<Arc<Routes>> {
    let seen = |routes: &&Arc<Routes>| parties.end == End::Caller && routes.is_seen_by(namespace(&parties.caller));
    service.routes.iter().find(seen).cloned()
}

/// The labels of the calling service, where a rule of the called one asks for any.
fn labels(table: &Table, parties: &Parties, service: &Service) -> Labels {
    if parties.end == End::Callee || !service.routes.iter().any(|routes| routes.asks_for_labels()) {
        return Labels::new();
    }
    let caller = table.services().find(|one| one.identity == parties.caller);
    caller.map(|caller| caller.common_labels()).unwrap_or_default()
}
