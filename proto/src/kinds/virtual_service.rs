//! Where calls of a service go and what is done to them, field for field as Istio's `VirtualService`
//! (networking.istio.io/v1). A field that is not listed is refused.

mod check;
mod delegates;
mod gateways;
mod hints;
mod treatment;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::istio::{GoDuration, Percent, StringMatch, service_of};
use super::{Faults, Kind, Names, Spec};
use crate::service::{Labels, ServiceName};

pub use delegates::with_delegates;
pub use gateways::MESH;
pub use treatment::*;

/// `spec` of a `VirtualService`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualService {
    /// The services whose calls it is about, and the hosts that gateways serve.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Where it applies: at gateways, `[namespace/]name`, and within the `mesh`, which is meant where nothing is said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<String>,
    /// The namespaces whose callers it is for; none: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
    /// The rules for HTTP, of which the first that matches counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpRoute>,
    /// The rules for streams of TLS, by the name that the caller asks for: the first that matches counts, and goes before `tcp`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<TlsRoute>,
    /// The rules for opaque streams, of which the first that matches counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tcp: Vec<TcpRoute>,
}

/// A rule for opaque streams.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRoute {
    /// It matches if one of these does; none: it matches everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "match")]
    pub matches: Vec<L4Match>,
    /// Where streams go, by weight.
    #[serde(default)]
    pub route: Vec<StreamDestination>,
}

/// A rule for streams of TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsRoute {
    /// It matches if one of these does.
    #[serde(default, rename = "match")]
    pub matches: Vec<TlsMatch>,
    /// Where streams go, by weight.
    #[serde(default)]
    pub route: Vec<StreamDestination>,
}

/// What must hold of a stream of TLS, all of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsMatch {
    /// Names that the caller may ask for (SNI, RFC 6066); `*.com` is any that ends so.
    #[serde(default)]
    pub sni_hosts: Vec<String>,
    /// Addresses, or blocks of them, of which the caller must call one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destination_subnets: Vec<String>,
    /// The service's port that is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Labels that the caller must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub source_labels: Labels,
    /// The caller's namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source_namespace: String,
    /// Where it applies, of what the document says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<String>,
}

impl TlsMatch {
    /// What must hold besides the name.
    pub fn l4(&self) -> L4Match {
        L4Match {
            destination_subnets: self.destination_subnets.clone(),
            port: self.port,
            source_labels: self.source_labels.clone(),
            source_namespace: self.source_namespace.clone(),
            gateways: self.gateways.clone(),
        }
    }
}

/// What must hold of a stream, all of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct L4Match {
    /// Addresses, or blocks of them, of which the caller must call one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destination_subnets: Vec<String>,
    /// The service's port that is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Labels that the caller must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub source_labels: Labels,
    /// The caller's namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source_namespace: String,
    /// Where it applies, of what the document says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<String>,
}

/// Where a share of the streams goes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StreamDestination {
    /// The service.
    pub destination: Destination,
    /// Its share of the sum of all weights.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub weight: u32,
}

/// Another document, whose rules stand in the place of this one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delegate {
    /// Its name.
    pub name: String,
    /// Its namespace. Unset: that of the document.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

/// A rule: what it matches, and what becomes of the call.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRoute {
    /// Its name in records.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// It matches if one of these does; none: it matches everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "match")]
    pub matches: Vec<HttpMatch>,
    /// Where the call goes, by weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<RouteDestination>,
    /// Answers with another place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
    /// Answers by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_response: Option<DirectResponse>,
    /// The rules of another document, which has no hosts, stand in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegate: Option<Delegate>,
    /// Changes path or authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Rewrite>,
    /// Bound on the whole call, retries included. Unset or 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GoDuration>,
    /// When a try is repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// Delays and failures that are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Where a copy of the call goes, whose answer nobody gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Destination>,
    /// How many calls are copied to `mirror`. Unset: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror_percentage: Option<Percent>,
    /// An older form of `mirrorPercentage`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror_percent: Option<u32>,
    /// Where copies of the call go, each drawn on its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<Mirror>,
    /// Which origins may share the answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors_policy: Option<CorsPolicy>,
    /// Changes of header fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
}

/// What must hold of a call, all of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpMatch {
    /// Its name in records.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The path, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<StringMatch>,
    /// Whether `uri` compares without case, unless it is an expression.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignore_uri_case: bool,
    /// `http`, or `https` at a gateway where TLS ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<StringMatch>,
    /// The method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<StringMatch>,
    /// The Host, with a port where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<StringMatch>,
    /// Fields that must match.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, StringMatch>,
    /// Fields that must not match.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub without_headers: BTreeMap<String, StringMatch>,
    /// Parameters of the query that must match.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub query_params: BTreeMap<String, StringMatch>,
    /// The service's port that is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Labels that the caller must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub source_labels: Labels,
    /// The caller's namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source_namespace: String,
    /// Where it applies, of what the document says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<String>,
}

/// Where a share of the calls goes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteDestination {
    /// The service.
    pub destination: Destination,
    /// Its share of the sum of all weights.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub weight: u32,
    /// Changes of header fields for this share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
}

/// A service, and which of its instances.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Destination {
    /// The service.
    pub host: String,
    /// Those of its instances that a `DestinationRule` names so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subset: String,
    /// Its port; unset: its only one, else the one that was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortSelector>,
}

/// A port by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortSelector {
    /// 1 to 65535.
    pub number: std::num::NonZeroU16,
}

impl Spec for VirtualService {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "VirtualService",
        group: "networking.istio.io",
        versions: &["v1", "v1beta1", "v1alpha3"],
        plural: "virtualservices",
        short: &["vs"],
        about: "where calls of a service go",
        example: include_str!("virtual_service.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        check::virtual_service(self, faults);
    }

    fn hints(&self) -> Vec<String> {
        hints::of_virtual_service(self)
    }
}

impl VirtualService {
    /// The services that it is about within the mesh, as a document of this namespace.
    pub fn services(&self, namespace: &str) -> BTreeSet<ServiceName> {
        let within = self.applies(MESH, namespace);
        self.hosts.iter().filter(|_| within).filter_map(|host| service_of(host, namespace)).collect()
    }
}

impl HttpRoute {
    /// Whether it matches every call, so that no later rule counts.
    pub fn is_catch_all(&self) -> bool {
        self.matches.is_empty() || self.matches.iter().any(HttpMatch::is_catch_all)
    }
}

impl HttpMatch {
    fn is_catch_all(&self) -> bool {
        let anything = |uri: &StringMatch| uri.prefix.as_deref() == Some("/") || uri.regex.as_deref() == Some(".*");
        let rest =
            Self { uri: None, name: String::new(), ignore_uri_case: false, gateways: Vec::new(), ..self.clone() };
        self.uri.as_ref().is_none_or(anything) && rest == Self::default()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}
