//! How callers reach instances at their own ports, field for field as Istio's `PeerAuthentication` (security.istio.io/v1): by
//! mutual TLS alone, in plain text too, or in plain text alone. A field that is not listed is refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::authorization_policy::Selector;
use super::{Faults, Kind, Names, Spec};

/// `spec` of a `PeerAuthentication`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthentication {
    /// Which services it is about, by label; none: all of the namespace, or of the mesh where that is the root namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// What holds for every port that is not named.
    #[serde(default)]
    pub mtls: MutualTls,
    /// What holds for a port: that at which the instance listens, not the service's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub port_level_mtls: BTreeMap<u32, MutualTls>,
}

/// What is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MutualTls {
    /// Which.
    #[serde(default)]
    pub mode: Mode,
}

/// What is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// What the wider document says.
    #[default]
    Unset,
    /// Whoever calls is nobody that is known: in plain text, or as if it were.
    Disable,
    /// Mutual TLS, and plain text, whose caller is nobody that is known.
    Permissive,
    /// Mutual TLS with an identity of the mesh, and nothing else.
    Strict,
}

impl Mode {
    /// This one; where it says nothing the other.
    pub fn or(self, other: Self) -> Self {
        if self == Self::Unset { other } else { self }
    }

    /// As documents write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unset => "UNSET",
            Self::Disable => "DISABLE",
            Self::Permissive => "PERMISSIVE",
            Self::Strict => "STRICT",
        }
    }
}

impl Spec for PeerAuthentication {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "PeerAuthentication",
        group: "security.istio.io",
        versions: &["v1", "v1beta1"],
        plural: "peerauthentications",
        short: &["pa"],
        about: "whether instances take plain text at their own ports",
        example: include_str!("peer_authentication.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        if !self.port_level_mtls.is_empty() && !self.is_about_some() {
            let why = "ports are those of instances: name their services by `selector.matchLabels`";
            faults.push(("spec.portLevelMtls".into(), why.into()));
        }
        for port in self.port_level_mtls.keys().filter(|port| !(1..=65_535).contains(*port)) {
            faults.push((format!("spec.portLevelMtls.{port}"), "a port is a number from 1 to 65535".into()));
        }
        for name in self.selector.iter().flat_map(|selector| selector.match_labels.keys()) {
            if name.is_empty() || name.contains('*') {
                faults.push(("spec.selector.matchLabels".into(), format!("{name:?} is no name of a label")));
            }
        }
    }
}

impl PeerAuthentication {
    /// Whether it selects services by label: one that does not is about all of its namespace.
    pub fn is_about_some(&self) -> bool {
        self.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty())
    }

    /// What is enforced in the place of one that cannot be read: mutual TLS for all that it selects, as far as that can be
    /// read, else for all of its namespace.
    pub fn closed(spec: &str) -> Self {
        let spec: Value = serde_json::from_str(spec).unwrap_or_default();
        let selector = spec.get("selector").and_then(|selector| serde_json::from_value(selector.clone()).ok());
        Self { selector, mtls: MutualTls { mode: Mode::Strict }, port_level_mtls: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::parse;
    use crate::kinds::Kinds;

    fn faults(spec: &str) -> Vec<String> {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: a}}\nspec: {spec}\n"
        );
        match parse(Kinds::ALL, "test", &text) {
            Ok(_) => Vec::new(),
            Err(faults) => faults.iter().map(|fault| format!("{}: {}", fault.path, fault.message)).collect(),
        }
    }

    #[test]
    fn ports_need_a_selector_and_are_ports() {
        assert!(faults("{mtls: {mode: STRICT}}").is_empty());
        assert!(faults("{selector: {matchLabels: {app: web}}, portLevelMtls: {8080: {mode: DISABLE}}}").is_empty());
        let found = faults("{portLevelMtls: {8080: {mode: DISABLE}}}");
        assert!(found.len() == 1 && found[0].contains("selector.matchLabels"), "{found:?}");
        let found = faults("{selector: {matchLabels: {app: web}}, portLevelMtls: {70000: {mode: DISABLE}}}");
        assert!(found.len() == 1 && found[0].starts_with("spec.portLevelMtls.70000"), "{found:?}");
        let found = faults("{mtls: {mode: SOMETIMES}}");
        assert!(found.len() == 1 && found[0].starts_with("spec.mtls.mode"), "{found:?}");
    }

    #[test]
    fn what_cannot_be_read_is_strict() {
        let closed = PeerAuthentication::closed(r#"{"later":1,"selector":{"matchLabels":{"app":"web"}}}"#);
        assert!(closed.is_about_some());
        assert_eq!(closed.mtls.mode, Mode::Strict);
        assert!(!PeerAuthentication::closed("{").is_about_some());
    }
}
