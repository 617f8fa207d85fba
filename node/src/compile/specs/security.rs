//! Documents about who may call, and how callers prove who they are: one that cannot be read is as strict as it can be.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_proto::identity::TrustDomain;
use weft_proto::kinds::authorization_policy::{AuthorizationPolicy, DRY_RUN_ANNOTATION};
use weft_proto::kinds::peer_authentication::{Mode, PeerAuthentication};
use weft_proto::kinds::{Kind, Spec};
use weft_proto::resource::{Resource, ResourceKey};
use weft_proxy::table::authz::{Authorization, PolicyDescription};
use weft_proxy::table::peers::{PeerDocument, PeersDescription};
use weft_proxy::table::routes::Document;

use super::Unenforced;
use super::kept::{Kept, by_age, keep, supported};

/// Those documents, as they are enforced.
#[derive(Debug, Default)]
pub(super) struct SecuritySpecs {
    policies: BTreeMap<ResourceKey, Kept<PolicyDescription>>,
    peers: BTreeMap<ResourceKey, Kept<PeerDocument>>,
}

impl SecuritySpecs {
    /// Reads a document if it is one of these; whether it is.
    pub(super) fn read(&mut self, kind: &Kind, resource: &Resource, trust_domain: Option<&TrustDomain>) -> bool {
        match kind.key() {
            key if key == AuthorizationPolicy::KIND.key() => {
                let read = || supported(kind, resource).and_then(|()| policy(resource, trust_domain));
                keep(&mut self.policies, resource, read, || Some(closed(resource)));
            }
            key if key == PeerAuthentication::KIND.key() => {
                let document = |spec| Document { key: resource.key.clone(), created: resource.created, spec };
                let read = || supported(kind, resource).and_then(|()| PeerAuthentication::of(resource));
                let strict = || Some(document(PeerAuthentication::closed(&resource.spec)));
                keep(&mut self.peers, resource, || read().map(document), strict);
            }
            _ => return false,
        }
        true
    }

    /// Forgets documents that are gone.
    pub(super) fn retain(&mut self, there: impl Fn(&ResourceKey) -> bool) {
        self.policies.retain(|key, _| there(key));
        self.peers.retain(|key, _| there(key));
    }

    /// Every policy, as it is enforced.
    pub(super) fn policies(&self) -> impl Iterator<Item = &Arc<PolicyDescription>> {
        self.policies.values().filter_map(|kept| kept.good.as_ref())
    }

    /// What instances take at their own ports, where nothing says it that.
    pub(super) fn peers(&self, default: Mode) -> PeersDescription {
        PeersDescription { documents: by_age(&self.peers), default }
    }

    pub(super) fn unenforced(&self) -> impl Iterator<Item = Unenforced> {
        let policies = self.policies.iter();
        let policies =
            policies.filter_map(|(key, kept)| kept.unenforced(key, "all calls to what it selects are denied"));
        let peers = self.peers.iter();
        policies.chain(peers.filter_map(|(key, kept)| kept.unenforced(key, "what it selects takes mutual TLS alone")))
    }
}

fn policy(resource: &Resource, trust_domain: Option<&TrustDomain>) -> Result<PolicyDescription, String> {
    let policy = AuthorizationPolicy::of(resource)?;
    let policy = trust_domain.into_iter().fold(policy, AuthorizationPolicy::in_trust_domain);
    let description = describe(resource, policy);
    Authorization::check(&description).map_err(|error| format!("{}: {}", error.path, error.message))?;
    Ok(description)
}

fn closed(resource: &Resource) -> PolicyDescription {
    describe(resource, AuthorizationPolicy::closed(&resource.spec))
}

fn describe(resource: &Resource, policy: AuthorizationPolicy) -> PolicyDescription {
    let dry_run = resource.annotations.get(DRY_RUN_ANNOTATION).is_some_and(|value| value == "true");
    PolicyDescription { key: resource.key.clone(), policy, dry_run }
}
