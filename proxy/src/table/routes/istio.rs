//! From a `VirtualService` to the form in which rules are asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use weft_proto::kinds::hosts::meant;
use weft_proto::kinds::istio::{StringMatch, anywhere, expression, grpc_code, is_host};
use weft_proto::kinds::virtual_service as istio;

use super::changes::PathRewrite;
use super::cors::{Allowed, joined};
use super::index::Index;
use super::matching::{PathMatch, Text};
use super::{
    Abort, Action, BackendRef, Backends, Chance, Changes, Cors, Fault, Match, Redirect, RetryOn, RetryPolicy, Rewrite,
    RouteDocument, Routes, Rule, Seen, Share, Shares, Sides, Source,
};

pub(super) fn compile(document: &Arc<RouteDocument>) -> Routes {
    let mut backends = Backends::default();
    let rules = rules(document, &mut backends);
    Routes {
        source: Source::Istio(document.clone()),
        seen: Seen::AsExported,
        index: Index::new(&rules),
        rules,
        backends: backends.into_list(),
        missing: StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The rules of documents that are attached to a gateway, the oldest first; what matches every call goes behind the rest
/// (istio/istio `pilot/pkg/networking/core/route/route.go`, SortVHostRoutes).
pub(super) fn at_gateway(documents: &[Arc<RouteDocument>]) -> Routes {
    let mut backends = Backends::default();
    let mut all: Vec<(bool, Rule)> = Vec::new();
    for document in documents {
        let catches = document.spec.http.iter().map(istio::HttpRoute::is_catch_all);
        all.extend(catches.zip(rules(document, &mut backends)));
    }
    all.sort_by_key(|(catches_all, _)| *catches_all);
    let rules = all.into_iter().map(|(_, rule)| rule).collect();
    Routes::attached(rules, backends.into_list(), StatusCode::SERVICE_UNAVAILABLE)
}

fn rules(document: &RouteDocument, backends: &mut Backends) -> Vec<Rule> {
    let name = format!("{}/{}", document.key.namespace, document.key.name);
    document.spec.http.iter().enumerate().map(|one| rule(document, one, &name, backends)).collect()
}

fn rule(document: &RouteDocument, (at, rule): (usize, &istio::HttpRoute), name: &str, backends: &mut Backends) -> Rule {
    let own = if rule.name.is_empty() { String::new() } else { format!(" {}", rule.name) };
    Rule {
        name: format!("{name}[{at}]{own}").into(),
        matches: rule.matches.iter().map(block).collect(),
        action: action(document, rule, backends),
        changes: sides(rule.headers.as_ref()),
        rewrite: rule.rewrite.as_ref().map(rewrite),
        timeout: rule.timeout.map(|timeout| timeout.0),
        retries: rule.retries.as_ref().map(retries),
        fault: rule.fault.as_ref().map(fault),
        mirrors: mirrors(document, rule, backends),
        cors: rule.cors_policy.as_ref().map(cors),
        session: None,
    }
}

fn block(block: &istio::HttpMatch) -> Match {
    let fields = |fields: &BTreeMap<String, StringMatch>| -> Vec<(HeaderName, Text)> {
        let named = |(name, text): (&String, &StringMatch)| Some((name.parse().ok()?, self::text(text)));
        fields.iter().filter_map(named).collect()
    };
    Match {
        path: block.uri.as_ref().map(|uri| PathMatch { text: text(uri), ignores_case: block.ignore_uri_case }),
        scheme: block.scheme.as_ref().map(text),
        method: block.method.as_ref().map(text),
        authority: block.authority.as_ref().map(text),
        headers: fields(&block.headers),
        without: fields(&block.without_headers),
        query: block.query_params.iter().map(|(name, value)| (name.as_str().into(), text(value))).collect(),
        port: block.port,
        namespace: Some(&*block.source_namespace).filter(|name| !name.is_empty()).map(Into::into),
        labels: block.source_labels.clone(),
    }
}

fn text(text: &StringMatch) -> Text {
    if text.is_presence() {
        return Text::Present;
    }
    match (&text.exact, &text.prefix, &text.regex) {
        (Some(exact), ..) => Text::Exact(exact.as_str().into()),
        (_, Some(prefix), _) => Text::Prefix(prefix.as_str().into()),
        (.., Some(regex)) => expression(regex).map_or(Text::Nothing, Text::Regex),
        _ => Text::Present,
    }
}

fn action(document: &RouteDocument, rule: &istio::HttpRoute, backends: &mut Backends) -> Action {
    if let Some(to) = &rule.redirect {
        return Action::Redirect(redirect(to));
    }
    if let Some(answer) = &rule.direct_response {
        let body = answer.body.as_ref().and_then(|body| body.string.as_deref()).unwrap_or_default();
        return Action::Answer { status: status(answer.status), body: body.into() };
    }
    let shares = rule.route.iter().map(|to| {
        let backend = backends.place(backend(document, &to.destination));
        Share { weight: to.weight as usize, backend, changes: sides(to.headers.as_ref()) }
    });
    Action::Forward(Shares::of(shares.collect()))
}

pub(super) fn backend(document: &RouteDocument, to: &istio::Destination) -> BackendRef {
    BackendRef {
        service: meant(&to.host, &document.key.namespace),
        subset: Some(&*to.subset).filter(|subset| !subset.is_empty()).map(Into::into),
        port: to.port.map(|port| port.number.get()),
        by: None,
    }
}

fn mirrors(document: &RouteDocument, rule: &istio::HttpRoute, backends: &mut Backends) -> Vec<(Chance, usize)> {
    let old = || rule.mirror_percent.map(f64::from);
    let percent = rule.mirror_percentage.map(|percent| percent.value).or_else(old);
    let single = rule.mirror.iter().map(|to| (to, percent));
    let several = rule.mirrors.iter().map(|one| (&one.destination, one.percentage.map(|percent| percent.value)));
    let mirror = |(to, percent): (&istio::Destination, Option<f64>)| {
        (Chance::of(percent.unwrap_or(100.0)), backends.place(backend(document, to)))
    };
    single.chain(several).map(mirror).collect()
}

fn cors(policy: &istio::CorsPolicy) -> Cors {
    let whole = policy.allow_origin.iter().map(|origin| Text::Exact(origin.as_str().into()));
    let origins: Vec<Text> = match policy.allow_origins.is_empty() {
        true => whole.collect(),
        false => policy.allow_origins.iter().map(text).collect(),
    };
    Cors {
        origins,
        methods: Allowed::of(&policy.allow_methods),
        headers: Allowed::of(&policy.allow_headers),
        expose: joined(&policy.expose_headers),
        age: policy.max_age.map(|age| age.0),
        credentials: policy.allow_credentials == Some(true),
        answers_others: policy.unmatched_preflights == Some(istio::UnmatchedPreflights::Ignore),
    }
}

fn redirect(to: &istio::Redirect) -> Redirect {
    let said = |text: &str| Some(text).filter(|text| !text.is_empty()).map(Into::into);
    let port = match to.derive_port {
        Some(istio::DerivePort::FromProtocolDefault) => Some(if to.scheme == "https" { 443 } else { 80 }),
        Some(istio::DerivePort::FromRequestPort) | None => to.port,
    };
    Redirect {
        status: status(to.redirect_code.unwrap_or(301)),
        scheme: said(&to.scheme),
        authority: said(&to.authority),
        port,
        keeps_port: to.derive_port == Some(istio::DerivePort::FromRequestPort),
        path: Some(&to.uri).filter(|uri| !uri.is_empty()).map(|uri| PathRewrite::Whole(uri.as_str().into())),
    }
}

fn rewrite(to: &istio::Rewrite) -> Rewrite {
    let regex = to.uri_regex_rewrite.as_ref().and_then(|both| {
        let regex = anywhere(&both.r#match).ok()?;
        Some(PathRewrite::Regex(regex, groups(&both.rewrite).into()))
    });
    let whole = Some(&to.uri).filter(|uri| !uri.is_empty()).map(|uri| PathRewrite::Matched(uri.as_str().into()));
    let authority = Some(&*to.authority).filter(|authority| !authority.is_empty()).map(Into::into);
    Rewrite { authority, path: regex.or(whole) }
}

/// `\1` in the words of the library: `${1}`.
fn groups(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text.chars());
    while let Some(letter) = rest.next() {
        match letter {
            '\\' => match rest.next() {
                Some(digit) if digit.is_ascii_digit() => out.extend(["${", &digit.to_string(), "}"]),
                other => out.extend(other),
            },
            '$' => out.push_str("$$"),
            other => out.push(other),
        }
    }
    out
}

fn sides(headers: Option<&istio::Headers>) -> Sides {
    let changes = |operations: Option<&istio::HeaderOperations>| operations.map(changes).unwrap_or_default();
    headers.map_or_else(Sides::default, |headers| Sides {
        request: changes(headers.request.as_ref()),
        response: changes(headers.response.as_ref()),
    })
}

fn changes(operations: &istio::HeaderOperations) -> Changes {
    let fields = |fields: &BTreeMap<String, String>| -> Vec<(HeaderName, HeaderValue)> {
        let field = |(name, value): (&String, &String)| Some((name.parse().ok()?, value.parse().ok()?));
        fields.iter().filter(|(name, _)| !is_host(name)).filter_map(field).collect()
    };
    let host = operations.set.iter().chain(&operations.add).find(|(name, _)| is_host(name));
    Changes {
        remove: operations.remove.iter().filter_map(|name| name.parse().ok()).collect(),
        set: fields(&operations.set),
        add: fields(&operations.add),
        remove_last: Vec::new(),
        host: host.map(|(_, value)| value.as_str().into()),
    }
}

fn retries(again: &istio::Retries) -> RetryPolicy {
    RetryPolicy {
        attempts: Some(again.attempts),
        per_try: again.per_try_timeout.map(|span| span.0),
        on: RetryOn::read(&again.retry_on),
        previous: again.retry_ignore_previous_hosts == Some(false),
        remote: again.retry_remote_localities == Some(true),
        backoff: again.backoff.map(|span| span.0),
    }
}

fn fault(made: &istio::Fault) -> Fault {
    let delay = made.delay.as_ref().map(|delay| {
        let percent = delay.percentage.map_or(f64::from(delay.percent), |percentage| percentage.value);
        (Chance::of(percent), delay.fixed_delay.0)
    });
    let abort = made.abort.as_ref().and_then(|abort| {
        let kind = match abort.http_status {
            Some(number) => Abort::Http(status(number)),
            None => Abort::Grpc(grpc_code(&abort.grpc_status)?),
        };
        Some((Chance::of(abort.percentage.unwrap_or_default().value), kind))
    });
    Fault { delay: delay.filter(|(_, span)| *span > Duration::ZERO), abort }
}

fn status(number: u16) -> StatusCode {
    StatusCode::from_u16(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}
