//! From `HTTPRoute`s to the form in which rules are asked: those of one namespace together, the most specific first.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use weft_proto::kinds::http_route as gateway;
use weft_proto::kinds::http_route::{Filter, LifetimeType, PathModifier, PathType, SessionType, ValueType};
use weft_proto::kinds::istio::expression;
use weft_proto::kinds::service::Span;
use weft_proto::resource::ResourceKey;
use weft_proto::service::ServiceName;

use super::changes::PathRewrite;
use super::cors::{Allowed, joined};
use super::index::Index;
use super::matching::{PathMatch, Text};
use super::{
    Action, BackendRef, Backends, Called, Carrier, Chance, Changes, Cors, GatewayDocument, HostRank, Match, Redirect,
    RetryOn, RetryPolicy, Rewrite, Routes, Rule, Seen, Session, Share, Shares, Sides, Source,
};

/// The rules of documents of one namespace for the calls of a service, which callers of another see if it is the service's
/// own.
pub(super) fn compile(documents: Vec<Arc<GatewayDocument>>, called: &Called<'_>) -> Routes {
    let (mut backends, mut ranked) = (Backends::default(), Vec::new());
    for document in &documents {
        for (at, rule) in document.spec.rules.iter().enumerate() {
            for port in called.ports(&document.spec.parent_refs, &document.key.namespace) {
                ranked.extend(flat(document, (at, rule), port, &mut backends));
            }
        }
    }
    // The sort keeps the order of what is alike: that of age, of names and of places in the document.
    ranked.sort_by_key(|(rank, _)| Reverse(*rank));
    let namespace = documents.first().map(|one| one.key.namespace.clone()).unwrap_or_default();
    let seen = if namespace == called.namespace() { Seen::ByAll } else { Seen::From(namespace) };
    let rules: Vec<Rule> = ranked.into_iter().map(|(_, rule)| rule).collect();
    Routes {
        source: Source::Gateway(documents),
        seen,
        index: Index::new(&rules),
        rules,
        backends: backends.into_list(),
        missing: StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The rules of documents that are attached to a gateway for one host: the narrower the host that a document names the
/// earlier they are looked at, then the more specific ones.
pub(super) fn at_gateway(documents: &[(HostRank, Arc<GatewayDocument>)]) -> Routes {
    let (mut backends, mut ranked) = (Backends::default(), Vec::new());
    for (host, document) in documents {
        for (at, rule) in document.spec.rules.iter().enumerate() {
            let rules = flat(document, (at, rule), None, &mut backends).into_iter();
            ranked.extend(rules.map(|(rank, rule)| ((*host, rank), rule)));
        }
    }
    ranked.sort_by_key(|(rank, _)| Reverse(*rank));
    let rules = ranked.into_iter().map(|(_, rule)| rule).collect();
    Routes::attached(rules, backends.into_list(), StatusCode::INTERNAL_SERVER_ERROR)
}

/// How specific a match is: by its path, by its method, by fields, by parameters.
type Rank = (u8, usize, bool, usize, usize);

/// A rule once for each of its matches.
fn flat(
    document: &GatewayDocument,
    (at, rule): (usize, &gateway::Rule),
    port: Option<u16>,
    backends: &mut Backends,
) -> Vec<(Rank, Rule)> {
    let any = [gateway::Match::default()];
    let matches = if rule.matches.is_empty() { &any[..] } else { &rule.matches[..] };
    let own = if rule.name.is_empty() { String::new() } else { format!(" {}", rule.name) };
    let name = format!("{}/{}[{at}]{own}", document.key.namespace, document.key.name);
    let one = |asked: &gateway::Match| {
        let compiled = Rule {
            name: name.as_str().into(),
            matches: vec![block(asked, port)],
            action: action(document, rule, backends),
            changes: sides(&rule.filters),
            rewrite: rule.filters.iter().find_map(rewrite),
            timeout: rule.timeouts.as_ref().and_then(|timeouts| timeouts.request).map(|span| span.0),
            retries: retries(rule),
            fault: None,
            mirrors: mirrors(document, rule, backends),
            cors: rule.filters.iter().find_map(cors),
            session: rule.session_persistence.as_ref().and_then(session),
        };
        (rank(asked), compiled)
    };
    matches.iter().map(one).collect()
}

fn session(session: &gateway::SessionPersistence) -> Option<Session> {
    let bound = |span: Option<Span>| span.map(|span| span.0).filter(|span| !span.is_zero());
    let (lasts, rests) = (bound(session.absolute_timeout), bound(session.idle_timeout));
    let name = session.session_name.as_deref().unwrap_or(SESSION_NAME);
    let kept = session.cookie_config.as_ref().is_some_and(|config| config.lifetime_type == LifetimeType::Permanent);
    let age = lasts.filter(|_| kept).map(|lasts| format!("; Max-Age={}", lasts.as_secs())).unwrap_or_default();
    let carrier = match session.r#type {
        SessionType::Cookie => Carrier::Cookie { name: name.into(), rest: format!("; Path=/{age}; HttpOnly").into() },
        SessionType::Header => Carrier::Header(name.parse().ok()?),
    };
    Some(Session { carrier, lasts, rests })
}

fn rank(asked: &gateway::Match) -> Rank {
    let path = asked.path.as_ref();
    let kind = match path.map(|path| path.r#type) {
        Some(PathType::Exact) => 2,
        Some(PathType::PathPrefix) => 1,
        None => 1,
        Some(PathType::RegularExpression) => 0,
    };
    let length = path.map_or(1, |path| path.value.chars().count());
    (kind, length, asked.method.is_some(), asked.headers.len(), asked.query_params.len())
}

fn block(asked: &gateway::Match, port: Option<u16>) -> Match {
    let path = asked.path.as_ref().map(|path| PathMatch {
        text: match path.r#type {
            PathType::Exact => Text::Exact(path.value.as_str().into()),
            PathType::PathPrefix => Text::Segments(path.value.trim_end_matches('/').into()),
            PathType::RegularExpression => expression(&path.value).map_or(Text::Nothing, Text::Regex),
        },
        ignores_case: false,
    });
    let text = |one: &gateway::NamedMatch| match one.r#type {
        ValueType::Exact => Text::Exact(one.value.as_str().into()),
        ValueType::RegularExpression => expression(&one.value).map_or(Text::Nothing, Text::Regex),
    };
    let mut block = Match { path, port, ..Match::default() };
    for one in &asked.headers {
        let name = one.name.parse::<HeaderName>().ok();
        let name = name.filter(|name| block.headers.iter().all(|(known, _)| known != name));
        block.headers.extend(name.map(|name| (name, text(one))));
    }
    for one in &asked.query_params {
        if block.query.iter().all(|(known, _)| **known != *one.name) {
            block.query.push((one.name.as_str().into(), text(one)));
        }
    }
    block.method = asked.method.map(|method| Text::Exact(format!("{method:?}").to_ascii_uppercase().into()));
    block
}

fn action(document: &GatewayDocument, rule: &gateway::Rule, backends: &mut Backends) -> Action {
    let redirect = rule.filters.iter().find_map(|filter| match filter {
        Filter::RequestRedirect { request_redirect } => Some(redirect(request_redirect)),
        _ => None,
    });
    if let Some(redirect) = redirect {
        return Action::Redirect(redirect);
    }
    let parents = document.spec.services(&document.key.namespace);
    let shares = rule.backend_refs.iter().filter(|to| to.weight > 0).map(|to| {
        let service = to.service(&document.key.namespace);
        let backend = backends.place(backend(&document.key, &parents, (&to.kind, service), to.port));
        Share { weight: to.weight as usize, backend, changes: sides(&to.filters) }
    });
    Action::Forward(Shares::of(shares.collect()))
}

/// Where a document of the kind leads. To go on to what it is attached to needs no grant: its calls go there anyway; nor does a host
/// by its whole name.
pub(super) fn backend(
    document: &ResourceKey,
    parents: &BTreeSet<ServiceName>,
    (to, service): (&str, Option<ServiceName>),
    port: Option<std::num::NonZeroU16>,
) -> BackendRef {
    let kinds = ["HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute"];
    let kind = kinds.into_iter().find(|kind| *kind == document.kind.name).unwrap_or_default();
    let foreign = |service: &ServiceName| service.namespace() != document.namespace && !parents.contains(service);
    let granted = to == "Service" && service.as_ref().is_some_and(foreign);
    let by = granted.then(|| (kind, document.namespace.as_str().into()));
    BackendRef { service, subset: None, port: port.map(std::num::NonZeroU16::get), by }
}

fn mirrors(document: &GatewayDocument, rule: &gateway::Rule, backends: &mut Backends) -> Vec<(Chance, usize)> {
    let parents = document.spec.services(&document.key.namespace);
    let mirror = |filter: &Filter| {
        let Filter::RequestMirror { request_mirror: to } = filter else { return None };
        let part = to.fraction.map(|part| f64::from(part.numerator) / f64::from(part.denominator.max(1)) * 100.0);
        let percent = to.percent.map(f64::from).or(part).unwrap_or(100.0);
        let at = &to.backend_ref;
        let service = at.service(&document.key.namespace);
        let backend = backends.place(backend(&document.key, &parents, (&at.kind, service), at.port));
        Some((Chance::of(percent), backend))
    };
    rule.filters.iter().filter_map(mirror).collect()
}

fn cors(filter: &Filter) -> Option<Cors> {
    let Filter::Cors { cors } = filter else { return None };
    let origin = |text: &String| match text.split_once('*') {
        Some(("", "")) | None => Text::Exact(text.as_str().into()),
        // Within the host, one label or more.
        Some(_) => {
            let parts: Vec<String> = text.split('*').map(regex::escape).collect();
            expression(&parts.join("[^/]*")).map_or(Text::Nothing, Text::Regex)
        }
    };
    Some(Cors {
        origins: cors.allow_origins.iter().map(origin).collect(),
        methods: Allowed::of(&cors.allow_methods),
        headers: Allowed::of(&cors.allow_headers),
        expose: joined(&cors.expose_headers),
        age: Some(Duration::from_secs(cors.max_age.map_or(5, u64::from))),
        credentials: cors.allow_credentials == Some(true),
        answers_others: false,
    })
}

fn redirect(to: &gateway::RequestRedirect) -> Redirect {
    let default = |scheme: &String| if scheme == "https" { 443 } else { 80 };
    let said = to.port.map(std::num::NonZeroU16::get);
    Redirect {
        status: StatusCode::from_u16(to.status_code.unwrap_or(302)).unwrap_or(StatusCode::FOUND),
        scheme: to.scheme.as_deref().map(Into::into),
        authority: to.hostname.as_deref().map(Into::into),
        port: said.or(to.scheme.as_ref().map(default)),
        keeps_port: true,
        path: to.path.as_ref().map(path),
    }
}

fn rewrite(filter: &Filter) -> Option<Rewrite> {
    let Filter::UrlRewrite { url_rewrite } = filter else { return None };
    Some(Rewrite {
        authority: url_rewrite.hostname.as_deref().map(Into::into),
        path: url_rewrite.path.as_ref().map(path),
    })
}

fn path(path: &PathModifier) -> PathRewrite {
    match path {
        PathModifier::ReplaceFullPath { replace_full_path } => PathRewrite::Whole(replace_full_path.as_str().into()),
        PathModifier::ReplacePrefixMatch { replace_prefix_match } => {
            PathRewrite::Segments(replace_prefix_match.trim_end_matches('/').into())
        }
    }
}

fn sides(filters: &[Filter]) -> Sides {
    let mut sides = Sides::default();
    for filter in filters {
        match filter {
            Filter::RequestHeaderModifier { request_header_modifier } => {
                sides.request = changes(request_header_modifier);
            }
            Filter::ResponseHeaderModifier { response_header_modifier } => {
                sides.response = changes(response_header_modifier);
            }
            Filter::RequestRedirect { .. }
            | Filter::UrlRewrite { .. }
            | Filter::RequestMirror { .. }
            | Filter::Cors { .. } => {}
        }
    }
    sides
}

fn changes(modifier: &gateway::HeaderModifier) -> Changes {
    let fields = |fields: &[gateway::NamedValue]| -> Vec<(HeaderName, HeaderValue)> {
        fields.iter().filter_map(|one| Some((one.name.parse().ok()?, one.value.parse().ok()?))).collect()
    };
    Changes {
        set: fields(&modifier.set),
        add: fields(&modifier.add),
        remove_last: modifier.remove.iter().filter_map(|name| name.parse().ok()).collect(),
        ..Changes::default()
    }
}

fn retries(rule: &gateway::Rule) -> Option<RetryPolicy> {
    let bound = rule.timeouts.as_ref().and_then(|timeouts| timeouts.backend_request).map(|span| span.0);
    let per_try = bound.filter(|bound| !bound.is_zero());
    if rule.retry.is_none() && per_try.is_none() {
        return None;
    }
    let retry = rule.retry.as_ref();
    let codes = retry.map(|retry| retry.codes.clone()).unwrap_or_default();
    Some(RetryPolicy {
        attempts: retry.and_then(|retry| retry.attempts),
        per_try,
        on: RetryOn::statuses(codes),
        previous: false,
        remote: false,
        backoff: retry.and_then(|retry| retry.backoff).map(|span| span.0),
    })
}

/// Name of what carries a session, unless set.
const SESSION_NAME: &str = "weft-session";
