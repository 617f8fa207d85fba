//! What would happen to a call, told by the very functions that decide about calls.

mod gateway;
mod rules;

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use serde::Serialize;
use tokio::time::Instant;
use weft_proto::identity::Identity;
use weft_proto::service::{Labels, Protocol, ServiceName};

use crate::call::Parties;
use crate::decide::relation::{Ground, Relation};
use crate::decide::{Decision, Question, decide, judge};
use crate::reject::Reject;
use crate::table::Meant;
use crate::table::authz::verb;
use crate::table::description::EndpointDescription;
use crate::task::Random;
use crate::{balance, path};
use rules::Asked;

pub(crate) use gateway::enter;
pub use rules::RuleWord;

/// A call, what is decided about it, and where it would go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `allowed`, `denied`, `answered` by a rule itself, or `refused` (a path that servers read in different ways, or no
    /// rule, or one that leads nowhere).
    pub verdict: &'static str,
    /// Why, in words.
    pub reason: String,
    /// The rule that decided, `namespace/name[rule]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Who calls.
    pub caller: String,
    /// Who is called.
    pub callee: String,
    /// The gateway that it comes in at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The callee's port and what it speaks.
    pub port: String,
    /// The path that is judged and forwarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The rule of the service's routes that it falls under, `namespace/name[place]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What each rule says of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleWord>,
    /// What the rule does, a line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub treatment: Vec<String>,
    /// What bounds its calls, a line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    /// Every policy that selects the callee.
    pub policies: Vec<PolicyWord>,
    /// Where the callee runs.
    pub candidates: Vec<Candidate>,
    /// The instance that one call, made now, would go to: its node, and its name where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub picked: Option<String>,
    /// The index of the table that was asked.
    pub index: u64,
}

/// What one policy says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyWord {
    /// `namespace/name`.
    pub policy: String,
    /// `allow`, `deny` or `audit`.
    pub action: &'static str,
    /// Whether one of its rules matches.
    pub matched: bool,
    /// Whether it only tells what it would do.
    pub dry_run: bool,
    /// What each rule that does not match lacks.
    pub because: Vec<String>,
}

/// An instance of the callee.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// Its node.
    pub node: String,
    /// Its name among those of the service on the node.
    pub instance: String,
    /// Its labels.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Whether policies that are about it and not about all deny the call.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub denied: bool,
    /// Whether it is not in the subset that the rule leads to.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub outside: bool,
    /// Its zone.
    pub zone: String,
    /// Whether its check passes.
    pub healthy: bool,
    /// Whether it failed so lately that others are preferred.
    pub avoided: bool,
    /// For how many more seconds it gets no calls for its failures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejected_s: Option<u64>,
    /// Expected time to the first byte in microseconds, once measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<u64>,
    /// Exchanges under way.
    pub in_flight: u32,
}

/// What is asked of a callee.
#[derive(Debug, Clone, Copy)]
pub enum Spoken<'a> {
    /// An HTTP request.
    Http {
        /// Its method.
        method: &'a str,
        /// Its target.
        path: &'a str,
        /// Its fields.
        headers: &'a HeaderMap,
    },
    /// An opaque stream.
    Stream {
        /// The name that it asks for where it is one of TLS (SNI, RFC 6066).
        server_name: Option<&'a str>,
    },
}

pub(crate) fn explain(
    ground: Ground<'_>,
    caller: &Identity,
    (name, port): (&ServiceName, Option<u16>),
    spoken: Spoken<'_>,
) -> Result<Explanation, String> {
    let table = ground.table;
    let (service, port, subset) = match table.meant(name, port) {
        Some(Meant { service, port, subset, .. }) => (service.clone(), port, subset),
        None if name.is_outside() => {
            let plain = if matches!(spoken, Spoken::Http { .. }) { 80 } else { 443 };
            let port = port.unwrap_or(plain);
            let found = table.outside(name.name(), port, caller);
            let found = found.ok_or_else(|| {
                format!("{name}:{port} may not be called: no ServiceEntry names it, and others are refused")
            });
            (found?, Some(port), None)
        }
        None => return Err(format!("there is no service {name}")),
    };
    let port = match port {
        None => service.ports.first().copied(),
        Some(number) => service.port(number),
    };
    let port = port.ok_or_else(|| format!("{name} has no such port"))?;
    let parties = Parties { subset, ..Parties::of_caller(caller.clone(), &service.name, port.port) };
    let relation = Arc::new(Relation::new(ground, &parties, &service, port));
    Ok(go(ground, relation, (&name.host(), None), spoken))
}

/// By its identity, or by its name where it is outside and has none.
fn callee(relation: &Relation) -> String {
    let service = &relation.service;
    if service.name.is_outside() { service.name.to_string() } else { service.identity.to_string() }
}

/// What becomes of a call of a host, from what it is by itself on; of one that comes in at a gateway also by the policies of that,
/// for a caller at this address.
fn go(
    ground: Ground<'_>,
    relation: Arc<Relation>,
    (host, from): (&str, Option<IpAddr>),
    spoken: Spoken<'_>,
) -> Explanation {
    let mut explanation = Explanation::new(&relation, ground.table.index());
    let (service, port) = (relation.service.clone(), relation.port);
    let (http, server_name) = match spoken {
        Spoken::Http { method, path, headers } => (Some((method, path, headers)), None),
        Spoken::Stream { server_name } => (None, server_name),
    };
    let normal = http.map(|(_, path, _)| path::normalise(path, service.settings.escaped_slashes)).transpose();
    let normal = match normal {
        Ok(normal) => normal,
        Err(refusal) => {
            explanation.reason = refusal.to_string();
            return explanation;
        }
    };
    let call = http.zip(normal).filter(|_| port.protocol != Protocol::Tcp);
    let mut asked = call.map(|((method, _, headers), target)| {
        let (path, query) = target.split_once('?').map_or((&*target, None), |(path, query)| (path, Some(query)));
        let (path, query) = (path.to_owned(), query.map(str::to_owned));
        Asked { method: method.to_owned(), host: host.to_owned(), path, query, headers: headers.clone() }
    });
    if let Some(from) = from
        && !gateway::passes((&relation, host), from, asked.as_ref(), &mut explanation)
    {
        return explanation;
    }
    let relation = match &mut asked {
        None => rules::follow_stream(ground, relation, server_name, &mut explanation),
        Some(asked) => rules::follow(ground, relation, asked, &mut explanation),
    };
    let Some(relation) = relation else { return explanation };
    explanation.callee = callee(&relation);
    explanation.port = format!("{}/{}", relation.port.port, relation.port.protocol);
    explanation.candidates = candidates(&relation);
    explanation.limits = limits(&relation);
    explanation.path = asked.as_ref().map(|asked| asked.path.clone());
    let call = asked.as_ref().map(Asked::call);
    let question =
        Question { relation: &relation, addresses: relation.own_addresses(), sni: &relation.server_name, http: call };
    judge(&question, &mut explanation);
    if explanation.verdict == "allowed" {
        pick(&relation, ground.table.generation, &mut explanation);
    }
    explanation
}

impl Explanation {
    /// Nothing is known of a call but who calls whom.
    fn new(relation: &Relation, index: u64) -> Self {
        Self {
            verdict: "refused",
            reason: String::new(),
            policy: None,
            caller: relation.caller.identity().to_string(),
            callee: callee(relation),
            gateway: None,
            port: format!("{}/{}", relation.port.port, relation.port.protocol),
            path: None,
            rule: None,
            rules: Vec::new(),
            treatment: Vec::new(),
            limits: Vec::new(),
            policies: Vec::new(),
            candidates: Vec::new(),
            picked: None,
            index,
        }
    }
}

fn where_it_is(endpoint: &EndpointDescription) -> String {
    match endpoint.instance.is_default() {
        true => endpoint.node.to_string(),
        false => format!("{}, {}", endpoint.node, endpoint.instance),
    }
}

/// Where one call would go.
fn pick(relation: &Relation, seed: u64, explanation: &mut Explanation) {
    // What is told draws no numbers of the exchanges', and takes no probe.
    let picked = balance::pick(relation, |_| true, None, Instant::now(), &Random::new(seed));
    match picked {
        Some(index) => {
            let denied = if explanation.candidates[index].denied { ", which denies it" } else { "" };
            explanation.picked = Some(where_it_is(&relation.service.endpoints[index].description) + denied);
        }
        None if explanation.candidates.iter().any(|one| one.ejected_s.is_some()) => {
            explanation.reason += "; those that serve the port are out for their failures, and it is answered with 503";
        }
        None => explanation.reason += "; no healthy instance serves the port, and it is answered with 503",
    }
}

fn judge(question: &Question<'_>, explanation: &mut Explanation) {
    let relation = question.relation;
    let (decision, _) = decide(question);
    if let Decision::Refuse(reject @ Reject::Misconfigured) = &decision {
        explanation.reason = reject.text().into_owned();
        return;
    }
    let (verdict, denied) = judge::verdict(question);
    let (service, call) = (&relation.service, judge::call(question));
    // What one of them says is told where they differ: of those that agree with the verdict the first.
    let groups = 0..service.authorizations.len();
    let telling = groups.into_iter().find(|group| denied.contains(group) != verdict.allowed).unwrap_or(0);
    let told = service.authorizations[telling].explain(&call);
    for (candidate, endpoint) in explanation.candidates.iter_mut().zip(&service.endpoints) {
        candidate.denied = denied.contains(&endpoint.group);
    }
    explanation.verdict = if matches!(decision, Decision::Forward(_)) { "allowed" } else { "denied" };
    explanation.reason = told.verdict.reason.as_str().to_owned();
    explanation.policy = told.verdict.by.as_ref().map(ToString::to_string);
    let word = |policy: &crate::table::authz::PolicyExplanation| PolicyWord {
        policy: policy.policy.to_string(),
        action: verb(policy.action),
        matched: policy.matched,
        dry_run: policy.dry_run,
        because: policy.rules.iter().filter(|rule| !rule.matched).flat_map(|rule| rule.because.clone()).collect(),
    };
    explanation.policies = told.policies.iter().map(word).collect();
    // Those that are about some of the instances only.
    for (group, authorization) in service.authorizations.iter().enumerate().filter(|(group, _)| *group != telling) {
        let told = authorization.explain(&call);
        let called = service.endpoints.iter().any(|endpoint| endpoint.group == group);
        for policy in told.policies.iter().filter(|_| called).map(word) {
            if explanation.policies.iter().all(|known| known.policy != policy.policy) {
                explanation.policies.push(policy);
            }
        }
    }
}

/// What bounds calls of the callee, and where it stands now.
fn limits(relation: &Relation) -> Vec<String> {
    let treatment = &relation.treatment;
    let (running, waiting) = relation.upstream.as_ref().map(|upstream| upstream.turns.read()).unwrap_or_default();
    let mut lines = Vec::new();
    let named = [
        ("connections at once", treatment.limits.connections, running),
        ("calls at once", treatment.limits.requests, running),
        ("calls that wait", treatment.limits.pending, waiting),
    ];
    for (what, most, now) in named {
        lines.extend(most.map(|most| format!("at most {most} {what}, {now} now")));
    }
    let ejection = &treatment.ejection;
    let failures = [
        ("failures", ejection.errors),
        ("failures of gateways", ejection.gateway_errors),
        ("failures to get an answer", ejection.local_errors),
    ];
    for (what, most) in failures {
        let (base, percent) = (ejection.base.as_secs_f64(), ejection.percent_max);
        let line = |most| format!("out for {base} s after {most} {what} in a row, at most {percent} % of all at once");
        lines.extend(most.map(line));
    }
    if relation.is_panicking(Instant::now()) {
        lines.push("so many are out that all get calls".to_owned());
    }
    lines
}

fn candidates(relation: &Relation) -> Vec<Candidate> {
    let now = Instant::now();
    let candidate = |(index, endpoint): (usize, &crate::table::endpoints::Endpoint)| {
        let slot = relation.slot(index);
        let (latency, in_flight) = slot.read();
        Candidate {
            node: endpoint.description.node.to_string(),
            instance: endpoint.description.instance.to_string(),
            labels: endpoint.description.labels.clone(),
            denied: false,
            zone: endpoint.description.zone.clone(),
            outside: !relation.is_in_subset(index),
            healthy: relation.serves(index),
            avoided: slot.is_avoided(now),
            ejected_s: relation.ejected(index, now).map(|(left, _)| left.as_secs().max(1)),
            latency_us: latency.map(|latency| u64::try_from(latency.as_micros()).unwrap_or(u64::MAX)),
            in_flight,
        }
    };
    relation.service.endpoints.iter().enumerate().map(candidate).collect()
}
