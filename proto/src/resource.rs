//! Resources: the configuration documents that people write and the mesh keeps.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::Index;
use crate::identity::NameError;

/// The kinds of resources that this version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Settings of a service (`weft/v1`).
    Service,
    /// Who may call a service (`security.istio.io/v1`).
    AuthorizationPolicy,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Service, Self::AuthorizationPolicy];

    /// Its name in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
        }
    }

    /// The `apiVersion`s under which documents of this kind are accepted; the first one is shown.
    pub fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::Service => &["weft/v1"],
            Self::AuthorizationPolicy => &["security.istio.io/v1", "security.istio.io/v1beta1"],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = NameError;

    /// Reads a kind in any case, singular or plural, as command lines write it.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let wanted = text.to_ascii_lowercase();
        let matches = |kind: &Self| {
            let name = kind.as_str().to_ascii_lowercase();
            let plural = name.strip_suffix('y').map_or_else(|| format!("{name}s"), |stem| format!("{stem}ies"));
            wanted == name || wanted == plural
        };
        Self::ALL.into_iter().find(matches).ok_or_else(|| NameError {
            what: "kind",
            text: text.chars().take(80).collect(),
            rule: "one of Service, AuthorizationPolicy",
        })
    }
}

/// What a resource is found by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, a DNS label.
    pub namespace: String,
    /// Its name, a DNS label.
    pub name: String,
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// One document. Its `spec` has been checked against its kind before it got here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// What it is found by.
    pub key: ResourceKey,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `spec` as canonical JSON (object keys ordered).
    pub spec: String,
    /// Index at which it came to be; 0 until committed.
    pub created: Index,
    /// Index of its last change; 0 until committed.
    pub version: Index,
}
