//! Steps 2 and 3: who calls, what is asked for, and who is called then.

use std::sync::{Arc, Weak};

use weft_proto::identity::Identity;
use weft_proto::service::{InstanceName, ServicePort};

use crate::call::{Destination, Door, Guest, Parties, Peer};
use crate::connection::Connection;
use crate::decide::identify::{Named, fixed, intercepted, named};
use crate::decide::route::{self, Ruled};
use crate::host::Host;
use crate::lane::Leg;
use crate::net::Net;
use crate::reject::Reject;
use crate::table::routes::BackendRef;
use crate::table::{Service, Table};
use crate::task::on_part;

/// The way of this exchange: its caller, and the backend that its route leads to.
pub(crate) fn leg<N: Net>(connection: &Connection<N>, host: Option<&Arc<Host>>) -> Result<Arc<Leg>, Reject> {
    let table = connection.core.shared.table.load();
    let mut memory = connection.memory.lock();
    let named = !matches!(connection.destination, Destination::Fixed(..));
    let same_host = !named || memory.found_by.as_ref().zip(host).is_some_and(|(a, b)| Arc::ptr_eq(a, b));
    let known = memory.leg.as_ref().filter(|leg| leg.generation == table.generation && same_host);
    let leg = match known {
        Some(leg) => leg.clone(),
        None => {
            let (parties, service, port) = match &connection.destination {
                Destination::Gateway(door) => entrance(&table, (door, &connection.peer), host)?,
                _ => parties(connection, &table, host)?,
            };
            let leg = connection.core.leg(&table, parties, &service, port);
            // Who leaves the choice of an instance to this node is not bound by it.
            let chooses = matches!(&connection.peer, Peer::Svid(caller) if caller.instance.is_none());
            memory.leg = (!chooses || service.instances.len() < 2).then(|| leg.clone());
            memory.found_by = host.cloned();
            leg
        }
    };
    drop(memory);
    certified(connection, leg)
}

/// Who calls whom.
fn parties<N: Net>(
    connection: &Connection<N>,
    table: &Table,
    host: Option<&Arc<Host>>,
) -> Result<(Parties, Arc<Service>, ServicePort), Reject> {
    let caller = caller(connection, table);
    let Named { service, port, subset, .. } = asked(connection, (table, &caller), host)?;
    let parties = Parties {
        end: connection.end(),
        caller,
        service: service.name.clone(),
        port: port.port,
        instance: instance(connection, &service, port),
        subset,
        entrance: None,
        guest: matches!(connection.peer, Peer::Plain(_)).then_some(Guest::Plain),
        certificate: match &connection.peer {
            Peer::Svid(caller) => Some(caller.certificate),
            Peer::Local | Peer::Outside(_) | Peer::Plain(_) => None,
        },
    };
    Ok((parties, service, port))
}

/// The gateway that is entered, and which of its hosts is meant.
fn entrance(
    table: &Table,
    (door, peer): (&Door, &Peer),
    host: Option<&Arc<Host>>,
) -> Result<(Parties, Arc<Service>, ServicePort), Reject> {
    let found = table.gateways.enter(door, host.map(|host| &*host.compare)).ok_or(Reject::NoRoute)?;
    let service = table.service(&found.service).ok_or(Reject::Misconfigured)?;
    let (caller, guest) = match peer {
        Peer::Svid(caller) => (caller.identity.clone(), Guest::Mesh),
        Peer::Outside(_) | Peer::Local | Peer::Plain(_) => (service.identity.clone(), Guest::Outside),
    };
    let parties = Parties {
        entrance: Some(found.key.clone()),
        guest: Some(guest),
        ..Parties::of_caller(caller, &service.name, found.port.port)
    };
    Ok((parties, service.clone(), found.port))
}

/// The way of an exchange whose rule leads elsewhere than to what is asked for.
pub(crate) fn backend<N: Net>(connection: &Connection<N>, leg: &Leg, ruled: &Ruled) -> Result<Arc<Leg>, Reject> {
    let (place, to) = ruled.to().ok_or_else(|| ruled.missing())?;
    way(connection, leg, (place, to)).unwrap_or_else(|| Err(ruled.missing()))
}

/// The way to a backend of the rules of what is asked for; none where there is no such thing.
pub(crate) fn way<N: Net>(
    connection: &Connection<N>,
    leg: &Leg,
    (place, to): (usize, &BackendRef),
) -> Option<Result<Arc<Leg>, Reject>> {
    let find = || {
        let table = connection.core.shared.table.load();
        let backend = route::backend(&table, &leg.relation, to)?;
        let parties = backend.parties(&leg.relation);
        Some(connection.core.leg(&table, parties, &backend.service, backend.port))
    };
    let way = leg.ways.get(place)?;
    if let Some(found) = way.get().and_then(Weak::upgrade) {
        return Some(certified(connection, found));
    }
    let found = find()?;
    let _ = way.set(Arc::downgrade(&found));
    Some(certified(connection, found))
}

fn certified<N: Net>(connection: &Connection<N>, leg: Arc<Leg>) -> Result<Arc<Leg>, Reject> {
    let caller = leg.relation.onward();
    if !leg.certified && !connection.core.shared.identities.holds(caller) {
        return Err(Reject::NoCertificate(format!("no certificate of {caller} has been issued to this node yet")));
    }
    Ok(leg)
}

/// What is asked for: that of the listener or link, or what the host names.
fn asked<N: Net>(
    connection: &Connection<N>,
    (table, caller): (&Table, &Identity),
    host: Option<&Arc<Host>>,
) -> Result<Named, Reject> {
    match &connection.destination {
        Destination::Fixed(name, number) => fixed(table, (name, *number), caller),
        Destination::Named => {
            let host = host.ok_or(Reject::BadRequest("the request names no host"))?;
            named(table, (&host.compare, host.port()), caller)
        }
        Destination::Intercepted(address) => {
            let host = host.map(|host| (&*host.compare, host.port().unwrap_or(address.port())));
            intercepted(table, *address, host, caller)
        }
        Destination::Gateway(_) => Err(Reject::NoRoute),
    }
}

/// The caller: of a link, whom the certificate names; of a local process, the service that its unit or else its user
/// belongs to.
pub(crate) fn caller<N: Net>(connection: &Connection<N>, table: &Table) -> Identity {
    match (&connection.peer, &connection.destination) {
        (Peer::Svid(caller), _) => return caller.identity.clone(),
        // Nobody that is known stands for nobody but itself: what is called stands in for it.
        (Peer::Plain(_), Destination::Fixed(name, _)) => {
            return match table.service(name) {
                Some(service) => service.identity.clone(),
                None => Identity::service(table.trust_domain.clone(), name.clone()),
            };
        }
        _ => {}
    }
    let process = connection.process(table);
    let by_group = process.and_then(|process| table.caller_groups.get(&process.group?));
    let by_user = process.and_then(|process| table.callers.get(&process.user));
    match by_group.or(by_user).or(table.caller_any.as_ref()) {
        Some(name) => match table.service(name) {
            Some(service) => service.identity.clone(),
            None => Identity::service(table.trust_domain.clone(), name.clone()),
        },
        None => table.node_identity.clone(),
    }
}

/// The instance on this node that a caller from elsewhere gets: the one that it picked, else any, by their weights.
fn instance<N: Net>(connection: &Connection<N>, service: &Service, port: ServicePort) -> Option<InstanceName> {
    let caller = match &connection.peer {
        Peer::Svid(caller) => caller,
        Peer::Plain(instance) => return Some(instance.clone()),
        Peer::Local | Peer::Outside(_) => return None,
    };
    if caller.instance.is_some() {
        return caller.instance.clone();
    }
    let fit: Vec<_> = service.instances.iter().filter(|instance| instance.serves(port.port)).collect();
    let weights = || fit.iter().map(|instance| usize::from(instance.description.weight));
    let number = connection.core.recorder.random.below(weights().sum::<usize>().max(1));
    on_part(weights(), number).map(|place| fit[place].description.id.name.clone())
}
