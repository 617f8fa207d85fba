//! Which namespaces' routes may lead to services of this one, and whose gateways may have its certificates, field for field as the Gateway API's `ReferenceGrant`
//! (gateway.networking.k8s.io/v1beta1). A field that is not listed is refused.

use serde::{Deserialize, Serialize};

use super::{Faults, Kind, Names, Spec};
use crate::service::{DEFAULT_NAMESPACE, ServiceName};

/// `spec` of a `ReferenceGrant`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReferenceGrant {
    /// Documents that may.
    #[serde(default)]
    pub from: Vec<GrantFrom>,
    /// What they may name.
    #[serde(default)]
    pub to: Vec<GrantTo>,
}

/// Documents of a kind in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrantFrom {
    /// `gateway.networking.k8s.io`.
    pub group: String,
    /// `HTTPRoute`, `GRPCRoute`, `TCPRoute`, `TLSRoute`; `Gateway`.
    pub kind: String,
    /// Where they are.
    pub namespace: String,
}

/// Services or secrets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrantTo {
    /// Empty: that of `Service`.
    #[serde(default)]
    pub group: String,
    /// `Service`; `Secret`, or `ConfigMap` for what is kept as one.
    pub kind: String,
    /// Its name. Unset: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl ReferenceGrant {
    /// Whether a document of the kind in the namespace may name the service of that name.
    pub fn allows(&self, kind: &str, namespace: &str, service: &str) -> bool {
        let from = |one: &GrantFrom| one.kind == kind && one.namespace == namespace;
        let to = |one: &GrantTo| one.kind == "Service" && one.name.as_ref().is_none_or(|name| name == service);
        self.from.iter().any(from) && self.to.iter().any(to)
    }

    /// Whether gateways of a namespace may have the secret of that name.
    pub fn allows_secret(&self, namespace: &str, secret: &str) -> bool {
        let from = |one: &GrantFrom| one.kind == "Gateway" && one.namespace == namespace;
        let to = |one: &GrantTo| one.kind != "Service" && one.name.as_ref().is_none_or(|name| name == secret);
        self.from.iter().any(from) && self.to.iter().any(to)
    }
}

impl Spec for ReferenceGrant {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "ReferenceGrant",
        group: "gateway.networking.k8s.io",
        versions: &["v1beta1", "v1alpha2", "v1"],
        plural: "referencegrants",
        short: &[],
        about: "which namespaces' routes may lead to services of this one",
        example: include_str!("reference_grant.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        for (name, empty) in [("from", self.from.is_empty()), ("to", self.to.is_empty())] {
            if empty {
                faults.push((format!("spec.{name}"), "name at least one".into()));
            }
        }
        for (at, one) in self.from.iter().enumerate() {
            if one.group != "gateway.networking.k8s.io" || !ROUTES.contains(&one.kind.as_str()) {
                let text = format!("one of {} of gateway.networking.k8s.io", ROUTES.join(", "));
                faults.push((format!("spec.from[{at}].kind"), text));
            }
            if ServiceName::new(&one.namespace, DEFAULT_NAMESPACE).is_err() {
                faults.push((format!("spec.from[{at}].namespace"), "it is no namespace".into()));
            }
        }
        for (at, one) in self.to.iter().enumerate() {
            if !TARGETS.contains(&one.kind.as_str()) || !(one.group.is_empty() || one.group == "core") {
                faults.push((format!("spec.to[{at}].kind"), format!("{}, of the group \"\"", TARGETS.join(" or "))));
            }
        }
    }
}

/// Kinds of documents that name what is in other namespaces.
const ROUTES: [&str; 5] = ["HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute", "Gateway"];
/// Kinds that they name.
const TARGETS: [&str; 3] = ["Service", "Secret", "ConfigMap"];
