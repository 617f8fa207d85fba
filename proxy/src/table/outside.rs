//! Which host outside the mesh a name means.

use std::cmp::Reverse;
use std::sync::Arc;

use weft_proto::identity::Identity;
use weft_proto::kinds::hosts::covers;
use weft_proto::service::ServiceName;

use super::service::Outside;
use super::{Service, Table};
use crate::place::is_elsewhere;

impl Table {
    /// The host outside of that name, at a port, for a caller: one that a document names, else one of a pattern that
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
        let patterns = self.services().take_while(|one| one.name.is_outside());
        let covering = patterns.filter(|one| one.name.name().starts_with('*') && covers(one.name.name(), host));
        let fitting = covering.filter(seen).filter(|one| takes(one) && passes(one));
        let pattern = fitting.min_by_key(|one| Reverse(one.name.name().len()))?;
        Some(Arc::new(pattern.aimed(host, port)))
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
