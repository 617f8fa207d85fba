//! Which rule of a service's routes a call falls under, why others do not, and what the rule does.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use serde::Serialize;

use super::Explanation;
use crate::decide::relation::{Ground, Relation};
use crate::decide::route::{self, Backend, Ruled};
use crate::reject::Reject;
use crate::table::authz::HttpCall;
use crate::table::routes::{Abort, Action, Asking, BackendRef, Routes, Rule};
use crate::task::Random;

/// What one rule says of the call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleWord {
    /// `namespace/name[place] name`.
    pub rule: String,
    /// Whether it is the one that the call falls under.
    pub matched: bool,
    /// What each of its blocks lacks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub because: Vec<String>,
}

/// A call on its way through the rules, which may change it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) host: String,
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) headers: HeaderMap,
}

impl Asked {
    /// As policies see it.
    pub(super) fn call(&self) -> HttpCall<'_> {
        HttpCall { method: &self.method, host: &self.host, path: &self.path, headers: &self.headers }
    }
}

/// The relation that the call is judged by after the rules; none where a rule or the lack of one ends it.
pub(super) fn follow(
    ground: Ground<'_>,
    relation: Arc<Relation>,
    asked: &mut Asked,
    explanation: &mut Explanation,
) -> Option<Arc<Relation>> {
    let Some(routes) = &relation.routes else { return Some(relation) };
    let asking = Asking {
        method: &asked.method,
        path: &asked.path,
        query: asked.query.as_deref(),
        authority: &asked.host,
        headers: &asked.headers,
        scheme: relation.scheme,
        port: relation.called,
        namespace: relation.namespace(),
        labels: &relation.labels,
    };
    let random = Random::new(ground.table.generation);
    let ruled = route::route(&relation, &asking, || random.share());
    let matched = routes.find(&asking).map(|(at, _)| at);
    explanation.rules = routes.rules.iter().enumerate().map(|one| word(one, matched, &asking)).collect();
    let ruled = match ruled {
        Ok(Some(ruled)) => ruled,
        Ok(None) if relation.is_gate() => return end(&Reject::NoRoute, explanation),
        Ok(None) => return Some(relation),
        Err(reject) => return end(&reject, explanation),
    };
    explanation.rule = Some(ruled.rule().name.to_string());
    explanation.treatment = treatment(routes, ruled.rule());
    if ruled.to().is_none() {
        explanation.verdict = "answered";
        explanation.reason = "the rule answers itself".into();
        return None;
    }
    let Some(backend) = ruled.to().and_then(|(_, to)| route::backend(ground.table, &relation, to)) else {
        return end(&ruled.missing(), explanation);
    };
    if let Err(reject) = change(asked, &ruled, &backend) {
        return end(&reject, explanation);
    }
    let parties = backend.parties(&relation);
    Some(Arc::new(Relation::new(ground, &parties, &backend.service, backend.port)))
}

/// The same for an opaque stream, of TLS with the name that it asks for.
pub(super) fn follow_stream(
    ground: Ground<'_>,
    relation: Arc<Relation>,
    tls: Option<&str>,
    explanation: &mut Explanation,
) -> Option<Arc<Relation>> {
    let random = Random::new(ground.table.generation);
    let Some(ruled) = route::stream(&relation, (None, tls), || random.share()) else {
        return if relation.is_gate() { end(&Reject::NoRoute, explanation) } else { Some(relation) };
    };
    explanation.rule = Some(ruled.rule.to_owned());
    let backend = ruled.to.and_then(|(_, to)| route::backend(ground.table, &relation, to));
    let Some(backend) = backend else {
        return end(&Reject::NoBackend(StatusCode::SERVICE_UNAVAILABLE), explanation);
    };
    let parties = backend.parties(&relation);
    Some(Arc::new(Relation::new(ground, &parties, &backend.service, backend.port)))
}

fn end(reject: &Reject, explanation: &mut Explanation) -> Option<Arc<Relation>> {
    explanation.verdict = "refused";
    explanation.reason = format!("{}: {}", reject.status().as_u16(), reject.text());
    None
}

fn word((at, rule): (usize, &Rule), matched: Option<usize>, asking: &Asking<'_>) -> RuleWord {
    let because = match matched {
        Some(first) if first < at => vec!["a rule before it matches".to_owned()],
        Some(first) if first == at => Vec::new(),
        _ => rule.matches.iter().map(|block| format!("does not match: {}", block.lacks(asking).join(", "))).collect(),
    };
    RuleWord { rule: rule.name.to_string(), matched: matched == Some(at), because }
}

/// What a rule does, a line each.
fn treatment(routes: &Routes, rule: &Rule) -> Vec<String> {
    let mut lines = Vec::new();
    match &rule.action {
        Action::Forward(shares) => {
            for share in &shares.shares {
                let part = if shares.shares.len() == 1 { (1, 1) } else { (share.weight, shares.sum) };
                lines.push(format!("{} of {} to {}", part.0, part.1, place(&routes.backends[share.backend])));
            }
        }
        Action::Redirect(to) => lines.push(format!("answers {} with another place", to.status.as_u16())),
        Action::Answer { status, .. } => lines.push(format!("answers {}", status.as_u16())),
    }
    if rule.rewrite.is_some() {
        lines.push("rewrites path or host".into());
    }
    if let Some(fault) = &rule.fault {
        if let Some((chance, span)) = fault.delay {
            lines.push(format!("delays {chance} by {span:?}"));
        }
        match fault.abort {
            Some((chance, Abort::Http(status))) => lines.push(format!("fails {chance} with {}", status.as_u16())),
            Some((chance, Abort::Grpc(code))) => lines.push(format!("fails {chance} with the gRPC status {code}")),
            None => {}
        }
    }
    for (chance, backend) in &rule.mirrors {
        lines.push(format!("copies {chance} to {}", place(&routes.backends[*backend])));
    }
    if rule.session.is_some() {
        lines.push("calls of a session go to the same instance".into());
    }
    if rule.cors.is_some() {
        lines.push("answers preflights of origins that may share".into());
    }
    lines.extend(rule.timeout.map(|timeout| format!("at most {timeout:?}")));
    lines.extend(
        rule.retries.as_ref().and_then(|retries| retries.attempts).map(|most| format!("at most {most} retries")),
    );
    lines
}

/// Where a rule leads, for people.
fn place(to: &BackendRef) -> String {
    let subset = to.subset.as_ref().map(|subset| format!(", subset {subset}")).unwrap_or_default();
    to.service.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string) + &subset
}

fn change(asked: &mut Asked, ruled: &Ruled, backend: &Backend) -> Result<(), Reject> {
    if let Some(target) = ruled.target(&asked.path, None, backend.service.settings.escaped_slashes) {
        asked.path = target.map_err(Reject::Path)?;
    }
    ruled.changes().for_each(|sides| sides.request.apply(&mut asked.headers));
    asked.host = ruled.host().map_or_else(|| asked.host.clone(), str::to_owned);
    Ok(())
}
