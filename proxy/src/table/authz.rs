//! Compiled authorization: who may call one service, and how.
//!
//! [`Authorization::compile`] picks the policies that are about a service and turns them into a form that decides
//! without allocating. [`Authorization::decide`] asks in Istio's order: a DENY policy that matches denies; where no ALLOW
//! policy selects the service the mesh's default rules; an ALLOW policy that matches allows; all else is denied. AUDIT
//! policies and policies in dry run decide nothing and are noted.
//!
//! Where a rule cannot be judged it errs to the safe side: towards matching in a DENY (and an AUDIT) policy, away from it
//! in an ALLOW policy. Two cases need that:
//! - An opaque stream has no host, method, path or header. In a DENY policy a part that needs one counts as matched,
//!   while the others are judged; in an ALLOW policy a rule that needs one anywhere never matches.
//! - A header may come in several lines, which are judged one by one and never joined. `values` match if any line does in
//!   a DENY policy, if every line does in an ALLOW policy; `notValues` match if any line differs in a DENY policy, if every
//!   line does in an ALLOW policy. A header that is absent has none of the values.

mod compile;
mod explain;
mod pattern;
mod rule;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use weft_proto::identity::Identity;
use weft_proto::kinds::authorization_policy::{Action, AuthorizationPolicy};
use weft_proto::kinds::peer_authentication::Mode;
use weft_proto::resource::ResourceKey;
use weft_proto::service::{Labels, ServiceName};

pub use compile::{CompileError, PATTERN_LENGTH_MAX, PATTERNS_MAX, RULES_MAX};
pub(crate) use explain::verb;
pub use explain::{Explanation, PolicyExplanation, RuleExplanation};

use rule::{Lean, Rule};

use super::peers::Peers;

/// A policy as the mesh keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyDescription {
    /// Its name; the namespace bounds what it may select.
    pub key: ResourceKey,
    /// Its `spec`.
    pub policy: AuthorizationPolicy,
    /// Whether it only tells what it would decide.
    pub dry_run: bool,
}

/// Who may call one service. Immutable, shared between threads.
#[derive(Debug)]
pub struct Authorization {
    deny: Vec<Policy>,
    allow: Vec<Policy>,
    /// AUDIT policies and policies in dry run.
    noted: Vec<Policy>,
    deny_by_default: bool,
    peers: Peers,
}

#[derive(Debug)]
struct Policy {
    id: PolicyId,
    action: Action,
    dry_run: bool,
    rules: Vec<Rule>,
}

impl Authorization {
    /// The policies that apply to an instance of the service, by name: those of its namespace and of
    /// [`ROOT_NAMESPACES`](weft_proto::kinds::authorization_policy::ROOT_NAMESPACES) whose selector or `targetRefs` name it, or that have neither.
    /// Its labels are told by `label`; the label `app` is the service's name, whatever that tells.
    pub fn select<'p, 'l>(
        service: &ServiceName,
        label: impl Fn(&str) -> Option<&'l str>,
        policies: &'p [Arc<PolicyDescription>],
    ) -> Vec<&'p Arc<PolicyDescription>> {
        let mut chosen: Vec<&Arc<PolicyDescription>> =
            policies.iter().filter(|description| compile::selects(description, service, &label)).collect();
        // The order decides only which of several matching policies is named; it must not depend on the caller's.
        chosen.sort_by(|a, b| a.key.cmp(&b.key));
        chosen
    }

    /// Compiles the policies that apply to the service, in whatever order.
    ///
    /// An error names policy and field. Whoever gets one must not go on without the policy: keep the last good
    /// compilation, or deny everything by compiling no policies with `deny_by_default`.
    pub fn compile(
        service: &ServiceName,
        labels: &Labels,
        policies: &[Arc<PolicyDescription>],
        deny_by_default: bool,
    ) -> Result<Self, CompileError> {
        let selected: Vec<_> =
            Self::select(service, |name| labels.get(name).map(String::as_str), policies).into_iter().cloned().collect();
        Self::of(&selected, &Peers::default(), deny_by_default)
    }

    /// Compiles policies that were selected.
    pub(crate) fn of(
        policies: &[Arc<PolicyDescription>],
        peers: &Peers,
        deny_by_default: bool,
    ) -> Result<Self, CompileError> {
        let peers = peers.clone();
        let mut authorization = Self { deny: Vec::new(), allow: Vec::new(), noted: Vec::new(), deny_by_default, peers };
        for description in policies {
            let policy = compile::policy(description)?;
            let list = match (policy.dry_run, policy.action) {
                (true, _) | (false, Action::Audit) => &mut authorization.noted,
                (false, Action::Deny) => &mut authorization.deny,
                (false, Action::Allow) => &mut authorization.allow,
            };
            list.push(policy);
        }
        Ok(authorization)
    }

    /// Whether a policy can be compiled, whatever service it is about. Ask before a policy is taken into the mesh.
    pub fn check(description: &PolicyDescription) -> Result<(), CompileError> {
        compile::policy(description).map(|_| ())
    }

    /// Whether the call may pass. Allocates only where an AUDIT policy or one in dry run has something to say.
    pub fn decide(&self, call: &Call<'_>) -> Verdict {
        let (reason, by) = self.judge(call);
        let noted = if self.noted.is_empty() { Vec::new() } else { self.note(call) };
        Verdict { allowed: reason.allows(), by, reason, noted }
    }

    /// The same decision, with what every policy and rule said.
    pub fn explain(&self, call: &Call<'_>) -> Explanation {
        let policies = self.policies().map(|policy| explain::policy(policy, call)).collect();
        Explanation { verdict: self.decide(call), policies }
    }

    /// Whether any rule asks for a host, method, path or header, so that a verdict on a stream whose protocol is not yet
    /// known may change once it is.
    pub fn needs_http(&self) -> bool {
        self.policies().flat_map(|policy| &policy.rules).any(Rule::needs_http)
    }

    /// What is taken at the port at which an instance listens; none: at any that no document names.
    pub(crate) fn mode(&self, port: Option<u16>) -> Mode {
        self.peers.mode(port)
    }

    fn judge(&self, call: &Call<'_>) -> (Reason, Option<PolicyId>) {
        if let Some(port) = call.plain_at
            && self.mode(Some(port)) == Mode::Strict
        {
            return (Reason::DeniedPlaintext, None);
        }
        if let Some(rule) = first_match(&self.deny, call) {
            return (Reason::DeniedByPolicy, Some(rule.id().clone()));
        }
        if self.allow.is_empty() {
            let reason = if self.deny_by_default { Reason::DeniedByDefault } else { Reason::AllowedByDefault };
            return (reason, None);
        }
        match first_match(&self.allow, call) {
            Some(rule) => (Reason::AllowedByPolicy, Some(rule.id().clone())),
            None => (Reason::DeniedNoAllowMatched, None),
        }
    }

    /// What AUDIT policies recorded, and what policies in dry run would have said. An ALLOW policy in dry run that does
    /// not match says deny where no ALLOW policy in force matches either.
    fn note(&self, call: &Call<'_>) -> Vec<Noted> {
        let mut noted = Vec::new();
        for policy in &self.noted {
            let note = |id: &PolicyId, says| Noted { policy: id.clone(), says, dry_run: policy.dry_run };
            if let Some(rule) = policy.first_match(call) {
                noted.push(note(rule.id(), policy.action));
            } else if policy.action == Action::Allow && first_match(&self.allow, call).is_none() {
                noted.push(note(&policy.id, Action::Deny));
            }
        }
        noted
    }

    fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.deny.iter().chain(&self.allow).chain(&self.noted)
    }
}

impl Policy {
    fn first_match(&self, call: &Call<'_>) -> Option<&Rule> {
        let lean = self.lean();
        self.rules.iter().find(|rule| rule.matches(call, lean, |_| {}))
    }

    fn lean(&self) -> Lean {
        match self.action {
            Action::Allow => Lean::Miss,
            Action::Deny | Action::Audit => Lean::Match,
        }
    }
}

fn first_match<'p>(policies: &'p [Policy], call: &Call<'_>) -> Option<&'p Rule> {
    policies.iter().find_map(|policy| policy.first_match(call))
}

/// What is to be judged.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Who calls; none on plaintext, whose principal is empty.
    pub caller: Option<&'a Caller>,
    /// Where it comes in plain text: the port at which the instance listens.
    pub plain_at: Option<u16>,
    /// Address of the peer.
    pub source_ip: IpAddr,
    /// Address of the caller that is meant, where a proxy that is trusted stands between.
    pub remote_ip: IpAddr,
    /// Address that was called.
    pub destination_ip: IpAddr,
    /// Port of the service.
    pub destination_port: u16,
    /// Name from the TLS handshake, already in the form of [`crate::path::host`].
    pub sni: Option<&'a str>,
    /// The request; none on an opaque stream.
    pub http: Option<HttpCall<'a>>,
}

/// The HTTP part of a call.
#[derive(Debug, Clone, Copy)]
pub struct HttpCall<'a> {
    /// Compared with case.
    pub method: &'a str,
    /// In the form of [`crate::path::host`]: lower case, no port.
    pub host: &'a str,
    /// In the form of [`crate::path::normalise`], without the query.
    pub path: &'a str,
    /// All fields of the head.
    pub headers: &'a http::HeaderMap,
}

/// Who calls; made once a connection, so that a decision allocates nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    identity: Identity,
    principal: String,
}

impl Caller {
    /// The caller whom a verified certificate names.
    pub fn new(identity: Identity) -> Self {
        let principal = identity.principal();
        Self { identity, principal }
    }

    /// The identity itself.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The identity as policies write it, without `spiffe://`.
    pub fn principal(&self) -> &str {
        &self.principal
    }

    /// The namespace, where the identity has one.
    pub fn namespace(&self) -> Option<&str> {
        self.identity.namespace()
    }
}

/// What was decided, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a verdict that nobody reads protects nothing"]
pub struct Verdict {
    /// Whether the call may pass.
    pub allowed: bool,
    /// The rule that decided; none where no rule did.
    pub by: Option<PolicyId>,
    /// Why.
    pub reason: Reason,
    /// AUDIT policies that matched and policies in dry run with what they would have said; empty without allocation.
    pub noted: Vec<Noted>,
}

/// Why a call passes or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A rule of an ALLOW policy matches.
    AllowedByPolicy,
    /// No ALLOW policy selects the service and the mesh allows by default.
    AllowedByDefault,
    /// A rule of a DENY policy matches.
    DeniedByPolicy,
    /// ALLOW policies select the service and none matches.
    DeniedNoAllowMatched,
    /// No ALLOW policy selects the service and the mesh denies by default.
    DeniedByDefault,
    /// The instance takes mutual TLS alone.
    DeniedPlaintext,
}

impl Reason {
    /// Whether it lets the call pass.
    pub fn allows(self) -> bool {
        matches!(self, Self::AllowedByPolicy | Self::AllowedByDefault)
    }

    /// Its name in records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllowedByPolicy => "allowed_by_policy",
            Self::AllowedByDefault => "allowed_by_default",
            Self::DeniedByPolicy => "denied_by_policy",
            Self::DeniedNoAllowMatched => "denied_no_allow_matched",
            Self::DeniedByDefault => "denied_by_default",
            Self::DeniedPlaintext => "denied_plaintext",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A policy that decided nothing and had something to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// The rule that matched, or the policy where it is one in dry run that would deny because none does.
    pub policy: PolicyId,
    /// What it says, or would say were it in force.
    pub says: Action,
    /// Whether it is in dry run.
    pub dry_run: bool,
}

/// `namespace/name` of a policy or `namespace/name[rule]` of one of its rules, rules counted from 0. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyId(Arc<str>);

impl PolicyId {
    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
