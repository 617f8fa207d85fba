//! Step 2: who calls whom.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use http::HeaderValue;
use parking_lot::Mutex;
use weft_proto::identity::Identity;
use weft_proto::service::{InstanceName, ServiceName, ServicePort};

use crate::accept::host::Host;
use crate::accept::{Connection, Destination, End, Peer};
use crate::connect::instance::InstanceSlot;
use crate::connect::link::LinkSlot;
use crate::net::Net;
use crate::record::metrics::{Key, Series};
use crate::reject::Reject;
use crate::table::authz::Caller;
use crate::table::endpoints::Slot;
use crate::table::{Service, Table};
use crate::tls::Target;
use crate::worker::Worker;

/// Who calls whom, with all that follows from it alone. One worker makes it once for a table and shares it between its
/// connections.
#[derive(Debug)]
pub(crate) struct Relation {
    generation: u64,
    pub(crate) end: End,
    pub(crate) caller: Caller,
    pub(crate) service: Arc<Service>,
    pub(crate) port: ServicePort,
    pub(crate) series: Arc<Series>,
    /// Name under which policies know what is asked for.
    pub(crate) server_name: Box<str>,
    /// Where this node is reached, for policies.
    pub(crate) own_ip: IpAddr,
    /// Indices of the endpoints that may be chosen, own node included.
    pub(crate) candidates: Vec<usize>,
    /// At the callee's node: which of its instances is called; none where it has not the one that is asked for.
    pub(crate) instance: Option<usize>,
    /// By instance of this node.
    pub(crate) instance_slots: Vec<OnceLock<Arc<InstanceSlot>>>,
    /// By endpoint.
    pub(crate) links: Vec<OnceLock<Arc<LinkSlot>>>,
    /// What the instance is told of both ends.
    pub(crate) forwarded: Option<HeaderValue>,
    /// Exchanges, and those of them that are being retried.
    pub(crate) active: AtomicU32,
    pub(crate) retrying: AtomicU32,
    worker: usize,
    workers: usize,
    /// Whether this node holds the caller's certificate.
    certified: bool,
}

/// The relations of a worker under one table.
#[derive(Debug, Default)]
pub(crate) struct Relations(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    generation: u64,
    relations: BTreeMap<Parties, Arc<Relation>>,
}

/// Who calls whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Parties {
    pub(crate) end: End,
    pub(crate) caller: Identity,
    pub(crate) service: ServiceName,
    pub(crate) port: u16,
    /// At the callee's node: which of its instances; none asks for any.
    pub(crate) instance: Option<InstanceName>,
}

/// What a connection remembers between its exchanges.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) host: Option<Arc<Host>>,
    relation: Option<Arc<Relation>>,
    /// The host that the relation was found by, on a connection to no service in particular.
    found_by: Option<Arc<Host>>,
}

/// Who calls whom in this exchange.
pub(crate) fn relation<N: Net>(connection: &Connection<N>, host: Option<&Arc<Host>>) -> Result<Arc<Relation>, Reject> {
    let table = connection.worker.plane.table.load();
    let mut memory = connection.memory.lock();
    let named = matches!(connection.destination, Destination::Named);
    let same_host = !named || memory.found_by.as_ref().zip(host).is_some_and(|(a, b)| Arc::ptr_eq(a, b));
    let known = memory.relation.as_ref().filter(|relation| relation.generation == table.generation && same_host);
    let relation = match known {
        Some(relation) => relation.clone(),
        None => {
            let (service, port) = destination(connection, &table, host)?;
            let parties = Parties {
                end: connection.end(),
                caller: caller(connection, &table),
                service: service.name.clone(),
                port: port.port,
                instance: instance(connection, &service, port),
            };
            let relation = connection.worker.relation(&table, parties, &service, port);
            // Who leaves the choice to this node is not bound by it.
            let bound = !matches!(&connection.peer, Peer::Svid(caller) if caller.instance.is_none())
                || service.instances.len() < 2;
            memory.relation = bound.then(|| relation.clone());
            memory.found_by = host.cloned();
            relation
        }
    };
    drop(memory);
    if !relation.service.understood {
        return Err(Reject::Misconfigured);
    }
    if !relation.certified && !connection.worker.plane.holds(relation.caller.identity()) {
        let text = format!("no certificate of {} has been issued to this node yet", relation.caller.identity());
        return Err(Reject::NoCertificate(text));
    }
    Ok(relation)
}

/// The callee: that of the listener or link, or the one that the host names.
fn destination<N: Net>(
    connection: &Connection<N>,
    table: &Table,
    host: Option<&Arc<Host>>,
) -> Result<(Arc<Service>, ServicePort), Reject> {
    match &connection.destination {
        Destination::Fixed(name, number) => find(table, name, *number),
        Destination::Named => {
            let host = host.ok_or(Reject::BadRequest("the request names no host"))?;
            named(table, &host.compare, host.port())
        }
    }
}

/// The service and port that `name.mesh:port` means.
pub(crate) fn named(table: &Table, host: &str, port: Option<u16>) -> Result<(Arc<Service>, ServicePort), Reject> {
    let name = ServiceName::from_host(host).ok_or_else(|| Reject::UnknownHost(host.to_owned()))?;
    let service = table.service(&name).ok_or_else(|| Reject::UnknownHost(host.to_owned()))?;
    let port = match port {
        None | Some(80) => service.http_port(),
        Some(number) => service.port(number),
    };
    port.map(|port| (service.clone(), port)).ok_or_else(|| unknown_port(service, port.map(|port| port.port)))
}

fn find(table: &Table, name: &ServiceName, number: u16) -> Result<(Arc<Service>, ServicePort), Reject> {
    let service = table.service(name).ok_or_else(|| Reject::UnknownHost(name.host()))?;
    let port = service.port(number).ok_or_else(|| unknown_port(service, Some(number)))?;
    Ok((service.clone(), port))
}

fn unknown_port(service: &Service, asked: Option<u16>) -> Reject {
    let ports: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
    let asked = asked.map(|port| format!(" {port}")).unwrap_or_default();
    Reject::UnknownPort(format!("{} has no port{asked}; its ports are: {}", service.name, ports.join(", ")))
}

/// The caller: of a link, whom the certificate names; of a local process, the service that its user belongs to.
fn caller<N: Net>(connection: &Connection<N>, table: &Table) -> Identity {
    if let Peer::Svid(caller) = &connection.peer {
        return caller.identity.clone();
    }
    let by_user = connection.user(table).and_then(|user| table.callers.get(&user));
    match by_user.or(table.caller_any.as_ref()) {
        Some(name) => match table.service(name) {
            Some(service) => service.identity.clone(),
            None => Identity::service(table.trust_domain.clone(), name.clone()),
        },
        None => table.node_identity.clone(),
    }
}

/// The instance on this node that a caller from elsewhere gets: the one that it picked, else any, by their weights.
fn instance<N: Net>(connection: &Connection<N>, service: &Service, port: ServicePort) -> Option<InstanceName> {
    let Peer::Svid(caller) = &connection.peer else { return None };
    if caller.instance.is_some() {
        return caller.instance.clone();
    }
    let fit = || service.instances.iter().filter(|instance| instance.serves(port.port)).map(|one| &one.description);
    let total: usize = fit().map(|instance| usize::from(instance.weight)).sum();
    let mut left = connection.worker.recorder.random.below(total.max(1));
    let picked = fit().find(|instance| match left.checked_sub(instance.weight.into()) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    });
    picked.map(|instance| instance.id.name.clone())
}

impl<N: Net> Worker<N> {
    /// The relation of both, made if need be.
    pub(crate) fn relation(
        &self,
        table: &Table,
        parties: Parties,
        service: &Arc<Service>,
        port: ServicePort,
    ) -> Arc<Relation> {
        let mut known = self.relations.0.lock();
        if known.generation != table.generation || known.relations.len() >= RELATIONS_MAX {
            known.relations.clear();
            known.generation = table.generation;
        }
        if let Some(relation) = known.relations.get(&parties) {
            return relation.clone();
        }
        let relation = Arc::new(self.relate(table, &parties, service, port));
        known.relations.insert(parties, relation.clone());
        relation
    }

    fn relate(&self, table: &Table, parties: &Parties, service: &Arc<Service>, port: ServicePort) -> Relation {
        let (end, caller) = (parties.end, &parties.caller);
        let serves = |index: &usize| {
            let endpoint = &service.endpoints[*index];
            let own = || service.instance(&endpoint.description.instance);
            let ready = !endpoint.here || own().is_some_and(|own| service.instances[own].serves(port.port));
            endpoint.description.healthy && endpoint.description.ports.contains(&port.port) && ready
        };
        let candidates = match end {
            End::Caller => (0..service.endpoints.len()).filter(serves).collect(),
            End::Callee => Vec::new(),
        };
        let direction = match end {
            End::Caller => "outbound",
            End::Callee => "inbound",
        };
        let target = Target::Service { service: service.name.clone(), port: Some(port.port) };
        let forwarded = format!("By={};URI={caller}", service.identity);
        Relation {
            generation: table.generation,
            end,
            service: service.clone(),
            port,
            series: self.recorder.series(Key::new(direction, caller, &service.name)),
            server_name: target.server_name().to_str().into(),
            own_ip: self.plane.own_ip(table),
            candidates,
            instance: parties.instance.as_ref().and_then(|name| service.instance(name)),
            instance_slots: service.instances.iter().map(|_| OnceLock::new()).collect(),
            links: service.endpoints.iter().map(|_| OnceLock::new()).collect(),
            forwarded: HeaderValue::from_str(&forwarded).ok(),
            active: AtomicU32::new(0),
            retrying: AtomicU32::new(0),
            worker: self.index,
            workers: self.plane.settings.workers,
            certified: end == End::Callee || self.plane.holds(caller),
            caller: Caller::new(caller.clone()),
        }
    }
}

impl Relation {
    /// What this worker has learned about an endpoint.
    pub(crate) fn slot(&self, endpoint: usize) -> &Slot {
        self.service.endpoints[endpoint].statistics.slot(self.worker, self.workers)
    }

    /// Takes one retry out of the budget: a share of the exchanges under way, and a few at least.
    pub(crate) fn may_retry(&self) -> bool {
        let budget = (self.active.load(Ordering::Relaxed) / RETRY_SHARE).max(RETRIES_MIN);
        self.retrying.load(Ordering::Relaxed) < budget
    }
}

/// The address of a node that none is known of.
pub(crate) const NO_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// Most relations a worker keeps; connections hold on to theirs beyond that.
const RELATIONS_MAX: usize = 8192;
/// One in so many exchanges under way may be a retry.
const RETRY_SHARE: u32 = 5;
/// Retries that are always allowed at once.
const RETRIES_MIN: u32 = 3;
