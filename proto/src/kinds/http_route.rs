//! Where calls go of a service, or through a gateway, field for field as the Gateway API's `HTTPRoute`
//! (gateway.networking.k8s.io/v1). A field that is not listed is refused.

mod check;
mod filters;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::hosts::meant;
use super::service::Span;
use super::{Faults, Kind, Names, Spec};
use crate::service::ServiceName;

pub(super) use check::{
    backend as check_backend, hostnames as check_hostnames, http_route as check_http_route, parents as check_parents,
};
pub use filters::*;

/// `spec` of an `HTTPRoute`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRoute {
    /// The services whose calls it is about, and the gateways through which calls come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parent_refs: Vec<ParentRef>,
    /// The hosts that it is for at gateways; none: all. For services they mean nothing (the standard, "Mesh").
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// Its rules, of which the most specific that matches counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// What a route is about: the calls of a service, of hosts outside the mesh, or those that come in at a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentRef {
    /// That of the kind: empty or `core` for a `Service`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// `Service`, `ServiceEntry` or `Gateway`, which is meant where nothing is said.
    #[serde(default = "gateway_kind")]
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its namespace; unset: that of the route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The listener of a gateway; unset: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// Its port; unset: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<std::num::NonZeroU16>,
}

/// A rule: what it matches, and what becomes of the call.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Its name in records.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// It matches if one of these does; none: it matches everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<Match>,
    /// What is done to the call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
    /// Where it goes, by weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<BackendRef>,
    /// Bounds on its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// When a try is repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Calls of a session go to the same instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<SessionPersistence>,
}

/// How calls of a session go to the same instance.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionPersistence {
    /// Name of the cookie or header field. Unset: `weft-session`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_name: Option<String>,
    /// How long a session lasts. Unset: without a bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absolute_timeout: Option<Span>,
    /// How long a session lasts that has no calls. Unset: without a bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Span>,
    /// What the caller carries. Unset: `Cookie`.
    #[serde(default)]
    pub r#type: SessionType,
    /// How long a cookie is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie_config: Option<CookieConfig>,
}

/// What the caller of a session carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SessionType {
    /// A cookie, which browsers do by themselves.
    #[default]
    Cookie,
    /// A header field, which the caller sends again as it got it.
    Header,
}

/// How long a cookie is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CookieConfig {
    /// Unset: `Session`.
    #[serde(default)]
    pub lifetime_type: LifetimeType,
}

/// How long a cookie is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum LifetimeType {
    /// Until the browser ends.
    #[default]
    Session,
    /// As long as the session lasts, which must be said.
    Permanent,
}

/// What must hold of a call, all of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Match {
    /// The path; unset: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Header fields; of several of one name the first counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<NamedMatch>,
    /// Parameters of the query; of several of one name the first counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query_params: Vec<NamedMatch>,
    /// The method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
}

/// Methods, in capitals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
}

/// How a path is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathMatch {
    /// Unset: `PathPrefix`.
    #[serde(default)]
    pub r#type: PathType,
    /// Unset: `/`.
    #[serde(default = "root")]
    pub value: String,
}

/// How a path is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PathType {
    /// Whole, with case.
    Exact,
    /// By whole segments: `/abc` matches `/abc` and `/abc/d`, not `/abcd`.
    #[default]
    PathPrefix,
    /// An expression (RE2) that covers the whole path.
    RegularExpression,
}

/// How the value of a name is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamedMatch {
    /// Unset: `Exact`.
    #[serde(default)]
    pub r#type: ValueType,
    /// The name.
    pub name: String,
    /// The value.
    pub value: String,
}

/// How a value is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ValueType {
    /// Whole, with case.
    #[default]
    Exact,
    /// An expression (RE2) that covers the whole value.
    RegularExpression,
}

/// Where a share of the calls goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// Empty or `core`: that of `Service`; `networking.istio.io`: that of `Hostname`.
    #[serde(default)]
    pub group: String,
    /// `Service`, or `Hostname` for a host by its whole name, outside the mesh or in it.
    #[serde(default = "service_kind")]
    pub kind: String,
    /// The service, or the host.
    pub name: String,
    /// The namespace of a service, which must be that of the route or let it lead there by a `ReferenceGrant`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<std::num::NonZeroU16>,
    /// Its share of the sum of all weights. Unset: 1.
    #[serde(default = "one")]
    pub weight: u32,
    /// What is done to this share, after the rule's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
}

/// Bounds on the time of a call.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// On the whole call. 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Span>,
    /// On one try. 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<Span>,
}

/// When a try is repeated.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retry {
    /// Statuses to try again after.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub codes: Vec<u16>,
    /// Tries after the first one. Unset: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u8>,
    /// What the first pause is taken from. Unset: 25ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Span>,
}

impl HttpRoute {
    /// The services that it is about, as a document of this namespace.
    pub fn services(&self, namespace: &str) -> BTreeSet<ServiceName> {
        self.parent_refs.iter().filter_map(|parent| parent.service(namespace)).collect()
    }
}

impl ParentRef {
    /// The service, in a document of this namespace; none where it is something else.
    pub fn service(&self, namespace: &str) -> Option<ServiceName> {
        if self.kind != "Service" {
            return None;
        }
        ServiceName::new(self.namespace.as_deref().unwrap_or(namespace), &self.name).ok()
    }

    /// Whether it is a `ServiceEntry`.
    pub fn is_of_entry(&self) -> bool {
        self.kind == ENTRY
    }

    /// Whether it is the `ServiceEntry` of that namespace and name, in a document of the namespace `own`.
    pub fn is_entry(&self, own: &str, (namespace, name): (&str, &str)) -> bool {
        self.kind == ENTRY && self.name == name && self.namespace.as_deref().unwrap_or(own) == namespace
    }

    /// Whether it is the gateway of that namespace and name, in a document of the namespace `own`.
    pub fn is_gateway(&self, own: &str, (namespace, name): (&str, &str)) -> bool {
        self.kind == "Gateway" && self.name == name && self.namespace.as_deref().unwrap_or(own) == namespace
    }

    /// Whether it means a listener of a gateway.
    pub fn means(&self, name: &str, port: u16) -> bool {
        self.section_name.as_ref().is_none_or(|section| section == name)
            && self.port.is_none_or(|own| own.get() == port)
    }
}

impl BackendRef {
    /// What it leads to, in a document of this namespace.
    pub fn service(&self, namespace: &str) -> Option<ServiceName> {
        target((&self.kind, &self.name), self.namespace.as_deref(), namespace)
    }
}

impl MirrorRef {
    /// What it leads to, in a document of this namespace.
    pub fn service(&self, namespace: &str) -> Option<ServiceName> {
        target((&self.kind, &self.name), self.namespace.as_deref(), namespace)
    }
}

fn target((kind, name): (&str, &str), namespace: Option<&str>, own: &str) -> Option<ServiceName> {
    match kind {
        HOSTNAME => meant(name, own),
        _ => ServiceName::new(namespace.unwrap_or(own), name).ok(),
    }
}

/// The kind of hosts outside the mesh among the parents of routes.
const ENTRY: &str = "ServiceEntry";
/// The kind of hosts by their whole names among the destinations of routes (Istio's own, as the group says).
const HOSTNAME: &str = "Hostname";
/// Group of both.
const ISTIO_GROUP: &str = "networking.istio.io";

impl Spec for HttpRoute {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "HTTPRoute",
        group: "gateway.networking.k8s.io",
        versions: &["v1", "v1beta1"],
        plural: "httproutes",
        short: &[],
        about: "where calls go of a service, of hosts outside or through a gateway, as the Gateway API has it",
        example: include_str!("http_route.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        check::http_route(self, faults);
    }

    fn hints(&self) -> Vec<String> {
        let services = self.parent_refs.iter().all(|parent| matches!(parent.kind.as_str(), "Service" | ENTRY));
        let hosts = (services && !self.hostnames.is_empty()).then_some("spec.hostnames means nothing for services");
        hosts.map(str::to_owned).into_iter().collect()
    }
}

fn root() -> String {
    "/".into()
}

fn service_kind() -> String {
    "Service".into()
}

fn gateway_kind() -> String {
    "Gateway".into()
}

fn one() -> u32 {
    1
}
