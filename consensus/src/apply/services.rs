//! Declared services: which there are, their ports, accounts and addresses.

use std::net::Ipv4Addr;

use weft_proto::UnixMillis;
use weft_proto::command::{Outcome, Reason};
use weft_proto::identity::NodeName;
use weft_proto::loopback::addresses;
use weft_proto::service::{ServiceName, ServicePort};

use super::{Applied, granted, refuse};
use crate::state::{Freed, ServiceRecord, State, merge};

/// Ports of one service.
pub const PORTS_MAX: usize = 64;
/// How long the address of a service that went is given to no other: 1 h. What had it in its memory would reach another.
const FREED_KEPT_MS: UnixMillis = 60 * 60 * 1000;

/// A node runs the service. It must have been admitted for the account too: by that alone others know who calls.
pub(super) fn declare(
    state: &mut State,
    node: &NodeName,
    (service, account): (&ServiceName, &ServiceName),
    ports: &[ServicePort],
) -> Applied {
    granted(state, node, service)?;
    granted(state, node, account)?;
    let known = state.services.get(service);
    if let Some(known) = known.filter(|known| known.account != *account)
        && let Some(other) = known.declared.keys().find(|other| *other != node)
    {
        let text = format!(
            "the service account of {service} is {} on {other}; all its instances have the same one",
            known.account.name()
        );
        return Err(refuse(Reason::Conflict, text));
    }
    let mut declared = known.map(|record| record.declared.clone()).unwrap_or_default();
    declared.insert(node.clone(), ports.to_vec());
    let merged = merge(&declared, Some(node)).map_err(|port| {
        let text = format!(
            "port {} of {service} speaks another protocol elsewhere than {} on {node}; declare one protocol, or settle it with a Service document",
            port.port, port.protocol
        );
        refuse(Reason::Conflict, text)
    })?;
    if merged.len() > PORTS_MAX {
        return Err(refuse(Reason::Full, format!("{service} would have {} ports; at most {PORTS_MAX}", merged.len())));
    }
    let address = match known {
        Some(record) => record.address,
        None => allot(state, service).ok_or_else(|| refuse(Reason::Full, "every loopback address is in use"))?,
    };
    state.freed.remove(&address);
    let record = ServiceRecord { address, account: account.clone(), ports: merged, declared };
    state.services.insert(service.clone(), record);
    Ok(Outcome::Declared { address })
}

/// A node runs the service no more. With its last node the service goes.
pub(super) fn withdraw(state: &mut State, node: &NodeName, service: &ServiceName) {
    let now = state.clock;
    let Some(record) = state.services.get_mut(service) else { return };
    record.declared.remove(node);
    if !record.declared.is_empty() {
        if let Ok(ports) = merge(&record.declared, None) {
            record.ports = ports;
        }
        return;
    }
    state.freed.retain(|_, freed| is_kept(freed, now));
    if let Some(record) = state.services.remove(service) {
        state.freed.insert(record.address, Freed { service: service.clone(), at: now });
    }
}

fn is_kept(freed: &Freed, now: UnixMillis) -> bool {
    freed.at.saturating_add(FREED_KEPT_MS) > now
}

/// An address that depends on the name alone unless it is taken: the same service gets the same one in a mesh made anew,
/// and the one that it had not long ago.
fn allot(state: &State, service: &ServiceName) -> Option<Ipv4Addr> {
    if let Some((address, _)) = state.freed.iter().find(|(_, freed)| freed.service == *service) {
        return Some(*address);
    }
    let taken: std::collections::BTreeSet<Ipv4Addr> = state.services.values().map(|record| record.address).collect();
    let rests = |address: &Ipv4Addr| state.freed.get(address).is_some_and(|freed| is_kept(freed, state.clock));
    addresses(service).find(|address| !taken.contains(address) && !rests(address))
}
