//! The kinds of resources that this version knows. Each has a file of its own with all that belongs to it, and a line in
//! `ALL`.

pub mod authorization_policy;
pub mod certificate;
pub mod core_service;
pub mod destination_rule;
pub mod gateway;
pub mod grpc_route;
pub mod hosts;
pub mod http_route;
pub mod issuer;
pub mod istio;
pub mod istio_gateway;
pub mod mesh_config;
pub mod order;
pub mod peer_authentication;
pub mod reference_grant;
pub mod secret;
pub mod service;
pub mod service_entry;
pub mod tcp_route;
pub mod tls_route;
pub mod virtual_service;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::resource::{KindName, Resource};
use authorization_policy::AuthorizationPolicy;
use certificate::Certificate;
use core_service::CoreService;
use destination_rule::DestinationRule;
use gateway::Gateway;
use grpc_route::GrpcRoute;
use http_route::HttpRoute;
use issuer::{ClusterIssuer, Issuer};
use istio_gateway::IstioGateway;
use mesh_config::MeshConfig;
use order::Order;
use peer_authentication::PeerAuthentication;
use reference_grant::ReferenceGrant;
use secret::Secret;
use service::ServiceSettings;
use service_entry::ServiceEntry;
use tcp_route::TcpRoute;
use tls_route::TlsRoute;
use virtual_service::VirtualService;

pub use crate::typed::Faults;
pub use secret::from_base64;

/// A kind: how documents and command lines name it, and what makes a `spec` of it good.
#[derive(Debug)]
pub struct Kind {
    /// Its name in documents.
    pub name: &'static str,
    /// Its API group: what stands before the `/` of an `apiVersion`.
    pub group: &'static str,
    /// The versions of the group under which documents are accepted.
    pub versions: &'static [&'static str],
    /// Its plural in small letters, as command lines write it.
    pub plural: &'static str,
    /// Shorter names for command lines.
    pub short: &'static [&'static str],
    /// What it is for, in half a line.
    pub about: &'static str,
    /// A document of it.
    pub example: &'static str,
    /// What stands beside `metadata` in its documents and makes their `spec`; none where they have one.
    pub fields: &'static [&'static str],
    /// The namespaces that its documents may be in, where there is one document for the whole mesh, named `default`; none: any.
    pub namespaces: &'static [&'static str],
    check: fn(Value) -> Result<(), Faults>,
    hints: fn(&str) -> Vec<String>,
}

/// What a `spec` of a kind says.
pub trait Spec: DeserializeOwned {
    /// The kind.
    const KIND: Kind;
    /// What stands beside `metadata` in its documents and makes their `spec`; none where they have one.
    const FIELDS: &'static [&'static str] = &[];
    /// The namespaces that its documents may be in, where there is one document for the whole mesh; none: any.
    const NAMESPACES: &'static [&'static str] = &[];

    /// The rules that it keeps beyond its form.
    fn check(&self, faults: &mut Faults);

    /// What in it can never match, a line each.
    fn hints(&self) -> Vec<String> {
        Vec::new()
    }

    /// Reads what was checked when it was accepted, here or by another version.
    fn of(resource: &Resource) -> Result<Self, String> {
        serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(&resource.spec))
            .map_err(|error| format!("spec.{}: {}", error.path(), error.inner()))
    }
}

impl Kind {
    /// All of a kind but its names.
    const fn new<T: Spec>(names: Names) -> Self {
        let Names { name, group, versions, plural, short, about, example } = names;
        let (check, hints) = (check::<T>, hints::<T>);
        let (fields, namespaces) = (T::FIELDS, T::NAMESPACES);
        Self { name, group, versions, plural, short, about, example, fields, namespaces, check, hints }
    }

    /// What resources of it are found by.
    pub fn key(&self) -> KindName {
        KindName { group: self.group.to_owned(), name: self.name.to_owned() }
    }

    /// The `apiVersion`s under which documents are accepted; the first one is written.
    pub fn api_versions(&self) -> impl Iterator<Item = String> {
        self.versions.iter().map(|version| match self.group {
            "" => (*version).to_owned(),
            group => format!("{group}/{version}"),
        })
    }

    /// Whether a `spec` is good.
    pub fn check(&self, spec: Value) -> Result<(), Faults> {
        (self.check)(spec)
    }

    /// What in a `spec` can never match, a line each.
    pub fn hints(&self, spec: &str) -> Vec<String> {
        (self.hints)(spec)
    }

    fn is_called(&self, text: &str) -> bool {
        let (name, group) = text.split_once('.').map_or((text, None), |(name, group)| (name, Some(group)));
        let named = self.name.eq_ignore_ascii_case(name)
            || self.plural.eq_ignore_ascii_case(name)
            || self.short.iter().any(|short| short.eq_ignore_ascii_case(name));
        let own = if self.group.is_empty() { "core" } else { self.group };
        named && group.is_none_or(|group| group.eq_ignore_ascii_case(own))
    }
}

/// The names of a kind.
#[derive(Clone, Copy)]
struct Names {
    name: &'static str,
    group: &'static str,
    versions: &'static [&'static str],
    plural: &'static str,
    short: &'static [&'static str],
    about: &'static str,
    example: &'static str,
}

fn check<T: Spec>(spec: Value) -> Result<(), Faults> {
    let parsed: T = crate::typed::typed(spec, "spec")?;
    let mut faults = Faults::new();
    parsed.check(&mut faults);
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn hints<T: Spec>(spec: &str) -> Vec<String> {
    serde_json::from_str::<T>(spec).map(|spec| spec.hints()).unwrap_or_default()
}

static ALL: [Kind; 20] = [
    AuthorizationPolicy::KIND,
    Certificate::KIND,
    ClusterIssuer::KIND,
    DestinationRule::KIND,
    Gateway::KIND,
    IstioGateway::KIND,
    GrpcRoute::KIND,
    HttpRoute::KIND,
    Issuer::KIND,
    MeshConfig::KIND,
    Order::KIND,
    PeerAuthentication::KIND,
    ReferenceGrant::KIND,
    Secret::KIND,
    ServiceSettings::KIND,
    // After the one that command lines mean by the name alone.
    CoreService::KIND,
    ServiceEntry::KIND,
    TcpRoute::KIND,
    TlsRoute::KIND,
    VirtualService::KIND,
];

/// What a build knows of kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kinds {
    lacks: &'static [&'static str],
}

impl Kinds {
    /// Every kind of this version.
    pub const ALL: Self = Self { lacks: &[] };

    /// What a version knows that does not know the kinds of these names.
    pub const fn lacking(names: &'static [&'static str]) -> Self {
        Self { lacks: names }
    }

    /// Every kind that is known.
    pub fn iter(self) -> impl Iterator<Item = &'static Kind> {
        ALL.iter().filter(move |kind| !self.lacks.contains(&kind.name))
    }

    /// The kind of that group and name.
    pub fn find(self, key: &KindName) -> Option<&'static Kind> {
        self.iter().find(|kind| kind.name == key.name && kind.group == key.group)
    }

    /// The kind that a command line names: in any case, singular, plural or short, with or without its group
    /// (`authorizationpolicies.security.istio.io`).
    pub fn named(self, text: &str) -> Result<&'static Kind, String> {
        let unknown =
            || format!("{:?} is not a kind: one of {}", text.chars().take(80).collect::<String>(), self.names());
        self.iter().find(|kind| kind.is_called(text)).ok_or_else(unknown)
    }

    /// Every kind that a command line may mean: several may share a name, and the first is meant before the others.
    pub fn called(self, text: &str) -> Vec<&'static Kind> {
        self.iter().filter(|kind| kind.is_called(text)).collect()
    }

    /// The names of all that are known, for people.
    pub fn names(self) -> String {
        let mut names: Vec<&str> = self.iter().map(|kind| kind.name).collect();
        names.dedup();
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_name_kinds_as_they_like() {
        for text in ["AuthorizationPolicy", "authorizationpolicies", "ap", "authorizationpolicies.security.istio.io"] {
            assert_eq!(Kinds::ALL.named(text).expect(text).name, "AuthorizationPolicy");
        }
        let error = Kinds::ALL.named("gizmo").expect_err("unknown");
        assert!(error.contains("MeshConfig, Order, PeerAuthentication, ReferenceGrant, Secret, Service"), "{error}");
        assert_eq!(Kinds::ALL.named("service.core").expect("it is one").group, "");
        assert_eq!(Kinds::ALL.named("svc").expect("it is one").group, "weft");
        assert!(Kinds::lacking(&["AuthorizationPolicy"]).named("ap").is_err());
    }

    #[test]
    fn no_two_kinds_answer_to_one_name() {
        for kind in Kinds::ALL.iter() {
            let same_name = |other: &&Kind| other.name == kind.name;
            for text in [kind.name, kind.plural].iter().chain(kind.short) {
                let answering = Kinds::ALL.iter().filter(|other| other.is_called(text));
                assert!(answering.into_iter().all(|other| same_name(&other)), "{text}");
            }
        }
    }
}
