//! Certificates with their keys, field for field as Kubernetes' `Secret` (v1). What must stay secret is sealed before the mesh
//! keeps it, and is never shown again. A field that is not listed is refused.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{Faults, Kind, Names, Spec};

/// What a `Secret` says.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Secret {
    /// `kubernetes.io/tls`, or `Opaque`, which is meant where nothing is said.
    #[serde(default = "opaque")]
    pub r#type: String,
    /// Values in base64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
    /// Values as they are; they go before those of `data`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub string_data: BTreeMap<String, String>,
    /// Values that only the mesh can open, in base64: written by it, and taken back as they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sealed: BTreeMap<String, String>,
    /// Without effect: whoever may change it may set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub immutable: Option<bool>,
}

/// Nothing of it is for logs.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("type", &self.r#type).finish_non_exhaustive()
    }
}

/// What a credential holds that gateways and callers use, PEM.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Credential {
    /// Its certificate, and those between that and its authority.
    pub chain: Option<Vec<u8>>,
    /// The key of its certificate.
    pub key: Option<Vec<u8>>,
    /// The authorities of the other end.
    pub authorities: Option<Vec<u8>>,
    /// Certificates that those have revoked.
    pub revoked: Option<Vec<u8>>,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").finish_non_exhaustive()
    }
}

impl Secret {
    /// Its values that anyone may see, and those that must be sealed.
    pub fn values(&self) -> (BTreeMap<String, Vec<u8>>, BTreeMap<String, Vec<u8>>) {
        let encoded = self.data.iter().filter_map(|(name, text)| Some((name.clone(), from_base64(text)?)));
        let plain = self.string_data.iter().map(|(name, text)| (name.clone(), text.clone().into_bytes()));
        let all: BTreeMap<String, Vec<u8>> = encoded.chain(plain).collect();
        all.into_iter().partition(|(name, _)| PUBLIC.contains(&name.as_str()))
    }

    /// The form in which the mesh keeps it: `sealed` has every value that must be.
    pub fn kept(self, sealed: BTreeMap<String, Vec<u8>>) -> Self {
        let (public, _) = self.values();
        let data = public.into_iter().map(|(name, value)| (name, STANDARD.encode(value))).collect();
        let mut boxes = self.sealed;
        boxes.extend(sealed.into_iter().map(|(name, value)| (name, STANDARD.encode(value))));
        Self { data, string_data: BTreeMap::new(), sealed: boxes, ..self }
    }

    /// Its values that are sealed.
    pub fn boxes(&self) -> BTreeMap<String, Vec<u8>> {
        self.sealed.iter().filter_map(|(name, text)| Some((name.clone(), from_base64(text)?))).collect()
    }

    /// What it holds under the names of Kubernetes or of Istio; `opened` has the values that were sealed.
    pub fn credential(&self, opened: &BTreeMap<String, Vec<u8>>) -> Credential {
        let (public, _) = self.values();
        let find = |names: [&str; 2]| {
            let value = |name: &str| opened.get(name).or_else(|| public.get(name)).cloned();
            names.into_iter().find_map(value)
        };
        Credential {
            chain: find(["tls.crt", "cert"]),
            key: find(["tls.key", "key"]),
            authorities: find(["ca.crt", "cacert"]),
            revoked: find(["ca.crl", "crl"]),
        }
    }
}

impl Spec for Secret {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "Secret",
        group: "",
        versions: &["v1"],
        plural: "secrets",
        short: &[],
        about: "certificates with their keys, for gateways",
        example: include_str!("secret.yaml"),
    });
    const FIELDS: &'static [&'static str] = &["type", "data", "stringData", "sealed", "immutable"];

    fn check(&self, faults: &mut Faults) {
        for (name, text) in &self.data {
            if from_base64(text).is_none() {
                faults.push((format!("spec.data.{name}"), "it is not base64".into()));
            }
        }
        let length: usize = self.data.values().chain(self.string_data.values()).map(String::len).sum();
        if length > LENGTH_MAX {
            faults.push(("spec.data".into(), format!("{length} bytes; at most {LENGTH_MAX}")));
        }
        let has = |name: &str| {
            self.data.contains_key(name) || self.string_data.contains_key(name) || self.sealed.contains_key(name)
        };
        match self.r#type.as_str() {
            "kubernetes.io/tls" => {
                for name in ["tls.crt", "tls.key"].into_iter().filter(|name| !has(name)) {
                    faults.push((format!("spec.data.{name}"), "kubernetes.io/tls needs it".into()));
                }
            }
            "Opaque" | "" => {}
            _ => faults.push(("spec.type".into(), "kubernetes.io/tls or Opaque".into())),
        }
    }

    fn hints(&self) -> Vec<String> {
        let names = || self.data.keys().chain(self.string_data.keys()).chain(self.sealed.keys());
        if names().any(|name| USED.contains(&name.as_str())) {
            return Vec::new();
        }
        let text = "there is neither tls.crt (or cert) nor ca.crt (or cacert) in it: no gateway has a use for it";
        vec![text.into()]
    }
}

/// Reads base64, which may be broken into lines.
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    // Tools that write it may break it into lines.
    let joined: String = text.split_ascii_whitespace().collect();
    STANDARD.decode(joined).ok()
}

fn opaque() -> String {
    "Opaque".into()
}

/// Values that anyone may see: certificates, and lists of what was revoked.
const PUBLIC: [&str; 6] = ["tls.crt", "ca.crt", "ca.crl", "cert", "cacert", "crl"];
/// What gateways and ACME accounts take up.
const USED: [&str; 7] = ["tls.crt", "ca.crt", "cert", "cacert", "tls.key", "secret", "ca.crl"];
/// Most bytes of all values.
const LENGTH_MAX: usize = 1 << 20;
