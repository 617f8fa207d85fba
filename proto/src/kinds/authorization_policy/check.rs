//! The rules that policies keep beyond their form.

use super::{Action, AuthorizationPolicy, Condition, Faults, Operation, Source, TargetRef};
use crate::identity::{label, subdomain};
use crate::kinds::hosts::block;

/// The header that a condition's key names: `request.headers[x-tenant]` names `x-tenant`.
pub fn header_name(key: &str) -> Option<&str> {
    key.strip_prefix("request.headers[")?.strip_suffix(']')
}

pub(super) fn policy(policy: &AuthorizationPolicy, faults: &mut Faults) {
    if policy.target_ref.is_some() && !policy.target_refs.is_empty() {
        faults.push(("spec.targetRef".into(), "targetRefs is given too".into()));
    }
    if let Some(target) = &policy.target_ref {
        check_target("spec.targetRef", target, faults);
    }
    if policy.selector.is_some() && policy.targets().next().is_some() {
        faults.push(("spec.targetRefs".into(), "selector and targetRefs exclude each other".into()));
    }
    for (i, target) in policy.target_refs.iter().enumerate() {
        check_target(&format!("spec.targetRefs[{i}]"), target, faults);
    }
    if policy.action == Action::Deny && policy.rules.is_empty() {
        faults.push((
            "spec.rules".into(),
            "a DENY policy without rules never matches; write `rules: [{}]` to deny everything".into(),
        ));
    }
    for (r, rule) in policy.rules.iter().enumerate() {
        for (i, from) in rule.from.iter().enumerate() {
            check_source(&format!("spec.rules[{r}].from[{i}].source"), &from.source, faults);
        }
        for (i, to) in rule.to.iter().enumerate() {
            check_operation(&format!("spec.rules[{r}].to[{i}].operation"), &to.operation, faults);
        }
        for (i, condition) in rule.when.iter().enumerate() {
            check_condition(&format!("spec.rules[{r}].when[{i}]"), condition, faults);
        }
    }
}

fn check_target(path: &str, target: &TargetRef, faults: &mut Faults) {
    let known = match target.kind.as_str() {
        "Service" => matches!(target.group.as_str(), "" | "core" | "weft"),
        "Gateway" => target.group == "gateway.networking.k8s.io",
        "ServiceEntry" => target.group == "networking.istio.io",
        _ => false,
    };
    if !known {
        faults.push((
            format!("{path}.kind"),
            format!("{}/{} is not supported; name a Service, a Gateway or a ServiceEntry", target.group, target.kind),
        ));
    }
    let named = if target.kind == "ServiceEntry" { subdomain } else { label };
    if let Err(error) = named(&target.name, "name") {
        faults.push((format!("{path}.name"), error.to_string()));
    }
}

fn check_source(path: &str, source: &Source, faults: &mut Faults) {
    let strings = [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
    ];
    strings.iter().for_each(|(field, values)| check_values(&format!("{path}.{field}"), values, faults));
    for (field, values) in [("principals", &source.principals), ("notPrincipals", &source.not_principals)] {
        for (i, value) in values.iter().enumerate().filter(|(_, value)| value.starts_with("spiffe://")) {
            let bare = value.trim_start_matches("spiffe://");
            faults.push((format!("{path}.{field}[{i}]"), format!("write it without spiffe://: {bare}")));
        }
    }
    let blocks = [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ];
    blocks.iter().for_each(|(field, values)| check_blocks(&format!("{path}.{field}"), values, faults));
}

fn check_operation(path: &str, operation: &Operation, faults: &mut Faults) {
    let strings = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
    ];
    strings.iter().for_each(|(field, values)| check_values(&format!("{path}.{field}"), values, faults));
    for (field, values) in [("ports", &operation.ports), ("notPorts", &operation.not_ports)] {
        check_ports(&format!("{path}.{field}"), values, faults);
    }
    for (field, values) in [("paths", &operation.paths), ("notPaths", &operation.not_paths)] {
        check_paths(&format!("{path}.{field}"), values, faults);
    }
}

fn check_condition(path: &str, condition: &Condition, faults: &mut Faults) {
    if condition.values.is_empty() && condition.not_values.is_empty() {
        faults.push((path.to_owned(), "values or notValues must not be empty".into()));
    }
    let key_path = format!("{path}.key");
    let pairs = [("values", &condition.values), ("notValues", &condition.not_values)];
    let each = |check: fn(&str, &[String], &mut Faults), faults: &mut Faults| {
        pairs.iter().for_each(|(field, values)| check(&format!("{path}.{field}"), values, faults));
    };
    match condition.key.as_str() {
        "source.ip" | "remote.ip" | "destination.ip" => each(check_blocks, faults),
        "destination.port" => each(check_ports, faults),
        "source.namespace" | "source.principal" | "connection.sni" => each(check_values, faults),
        key if header_name(key).is_some_and(|name| !name.is_empty()) => each(check_values, faults),
        key if key.starts_with("request.auth.") => {
            faults.push((key_path, format!("{key} needs RequestAuthentication, which is not supported yet")));
        }
        key => faults.push((
            key_path,
            format!(
                "{key:?} is not supported; supported are request.headers[name], source.ip, remote.ip, source.namespace, \
                 source.principal, destination.ip, destination.port, connection.sni"
            ),
        )),
    }
}

fn check_values(path: &str, values: &[String], faults: &mut Faults) {
    for (i, value) in values.iter().enumerate() {
        let stars = value.matches('*').count();
        let placed = stars == 0 || (stars == 1 && (value.starts_with('*') || value.ends_with('*')));
        if value.is_empty() || !placed {
            faults.push((format!("{path}[{i}]"), format!("{value:?}: write an exact value, prefix*, *suffix or *")));
        }
    }
}

fn check_paths(path: &str, values: &[String], faults: &mut Faults) {
    for (i, value) in values.iter().enumerate() {
        let at = format!("{path}[{i}]");
        if value.contains("{*}") || value.contains("{**}") {
            if let Err(message) = check_template(value) {
                faults.push((at, message));
            }
        } else {
            let mut found = Faults::new();
            check_values(path, std::slice::from_ref(value), &mut found);
            faults.extend(found.into_iter().map(|(_, message)| (at.clone(), message)));
        }
    }
}

/// Istio's path templates: `{*}` and `{**}` stand for whole segments, `{**}` at most once, no other `*` beside them.
fn check_template(value: &str) -> Result<(), String> {
    if !value.starts_with('/') {
        return Err(format!("{value:?}: a path template starts with /"));
    }
    let mut any = 0;
    for segment in value.split('/').skip(1) {
        any += usize::from(segment == "{**}");
        if segment != "{*}" && segment != "{**}" && segment.contains(['*', '{', '}']) {
            return Err(format!("{value:?}: {{*}} and {{**}} stand for whole segments and do not mix with *"));
        }
    }
    if any > 1 {
        return Err(format!("{value:?}: {{**}} may stand once"));
    }
    Ok(())
}

fn check_ports(path: &str, values: &[String], faults: &mut Faults) {
    for (i, value) in values.iter().enumerate() {
        if !value.parse::<u16>().is_ok_and(|port| port > 0) {
            faults.push((format!("{path}[{i}]"), format!("{value:?} is not a port: 1 to 65535")));
        }
    }
}

fn check_blocks(path: &str, values: &[String], faults: &mut Faults) {
    for (i, value) in values.iter().enumerate() {
        if block(value).is_none() {
            faults.push((format!("{path}[{i}]"), format!("{value:?} is not an address or a CIDR block")));
        }
    }
}
