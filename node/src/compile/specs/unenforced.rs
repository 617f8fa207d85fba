//! Documents that are not enforced.

use weft_proto::Index;
use weft_proto::resource::{KindName, Resource, ResourceKey};
use weft_proto::wire::cluster as wire;

/// A document that is not enforced on this node, as it is or at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unenforced {
    /// The document.
    pub key: ResourceKey,
    /// Index of its last change.
    pub version: Index,
    /// Why, and what is in force in its place.
    pub why: String,
}

impl Unenforced {
    pub(super) fn unknown(resource: &Resource) -> Self {
        let why = format!("this version of weft does not know the kind {}: upgrade it", resource.key.kind);
        Self { key: resource.key.clone(), version: resource.version, why }
    }
}

impl From<Unenforced> for wire::Unenforced {
    fn from(one: Unenforced) -> Self {
        let Unenforced { key: ResourceKey { kind, namespace, name }, version, why } = one;
        Self { group: kind.group, kind: kind.name, namespace, name, version, why }
    }
}

impl From<wire::Unenforced> for Unenforced {
    fn from(message: wire::Unenforced) -> Self {
        let kind = KindName { group: message.group, name: message.kind };
        let key = ResourceKey { kind, namespace: message.namespace, name: message.name };
        Self { key, version: message.version, why: message.why }
    }
}
