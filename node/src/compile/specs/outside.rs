//! Hosts outside the mesh, as documents name them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_proto::kinds::hosts::is_foreign;
use weft_proto::kinds::http_route::ParentRef;
use weft_proto::kinds::service_entry::ServiceEntry;
use weft_proto::kinds::virtual_service::MESH;
use weft_proto::service::ServiceName;
use weft_proxy::table::routes::Document;

use super::Specs;

impl Specs {
    /// Hosts outside the mesh that documents name.
    pub(super) fn outside_hosts(&self) -> BTreeSet<String> {
        let mut hosts = self.ruled_hosts();
        hosts.extend(self.gateways.entries().iter().flat_map(|one| one.spec.hosts.clone()));
        hosts
    }

    /// Hosts for which there are rules within the mesh, and whose names are none of the mesh's own.
    pub(in crate::compile) fn ruled_hosts(&self) -> BTreeSet<String> {
        let within = self.joined.iter().filter(|one| one.spec.applies(MESH, &one.key.namespace));
        within.flat_map(|one| one.spec.hosts.iter().filter(|host| is_foreign(host)).cloned()).collect()
    }

    /// The hosts outside that are among these parents of a route in the namespace. Of several documents about a host the oldest counts.
    pub(super) fn hosts_of(&self, parents: &[ParentRef], own: &str) -> BTreeSet<ServiceName> {
        let mut oldest: BTreeMap<String, bool> = BTreeMap::new();
        if !parents.iter().any(ParentRef::is_of_entry) {
            return BTreeSet::new();
        }
        for entry in self.gateways.entries() {
            let key = (entry.key.namespace.as_str(), entry.key.name.as_str());
            let meant = parents.iter().any(|parent| parent.is_entry(own, key));
            for host in &entry.spec.hosts {
                oldest.entry(host.clone()).or_insert(meant);
            }
        }
        oldest.into_iter().filter(|(_, meant)| *meant).map(|(host, _)| ServiceName::outside(&host)).collect()
    }

    /// The documents about hosts outside the mesh, the oldest first.
    pub(in crate::compile) fn entries(&self) -> Vec<Arc<Document<ServiceEntry>>> {
        self.gateways.entries()
    }
}
