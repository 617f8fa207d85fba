//! Which host outside the mesh a name means.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;

use weft_proto::identity::Identity;
use weft_proto::kinds::hosts::covers;
use weft_proto::service::ServiceName;

use super::service::Outside;
use super::{Service, Table};
use crate::place::is_elsewhere;

impl Table {
    /// The host outside of that name, at a port, for a caller: one that a document names, else one at the address that it is, else one of a pattern that
    /// covers it, else any where calls to unknown hosts are passed on.
    pub(crate) fn outside(&self, host: &str, port: u16, caller: &Identity) -> Option<Arc<Service>> {
        if host.parse().is_ok_and(|ip| !is_elsewhere(ip)) {
            return None;
        }
        let namespace = caller.namespace().unwrap_or_default();
        let passes = |one: &Service| one.outside().is_some_and(|outside| outside.passes(self.said_to_pass(caller)));
        let seen = |one: &&Arc<Service>| one.outside().is_some_and(|outside| outside.is_seen_by(namespace));
        let known = self.service(&ServiceName::outside(host)).filter(seen);
        let takes = |one: &Service| one.port(port).is_some() || one.outside().is_some_and(Outside::takes_any_port);
        if let Some(known) = known.filter(|one| takes(one)) {
            return Some(match known.port(port) {
                Some(_) => known.clone(),
                None if passes(known) => Arc::new(known.aimed(host, port)),
                None => Arc::new(known.aimed(host, port).closed()),
            });
        }
        if let Some(found) = host.parse().ok().and_then(|ip| self.outside_at(ip, port, namespace)) {
            return Some(found);
        }
        let patterns = self.services().take_while(|one| one.name.is_outside());
        let covering = patterns.filter(|one| one.name.name().starts_with('*') && covers(one.name.name(), host));
        // What only rules name goes where they lead, and nowhere where they lead nowhere.
        let open = |one: &Service| one.port(port).is_some() || passes(one);
        let fitting = covering.filter(seen).filter(|one| takes(one) && (open(one) || one.name.name() != ANY));
        let pattern = fitting.min_by_key(|one| Reverse(one.name.name().len()))?;
        let aimed = pattern.aimed(host, port);
        Some(Arc::new(if open(pattern) { aimed } else { aimed.closed() }))
    }

    /// The host outside that documents say is at an address: by the narrowest block of addresses; else one of opaque streams
    /// without addresses, which is wherever its port is called (Istio's rule).
    fn outside_at(&self, ip: IpAddr, port: u16, namespace: &str) -> Option<Arc<Service>> {
        let named = || self.services().take_while(|one| one.name.is_outside());
        let seen = |one: &&Arc<Service>| one.outside().is_some_and(|outside| outside.is_seen_by(namespace));
        let takes = |one: &&Arc<Service>| seen(one) && one.port(port).is_some();
        let block = |one: &Arc<Service>| one.outside().and_then(|outside| outside.covers(ip));
        let nearest =
            named().filter(takes).filter_map(|one| Some((block(one)?, one))).max_by_key(|(length, _)| *length);
        let anywhere =
            || named().filter(seen).find(|one| one.outside().is_some_and(|outside| outside.is_anywhere(port)));
        let found = nearest.map(|(_, one)| one).or_else(anywhere)?;
        // Where nothing says where it is, it is where it was called.
        let dialled = found.outside().is_some_and(|one| one.is_dialled());
        Some(if dialled { Arc::new(found.aimed(&ip.to_string(), port)) } else { found.clone() })
    }

    /// The same service in this table, whatever it is.
    pub(crate) fn again(&self, service: &ServiceName, port: u16, caller: &Identity) -> Option<Arc<Service>> {
        match service.is_outside() {
            true => self.outside(service.name(), port, caller),
            false => self.service(service).cloned(),
        }
    }

    /// What the caller's service says of its calls to hosts that nobody knows.
    fn said_to_pass(&self, caller: &Identity) -> Option<bool> {
        let Identity::Service { service: account, .. } = caller else { return None };
        let named = self.service(account).filter(|service| service.identity == *caller);
        named.or_else(|| self.services().find(|service| service.identity == *caller))?.settings.passes
    }
}

/// The pattern of all hosts: what becomes of calls to those that no document names.
pub const ANY: &str = "*";
