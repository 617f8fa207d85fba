//! The rules on those for opaque streams.

use super::super::{L4Match, StreamDestination, TlsMatch, TlsRoute};
use super::{named, place};
use crate::kinds::{Faults, hosts};

pub(super) fn tls(rule: &TlsRoute, hosts: &[String], path: &str, faults: &mut Faults) {
    let blocks: Vec<L4Match> = rule.matches.iter().map(TlsMatch::l4).collect();
    stream(&rule.route, &blocks, path, faults);
    if rule.matches.is_empty() {
        faults.push((format!("{path}.match"), "give at least one, with sniHosts".into()));
    }
    for (at, block) in rule.matches.iter().enumerate() {
        let path = format!("{path}.match[{at}].sniHosts");
        if block.sni_hosts.is_empty() {
            faults.push((path.clone(), "name at least one".into()));
        }
        let within = |name: &str| hosts.iter().any(|host| host == name || is_below(name, host));
        if let Some(other) = block.sni_hosts.iter().find(|name| !within(name)) {
            faults.push((path, format!("{other} is not within the hosts of the document")));
        }
    }
}

/// Whether a name, or a pattern of names, is one that the pattern means.
fn is_below(name: &str, pattern: &str) -> bool {
    pattern.strip_prefix('*').is_some_and(|end| name.trim_start_matches('*').ends_with(end))
}

pub(super) fn stream(route: &[StreamDestination], matches: &[L4Match], path: &str, faults: &mut Faults) {
    if route.is_empty() {
        faults.push((format!("{path}.route"), "name at least one destination".into()));
    }
    for (at, to) in route.iter().enumerate() {
        named(&to.destination.host, format!("{path}.route[{at}].destination.host"), faults);
    }
    if route.len() > 1 && route.iter().all(|to| to.weight == 0) {
        faults.push((format!("{path}.route"), "the weights add up to 0".into()));
    }
    for (at, block) in matches.iter().enumerate() {
        if block.port == Some(0) {
            faults.push((format!("{path}.match[{at}].port"), "1 to 65535".into()));
        }
        if let Some(other) = block.destination_subnets.iter().find(|text| hosts::block(text).is_none()) {
            let why = format!("{other:?} is no address, and no block of them such as 10.0.0.0/8");
            faults.push((format!("{path}.match[{at}].destinationSubnets"), why));
        }
        for gateway in &block.gateways {
            place(gateway, &format!("{path}.match[{at}].gateways"), faults);
        }
    }
}
