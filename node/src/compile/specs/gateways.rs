//! Documents about gateways.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_proto::kinds::gateway::Gateway;
use weft_proto::kinds::istio_gateway::IstioGateway;
use weft_proto::kinds::secret::Secret;
use weft_proto::kinds::{Kind, Spec};
use weft_proto::resource::{Resource, ResourceKey};
use weft_proxy::table::routes::Document;

use super::Unenforced;
use super::kept::{Kept, by_age, keep_document};

/// Documents about gateways, as they are enforced.
#[derive(Debug, Default)]
pub(super) struct GatewaySpecs {
    istio: BTreeMap<ResourceKey, Kept<Document<IstioGateway>>>,
    standard: BTreeMap<ResourceKey, Kept<Document<Gateway>>>,
    secrets: BTreeMap<ResourceKey, Kept<Document<Secret>>>,
}

impl GatewaySpecs {
    /// Reads a document if it is one of these; whether it is.
    pub(super) fn read(&mut self, kind: &Kind, resource: &Resource) -> bool {
        match kind.key() {
            key if key == IstioGateway::KIND.key() => {
                keep_document(&mut self.istio, kind, resource, |spec: IstioGateway| spec);
            }
            key if key == Gateway::KIND.key() => {
                keep_document(&mut self.standard, kind, resource, |spec: Gateway| spec);
            }
            key if key == Secret::KIND.key() => {
                keep_document(&mut self.secrets, kind, resource, |spec: Secret| spec);
            }
            _ => return false,
        }
        true
    }

    /// Forgets documents that are gone.
    pub(super) fn retain(&mut self, there: impl Fn(&ResourceKey) -> bool) {
        self.istio.retain(|key, _| there(key));
        self.standard.retain(|key, _| there(key));
        self.secrets.retain(|key, _| there(key));
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
        istio.chain(standard).chain(secrets)
    }
}
