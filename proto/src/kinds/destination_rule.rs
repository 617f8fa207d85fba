//! Which instances of a service make a subset, and how they are called, field for field as Istio's `DestinationRule`
//! (networking.istio.io/v1). A field that is not listed is refused.

mod balancing;
mod check;
mod policy;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::istio::service_of;
use super::secret::Credential;
use super::{Faults, Kind, Names, Spec};
use crate::service::{Labels, MESH_SUFFIX, ServiceName};

pub use balancing::*;
pub use policy::*;

/// `spec` of a `DestinationRule`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DestinationRule {
    /// The service; `*` and `*.namespace.svc.cluster.local` are all that have no rule of their own.
    pub host: String,
    /// How it is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<TrafficPolicy>,
    /// Callers of the document's namespace that it is for. Unset: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<WorkloadSelector>,
    /// Its instances by their labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<Subset>,
    /// The namespaces whose callers it is for; none: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
}

/// Callers by their labels.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSelector {
    /// Labels that they have, all of them.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub match_labels: Labels,
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
    /// The service that it is about, as a document of this namespace; none where it is about all of a kind.
    pub fn services(&self, namespace: &str) -> BTreeSet<ServiceName> {
        service_of(&self.host, namespace).into_iter().collect()
    }

    /// Whether it is about all services that end so, this one among them.
    pub fn covers(&self, service: &ServiceName) -> bool {
        let Some(end) = self.host.strip_prefix('*') else { return false };
        let end = end.to_ascii_lowercase();
        end.is_empty()
            || [service.host(), format!("{}.{}.svc.cluster.local", service.name(), service.namespace())]
                .iter()
                .any(|name| name.ends_with(&end))
    }

    /// Every block about TLS.
    pub fn tls_blocks(&self) -> impl Iterator<Item = &Tls> {
        let policies =
            self.traffic_policy.iter().chain(self.subsets.iter().filter_map(|one| one.traffic_policy.as_ref()));
        policies
            .flat_map(|one| one.tls.iter().chain(one.port_level_settings.iter().filter_map(|port| port.tls.as_ref())))
    }

    /// The same with what a node holds of certificates, which `held` tells of each block.
    pub fn with_held(&self, mut held: impl FnMut(&Tls) -> Option<Result<Credential, String>>) -> Self {
        let mut rule = self.clone();
        let subsets = rule.subsets.iter_mut().filter_map(|one| one.traffic_policy.as_mut());
        for policy in rule.traffic_policy.iter_mut().chain(subsets) {
            let ports = policy.port_level_settings.iter_mut().filter_map(|port| port.tls.as_mut());
            for tls in policy.tls.iter_mut().chain(ports) {
                tls.held = held(tls);
            }
        }
        rule
    }

    /// Whether it is for a caller with these labels.
    pub fn is_for(&self, labels: &Labels) -> bool {
        let selector = self.workload_selector.as_ref();
        selector
            .is_none_or(|selector| selector.match_labels.iter().all(|(name, value)| labels.get(name) == Some(value)))
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

    fn hints(&self) -> Vec<String> {
        let subsets = self.subsets.iter().enumerate();
        let subsets =
            subsets.map(|(at, one)| (format!("spec.subsets[{at}].trafficPolicy"), one.traffic_policy.as_ref()));
        let own = std::iter::once(("spec.trafficPolicy".to_owned(), self.traffic_policy.as_ref()));
        let mut hints: Vec<String> =
            own.chain(subsets).filter_map(|(path, policy)| Some(policy?.hints(&path))).flatten().collect();
        let within = !self.host.contains('.') || self.host.ends_with(MESH_SUFFIX) || self.host.contains(".svc");
        if within && self.tls_blocks().any(|tls| tls.mode != TlsMode::IstioMutual) {
            let text = "tls is without effect for a service of the mesh, which is called by mutual TLS with its own identities";
            hints.push(text.to_owned());
        }
        hints
    }
}

/// Whether a number is left out.
fn is_zero<T: Copy + Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
