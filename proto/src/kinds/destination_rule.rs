//! Which instances of a service make a subset, field for field as Istio's `DestinationRule` (networking.istio.io/v1).
//! A field that is not listed is refused.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::istio::{check_export, service_of};
use super::{Faults, Kind, Names, Spec};
use crate::service::{DEFAULT_NAMESPACE, Labels, ServiceName};

/// `spec` of a `DestinationRule`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DestinationRule {
    /// The service.
    pub host: String,
    /// How it is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<TrafficPolicy>,
    /// Its instances by their labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<Subset>,
    /// The namespaces whose callers it is for; none: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
}

/// Some instances of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subset {
    /// By what routes name them.
    pub name: String,
    /// Labels that an instance must have, all of them; none: all instances.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// How they are called, block by block over that of the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<TrafficPolicy>,
}

/// How a service is called.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicy {
    /// Which of the instances a call goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// Mutual TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// Which of the instances a call goes to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    /// How it is chosen.
    #[serde(default)]
    pub simple: Simple,
}

/// How an instance is chosen, by weights in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Simple {
    /// Of two at random the one with fewer open calls.
    #[default]
    #[serde(alias = "UNSPECIFIED", alias = "LEAST_CONN")]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
}

/// Mutual TLS with the identities of the mesh, which is what the mesh does unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// `ISTIO_MUTUAL`.
    pub mode: TlsMode,
}

/// How a service is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// By mutual TLS with the identities of the mesh.
    IstioMutual,
}

impl DestinationRule {
    /// The service that it is about, as a document of this namespace.
    pub fn services(&self, namespace: &str) -> BTreeSet<ServiceName> {
        service_of(&self.host, namespace).into_iter().collect()
    }
}

impl Spec for DestinationRule {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "DestinationRule",
        group: "networking.istio.io",
        versions: &["v1", "v1beta1", "v1alpha3"],
        plural: "destinationrules",
        short: &["dr"],
        about: "subsets of a service",
        example: include_str!("destination_rule.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        if service_of(&self.host, DEFAULT_NAMESPACE).is_none() {
            let text = format!("{:?} is no service of the mesh: write it like web or web.default", self.host);
            faults.push(("spec.host".into(), text));
        }
        check_export(&self.export_to, faults);
        let says_nothing = |policy: &Option<TrafficPolicy>| policy.as_ref() == Some(&TrafficPolicy::default());
        if says_nothing(&self.traffic_policy) {
            faults.push(("spec.trafficPolicy".into(), "it says nothing".into()));
        }
        for (at, subset) in self.subsets.iter().enumerate() {
            if says_nothing(&subset.traffic_policy) {
                faults.push((format!("spec.subsets[{at}].trafficPolicy"), "it says nothing".into()));
            }
            let path = format!("spec.subsets[{at}].name");
            if self.subsets[..at].iter().any(|other| other.name == subset.name) {
                faults.push((path, format!("{} is listed twice", subset.name)));
            } else if ServiceName::new(DEFAULT_NAMESPACE, &subset.name).is_err() {
                faults.push((path, "a DNS label: small letters, digits and '-', at most 63".into()));
            }
        }
    }
}
