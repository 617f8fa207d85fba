//! Which instances of a service make a subset, and how they are called, field for field as Istio's `DestinationRule`
//! (networking.istio.io/v1). A field that is not listed is refused.

mod check;
mod policy;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::istio::service_of;
use super::{Faults, Kind, Names, Spec};
use crate::service::{Labels, ServiceName};

pub use policy::*;

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
        about: "subsets of a service, and how they are called",
        example: include_str!("destination_rule.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        check::destination_rule(self, faults);
    }
}
