//! Decisions with their reasons, for people.

use std::fmt;

use weft_proto::kinds::authorization_policy::Action;

use super::rule::{Lean, Miss, Rule};
use super::{Call, Policy, PolicyId, Verdict};

/// A decision, and what every policy that selects the service said. It shows no header's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// What was decided.
    pub verdict: Verdict,
    /// DENY policies, then ALLOW policies, then those that decide nothing; each kind by name.
    pub policies: Vec<PolicyExplanation>,
}

/// What one policy said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyExplanation {
    /// `namespace/name`.
    pub policy: PolicyId,
    /// What it does when it matches.
    pub action: Action,
    /// Whether it only tells what it would do.
    pub dry_run: bool,
    /// Whether one of its rules matches.
    pub matched: bool,
    /// Its rules in their order.
    pub rules: Vec<RuleExplanation>,
}

/// What one rule said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleExplanation {
    /// `namespace/name[rule]`.
    pub rule: PolicyId,
    /// Whether it matches.
    pub matched: bool,
    /// What spoke against it; for one that matches without having been judged in full, why.
    pub because: Vec<String>,
}

pub(super) fn policy(policy: &Policy, call: &Call<'_>) -> PolicyExplanation {
    let rules: Vec<RuleExplanation> = policy.rules.iter().map(|one| rule(one, call, policy.lean())).collect();
    PolicyExplanation {
        policy: policy.id.clone(),
        action: policy.action,
        dry_run: policy.dry_run,
        matched: rules.iter().any(|rule| rule.matched),
        rules,
    }
}

fn rule(rule: &Rule, call: &Call<'_>, lean: Lean) -> RuleExplanation {
    let mut because = Vec::new();
    let matched = rule.matches(call, lean, |miss| because.push(sentence(&miss, call)));
    if matched {
        // What an alternative lacked is of no interest once another one matched.
        because.clear();
        if rule.needs_http() && call.http.is_none() {
            because
                .push("an opaque stream has no host, method, path or header; those parts count as matched".to_owned());
        }
    }
    RuleExplanation { rule: rule.id().clone(), matched, because }
}

fn sentence(miss: &Miss<'_>, call: &Call<'_>) -> String {
    match miss {
        Miss::NeedsHttp => "it needs a host, method, path or header, which an opaque stream has not".to_owned(),
        Miss::Check { part, entry, check } => {
            let middle = match *part {
                "from" => ".source",
                "to" => ".operation",
                _ => "",
            };
            format!("{part}[{entry}]{middle}.{}: {}", check.field, check.test.actual(call))
        }
    }
}

impl fmt::Display for Verdict {
    /// `allow by default/web[0]`, `deny (no ALLOW policy matched)`; then `; noted ...` for each policy noted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use super::Reason;
        f.write_str(if self.allowed { "allow" } else { "deny" })?;
        match (&self.by, self.reason) {
            (Some(rule), _) => write!(f, " by {rule}")?,
            (None, Reason::DeniedNoAllowMatched) => f.write_str(" (no ALLOW policy matched)")?,
            (None, _) => f.write_str(" (default)")?,
        }
        for noted in &self.noted {
            let how = if noted.dry_run { "would " } else { "" };
            write!(f, "; {} {how}{}", noted.policy, verb(noted.says))?;
        }
        Ok(())
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.verdict)?;
        for policy in &self.policies {
            let dry = if policy.dry_run { ", dry run" } else { "" };
            let matched = if policy.matched { "matches" } else { "does not match" };
            writeln!(f, "  {} ({}{dry}) {matched}", policy.policy, verb(policy.action))?;
            if policy.rules.is_empty() {
                writeln!(f, "    it has no rules")?;
            }
            for rule in &policy.rules {
                let matched = if rule.matched { "matches" } else { "does not match" };
                writeln!(f, "    {} {matched}", rule.rule)?;
                rule.because.iter().try_for_each(|because| writeln!(f, "      {because}"))?;
            }
        }
        Ok(())
    }
}

/// What a policy does when it matches.
pub(crate) fn verb(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
        Action::Audit => "audit",
    }
}
