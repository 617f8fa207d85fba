//! Where opaque streams go, field for field as the Gateway API's `TCPRoute` (gateway.networking.k8s.io) with services or gateways as
//! its parents. A field that is not listed is refused.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::http_route::{BackendRef, ParentRef, check_backend, check_parents};
use super::{Faults, Kind, Names, Spec};
use crate::service::ServiceName;

/// `spec` of a `TCPRoute`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRoute {
    /// The services whose streams it is about, and the gateways through which streams come.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// Of a `TLSRoute` in these words: the names that it is for, none: all. A `TCPRoute` has none and is for all streams.
    #[serde(skip)]
    pub hostnames: Option<Vec<String>>,
    /// The rules, of which the first counts.
    #[serde(default)]
    pub rules: Vec<TcpRule>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRule {
    /// Its name in records.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where streams go, by weight.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
}

impl TcpRoute {
    /// The services that it is about, as a document of this namespace.
    pub fn services(&self, namespace: &str) -> BTreeSet<ServiceName> {
        self.parent_refs.iter().filter_map(|parent| parent.service(namespace)).collect()
    }

    /// The rules that it keeps beyond its form, which are those of a `TLSRoute` too.
    pub(super) fn check_form(&self, faults: &mut Faults) {
        check_parents(&self.parent_refs, faults);
        if self.rules.is_empty() {
            faults.push(("spec.rules".into(), "give at least one rule".into()));
        }
        for (at, rule) in self.rules.iter().enumerate() {
            if rule.backend_refs.is_empty() {
                faults.push((format!("spec.rules[{at}].backendRefs"), "name at least one".into()));
            }
            for (to, backend) in rule.backend_refs.iter().enumerate() {
                let path = format!("spec.rules[{at}].backendRefs[{to}]");
                if !backend.filters.is_empty() {
                    faults.push((format!("{path}.filters"), "a stream has none".into()));
                }
                check_backend(backend, &path, faults);
            }
        }
    }
}

impl Spec for TcpRoute {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "TCPRoute",
        group: "gateway.networking.k8s.io",
        versions: &["v1alpha2", "v1alpha3", "v1beta1", "v1"],
        plural: "tcproutes",
        short: &[],
        about: "where opaque streams to a service go, as the Gateway API has it",
        example: include_str!("tcp_route.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        self.check_form(faults);
    }

    fn hints(&self) -> Vec<String> {
        let more = self.rules.len() > 1;
        more.then(|| "spec.rules[0] matches every stream: the rules after it never count".to_owned())
            .into_iter()
            .collect()
    }
}
