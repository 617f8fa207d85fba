//! Whose calls documents are about.

use std::num::NonZeroU16;

use weft_proto::kinds::http_route::ParentRef;
use weft_proto::service::ServiceName;

/// A service, or a host outside the mesh with the document that names it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Called<'a> {
    pub(crate) service: &'a ServiceName,
    /// Namespace and name of the `ServiceEntry` of a host outside.
    pub(crate) entry: Option<(&'a str, &'a str)>,
}

impl<'a> Called<'a> {
    /// The namespace whose documents count for all callers.
    pub(super) fn namespace(&self) -> &'a str {
        self.entry.map_or(self.service.namespace(), |(namespace, _)| namespace)
    }

    /// The ports that a document in the namespace with these parents is about; none: all.
    pub(super) fn ports(&self, parents: &[ParentRef], own: &str) -> Vec<Option<u16>> {
        let meant = parents.iter().filter(|parent| match self.entry {
            Some(entry) => parent.is_entry(own, entry),
            None => parent.service(own).as_ref() == Some(self.service),
        });
        meant.map(|parent| parent.port.map(NonZeroU16::get)).collect()
    }
}
