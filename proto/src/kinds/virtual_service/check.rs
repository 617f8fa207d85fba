//! The rules that a `VirtualService` keeps beyond its form (Istio's validation).

mod streams;

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{
    Abort, CorsPolicy, Fault, HeaderOperations, Headers, HttpMatch, HttpRoute, MESH, RETRY_CONDITIONS, Redirect,
    Retries, Rewrite, VirtualService,
};
use crate::identity::{label, subdomain};
use crate::kinds::Faults;
use crate::kinds::hosts::{is_host_name, meeting};
use crate::kinds::istio::{StringMatch, anywhere, check_export, grpc_code, is_field_name, is_host, service_of};
use crate::service::DEFAULT_NAMESPACE;

pub(super) fn virtual_service(service: &VirtualService, faults: &mut Faults) {
    if service.hosts.is_empty() {
        delegated(service, faults);
    }
    for (at, host) in service.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{at}]");
        let others = || service.hosts[..at].iter();
        if service.hosts[..at].contains(host) {
            faults.push((path, format!("{host} is listed twice")));
        } else if let Some(other) = others().find(|other| meeting(other, host).is_some()) {
            faults.push((path, format!("{other} and {host} cover each other")));
        } else {
            self::host(service, host, path, faults);
        }
    }
    for (at, gateway) in service.gateways.iter().enumerate() {
        place(gateway, &format!("spec.gateways[{at}]"), faults);
    }
    check_export(&service.export_to, faults);
    if service.http.is_empty() && service.tcp.is_empty() && service.tls.is_empty() {
        faults.push(("spec.http".into(), "give at least one rule, of http, tls or tcp".into()));
    }
    for (at, rule) in service.tls.iter().enumerate() {
        streams::tls(rule, &service.hosts, &format!("spec.tls[{at}]"), faults);
    }
    for (at, rule) in service.tcp.iter().enumerate() {
        streams::stream(&rule.route, &rule.matches, &format!("spec.tcp[{at}]"), faults);
    }
    for (at, rule) in service.http.iter().enumerate() {
        http(rule, &format!("spec.http[{at}]"), faults);
    }
}

/// What a document without hosts may say: its rules are for others to take up.
fn delegated(service: &VirtualService, faults: &mut Faults) {
    if !service.gateways.is_empty() || !service.tcp.is_empty() || !service.tls.is_empty() || service.http.is_empty() {
        let text = "name at least one service; only http rules that others delegate to stand without";
        faults.push(("spec.hosts".into(), text.into()));
    }
    for (at, _) in service.http.iter().enumerate().filter(|(_, rule)| rule.delegate.is_some()) {
        faults.push((format!("spec.http[{at}].delegate"), "there is but one level of delegates".into()));
    }
}

/// A host for which calls come: a service, a name, or a pattern of names.
fn host(service: &VirtualService, host: &str, path: String, faults: &mut Faults) {
    let within = service.applies(MESH, DEFAULT_NAMESPACE);
    let text = match host {
        "*" if within => "* goes with gateways only",
        _ if within && host.parse::<IpAddr>().is_ok() => "an address goes with gateways only",
        _ if host == "*" || host.parse::<IpAddr>().is_ok() => return,
        _ if is_host_name(host) || service_of(host, DEFAULT_NAMESPACE).is_some() => return,
        _ => "a host is written like web, web.default, shop.example.com or *.example.com",
    };
    faults.push((path, format!("{host:?}: {text}")));
}

/// A gateway, or the mesh.
fn place(gateway: &str, path: &str, faults: &mut Faults) {
    let (namespace, name) = gateway.split_once('/').unwrap_or((DEFAULT_NAMESPACE, gateway));
    let namespace = if namespace == "." { DEFAULT_NAMESPACE } else { namespace };
    if label(namespace, "namespace").and_then(|()| subdomain(name, "name")).is_err() {
        faults.push((path.into(), format!("{gateway:?} is no gateway: write NAME, NAMESPACE/NAME or mesh")));
    }
}

/// A destination must be a service of the mesh, or a name.
fn named(host: &str, path: String, faults: &mut Faults) {
    let named = is_host_name(host) && !host.starts_with('*');
    if !named && service_of(host, DEFAULT_NAMESPACE).is_none() {
        let text = format!(
            "{host:?} is no service of the mesh: write it like web, web.default or web.default.svc.cluster.local"
        );
        faults.push((path, text));
    }
}

fn http(rule: &HttpRoute, path: &str, faults: &mut Faults) {
    let ways =
        [!rule.route.is_empty(), rule.redirect.is_some(), rule.direct_response.is_some(), rule.delegate.is_some()];
    if ways.iter().filter(|way| **way).count() != 1 {
        faults.push((path.into(), "exactly one of route, redirect, directResponse, delegate".into()));
    }
    if rule.route.is_empty() && rule.delegate.is_none() {
        for (name, given) in [("fault", rule.fault.is_some()), ("rewrite", rule.rewrite.is_some())] {
            if given {
                faults.push((format!("{path}.{name}"), "it goes with route only".into()));
            }
        }
    }
    for (at, block) in rule.matches.iter().enumerate() {
        matches(block, &format!("{path}.match[{at}]"), faults);
    }
    for (at, to) in rule.route.iter().enumerate() {
        let path = format!("{path}.route[{at}]");
        named(&to.destination.host, format!("{path}.destination.host"), faults);
        headers(to.headers.as_ref(), &path, faults);
    }
    if rule.route.len() > 1 && rule.route.iter().all(|to| to.weight == 0) {
        faults.push((format!("{path}.route"), "the weights add up to 0".into()));
    }
    headers(rule.headers.as_ref(), path, faults);
    if let Some(to) = &rule.redirect {
        redirect(to, &format!("{path}.redirect"), faults);
    }
    if let Some(answer) = &rule.direct_response {
        status(answer.status, format!("{path}.directResponse.status"), faults);
        let length = answer.body.as_ref().and_then(|body| body.string.as_ref()).map_or(0, String::len);
        if length > BODY_LENGTH_MAX {
            faults.push((format!("{path}.directResponse.body"), format!("at most {BODY_LENGTH_MAX} bytes")));
        }
    }
    if let Some(to) = &rule.rewrite {
        rewrite(to, &format!("{path}.rewrite"), faults);
    }
    authorities(rule, path, faults);
    if let Some(timeout) = rule.timeout {
        timeout.check(&format!("{path}.timeout"), true, faults);
    }
    if let Some(again) = &rule.retries {
        retries(again, &format!("{path}.retries"), faults);
    }
    if let Some(made) = &rule.fault {
        fault(made, &format!("{path}.fault"), faults);
    }
    mirrors(rule, path, faults);
    if let Some(policy) = &rule.cors_policy {
        cors(policy, &format!("{path}.corsPolicy"), faults);
    }
}

fn mirrors(rule: &HttpRoute, path: &str, faults: &mut Faults) {
    let copies = rule.mirror.is_some() || !rule.mirrors.is_empty();
    if copies && rule.route.is_empty() && rule.delegate.is_none() {
        faults.push((format!("{path}.mirror"), "it goes with route only".into()));
    }
    if rule.mirror.is_some() && !rule.mirrors.is_empty() {
        faults.push((format!("{path}.mirrors"), "mirror and mirrors exclude each other".into()));
    }
    if let Some(to) = &rule.mirror {
        named(&to.host, format!("{path}.mirror.host"), faults);
    }
    if let Some(percent) = rule.mirror_percentage {
        percent.check(&format!("{path}.mirrorPercentage"), faults);
    }
    if rule.mirror_percent.is_some_and(|percent| percent > 100) {
        faults.push((format!("{path}.mirrorPercent"), "0 to 100".into()));
    }
    for (at, one) in rule.mirrors.iter().enumerate() {
        named(&one.destination.host, format!("{path}.mirrors[{at}].destination.host"), faults);
        if let Some(percent) = one.percentage {
            percent.check(&format!("{path}.mirrors[{at}].percentage"), faults);
        }
    }
}

fn cors(policy: &CorsPolicy, path: &str, faults: &mut Faults) {
    for (at, origin) in policy.allow_origins.iter().enumerate() {
        origin.check(&format!("{path}.allowOrigins[{at}]"), false, faults);
    }
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"];
    for (at, method) in policy.allow_methods.iter().enumerate() {
        if !known.contains(&method.as_str()) {
            faults.push((format!("{path}.allowMethods[{at}]"), format!("one of {}", known.join(", "))));
        }
    }
    for (name, fields) in [("allowHeaders", &policy.allow_headers), ("exposeHeaders", &policy.expose_headers)] {
        for (at, field) in fields.iter().enumerate() {
            if !is_field_name(field) {
                faults.push((format!("{path}.{name}[{at}]"), "it is not the name of a header field".into()));
            }
        }
    }
    if policy.max_age.is_some_and(|age| age.0.subsec_nanos() > 0) {
        faults.push((format!("{path}.maxAge"), "whole seconds".into()));
    }
}

fn matches(block: &HttpMatch, path: &str, faults: &mut Faults) {
    let texts = [("uri", &block.uri), ("scheme", &block.scheme), ("method", &block.method)];
    for (name, text) in texts.into_iter().chain([("authority", &block.authority)]) {
        if let Some(text) = text {
            text.check(&format!("{path}.{name}"), false, faults);
            if name != "uri" && text.prefix.as_deref() == Some("") {
                faults.push((format!("{path}.{name}.prefix"), "an empty prefix says nothing".into()));
            }
        }
    }
    let maps = [("headers", &block.headers), ("withoutHeaders", &block.without_headers)];
    for (name, fields) in maps {
        for field in fields.keys() {
            if !is_field_name(field) {
                faults.push((format!("{path}.{name}.{field}"), "it is not the name of a header field".into()));
            }
        }
        named_texts(fields, &format!("{path}.{name}"), faults);
    }
    named_texts(&block.query_params, &format!("{path}.queryParams"), faults);
    if block.port == Some(0) {
        faults.push((format!("{path}.port"), "1 to 65535".into()));
    }
    for gateway in &block.gateways {
        place(gateway, &format!("{path}.gateways"), faults);
    }
}

fn named_texts(texts: &BTreeMap<String, StringMatch>, path: &str, faults: &mut Faults) {
    for (name, text) in texts {
        text.check(&format!("{path}.{name}"), true, faults);
        if text.prefix.as_deref() == Some("") {
            faults.push((format!("{path}.{name}.prefix"), "an empty prefix says nothing".into()));
        }
    }
}

fn headers(headers: Option<&Headers>, path: &str, faults: &mut Faults) {
    let Some(headers) = headers else { return };
    let sides = [("request", &headers.request), ("response", &headers.response)];
    for (side, operations) in sides {
        if let Some(operations) = operations {
            self::operations(operations, side == "request", &format!("{path}.headers.{side}"), faults);
        }
    }
}

fn operations(operations: &HeaderOperations, request: bool, path: &str, faults: &mut Faults) {
    for (what, fields) in [("set", &operations.set), ("add", &operations.add)] {
        for (name, value) in fields {
            let path = format!("{path}.{what}.{name}");
            match is_host(name) {
                true if request => {}
                true => faults.push((path.clone(), "the host of an answer cannot be set".into())),
                false if is_field_name(name) => {}
                false => faults.push((path.clone(), "it is not the name of a header field".into())),
            }
            if value.contains('%') {
                faults.push((path, "variables (%...%) are not supported by this version of weft".into()));
            } else if value.bytes().any(|byte| (byte < b' ' && byte != b'\t') || byte == 127) {
                faults.push((path, "a value has no control characters".into()));
            }
        }
    }
    for (at, name) in operations.remove.iter().enumerate() {
        if is_host(name) || !is_field_name(name) {
            faults.push((format!("{path}.remove[{at}]"), "it is not the name of a field that can be removed".into()));
        }
    }
}

/// The authority may be set in one place only.
fn authorities(rule: &HttpRoute, path: &str, faults: &mut Faults) {
    let sets = |headers: &Option<Headers>| {
        let request = headers.as_ref().and_then(|headers| headers.request.as_ref());
        request.is_some_and(|request| request.set.keys().chain(request.add.keys()).any(|name| is_host(name)))
    };
    let by_rewrite = rule.rewrite.as_ref().is_some_and(|rewrite| !rewrite.authority.is_empty());
    let by_headers = sets(&rule.headers) || rule.route.iter().any(|to| sets(&to.headers));
    if by_rewrite && by_headers {
        faults.push((format!("{path}.rewrite.authority"), "the authority is set by headers too".into()));
    }
}

fn redirect(to: &Redirect, path: &str, faults: &mut Faults) {
    let said = !(to.uri.is_empty() && to.authority.is_empty() && to.scheme.is_empty());
    if !said && to.port.is_none() && to.derive_port.is_none() {
        faults.push((path.into(), "at least one of uri, authority, scheme, port, derivePort".into()));
    }
    if !to.scheme.is_empty() && to.scheme != "http" && to.scheme != "https" {
        faults.push((format!("{path}.scheme"), "http or https".into()));
    }
    if to.port.is_some() && to.derive_port.is_some() {
        faults.push((format!("{path}.derivePort"), "port is given too".into()));
    }
    if to.redirect_code.is_some_and(|code| ![301, 302, 303, 307, 308].contains(&code)) {
        faults.push((format!("{path}.redirectCode"), "301, 302, 303, 307 or 308".into()));
    }
    if !to.uri.is_empty() && !to.uri.starts_with('/') {
        faults.push((format!("{path}.uri"), "a path begins with /".into()));
    }
}

fn rewrite(to: &Rewrite, path: &str, faults: &mut Faults) {
    if to.uri.is_empty() && to.authority.is_empty() && to.uri_regex_rewrite.is_none() {
        faults.push((path.into(), "at least one of uri, authority, uriRegexRewrite".into()));
    }
    if let Some(regex) = &to.uri_regex_rewrite {
        if !to.uri.is_empty() {
            faults.push((format!("{path}.uri"), "uriRegexRewrite is given too".into()));
        }
        if let Err(why) = anywhere(&regex.r#match) {
            faults.push((format!("{path}.uriRegexRewrite.match"), why));
        }
    }
}

fn retries(again: &Retries, path: &str, faults: &mut Faults) {
    let Retries { attempts, per_try_timeout, retry_on, backoff, .. } = again;
    let remote = again.retry_remote_localities == Some(true);
    let given = [
        ("perTryTimeout", per_try_timeout.is_some()),
        ("retryOn", !retry_on.is_empty()),
        ("retryRemoteLocalities", remote),
    ];
    for (name, given) in given {
        if *attempts == 0 && given {
            faults.push((format!("{path}.{name}"), "attempts is 0".into()));
        }
    }
    for (name, span) in [("perTryTimeout", per_try_timeout), ("backoff", backoff)] {
        span.iter().for_each(|span| span.check(&format!("{path}.{name}"), false, faults));
    }
    for word in retry_on.split(',').filter(|_| !retry_on.is_empty()) {
        let number = word.parse::<u16>().is_ok_and(|number| (100..600).contains(&number));
        if !number && !RETRY_CONDITIONS.contains(&word) {
            let text = format!("{word:?} is none of {} or a status", RETRY_CONDITIONS.join(", "));
            faults.push((format!("{path}.retryOn"), text));
        }
    }
}

fn fault(made: &Fault, path: &str, faults: &mut Faults) {
    if made.delay.is_none() && made.abort.is_none() {
        faults.push((path.into(), "at least one of delay, abort".into()));
    }
    if let Some(delay) = &made.delay {
        delay.percentage.unwrap_or_default().check(&format!("{path}.delay.percentage"), faults);
        if delay.percent > 100 {
            faults.push((format!("{path}.delay.percent"), "0 to 100".into()));
        }
        delay.fixed_delay.check(&format!("{path}.delay.fixedDelay"), false, faults);
    }
    if let Some(Abort { percentage, http_status, grpc_status }) = &made.abort {
        percentage.unwrap_or_default().check(&format!("{path}.abort.percentage"), faults);
        if let Some(number) = http_status {
            status(*number, format!("{path}.abort.httpStatus"), faults);
        }
        if !grpc_status.is_empty() && grpc_code(grpc_status).is_none() {
            faults.push((format!("{path}.abort.grpcStatus"), "a status by its name, such as UNAVAILABLE".into()));
        }
        if http_status.is_some() && !grpc_status.is_empty() {
            faults.push((format!("{path}.abort"), "one of httpStatus, grpcStatus".into()));
        }
    }
}

fn status(number: u16, path: String, faults: &mut Faults) {
    if !(200..600).contains(&number) {
        faults.push((path, "200 to 599".into()));
    }
}

/// Longest body of a direct answer.
const BODY_LENGTH_MAX: usize = 1 << 20;
