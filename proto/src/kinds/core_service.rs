//! A further name for some instances of a service, field for field as the `Service` of Kubernetes (v1) that selects them.
//! What only concerns Kubernetes is taken and has no effect.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::authorization_policy::APP_LABEL;
use super::{Faults, Kind, Names, Spec};
use crate::service::{DEFAULT_NAMESPACE, Labels, ServiceName};

/// `spec` of a `Service` (`v1`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CoreService {
    /// Labels of the instances that are meant: `app` names the service, the others are those of a subset.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: Labels,
    /// Its ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<CorePort>,
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, which are all the same here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

/// A port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CorePort {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// By what it is called.
    pub port: std::num::NonZeroU16,
    /// The service's port that is meant, by its number. Unset, a name, or no port of the service: that of the same number, else the
    /// only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<Value>,
    /// `TCP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// What it speaks, which the service itself says here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// Nothing here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
}

impl CoreService {
    /// The service whose instances are meant, as a document of this namespace.
    pub fn service(&self, namespace: &str) -> Option<ServiceName> {
        ServiceName::new(namespace, self.selector.get(APP_LABEL)?).ok()
    }

    /// The labels of those instances, besides the one that names the service.
    pub fn labels(&self) -> Labels {
        let others = self.selector.iter().filter(|(name, _)| *name != APP_LABEL);
        others.map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

impl CorePort {
    /// The number of the port that is meant, if it is said.
    pub fn target(&self) -> Option<u16> {
        self.target_port.as_ref()?.as_u64().and_then(|number| u16::try_from(number).ok())
    }
}

impl Spec for CoreService {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "Service",
        group: "",
        versions: &["v1"],
        plural: "services",
        short: &[],
        about: "a further name for some instances of a service",
        example: include_str!("core_service.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        match self.selector.get(APP_LABEL) {
            Some(name) if ServiceName::new(DEFAULT_NAMESPACE, name).is_ok() => {}
            _ => {
                let text = "name the service by the label app, and its instances by others";
                faults.push(("spec.selector".into(), text.into()));
            }
        }
        if self.r#type.as_ref().is_some_and(|kind| kind == "ExternalName") {
            let text = "hosts outside the mesh are not supported by this version of weft";
            faults.push(("spec.type".into(), text.into()));
        }
        for (at, port) in self.ports.iter().enumerate() {
            if self.ports[..at].iter().any(|other| other.port == port.port) {
                faults.push((format!("spec.ports[{at}].port"), format!("{} is listed twice", port.port)));
            }
            if port.protocol.as_ref().is_some_and(|protocol| protocol != "TCP") {
                faults.push((format!("spec.ports[{at}].protocol"), "TCP".into()));
            }
        }
        for name in self.others.keys().filter(|name| !IGNORED.contains(&name.as_str())) {
            faults.push((format!("spec.{name}"), "there is no such field".into()));
        }
    }

    fn hints(&self) -> Vec<String> {
        let ignored = self.others.keys().map(|name| format!("spec.{name} only concerns Kubernetes and has no effect"));
        ignored.collect()
    }
}

/// Fields that only concern Kubernetes.
const IGNORED: [&str; 17] = [
    "allocateLoadBalancerNodePorts",
    "clusterIP",
    "clusterIPs",
    "externalIPs",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "internalTrafficPolicy",
    "ipFamilies",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "publishNotReadyAddresses",
    "sessionAffinity",
    "sessionAffinityConfig",
    "trafficDistribution",
    "topologyKeys",
];
