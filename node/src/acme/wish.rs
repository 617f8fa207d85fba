//! Which certificates are wanted, and when each is to be ordered. Pure.

use std::collections::{BTreeMap, BTreeSet};

use weft_consensus::state::State;
use weft_proto::kinds::certificate::Certificate;
use weft_proto::kinds::order::Order;
use weft_proto::kinds::secret::Secret;
use weft_proto::kinds::{Kind, Spec};
use weft_proto::resource::ResourceKey;
use weft_proto::{Index, UnixMillis};
use weft_proxy::tls::{credential_names, credential_validity};

/// Who a certificate comes from, as cert-manager notes it on Secrets.
pub(super) const ISSUER_NAME: &str = "cert-manager.io/issuer-name";
/// The same of the issuer's kind.
pub(super) const ISSUER_KIND: &str = "cert-manager.io/issuer-kind";
/// Which certificate a Secret is of.
pub(super) const CERTIFICATE_NAME: &str = "cert-manager.io/certificate-name";

/// A certificate that is wanted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wish {
    pub(crate) key: ResourceKey,
    pub(crate) version: Index,
    /// The version of its issuer; 0 where there is none.
    pub(crate) issuer: Index,
    pub(crate) spec: Certificate,
    /// Another one that has its Secret.
    pub(crate) rival: Option<String>,
    /// What there is of it.
    held: Option<Held>,
    /// The last order of it, where that is not done.
    pub(crate) order: Option<Order>,
}

#[derive(Debug, Clone, PartialEq)]
struct Held {
    names: BTreeSet<String>,
    life: Option<(UnixMillis, UnixMillis)>,
    issuer: [Option<String>; 2],
}

/// Every certificate that is wanted.
pub(crate) fn wishes(state: &State) -> Vec<Wish> {
    let all = state.resources.values().filter(|one| one.key.kind == Certificate::KIND.key());
    let mut wishes: Vec<Wish> = all.filter_map(|one| Wish::new(state, &one.key, Certificate::of(one).ok()?)).collect();
    // Of several that want the same Secret the first has it: they would put theirs in its place without end.
    let mut owners: BTreeMap<ResourceKey, String> = BTreeMap::new();
    for wish in &mut wishes {
        match owners.get(&wish.secret_key()) {
            Some(owner) => wish.rival = Some(owner.clone()),
            None => drop(owners.insert(wish.secret_key(), wish.key.name.clone())),
        }
    }
    wishes
}

/// Orders of certificates that are wanted no more.
pub(super) fn left_over(state: &State) -> Vec<ResourceKey> {
    let orders = state.resources.keys().filter(|key| key.kind == Order::KIND.key());
    let wanted = |key: &ResourceKey| state.resources.contains_key(&beside(key, &Certificate::KIND, &key.name));
    orders.filter(|key| !wanted(key)).cloned().collect()
}

impl Wish {
    fn new(state: &State, key: &ResourceKey, spec: Certificate) -> Option<Self> {
        let version = state.resources.get(key)?.version;
        let secret = state.resources.get(&beside(key, &Secret::KIND, &spec.secret_name));
        let held = secret.and_then(|one| {
            let credential = Secret::of(one).ok()?.credential(&BTreeMap::new());
            let noted = |name: &str| one.annotations.get(name).cloned();
            Some(Held {
                names: credential_names(&credential).into_iter().collect(),
                life: credential_validity(&credential),
                issuer: [noted(ISSUER_NAME), noted(ISSUER_KIND)],
            })
        });
        let order = state.resources.get(&beside(key, &Order::KIND, &key.name));
        let issuer = state.resources.get(&spec.issuer(&key.namespace)).map_or(0, |one| one.version);
        // What failed before something else was said says nothing now.
        let same = |order: &Order| (order.certificate, order.issuer) == (version, issuer);
        let order = order.and_then(|one| Order::of(one).ok()).filter(same);
        Some(Self { key: key.clone(), version, issuer, spec, rival: None, held, order })
    }

    /// When it is to be ordered, and why then.
    pub(crate) fn due(&self) -> (UnixMillis, &'static str) {
        let (at, why) = self.needed();
        (at.max(self.order.as_ref().map_or(0, Order::next)), why)
    }

    /// When it ends; none while there is none.
    pub(crate) fn ends(&self) -> Option<UnixMillis> {
        self.held.as_ref().and_then(|held| held.life).map(|(_, end)| end)
    }

    /// Whether there is one as it is wanted.
    pub(crate) fn is_met(&self) -> bool {
        self.rival.is_none() && self.needed().0 > 0
    }

    /// How often in a row it could not be ordered.
    pub(crate) fn failures(&self) -> u32 {
        self.order.as_ref().map_or(0, |order| order.failures)
    }

    /// Whether there is none as it is wanted, or it is to be renewed by now.
    pub(crate) fn is_wanted(&self, now: UnixMillis) -> bool {
        self.rival.is_none() && self.needed().0 <= now
    }

    fn needed(&self) -> (UnixMillis, &'static str) {
        if self.rival.is_some() {
            return (UnixMillis::MAX, "another one has its Secret");
        }
        let Some(held) = &self.held else { return (0, "there is none") };
        let Some(life) = held.life else { return (0, "what there is cannot be read") };
        let issuer = &self.spec.issuer_ref;
        // Some servers add names of their own.
        if !held.names.is_superset(&self.spec.names()) {
            return (0, "it is not for all names");
        }
        if held.issuer != [Some(issuer.name.clone()), Some(issuer.kind.clone())] {
            return (0, "it is of another issuer");
        }
        (self.spec.renewal(life), "it ends")
    }

    /// The document of its order.
    pub(super) fn order_key(&self) -> ResourceKey {
        beside(&self.key, &Order::KIND, &self.key.name)
    }

    /// The document that it is put in.
    pub(super) fn secret_key(&self) -> ResourceKey {
        beside(&self.key, &Secret::KIND, &self.spec.secret_name)
    }
}

/// A document of the same namespace.
pub(super) fn beside(key: &ResourceKey, kind: &Kind, name: &str) -> ResourceKey {
    ResourceKey { kind: kind.key(), namespace: key.namespace.clone(), name: name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: UnixMillis = 24 * 3600 * 1000;

    fn wish(names: &[&str]) -> Wish {
        let text = r#"{"secretName": "shop", "dnsNames": ["a.example", "b.example"], "issuerRef": {"name": "ca"}}"#;
        let held = Held {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            life: Some((DAY, 91 * DAY)),
            issuer: [Some("ca".into()), Some("Issuer".into())],
        };
        Wish {
            key: ResourceKey { kind: Certificate::KIND.key(), namespace: "default".into(), name: "shop".into() },
            version: 7,
            issuer: 3,
            spec: serde_json::from_str(text).expect("reads"),
            rival: None,
            held: Some(held),
            order: None,
        }
    }

    #[test]
    fn one_is_ordered_when_there_is_none_or_another_or_it_ends() {
        let fresh = wish(&["a.example", "b.example"]);
        assert_eq!(fresh.due(), (61 * DAY, "it ends"));
        assert!(fresh.is_met());
        assert_eq!(wish(&["a.example"]).due(), (0, "it is not for all names"));
        assert_eq!(Wish { held: None, ..fresh.clone() }.due(), (0, "there is none"));
        let mut other = fresh.clone();
        other.spec.issuer_ref.kind = "ClusterIssuer".into();
        assert_eq!(other.due(), (0, "it is of another issuer"));
        let order = Order { failures: 3, tried: 5 * DAY, ..Order::default() };
        let failed = Wish { held: None, order: Some(order.clone()), ..fresh.clone() };
        assert_eq!(failed.due().0, order.next());
        assert!(!failed.is_met());
        // One that failed long before it has to be renewed does not keep that from being tried.
        assert_eq!(Wish { order: Some(order), ..fresh }.due().0, 61 * DAY);
    }
}
