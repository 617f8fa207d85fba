//! Ports through which calls come from outside the mesh, field for field as the Gateway API's `Gateway`
//! (gateway.networking.k8s.io/v1). A field that is not listed is refused.

mod check;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Faults, Kind, Names, Spec};

/// `spec` of a `Gateway`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gateway {
    /// `weft`, or `istio`, which is taken as the same.
    pub gateway_class_name: String,
    /// What is served.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// A gateway of the mesh that serves it: of type `Hostname`, by its name as a service. Unset: that of the document's
    /// name, in its namespace, or of that name with `-istio` behind it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Address>,
    /// About what Kubernetes makes for it; without effect here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infrastructure: Option<Value>,
    /// What holds for certificates of all listeners.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<GatewayTls>,
    /// Whether only callers of the mesh come in: no port of the host is listened on.
    #[serde(skip)]
    pub within: bool,
}

/// The annotation by which Istio tells how a gateway is reached; `ClusterIP`: only within.
const SERVICE_TYPE: &str = "networking.istio.io/service-type";

impl Gateway {
    /// The same with what annotations say.
    #[must_use]
    pub fn annotated(self, annotations: &BTreeMap<String, String>) -> Self {
        Self { within: annotations.get(SERVICE_TYPE).is_some_and(|value| value == "ClusterIP"), ..self }
    }
}

/// A port, and for which host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listener {
    /// Its name, unique in the document.
    pub name: String,
    /// The host that it is for; unset: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// 1 to 65535.
    pub port: u16,
    /// HTTP, HTTPS, TLS or TCP.
    pub protocol: String,
    /// What is done with TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
    /// Which routes may attach to it. Unset: those of the own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_routes: Option<AllowedRoutes>,
}

/// What is done with TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListenerTls {
    /// Unset: `Terminate`.
    #[serde(default)]
    pub mode: ListenerTlsMode,
    /// `Secret`s with certificates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificate_refs: Vec<ObjectRef>,
    /// What implementations add: `gateway.istio.io/tls-terminate-mode` with `MUTUAL`, `OPTIONAL_MUTUAL`, `SIMPLE` or
    /// `ISTIO_MUTUAL` is known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// The authorities of callers, in the form of versions before 1.4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frontend_validation: Option<Validation>,
}

/// Where TLS ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ListenerTlsMode {
    /// Here.
    #[default]
    Terminate,
    /// At the service.
    Passthrough,
}

/// What holds for certificates of all listeners.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayTls {
    /// About callers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frontend: Option<Frontend>,
}

/// What holds for certificates of callers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Frontend {
    /// On every port that has none of its own.
    #[serde(default)]
    pub default: FrontendTls,
    /// On a port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub per_port: Vec<PortTls>,
}

/// What holds on a port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortTls {
    /// The port.
    pub port: u16,
    /// What holds there.
    pub tls: FrontendTls,
}

/// What is asked of callers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FrontendTls {
    /// Their certificates; unset: none are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
}

/// The authorities of callers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Validation {
    /// `Secret`s with `ca.crt`, or `ConfigMap`s of that name, which a mesh without Kubernetes keeps as `Secret`s too.
    #[serde(default)]
    pub ca_certificate_refs: Vec<ObjectRef>,
    /// Unset: `AllowValidOnly`.
    #[serde(default)]
    pub mode: ValidationMode,
}

/// What becomes of callers without a good certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ValidationMode {
    /// They are refused.
    #[default]
    AllowValidOnly,
    /// They are served all the same.
    AllowInsecureFallback,
}

/// Another document.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectRef {
    /// Empty: that of `Secret`.
    #[serde(default)]
    pub group: String,
    /// Unset: `Secret`.
    #[serde(default = "secret_kind")]
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its namespace; unset: that of the gateway. Another one takes a `ReferenceGrant`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// Which routes may attach.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AllowedRoutes {
    /// By their namespaces.
    #[serde(default)]
    pub namespaces: RouteNamespaces,
    /// By their kinds; none: those that fit the protocol.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<RouteKind>,
}

/// Routes of some namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteNamespaces {
    /// Unset: `Same`.
    #[serde(default)]
    pub from: FromNamespaces,
    /// Where `from` is `Selector`: namespaces by their label `kubernetes.io/metadata.name`, the only one that they have here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<NamespaceSelector>,
}

/// Which namespaces are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum FromNamespaces {
    /// All.
    All,
    /// That of the gateway.
    #[default]
    Same,
    /// Those that the selector means.
    Selector,
    /// None.
    None,
}

/// Namespaces by label.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespaceSelector {
    /// All must be equal.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
    /// All must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LabelExpression>,
}

/// What must hold of a label.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelExpression {
    /// The label.
    pub key: String,
    /// `In`, `NotIn` or `Exists`.
    pub operator: String,
    /// Its values.
    #[serde(default)]
    pub values: Vec<String>,
}

/// A kind of routes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteKind {
    /// Unset: `gateway.networking.k8s.io`.
    #[serde(default = "routes_group")]
    pub group: String,
    /// HTTPRoute, GRPCRoute, TLSRoute or TCPRoute.
    pub kind: String,
}

/// Where a gateway is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Address {
    /// `Hostname`, or `IPAddress`, which is listened on then.
    #[serde(default = "address_type")]
    pub r#type: String,
    /// The address.
    #[serde(default)]
    pub value: String,
}

impl Gateway {
    /// The authorities of callers on a listener.
    pub fn validation<'a>(&'a self, listener: &'a Listener) -> Option<&'a Validation> {
        let own = listener.tls.as_ref().and_then(|tls| tls.frontend_validation.as_ref());
        let frontend = self.tls.as_ref().and_then(|tls| tls.frontend.as_ref());
        let by_port = |frontend: &'a Frontend| {
            let own = frontend.per_port.iter().find(|one| one.port == listener.port).map(|one| &one.tls);
            own.unwrap_or(&frontend.default).validation.as_ref()
        };
        own.or_else(|| frontend.and_then(by_port))
    }
}

impl Listener {
    /// Whether TLS is passed on as it is.
    pub fn passes_through(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.mode == ListenerTlsMode::Passthrough)
    }

    /// The kinds of routes that fit it.
    pub fn kinds(&self) -> &'static [&'static str] {
        match (self.protocol.as_str(), self.passes_through()) {
            ("HTTP", _) | ("HTTPS", false) => &["HTTPRoute", "GRPCRoute"],
            ("HTTPS" | "TLS", true) => &["TLSRoute"],
            ("TLS", false) => &["TLSRoute", "TCPRoute"],
            _ => &["TCPRoute"],
        }
    }

    /// Whether a route of the kind and namespace may attach to it, as a listener of a gateway in the namespace `own`.
    pub fn admits(&self, own: &str, (kind, namespace): (&str, &str)) -> bool {
        let said = self.allowed_routes.as_ref();
        let near = match said.map(|allowed| &allowed.namespaces) {
            None => own == namespace,
            Some(namespaces) => namespaces.mean(own, namespace),
        };
        let kinds = said.map_or(&[][..], |allowed| &allowed.kinds);
        let meant = kinds.is_empty() || kinds.iter().any(|one| one.group == routes_group() && one.kind == kind);
        near && meant && self.kinds().contains(&kind)
    }
}

impl RouteNamespaces {
    fn mean(&self, own: &str, namespace: &str) -> bool {
        match self.from {
            FromNamespaces::All => true,
            FromNamespaces::Same => own == namespace,
            FromNamespaces::None => false,
            FromNamespaces::Selector => self.selector.as_ref().is_none_or(|selector| selector.means(namespace)),
        }
    }
}

impl NamespaceSelector {
    fn means(&self, namespace: &str) -> bool {
        let label = |name: &String, value: &String| *name == NAMESPACE_LABEL && *value == namespace;
        let holds = |one: &LabelExpression| match one.operator.as_str() {
            "In" => one.key == NAMESPACE_LABEL && one.values.iter().any(|value| value == namespace),
            "NotIn" => one.key != NAMESPACE_LABEL || one.values.iter().all(|value| value != namespace),
            "Exists" => one.key == NAMESPACE_LABEL,
            _ => false,
        };
        self.match_labels.iter().all(|(name, value)| label(name, value)) && self.match_expressions.iter().all(holds)
    }
}

impl Spec for Gateway {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "Gateway",
        group: "gateway.networking.k8s.io",
        versions: &["v1", "v1beta1"],
        plural: "gateways",
        short: &["gw"],
        about: "ports through which calls come from outside, as the Gateway API has it",
        example: include_str!("gateway.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        check::gateway(self, faults);
    }

    fn hints(&self) -> Vec<String> {
        let hint = "spec.infrastructure is about what Kubernetes makes for a gateway, and without effect here";
        self.infrastructure.is_some().then(|| hint.to_owned()).into_iter().collect()
    }
}

fn secret_kind() -> String {
    "Secret".into()
}

fn routes_group() -> String {
    "gateway.networking.k8s.io".into()
}

fn address_type() -> String {
    "IPAddress".into()
}

/// The label that Kubernetes gives to every namespace: its name.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";
/// How the form of TLS is named among the options.
pub const TERMINATE_OPTION: &str = "gateway.istio.io/tls-terminate-mode";
