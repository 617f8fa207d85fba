//! Documents about certificates that the mesh orders.

use std::collections::BTreeMap;

use weft_proto::kinds::certificate::Certificate;
use weft_proto::kinds::issuer::{ClusterIssuer, Issuer};
use weft_proto::kinds::order::{Challenge, Order, OrderState};
use weft_proto::kinds::{Kind, Spec};
use weft_proto::resource::{Resource, ResourceKey};
use weft_proxy::table::routes::Document;

use super::Unenforced;
use super::kept::{Kept, by_age, keep_document};

/// Those documents, as they are enforced.
#[derive(Debug, Default)]
pub(super) struct IssuingSpecs {
    issuers: BTreeMap<ResourceKey, Kept<Document<Issuer>>>,
    certificates: BTreeMap<ResourceKey, Kept<Document<Certificate>>>,
    orders: BTreeMap<ResourceKey, Kept<Document<Order>>>,
}

impl IssuingSpecs {
    /// Reads a document; whether it is one of these.
    pub(super) fn read(&mut self, kind: &Kind, resource: &Resource) -> bool {
        match kind.key() {
            key if key == Issuer::KIND.key() => {
                keep_document(&mut self.issuers, kind, resource, |spec: Issuer| spec);
            }
            key if key == ClusterIssuer::KIND.key() => {
                keep_document(&mut self.issuers, kind, resource, |ClusterIssuer(spec)| spec);
            }
            key if key == Certificate::KIND.key() => {
                keep_document(&mut self.certificates, kind, resource, |spec: Certificate| spec);
            }
            key if key == Order::KIND.key() => {
                keep_document(&mut self.orders, kind, resource, |spec: Order| spec);
            }
            _ => return false,
        }
        true
    }

    /// Forgets documents that are gone.
    pub(super) fn retain(&mut self, there: impl Fn(&ResourceKey) -> bool) {
        self.issuers.retain(|key, _| there(key));
        self.certificates.retain(|key, _| there(key));
        self.orders.retain(|key, _| there(key));
    }

    /// What gateways are asked to prove.
    pub(super) fn challenges(&self) -> Vec<Challenge> {
        let pending = by_age(&self.orders).into_iter().filter(|order| order.spec.state == OrderState::Pending);
        pending.flat_map(|order| order.spec.challenges.clone()).collect()
    }

    pub(super) fn unenforced(&self) -> impl Iterator<Item = Unenforced> {
        let issuers = self.issuers.iter().filter_map(|(key, kept)| kept.unenforced(key, kept.without_it()));
        let certificates = self.certificates.iter().filter_map(|(key, kept)| kept.unenforced(key, kept.without_it()));
        let orders = self.orders.iter().filter_map(|(key, kept)| kept.unenforced(key, kept.without_it()));
        issuers.chain(certificates).chain(orders)
    }
}
