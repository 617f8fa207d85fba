//! Where calls of a service go and what is done to them, field for field as Istio's `VirtualService`
//! (networking.istio.io/v1). A field that is not listed is refused.

mod check;
mod hints;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::istio::{GoDuration, Percent, StringMatch, service_of};
use super::{Faults, Kind, Names, Spec};
use crate::service::{Labels, ServiceName};

/// `spec` of a `VirtualService`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualService {
    /// The services whose calls it is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Where it applies: `mesh`, which is meant where nothing is said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<String>,
    /// The namespaces whose callers it is for; none: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
    /// The rules for HTTP, of which the first that matches counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpRoute>,
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
    /// `http`.
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

/// Answers with another place: what is not said is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Redirect {
    /// The whole path.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uri: String,
    /// The host, perhaps with a port.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub authority: String,
    /// `http` or `https`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scheme: String,
    /// The port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Where the port comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derive_port: Option<DerivePort>,
    /// 301, 302, 303, 307 or 308. Unset: 301.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect_code: Option<u16>,
}

/// Where the port of a redirect comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DerivePort {
    /// 80 or 443, by the scheme.
    FromProtocolDefault,
    /// The one that was called.
    FromRequestPort,
}

/// Answers by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// The body; none: an empty one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<DirectBody>,
}

/// A body as text or as base64.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DirectBody {
    /// Text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub string: Option<String>,
}

/// Changes path or authority.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rewrite {
    /// In the place of the prefix that matched, or else of the whole path.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uri: String,
    /// In the place of the Host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub authority: String,
    /// Every place of the path where an expression matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// Every place where an expression matches.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegexRewrite {
    /// The expression.
    pub r#match: String,
    /// What stands there then; `\1` is the first group.
    pub rewrite: String,
}

/// When a try is repeated.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retries {
    /// Tries after the first one. 0: none.
    pub attempts: u8,
    /// Bound on one try. Unset: that on the whole call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<GoDuration>,
    /// What a try is repeated after, with commas between: see [`RETRY_CONDITIONS`]; numbers are statuses of answers. Empty:
    /// `connect-failure,refused-stream,unavailable,cancelled`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub retry_on: String,
    /// Whether an instance that has failed is tried again only where there is no other. Unset: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_ignore_previous_hosts: Option<bool>,
    /// What the first pause is taken from. Unset: 25ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<GoDuration>,
}

/// What a try may be repeated after, besides numbers.
pub const RETRY_CONDITIONS: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// Delays and failures that are made, drawn apart from each other; the delay comes first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// Waits before the call goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// Answers in the place of the callee.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
}

/// A delay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delay {
    /// How many calls it hits. Unset: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentage: Option<Percent>,
    /// The same as whole per cents; counts where `percentage` is not given.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub percent: u32,
    /// How long.
    pub fixed_delay: GoDuration,
}

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Abort {
    /// How many calls it hits. Unset: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentage: Option<Percent>,
    /// 200 to 599.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// A status of gRPC by its name in capitals, such as `UNAVAILABLE`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub grpc_status: String,
}

/// Changes of header fields.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Headers {
    /// Of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<HeaderOperations>,
    /// Of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<HeaderOperations>,
}

/// What is done to fields: removed, overwritten, added.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderOperations {
    /// In the place of all values there are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    /// Beside the values there are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub add: BTreeMap<String, String>,
    /// Gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
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
    /// The services that it is about, as a document of this namespace.
    pub fn services(&self, namespace: &str) -> BTreeSet<ServiceName> {
        self.hosts.iter().filter_map(|host| service_of(host, namespace)).collect()
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
        let rest = Self { uri: None, name: String::new(), ignore_uri_case: false, ..self.clone() };
        self.uri.as_ref().is_none_or(anything) && rest == Self::default()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}
