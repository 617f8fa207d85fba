//! The rules that an `HTTPRoute` keeps beyond its form (the standard's own).

use std::time::Duration;

use super::{
    BackendRef, ENTRY, Filter, HOSTNAME, HeaderModifier, HttpRoute, ISTIO_GROUP, LifetimeType, Match, NamedMatch,
    ParentRef, PathModifier, PathType, RequestMirror, Rule, SessionType, ValueType,
};
use crate::kinds::Faults;
use crate::kinds::hosts::is_host_name;
use crate::kinds::istio::{expression, is_field_name, is_host};
use crate::service::{DEFAULT_NAMESPACE, ServiceName};

pub(in crate::kinds) fn http_route(route: &HttpRoute, faults: &mut Faults) {
    parents(&route.parent_refs, faults);
    hostnames(&route.hostnames, faults);
    if route.rules.is_empty() {
        faults.push(("spec.rules".into(), "give at least one rule".into()));
    }
    for (at, one) in route.rules.iter().enumerate() {
        rule(one, &format!("spec.rules[{at}]"), faults);
    }
}

pub(in crate::kinds) fn parents(parents: &[ParentRef], faults: &mut Faults) {
    if parents.is_empty() {
        faults.push(("spec.parentRefs".into(), "name at least one service or gateway".into()));
    }
    for (at, parent) in parents.iter().enumerate() {
        let path = format!("spec.parentRefs[{at}]");
        let group = parent.group.as_deref();
        let known = match parent.kind.as_str() {
            "Service" => group.is_none_or(is_core),
            "Gateway" => group.is_none_or(|group| group == "gateway.networking.k8s.io"),
            ENTRY => group == Some(ISTIO_GROUP),
            _ => false,
        };
        if !known {
            let text = "a Service (of the group \"\"), a Gateway (of gateway.networking.k8s.io) or a ServiceEntry (of \
                        networking.istio.io)";
            faults.push((format!("{path}.kind"), text.into()));
        }
        let namespace = parent.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        if parent.kind == "Service" && ServiceName::new(namespace, &parent.name).is_err() {
            faults.push((format!("{path}.name"), "it is not the name of a service".into()));
        }
        if matches!(parent.kind.as_str(), "Service" | ENTRY) && parent.section_name.is_some() {
            faults.push((format!("{path}.sectionName"), "only gateways have sections: name its port".into()));
        }
        if parents[..at].contains(parent) {
            faults.push((path, "it is listed twice".into()));
        }
    }
}

/// The rules on the hosts of a route.
pub(in crate::kinds) fn hostnames(names: &[String], faults: &mut Faults) {
    for (at, name) in names.iter().enumerate().filter(|(_, name)| !is_host_name(name)) {
        let text = format!("{name:?} is no host name: write it like vault.example.com or *.example.com");
        faults.push((format!("spec.hostnames[{at}]"), text));
    }
}

fn rule(rule: &Rule, path: &str, faults: &mut Faults) {
    for (at, block) in rule.matches.iter().enumerate() {
        matches(block, &format!("{path}.matches[{at}]"), faults);
    }
    filters(&rule.filters, path, faults);
    let redirects = rule.filters.iter().any(|filter| matches!(filter, Filter::RequestRedirect { .. }));
    if redirects && !rule.backend_refs.is_empty() {
        faults.push((format!("{path}.backendRefs"), "RequestRedirect answers itself".into()));
    }
    // A prefix can be replaced only where one is asked for.
    let prefixes =
        rule.matches.iter().all(|block| block.path.as_ref().is_none_or(|path| path.r#type == PathType::PathPrefix));
    if !prefixes && rule.filters.iter().any(replaces_prefix) {
        faults.push((format!("{path}.filters"), "ReplacePrefixMatch needs matches of the type PathPrefix".into()));
    }
    for (at, to) in rule.backend_refs.iter().enumerate() {
        backend(to, &format!("{path}.backendRefs[{at}]"), faults);
    }
    if let Some(timeouts) = &rule.timeouts
        && let (Some(request), Some(one)) = (timeouts.request, timeouts.backend_request)
        && !request.0.is_zero()
        && one > request
    {
        faults.push((format!("{path}.timeouts.backendRequest"), "it is more than request".into()));
    }
    if let Some(session) = &rule.session_persistence {
        let path = format!("{path}.sessionPersistence");
        if session.session_name.as_ref().is_some_and(|name| name.len() > 128 || !is_field_name(name)) {
            faults
                .push((format!("{path}.sessionName"), "a name of a cookie or header field, at most 128 bytes".into()));
        }
        let kept = session.cookie_config.as_ref().map(|config| config.lifetime_type);
        if kept == Some(LifetimeType::Permanent) && session.absolute_timeout.is_none() {
            faults.push((format!("{path}.absoluteTimeout"), "a cookie that is Permanent needs one".into()));
        }
        for (name, span) in [("absoluteTimeout", session.absolute_timeout), ("idleTimeout", session.idle_timeout)] {
            if span.is_some_and(|span| !span.0.is_zero() && span.0 < Duration::from_secs(1)) {
                faults.push((format!("{path}.{name}"), "at least 1s".into()));
            }
        }
        if kept.is_some() && session.r#type == SessionType::Header {
            faults.push((format!("{path}.cookieConfig"), "it goes with the type Cookie only".into()));
        }
    }
    if let Some(retry) = &rule.retry {
        for (at, code) in retry.codes.iter().enumerate().filter(|(_, code)| !(400..600).contains(*code)) {
            faults.push((format!("{path}.retry.codes[{at}]"), format!("{code} is not a status from 400 to 599")));
        }
    }
}

fn replaces_prefix(filter: &Filter) -> bool {
    let path = match filter {
        Filter::RequestRedirect { request_redirect } => &request_redirect.path,
        Filter::UrlRewrite { url_rewrite } => &url_rewrite.path,
        _ => &None,
    };
    matches!(path, Some(PathModifier::ReplacePrefixMatch { .. }))
}

fn matches(block: &Match, path: &str, faults: &mut Faults) {
    if let Some(asked) = &block.path {
        let path = format!("{path}.path.value");
        match asked.r#type {
            PathType::RegularExpression => faults.extend(expression(&asked.value).err().map(|why| (path, why))),
            _ if !asked.value.starts_with('/') => faults.push((path, "a path begins with /".into())),
            _ if asked.value.contains("//") => faults.push((path, "a path has no empty segments".into())),
            _ => {}
        }
    }
    for (name, all) in [("headers", &block.headers), ("queryParams", &block.query_params)] {
        for (at, one) in all.iter().enumerate() {
            named(one, name == "headers", &format!("{path}.{name}[{at}]"), faults);
        }
    }
}

fn named(one: &NamedMatch, header: bool, path: &str, faults: &mut Faults) {
    if header && !is_field_name(&one.name) {
        faults.push((format!("{path}.name"), "it is not the name of a header field".into()));
    }
    if one.r#type == ValueType::RegularExpression
        && let Err(why) = expression(&one.value)
    {
        faults.push((format!("{path}.value"), why));
    }
}

fn filters(filters: &[Filter], path: &str, faults: &mut Faults) {
    for (at, filter) in filters.iter().enumerate() {
        let path = format!("{path}.filters[{at}]");
        let same = |other: &Filter| std::mem::discriminant(other) == std::mem::discriminant(filter);
        if !matches!(filter, Filter::RequestMirror { .. }) && filters[..at].iter().any(same) {
            faults.push((path.clone(), "there is one of this type before it".into()));
        }
        match filter {
            Filter::RequestHeaderModifier { request_header_modifier: modifier } => headers(modifier, &path, faults),
            Filter::ResponseHeaderModifier { response_header_modifier: modifier } => headers(modifier, &path, faults),
            Filter::RequestRedirect { request_redirect: to } => {
                if to.status_code.is_some_and(|code| ![301, 302, 303, 307, 308].contains(&code)) {
                    faults.push((format!("{path}.requestRedirect.statusCode"), "301, 302, 303, 307 or 308".into()));
                }
                if to.scheme.as_ref().is_some_and(|scheme| scheme != "http" && scheme != "https") {
                    faults.push((format!("{path}.requestRedirect.scheme"), "http or https".into()));
                }
            }
            Filter::UrlRewrite { url_rewrite } if url_rewrite.hostname.is_none() && url_rewrite.path.is_none() => {
                faults.push((format!("{path}.urlRewrite"), "at least one of hostname, path".into()));
            }
            Filter::UrlRewrite { .. } => {}
            Filter::RequestMirror { request_mirror } => mirror(request_mirror, &path, faults),
            Filter::Cors { cors } => {
                for field in cors.allow_headers.iter().chain(&cors.expose_headers) {
                    if !is_field_name(field) {
                        faults.push((format!("{path}.cors"), format!("{field:?} is not the name of a header field")));
                    }
                }
            }
        }
    }
}

fn mirror(to: &RequestMirror, path: &str, faults: &mut Faults) {
    let backend = &to.backend_ref;
    let own = BackendRef {
        group: backend.group.clone(),
        kind: backend.kind.clone(),
        name: backend.name.clone(),
        namespace: backend.namespace.clone(),
        port: backend.port,
        weight: 1,
        filters: Vec::new(),
    };
    self::backend(&own, &format!("{path}.requestMirror.backendRef"), faults);
    if to.percent.is_some() && to.fraction.is_some() {
        faults.push((format!("{path}.requestMirror.fraction"), "percent is given too".into()));
    }
    if to.percent.is_some_and(|percent| percent > 100) {
        faults.push((format!("{path}.requestMirror.percent"), "0 to 100".into()));
    }
    if to.fraction.is_some_and(|part| part.denominator == 0 || part.numerator > part.denominator) {
        faults.push((format!("{path}.requestMirror.fraction"), "a part of a whole, which is at least 1".into()));
    }
}

fn headers(modifier: &HeaderModifier, path: &str, faults: &mut Faults) {
    let names = modifier.set.iter().chain(&modifier.add).map(|one| &one.name).chain(&modifier.remove);
    for name in names.filter(|name| is_host(name) || !is_field_name(name)) {
        faults.push((path.into(), format!("{name:?} is not the name of a field that can be changed here")));
    }
    for one in modifier.set.iter().chain(&modifier.add) {
        if one.value.bytes().any(|byte| (byte < b' ' && byte != b'\t') || byte == 127) {
            faults.push((path.into(), format!("the value of {} has control characters", one.name)));
        }
    }
}

pub(in crate::kinds) fn backend(to: &BackendRef, path: &str, faults: &mut Faults) {
    backend_kind((&to.kind, &to.group), path, faults);
    if to.kind == HOSTNAME {
        host(to, path, faults);
    } else if to.service(DEFAULT_NAMESPACE).is_none() {
        faults.push((format!("{path}.name"), "it is not the name of a service".into()));
    }
    for (at, filter) in to.filters.iter().enumerate() {
        if !matches!(filter, Filter::RequestHeaderModifier { .. } | Filter::ResponseHeaderModifier { .. }) {
            faults.push((format!("{path}.filters[{at}]"), "only header fields are changed for one backend".into()));
        }
    }
    filters(&to.filters, path, faults);
}

fn backend_kind((kind, group): (&str, &str), path: &str, faults: &mut Faults) {
    let known = match kind {
        "Service" => is_core(group),
        HOSTNAME => group == ISTIO_GROUP,
        _ => false,
    };
    if !known {
        let text = "a backend is a Service (of the group \"\") or a Hostname (of networking.istio.io)";
        faults.push((format!("{path}.kind"), text.into()));
    }
}

fn host(to: &BackendRef, path: &str, faults: &mut Faults) {
    if !is_host_name(&to.name) || to.name.starts_with('*') || !to.name.contains('.') {
        faults.push((format!("{path}.name"), format!("{:?} is not the whole name of a host", to.name)));
    }
    if to.namespace.is_some() {
        faults.push((format!("{path}.namespace"), "a host has none".into()));
    }
    if to.port.is_none() {
        faults.push((format!("{path}.port"), "a host needs one".into()));
    }
}

fn is_core(group: &str) -> bool {
    group.is_empty() || group == "core"
}
