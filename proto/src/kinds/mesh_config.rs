//! What holds for the whole mesh, in the words of Istio's `MeshConfig`. There is one such document: `default` in the namespace
//! `weft-system` or `istio-system`. A field that is not listed is refused.

use serde::{Deserialize, Serialize};

use super::authorization_policy::ROOT_NAMESPACES;
use super::peer_authentication::MutualTls;
use super::service::{GatewayTopology, OutboundTrafficPolicy};
use super::{Faults, Kind, Names, Spec};

/// `spec` of the `MeshConfig`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshConfig {
    /// What becomes of calls to hosts that the mesh does not know.
    #[serde(default)]
    pub outbound_traffic_policy: OutboundTrafficPolicy,
    /// What instances take at their own ports where no `PeerAuthentication` says it. Weft's own field: Istio takes plain text
    /// then, and Weft does not unless it is told so.
    #[serde(default)]
    pub peer_authentication: DefaultPeerAuthentication,
    /// What holds where a service says nothing.
    #[serde(default)]
    pub default_config: DefaultConfig,
}

/// What holds where a service says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DefaultConfig {
    /// Of gateways: what stands before them.
    #[serde(default)]
    pub gateway_topology: GatewayTopology,
}

/// What instances take at their own ports where no `PeerAuthentication` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DefaultPeerAuthentication {
    /// Mutual TLS alone, unless set.
    #[serde(default)]
    pub mtls: MutualTls,
}

impl Spec for MeshConfig {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "MeshConfig",
        group: "weft",
        versions: &["v1"],
        plural: "meshconfigs",
        short: &[],
        about: "what holds for the whole mesh",
        example: include_str!("mesh_config.yaml"),
    });
    const NAMESPACES: &'static [&'static str] = &ROOT_NAMESPACES;

    fn check(&self, _: &mut Faults) {}
}
