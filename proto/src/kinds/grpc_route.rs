//! Where gRPC calls go, field for field as the Gateway API's `GRPCRoute` (gateway.networking.k8s.io/v1) with services or gateways as
//! its parents. A field that is not listed is refused.

use serde::{Deserialize, Serialize};

use super::http_route::{
    BackendRef, Filter, HttpRoute, Match, NamedMatch, ParentRef, PathMatch, PathType, Rule, SessionPersistence,
    ValueType, check_http_route,
};
use super::istio::expression;
use super::{Faults, Kind, Names, Spec};

/// `spec` of a `GRPCRoute`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRoute {
    /// The services whose calls it is about.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// Hosts: for services they mean nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// The rules.
    #[serde(default)]
    pub rules: Vec<GrpcRule>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRule {
    /// Its name in records.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// It matches if one of these does; none: it matches everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<GrpcMatch>,
    /// What is done to a call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
    /// Where calls go, by weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<BackendRef>,
    /// Calls of a session go to the same instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<SessionPersistence>,
}

/// What must hold of a call, all of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMatch {
    /// The method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<MethodMatch>,
    /// Metadata.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<NamedMatch>,
}

/// A method: at least one of service and method is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MethodMatch {
    /// Unset: `Exact`.
    #[serde(default)]
    pub r#type: ValueType,
    /// The full name of the service: `package.Service`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The name of the method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

impl GrpcRoute {
    /// The same in the words of HTTP: a call's path is `/SERVICE/METHOD` (gRPC over HTTP/2, "Requests").
    pub fn to_http(&self) -> HttpRoute {
        let rule = |rule: &GrpcRule| Rule {
            name: rule.name.clone(),
            matches: rule.matches.iter().map(GrpcMatch::to_http).collect(),
            filters: rule.filters.clone(),
            backend_refs: rule.backend_refs.clone(),
            session_persistence: rule.session_persistence.clone(),
            ..Rule::default()
        };
        HttpRoute {
            parent_refs: self.parent_refs.clone(),
            hostnames: self.hostnames.clone(),
            rules: self.rules.iter().map(rule).collect(),
        }
    }
}

impl GrpcMatch {
    fn to_http(&self) -> Match {
        Match {
            path: self.method.as_ref().map(MethodMatch::to_path),
            headers: self.headers.clone(),
            ..Match::default()
        }
    }
}

impl MethodMatch {
    fn to_path(&self) -> PathMatch {
        let (service, method) = (self.service.as_deref(), self.method.as_deref());
        let (r#type, value) = match (self.r#type, service, method) {
            (ValueType::Exact, Some(service), Some(method)) => (PathType::Exact, format!("/{service}/{method}")),
            (ValueType::Exact, Some(service), None) => (PathType::PathPrefix, format!("/{service}")),
            (ValueType::Exact, None, Some(method)) => {
                (PathType::RegularExpression, format!("/[^/]+/{}", regex::escape(method)))
            }
            (ValueType::RegularExpression, service, method) => {
                let part = |part: Option<&str>| part.map_or("[^/]+".to_owned(), |part| format!("(?:{part})"));
                (PathType::RegularExpression, format!("/{}/{}", part(service), part(method)))
            }
            (ValueType::Exact, None, None) => (PathType::PathPrefix, "/".to_owned()),
        };
        PathMatch { r#type, value }
    }
}

impl Spec for GrpcRoute {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "GRPCRoute",
        group: "gateway.networking.k8s.io",
        versions: &["v1", "v1alpha2"],
        plural: "grpcroutes",
        short: &[],
        about: "where gRPC calls of a service go, as the Gateway API has it",
        example: include_str!("grpc_route.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        for (at, rule) in self.rules.iter().enumerate() {
            for (block, asked) in rule.matches.iter().enumerate() {
                let path = format!("spec.rules[{at}].matches[{block}].method");
                let Some(method) = &asked.method else { continue };
                if method.service.is_none() && method.method.is_none() {
                    faults.push((path.clone(), "at least one of service, method".into()));
                }
                for (name, text) in [("service", &method.service), ("method", &method.method)] {
                    let Some(text) = text else { continue };
                    let path = format!("{path}.{name}");
                    match method.r#type {
                        ValueType::RegularExpression => faults.extend(expression(text).err().map(|why| (path, why))),
                        ValueType::Exact if text.is_empty() || text.contains('/') => {
                            faults.push((path, "a name, without '/'".into()));
                        }
                        ValueType::Exact => {}
                    }
                }
            }
            for (at, filter) in rule.filters.iter().enumerate() {
                if matches!(filter, Filter::RequestRedirect { .. } | Filter::UrlRewrite { .. } | Filter::Cors { .. }) {
                    faults.push((format!("spec.rules.filters[{at}].type"), "it is none of GRPCRoute's".into()));
                }
            }
        }
        if faults.is_empty() {
            check_http_route(&self.to_http(), faults);
        }
    }
}
