//! What is kept of documents: the newest form that could be read, and why a newer one could not.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_proto::Index;
use weft_proto::kinds::{Kind, Spec};
use weft_proto::resource::{Resource, ResourceKey};
use weft_proxy::table::routes::Document;

use super::Unenforced;

#[derive(Debug)]
pub(super) struct Kept<T> {
    pub(super) version: Index,
    /// What is enforced: the newest form that could be read.
    pub(super) good: Option<Arc<T>>,
    pub(super) fault: Option<String>,
}

impl<T> Kept<T> {
    /// What holds in the place of a document about calls that cannot be read.
    pub(super) fn without_it(&self) -> &'static str {
        match self.good {
            Some(_) => "its last form that could be read stays in force",
            None => "calls go as if it were not there",
        }
    }

    pub(super) fn unenforced(&self, key: &ResourceKey, instead: &str) -> Option<Unenforced> {
        let why = self.fault.as_ref()?;
        Some(Unenforced { key: key.clone(), version: self.version, why: format!("{why}; {instead}") })
    }
}

/// Reads a document if it has changed, and tells whether it has. What is enforced where it cannot be read is what is given,
/// else what was before.
pub(super) fn keep<T>(
    all: &mut BTreeMap<ResourceKey, Kept<T>>,
    resource: &Resource,
    read: impl FnOnce() -> Result<T, String>,
    instead: impl FnOnce() -> Option<T>,
) -> bool {
    let before = all.get(&resource.key);
    if before.is_some_and(|kept| kept.version == resource.version) {
        return false;
    }
    let (good, fault) = match read() {
        Ok(good) => (Some(Arc::new(good)), None),
        Err(why) => (instead().map(Arc::new).or_else(|| before.and_then(|kept| kept.good.clone())), Some(why)),
    };
    all.insert(resource.key.clone(), Kept { version: resource.version, good, fault });
    true
}

/// Those that can be read, the oldest first (Istio's order).
pub(super) fn by_age<T>(all: &BTreeMap<ResourceKey, Kept<Document<T>>>) -> Vec<Arc<Document<T>>> {
    let mut documents: Vec<_> = all.values().filter_map(|kept| kept.good.clone()).collect();
    let order = |one: &Document<T>| (one.created, one.key.name.clone(), one.key.namespace.clone());
    documents.sort_by_cached_key(|one| order(one));
    documents
}

/// The same for a document about calls, in the form that is wanted of it: one that cannot be read and never could is as if it
/// were not there.
pub(super) fn keep_document<T: Spec, U>(
    all: &mut BTreeMap<ResourceKey, Kept<Document<U>>>,
    kind: &Kind,
    resource: &Resource,
    form: impl FnOnce(T) -> U,
) -> bool {
    let document = |spec| Document { key: resource.key.clone(), created: resource.created, spec: form(spec) };
    keep(all, resource, || supported(kind, resource).and_then(|()| T::of(resource)).map(document), || None)
}

/// Forgets documents that are gone; whether there were any.
pub(super) fn retain<T>(all: &mut BTreeMap<ResourceKey, Kept<T>>, there: impl Fn(&ResourceKey) -> bool) -> bool {
    let before = all.len();
    all.retain(|key, _| there(key));
    all.len() < before
}

pub(super) fn supported(kind: &Kind, resource: &Resource) -> Result<(), String> {
    match kind.api_versions().any(|version| version == resource.api_version) {
        true => Ok(()),
        false => Err(format!("this version of weft does not know {}: upgrade it", resource.api_version)),
    }
}
