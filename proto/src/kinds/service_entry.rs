//! Hosts outside the mesh, field for field as Istio's `ServiceEntry` (networking.istio.io/v1). A field that is not listed is
//! refused.

mod check;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Faults, Kind, Names, Spec};
use crate::service::{Labels, Protocol};

/// `spec` of a `ServiceEntry`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceEntry {
    /// The hosts: names, or `*.suffix`.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Addresses by which they are called too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Their ports.
    #[serde(default)]
    pub ports: Vec<EntryPort>,
    /// Whether they are of the mesh. Unset: `MESH_EXTERNAL`.
    #[serde(default)]
    pub location: Location,
    /// How their addresses are found. Unset: `NONE`.
    #[serde(default)]
    pub resolution: Resolution,
    /// Where they are; unset: where their names lead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<EntryEndpoint>,
    /// Names of which their certificates must have one, where TLS is originated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
    /// The namespaces whose callers may call them; none: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
}

/// A port of a host outside.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EntryPort {
    /// The port that callers name, 1 to 65535.
    pub number: u16,
    /// What it speaks: HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP, TLS. Unset: HTTP or TCP, told from the first bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// Its name, unique in the document.
    #[serde(default)]
    pub name: String,
    /// The port at the host; unset: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
}

/// Whether hosts are of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// They are not.
    #[default]
    MeshExternal,
    /// They are, without a proxy.
    MeshInternal,
}

/// How addresses are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// They are what the caller names.
    #[default]
    None,
    /// They are those of the endpoints.
    Static,
    /// By name.
    Dns,
    /// By name, a new connection to the next answer.
    DnsRoundRobin,
    /// By the name that each caller asks for.
    DynamicDns,
}

/// Where a host is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EntryEndpoint {
    /// An address, or a name where addresses are found by name.
    #[serde(default)]
    pub address: String,
    /// Its ports by the names of the service's ports; unset: those.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u16>,
    /// Its labels, by which subsets choose.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// Without effect: there is one network.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// Where it is: `region/zone/subzone`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub locality: String,
    /// Its share relative to others. Unset: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Without effect for hosts without an identity.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_account: String,
}

impl EntryPort {
    /// What it speaks.
    pub fn speaks(&self) -> Protocol {
        match self.protocol.to_ascii_uppercase().as_str() {
            "HTTP" => Protocol::Http,
            "HTTP2" => Protocol::Http2,
            "GRPC" | "GRPC-WEB" => Protocol::Grpc,
            "" => Protocol::Auto,
            _ => Protocol::Tcp,
        }
    }

    /// Whether it carries opaque streams of which nothing tells whom they are for but where they go.
    pub fn is_stream(&self) -> bool {
        matches!(self.protocol.to_ascii_uppercase().as_str(), "TCP" | "MONGO")
    }

    /// The port at the host.
    pub fn target(&self) -> u16 {
        self.target_port.unwrap_or(self.number)
    }
}

impl Spec for ServiceEntry {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "ServiceEntry",
        group: "networking.istio.io",
        versions: &["v1", "v1beta1", "v1alpha3"],
        plural: "serviceentries",
        short: &["se"],
        about: "hosts outside the mesh",
        example: include_str!("service_entry.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        check::entry(self, faults);
    }
}
