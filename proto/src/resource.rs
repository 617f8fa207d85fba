//! Resources: the configuration documents that people write and the mesh keeps.
//!
//! Kept as text: a node need not know a kind to keep its resources. They are understood where they are accepted
//! ([`document`](crate::document)) and where they are compiled, both by [`kinds`](crate::kinds).

use std::collections::BTreeMap;
use std::fmt;

use crate::Index;

/// What a kind is called. Kinds of different groups may share a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KindName {
    /// Its API group, such as `security.istio.io`.
    pub group: String,
    /// Its name, such as `AuthorizationPolicy`.
    pub name: String,
}

impl KindName {
    /// The kind that a document's `apiVersion` and `kind` name.
    pub fn of(api_version: &str, name: &str) -> Self {
        // Without a slash it is a version of the core group, which has no name.
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        Self { group: group.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for KindName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// What a resource is found by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    /// Its kind.
    pub kind: KindName,
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

/// One document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// What it is found by.
    pub key: ResourceKey,
    /// The `apiVersion` that it was written in, of the group of its kind.
    pub api_version: String,
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
