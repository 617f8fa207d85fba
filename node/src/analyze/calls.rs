//! Rules for calls: where they lead, and whether they are ever asked.

use std::collections::{BTreeMap, BTreeSet};

use weft_proto::kinds::hosts::meant;
use weft_proto::kinds::http_route::{self, Filter, HttpRoute, Method};
use weft_proto::kinds::istio::{StringMatch, is_exported, service_of};
use weft_proto::kinds::virtual_service::{Destination, HttpMatch, HttpRoute as Rule, MESH, VirtualService};
use weft_proto::resource::Resource;
use weft_proto::service::ServiceName;

use super::{Findings, Ground, Read, gateways, is_opaque};

pub(super) fn virtual_services(ground: &Ground<'_>, findings: &mut Findings) {
    let mut by_host: BTreeMap<ServiceName, Vec<&Resource>> = BTreeMap::new();
    for one in &ground.virtual_services {
        for name in one.spec.services(&one.resource.key.namespace) {
            by_host.entry(name).or_default().push(one.resource);
        }
        hosts(ground, one, findings);
        for (at, rule) in one.spec.http.iter().enumerate() {
            http(ground, one, (at, rule), findings);
        }
        let tls = one.spec.tls.iter().enumerate().map(|(at, rule)| (format!("spec.tls[{at}]"), &rule.route));
        let tcp = one.spec.tcp.iter().enumerate().map(|(at, rule)| (format!("spec.tcp[{at}]"), &rule.route));
        for (rule, route) in tls.chain(tcp) {
            for (to, share) in route.iter().enumerate() {
                let path = format!("{rule}.route[{to}].destination");
                destination(ground, one.resource, &share.destination, &path, findings);
            }
        }
        if one.spec.hosts.is_empty() && !ground.virtual_services.iter().any(|root| delegates_to(root, one)) {
            let text = "no rule delegates to it: name it in another document, or give it hosts";
            findings.add("WFT206", one.resource, "spec".into(), text.into());
        }
    }
    for (name, documents) in by_host {
        let routed =
            ground.http_routes.iter().any(|route| route.spec.services(&route.resource.key.namespace).contains(&name));
        for document in documents.iter().filter(|_| routed) {
            let text = format!("routes of the Gateway API are attached to {name} and go before it");
            findings.add("WFT204", document, "spec.hosts".into(), text);
        }
        if documents.len() > 1 {
            for document in &documents {
                let others: Vec<&str> = documents
                    .iter()
                    .filter(|other| other.key != document.key)
                    .map(|other| other.key.name.as_str())
                    .collect();
                let text = format!("{} are about {name} too, of which the oldest alone counts", others.join(", "));
                findings.add("WFT204", document, "spec.hosts".into(), text);
            }
        }
    }
}

fn delegates_to(root: &Read<'_, VirtualService>, one: &Read<'_, VirtualService>) -> bool {
    let key = &one.resource.key;
    let own = &root.resource.key.namespace;
    root.spec.http.iter().filter_map(|rule| rule.delegate.as_ref()).any(|to| {
        let namespace = if to.namespace.is_empty() { own } else { &to.namespace };
        to.name == key.name && *namespace == key.namespace
    })
}

/// The services that it is about, and whether its rules can be asked for their ports.
fn hosts(ground: &Ground<'_>, one: &Read<'_, VirtualService>, findings: &mut Findings) {
    let within = one.spec.applies(MESH, &one.resource.key.namespace);
    for (at, host) in one.spec.hosts.iter().enumerate().filter(|_| within) {
        let Some(name) = service_of(host, &one.resource.key.namespace) else { continue };
        let path = format!("spec.hosts[{at}]");
        if ground.lacks(&name) {
            findings.add("WFT101", one.resource, path, format!("there is no service {name}"));
            continue;
        }
        let Some(service) = ground.service(&name) else { continue };
        if !one.spec.http.is_empty() && !service.ports.is_empty() && service.ports.iter().all(|port| is_opaque(*port)) {
            let text = format!("{name} speaks no HTTP: its http rules are never asked; give tcp rules");
            findings.add("WFT203", one.resource, path.clone(), text);
        }
        let streams = one.spec.tcp.len() + one.spec.tls.len();
        if streams > 0 && !service.ports.is_empty() && service.ports.iter().all(|port| port.protocol.is_http()) {
            let text = format!("{name} speaks HTTP: its tcp rules are never asked; give http rules");
            findings.add("WFT203", one.resource, path, text);
        }
    }
}

fn http(ground: &Ground<'_>, one: &Read<'_, VirtualService>, (at, rule): (usize, &Rule), findings: &mut Findings) {
    let path = format!("spec.http[{at}]");
    if let Some(before) = one.spec.http[..at].iter().position(|other| covers(other, rule)) {
        let text = format!("spec.http[{before}] matches all that it does, and is asked before it");
        findings.add("WFT201", one.resource, path.clone(), text);
    }
    for (to, share) in rule.route.iter().enumerate() {
        let path = format!("{path}.route[{to}]");
        destination(ground, one.resource, &share.destination, &format!("{path}.destination"), findings);
        if share.weight == 0 && rule.route.len() > 1 {
            findings.add("WFT202", one.resource, path, "its weight is 0: it gets nothing".into());
        }
    }
    if let Some(to) = &rule.mirror {
        destination(ground, one.resource, to, &format!("{path}.mirror"), findings);
    }
    for (at, mirror) in rule.mirrors.iter().enumerate() {
        destination(ground, one.resource, &mirror.destination, &format!("{path}.mirrors[{at}].destination"), findings);
    }
    ports(ground, one, (rule, &path), findings);
    if let Some(to) = &rule.delegate {
        let namespace = if to.namespace.is_empty() { &one.resource.key.namespace } else { &to.namespace };
        let is = |other: &&Read<'_, VirtualService>| {
            let key = &other.resource.key;
            let seen = is_exported(&other.spec.export_to, namespace, &one.resource.key.namespace);
            key.name == to.name && key.namespace == *namespace && other.spec.hosts.is_empty() && seen
        };
        if !ground.virtual_services.iter().any(|other| is(&other)) {
            let text = format!("there is no document {namespace}/{} without hosts that is exported here", to.name);
            findings.add("WFT106", one.resource, format!("{path}.delegate"), text);
        }
    }
    let unsafe_again = ["5xx", "gateway-error", "reset", "retriable-status-codes", "retriable-4xx"];
    if let Some(retries) = &rule.retries
        && retries.attempts > 0
        && retries.retry_on.split(',').any(|on| unsafe_again.contains(&on) || on.parse::<u16>().is_ok())
        && (rule.matches.is_empty() || rule.matches.iter().any(may_change))
    {
        let text =
            "it may repeat calls that the callee has acted on, such as POST: match the methods that are safe to repeat";
        findings.add("WFT205", one.resource, format!("{path}.retries.retryOn"), text.into());
    }
}

/// Ports that its blocks ask for.
fn ports(ground: &Ground<'_>, one: &Read<'_, VirtualService>, (rule, path): (&Rule, &str), findings: &mut Findings) {
    let services: Vec<_> = one.spec.services(&one.resource.key.namespace).into_iter().collect();
    for (at, block) in rule.matches.iter().enumerate() {
        let Some(port) = block.port else { continue };
        let known: Vec<_> = services.iter().filter_map(|name| ground.service(name)).collect();
        if !known.is_empty() && known.iter().all(|service| service.ports.iter().all(|own| own.port != port)) {
            let text = format!("no service of spec.hosts has the port {port}");
            findings.add("WFT103", one.resource, format!("{path}.match[{at}].port"), text);
        }
    }
}

/// Whether one rule takes all calls of another that stands behind it.
fn covers(rule: &Rule, other: &Rule) -> bool {
    if rule.is_catch_all() {
        return true;
    }
    let named = |block: &HttpMatch| HttpMatch { name: String::new(), ..block.clone() };
    let wider = |block: &HttpMatch| rule.matches.iter().any(|wide| is_within(&named(block), &named(wide)));
    !other.matches.is_empty() && other.matches.iter().all(wider)
}

/// Whether all that a block matches another one does.
fn is_within(narrow: &HttpMatch, wide: &HttpMatch) -> bool {
    let text = |narrow: &Option<StringMatch>, wide: &Option<StringMatch>| match (narrow, wide) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(narrow), Some(wide)) => narrow == wide || prefixed(narrow, wide),
    };
    let all = |narrow: &BTreeMap<String, StringMatch>, wide: &BTreeMap<String, StringMatch>| {
        wide.iter().all(|(name, wide)| text(&narrow.get(name).cloned(), &Some(wide.clone())))
    };
    text(&narrow.uri, &wide.uri)
        && (narrow.ignore_uri_case == wide.ignore_uri_case || wide.uri.is_none())
        && text(&narrow.scheme, &wide.scheme)
        && text(&narrow.method, &wide.method)
        && text(&narrow.authority, &wide.authority)
        && all(&narrow.headers, &wide.headers)
        && all(&narrow.query_params, &wide.query_params)
        && (wide.without_headers.is_empty() || wide.without_headers == narrow.without_headers)
        && (wide.port.is_none() || wide.port == narrow.port)
        && (wide.source_namespace.is_empty() || wide.source_namespace == narrow.source_namespace)
        && (wide.gateways.is_empty() || wide.gateways == narrow.gateways)
        && wide.source_labels.iter().all(|(name, value)| narrow.source_labels.get(name) == Some(value))
}

fn prefixed(narrow: &StringMatch, wide: &StringMatch) -> bool {
    let Some(prefix) = &wide.prefix else { return false };
    [&narrow.exact, &narrow.prefix].into_iter().flatten().any(|text| text.starts_with(prefix.as_str()))
}

/// Whether calls that it matches may change something.
fn may_change(block: &HttpMatch) -> bool {
    let safe = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"];
    match &block.method {
        Some(StringMatch { exact: Some(method), .. }) => !safe.contains(&method.as_str()),
        _ => true,
    }
}

fn missing(name: &ServiceName) -> String {
    match name.is_outside() {
        true => format!("no ServiceEntry names {name}"),
        false => format!("there is no service {name}"),
    }
}

fn destination(ground: &Ground<'_>, resource: &Resource, to: &Destination, path: &str, findings: &mut Findings) {
    let Some(name) = meant(&to.host, &resource.key.namespace) else { return };
    if ground.lacks(&name) {
        findings.add("WFT101", resource, format!("{path}.host"), missing(&name));
        return;
    }
    if !to.subset.is_empty() {
        let about = |rule: &&Read<'_, _>| super::destinations::is_about(rule, &name);
        let mut subsets = ground.rules.iter().filter(about).flat_map(|rule| &rule.spec.subsets);
        if !subsets.any(|subset| subset.name == to.subset) {
            let text = format!("no DestinationRule of {name} defines the subset {}", to.subset);
            findings.add("WFT102", resource, format!("{path}.subset"), text);
        }
    }
    let Some(service) = ground.service(&name) else { return };
    match to.port.map(|port| port.number.get()) {
        Some(port) if !ground.is_alias(&name) && !ground.has_port((&name, service), port) => {
            let text = format!("{name} has no port {port}");
            findings.add("WFT103", resource, format!("{path}.port.number"), text);
        }
        _ => {}
    }
}

pub(super) fn gateway_routes(ground: &Ground<'_>, findings: &mut Findings) {
    for one in &ground.http_routes {
        parents(ground, one, findings);
        let parents = one.spec.services(&one.resource.key.namespace);
        for (at, rule) in one.spec.rules.iter().enumerate() {
            let path = format!("spec.rules[{at}]");
            for (to, backend) in rule.backend_refs.iter().enumerate() {
                let path = format!("{path}.backendRefs[{to}]");
                let at = (backend.kind.as_str(), backend.service(&one.resource.key.namespace), backend.port);
                backend_ref(ground, one.resource, &parents, at, &path, findings);
                if backend.weight == 0 {
                    findings.add("WFT202", one.resource, path, "its weight is 0: it gets nothing".into());
                }
            }
            for (filter, mirror) in rule.filters.iter().enumerate() {
                let Filter::RequestMirror { request_mirror } = mirror else { continue };
                let to = &request_mirror.backend_ref;
                let path = format!("{path}.filters[{filter}].requestMirror.backendRef");
                let at = (to.kind.as_str(), to.service(&one.resource.key.namespace), to.port);
                backend_ref(ground, one.resource, &parents, at, &path, findings);
            }
            retries(one, (rule, &path), findings);
            let same = |other: &http_route::Rule| !rule.matches.is_empty() && other.matches == rule.matches;
            if let Some(before) = one.spec.rules[..at].iter().position(same) {
                let text = format!("spec.rules[{before}] has the same matches and goes before it");
                findings.add("WFT201", one.resource, path, text);
            }
        }
    }
    for one in &ground.tcp_routes {
        for parent in &one.spec.parent_refs {
            parent_ref(ground, one.resource, parent.service(&one.resource.key.namespace), parent.port, findings);
            let names = one.spec.hostnames.as_deref().unwrap_or_default();
            gateways::parent(ground, one.resource, (parent, names), findings);
        }
        let parents = one.spec.services(&one.resource.key.namespace);
        for (at, rule) in one.spec.rules.iter().enumerate() {
            for (to, backend) in rule.backend_refs.iter().enumerate() {
                let path = format!("spec.rules[{at}].backendRefs[{to}]");
                let at = (backend.kind.as_str(), backend.service(&one.resource.key.namespace), backend.port);
                backend_ref(ground, one.resource, &parents, at, &path, findings);
            }
        }
    }
}

fn retries(one: &Read<'_, HttpRoute>, (rule, path): (&http_route::Rule, &str), findings: &mut Findings) {
    let repeats = rule.retry.as_ref().is_some_and(|retry| !retry.codes.is_empty());
    let safe = [Method::Get, Method::Head, Method::Options, Method::Put, Method::Delete];
    let changes = |block: &http_route::Match| block.method.is_none_or(|method| !safe.contains(&method));
    if repeats && (rule.matches.is_empty() || rule.matches.iter().any(changes)) {
        let text =
            "it may repeat calls that the callee has acted on, such as POST: match the methods that are safe to repeat";
        findings.add("WFT205", one.resource, format!("{path}.retry.codes"), text.into());
    }
}

fn parents(ground: &Ground<'_>, one: &Read<'_, HttpRoute>, findings: &mut Findings) {
    for parent in &one.spec.parent_refs {
        let name = parent.service(&one.resource.key.namespace);
        let service = name.as_ref().and_then(|name| ground.service(name));
        if let Some(service) = service
            && !service.ports.is_empty()
            && service.ports.iter().all(|port| is_opaque(*port))
        {
            let text = format!("{} speaks no HTTP: its routes are never asked", parent.name);
            findings.add("WFT203", one.resource, "spec.parentRefs".into(), text);
        }
        parent_ref(ground, one.resource, name, parent.port, findings);
        gateways::parent(ground, one.resource, (parent, &one.spec.hostnames), findings);
    }
}

fn parent_ref(
    ground: &Ground<'_>,
    resource: &Resource,
    name: Option<ServiceName>,
    port: Option<std::num::NonZeroU16>,
    findings: &mut Findings,
) {
    let Some(name) = name else { return };
    if ground.lacks(&name) {
        findings.add("WFT101", resource, "spec.parentRefs".into(), format!("there is no service {name}"));
    }
    let (Some(service), Some(port)) = (ground.service(&name), port) else { return };
    if service.ports.iter().all(|own| own.port != port.get()) {
        findings.add("WFT103", resource, "spec.parentRefs".into(), format!("{name} has no port {port}"));
    }
}

fn backend_ref(
    ground: &Ground<'_>,
    resource: &Resource,
    parents: &BTreeSet<ServiceName>,
    (kind, name, port): (&str, Option<ServiceName>, Option<std::num::NonZeroU16>),
    path: &str,
    findings: &mut Findings,
) {
    let own = resource.key.namespace.as_str();
    let Some(name) = name else { return };
    let namespace = name.namespace();
    if ground.lacks(&name) {
        findings.add("WFT101", resource, format!("{path}.name"), missing(&name));
        return;
    }
    let grants = |grant: &&Read<'_, weft_proto::kinds::reference_grant::ReferenceGrant>| {
        grant.resource.key.namespace == namespace && grant.spec.allows(&resource.key.kind.name, own, name.name())
    };
    let foreign = kind == "Service" && namespace != own && !parents.contains(&name);
    if foreign && !ground.grants.iter().any(|grant| grants(&grant)) {
        let text = format!("no ReferenceGrant of {namespace} lets a {} of {own} lead there", resource.key.kind.name);
        findings.add("WFT105", resource, format!("{path}.namespace"), text);
    }
    let (Some(service), Some(port)) = (ground.service(&name), port) else { return };
    if !ground.is_alias(&name) && !ground.has_port((&name, service), port.get()) {
        findings.add("WFT103", resource, format!("{path}.port"), format!("{name} has no port {port}"));
    }
}
