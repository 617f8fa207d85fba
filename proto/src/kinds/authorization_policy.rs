//! Authorization policies, field for field as Istio's `AuthorizationPolicy` (security.istio.io/v1).
//!
//! Types here are what a document says; the data plane compiles them. A field that is not listed is refused.

mod check;
mod hints;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use check::header_name;

use super::{Faults, Kind, Names, Spec};
use crate::identity::TrustDomain;

/// Namespaces whose policies apply to every service, as Istio's root namespace does.
pub const ROOT_NAMESPACES: [&str; 2] = ["weft-system", "istio-system"];
/// The annotation that makes a policy decide nothing and only be counted.
pub const DRY_RUN_ANNOTATION: &str = "istio.io/dry-run";
/// The label that every service carries: its own name. `selector: {matchLabels: {app: web}}` selects service `web`.
pub const APP_LABEL: &str = "app";

/// How principals begin in manifests that were written for a mesh with the trust domain that Istio gives unasked.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local/";

/// `spec` of an `AuthorizationPolicy`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicy {
    /// Which services it is about, by label; none: all of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Which services it is about, by name; excludes `selector`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetRef>,
    /// The same in the form of older documents: one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// What it does when it matches.
    #[serde(default)]
    pub action: Action,
    /// It matches if one of these does. Absent or empty: never.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

impl Spec for AuthorizationPolicy {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "AuthorizationPolicy",
        group: "security.istio.io",
        versions: &["v1", "v1beta1"],
        plural: "authorizationpolicies",
        short: &["ap"],
        about: "who may call a service",
        example: include_str!("authorization_policy.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        check::policy(self, faults);
    }

    fn hints(&self) -> Vec<String> {
        hints::of_policy(self)
    }
}

impl AuthorizationPolicy {
    /// The services and gateways that it names.
    pub fn targets(&self) -> impl Iterator<Item = &TargetRef> {
        self.target_refs.iter().chain(&self.target_ref)
    }

    /// With `cluster.local` for this mesh's own trust domain in principals, as manifests from Kubernetes have it (Istio's
    /// rule on trust domain aliases).
    pub fn in_trust_domain(mut self, trust_domain: &TrustDomain) -> Self {
        let own = |value: &mut String| {
            if let Some(rest) = value.strip_prefix(DEFAULT_TRUST_DOMAIN) {
                *value = format!("{trust_domain}/{rest}");
            }
        };
        for rule in &mut self.rules {
            let sources = rule.from.iter_mut().map(|from| &mut from.source);
            sources.flat_map(|source| source.principals.iter_mut().chain(&mut source.not_principals)).for_each(own);
            let conditions = rule.when.iter_mut().filter(|condition| condition.key == "source.principal");
            conditions.flat_map(|condition| condition.values.iter_mut().chain(&mut condition.not_values)).for_each(own);
        }
        self
    }

    /// What is enforced in the place of one that cannot be read: it denies all that it selects, as far as that can be
    /// read, else all of its namespace.
    pub fn closed(spec: &str) -> Self {
        let spec: Value = serde_json::from_str(spec).unwrap_or_default();
        let selector = spec.get("selector").map(|selector| serde_json::from_value(selector.clone()));
        let targets = spec.get("targetRefs").map(|targets| serde_json::from_value(targets.clone()));
        let target = spec.get("targetRef").map(|target| serde_json::from_value(target.clone()));
        let (selector, target_refs, target_ref) = match (selector.transpose(), targets.transpose(), target.transpose())
        {
            (Ok(selector), Ok(targets), Ok(target)) => (selector, targets.unwrap_or_default(), target),
            _ => (None, Vec::new(), None),
        };
        Self { selector, target_refs, target_ref, action: Action::Deny, rules: vec![Rule::default()] }
    }
}

/// Services by label.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// All must be equal.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}

/// A service, a gateway or hosts outside the mesh by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// Empty, `core` or `weft`; `gateway.networking.k8s.io` of a gateway; `networking.istio.io` of hosts outside.
    #[serde(default)]
    pub group: String,
    /// `Service`, `Gateway` or `ServiceEntry`.
    pub kind: String,
    /// Its name, in the policy's namespace.
    pub name: String,
}

impl TargetRef {
    /// Whether it means a service of its namespace; of a gateway, the service that serves it.
    pub fn means(&self, service: &str) -> bool {
        let gateway = self.kind == "Gateway" && service.strip_suffix("-istio") == Some(&self.name);
        self.kind != ENTRY && (self.name == service || gateway)
    }

    /// Whether it means the `ServiceEntry` of that name, in its namespace.
    pub fn is_entry(&self, name: &str) -> bool {
        self.kind == ENTRY && self.name == name
    }
}

/// The kind of hosts outside.
const ENTRY: &str = "ServiceEntry";

/// What a matching policy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Lets the exchange pass; and where one selects the callee, what matches none is denied.
    #[default]
    Allow,
    /// Denies, before any ALLOW is asked.
    Deny,
    /// Records; decides nothing.
    Audit,
}

/// Matches if one `from`, one `to` and every `when` do; an omitted part matches all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Callers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<From>,
    /// Operations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To>,
    /// Further conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Condition>,
}

/// One entry of `from`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct From {
    /// The caller.
    #[serde(default)]
    pub source: Source,
}

/// A caller: every field that is present must match.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// Identities without `spiffe://`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<String>,
    /// Namespaces of the caller's identity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<String>,
    /// Addresses or CIDR blocks of the peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_blocks: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_ip_blocks: Vec<String>,
    /// Addresses of the original client. Inside the mesh it is the same as the peer's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remote_ip_blocks: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_remote_ip_blocks: Vec<String>,
}

/// One entry of `to`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct To {
    /// The operation.
    #[serde(default)]
    pub operation: Operation,
}

/// An operation: every field that is present must match.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Operation {
    /// Host names, compared without port and case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_hosts: Vec<String>,
    /// Ports of the service, as decimal strings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_ports: Vec<String>,
    /// HTTP methods. For gRPC always POST.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_methods: Vec<String>,
    /// Paths after normalisation; `{*}` is one segment, `{**}` any number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_paths: Vec<String>,
}

/// One entry of `when`: one of `values` if there are any, and none of `notValues`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// The attribute, such as `request.headers[x-tenant]`.
    pub key: String,
    /// One of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_values: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trust_domain_of_kubernetes_is_this_meshs_own() {
        let policy: AuthorizationPolicy = serde_json::from_value(serde_json::json!({ "rules": [{
            "from": [{ "source": { "principals": ["cluster.local/ns/a/sa/b", "cluster.local/*", "other/ns/a/sa/b", "*"] } }],
            "when": [{ "key": "source.principal", "notValues": ["cluster.local/ns/a/sa/c"] }],
        }] }))
        .expect("a policy");
        let own = policy.in_trust_domain(&"mesh.local".parse().expect("a name"));
        let rule = &own.rules[0];
        let principals = ["mesh.local/ns/a/sa/b", "mesh.local/*", "other/ns/a/sa/b", "*"];
        assert_eq!(rule.from[0].source.principals, principals);
        assert_eq!(rule.when[0].not_values, ["mesh.local/ns/a/sa/c"]);
    }
}
