//! Documents about gateways, hosts outside and the mesh as a whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_proto::kinds::authorization_policy::ROOT_NAMESPACES;
use weft_proto::kinds::gateway::Gateway;
use weft_proto::kinds::istio_gateway::IstioGateway;
use weft_proto::kinds::mesh_config::MeshConfig;
use weft_proto::kinds::secret::Secret;
use weft_proto::kinds::service_entry::ServiceEntry;
use weft_proto::kinds::{Kind, Spec};
use weft_proto::resource::{Resource, ResourceKey};
use weft_proxy::table::routes::Document;

use super::Unenforced;
use super::kept::{Kept, by_age, keep_document, retain};

/// Those documents, as they are enforced.
#[derive(Debug, Default)]
pub(super) struct GatewaySpecs {
    istio: BTreeMap<ResourceKey, Kept<Document<IstioGateway>>>,
    standard: BTreeMap<ResourceKey, Kept<Document<Gateway>>>,
    secrets: BTreeMap<ResourceKey, Kept<Document<Secret>>>,
    entries: BTreeMap<ResourceKey, Kept<Document<ServiceEntry>>>,
    mesh: BTreeMap<ResourceKey, Kept<Document<MeshConfig>>>,
    /// Whether gateways are others than when that was asked last.
    moves: bool,
}

impl GatewaySpecs {
    /// Reads a document if it is one of these, and tells whether other hosts outside are known then; none where it is none of these.
    pub(super) fn read(&mut self, kind: &Kind, resource: &Resource) -> Option<bool> {
        let mut others = false;
        match kind.key() {
            key if key == IstioGateway::KIND.key() => {
                self.moves |= keep_document(&mut self.istio, kind, resource, |spec: IstioGateway| spec);
            }
            key if key == Gateway::KIND.key() => {
                let form = |spec: Gateway| spec.annotated(&resource.annotations);
                self.moves |= keep_document(&mut self.standard, kind, resource, form);
            }
            key if key == Secret::KIND.key() => {
                keep_document(&mut self.secrets, kind, resource, |spec: Secret| spec);
            }
            key if key == ServiceEntry::KIND.key() => {
                others = keep_document(&mut self.entries, kind, resource, |spec: ServiceEntry| spec);
            }
            key if key == MeshConfig::KIND.key() => {
                keep_document(&mut self.mesh, kind, resource, |spec: MeshConfig| spec);
            }
            _ => return None,
        }
        Some(others)
    }

    /// Forgets documents that are gone; whether hosts outside were among them.
    pub(super) fn retain(&mut self, there: impl Fn(&ResourceKey) -> bool) -> bool {
        self.moves |= retain(&mut self.istio, &there) | retain(&mut self.standard, &there);
        self.secrets.retain(|key, _| there(key));
        self.mesh.retain(|key, _| there(key));
        retain(&mut self.entries, there)
    }

    /// Whether gateways are others than when that was asked last.
    pub(super) fn moved(&mut self) -> bool {
        std::mem::take(&mut self.moves)
    }

    /// Hosts outside the mesh, the oldest document first.
    pub(super) fn entries(&self) -> Vec<Arc<Document<ServiceEntry>>> {
        by_age(&self.entries)
    }

    /// What holds for the whole mesh.
    pub(super) fn mesh(&self) -> Option<Arc<Document<MeshConfig>>> {
        let root = |one: &Arc<Document<MeshConfig>>| ROOT_NAMESPACES.contains(&one.key.namespace.as_str());
        by_age(&self.mesh).into_iter().find(root)
    }

    pub(super) fn istio(&self) -> Vec<Arc<Document<IstioGateway>>> {
        by_age(&self.istio)
    }

    pub(super) fn standard(&self) -> Vec<Arc<Document<Gateway>>> {
        by_age(&self.standard)
    }

    pub(super) fn unenforced(&self) -> impl Iterator<Item = Unenforced> {
        let istio = self.istio.iter().filter_map(|(key, kept)| kept.unenforced(key, kept.without_it()));
        let standard = self.standard.iter().filter_map(|(key, kept)| kept.unenforced(key, kept.without_it()));
        let secrets = self.secrets.iter().filter_map(|(key, kept)| kept.unenforced(key, kept.without_it()));
        let entries = self.entries.iter().filter_map(|(key, kept)| kept.unenforced(key, kept.without_it()));
        let mesh = self.mesh.iter().filter_map(|(key, kept)| kept.unenforced(key, kept.without_it()));
        istio.chain(standard).chain(secrets).chain(entries).chain(mesh)
    }
}
