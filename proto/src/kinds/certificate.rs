//! Certificates that the mesh orders and renews: cert-manager's `Certificate`, field for field as far as ACME has a use for it. A
//! field that is not listed is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::issuer::{ClusterIssuer, GROUP, Issuer};
use super::istio::go_duration as duration;
use super::{Faults, Kind, Names, Spec};
use crate::UnixMillis;
use crate::identity::subdomain;
use crate::resource::ResourceKey;
use crate::service::DEFAULT_NAMESPACE;

/// What a `Certificate` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Certificate {
    /// The Secret that it is put in, with its key.
    pub secret_name: String,
    /// The names that it is for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    /// One more of those.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub common_name: String,
    /// Where it is ordered.
    pub issuer_ref: IssuerRef,
    /// Without effect: the server says how long it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// How long before its end it is renewed; none: at two thirds of its life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_before: Option<String>,
    /// The same, in percent of its life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_before_percentage: Option<u8>,
    /// Its key.
    #[serde(default, skip_serializing_if = "is_default")]
    pub private_key: PrivateKey,
    /// Labels and annotations of the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_template: Option<SecretTemplate>,
    /// Without effect: the server says what it may be used for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usages: Option<Value>,
    /// Without effect: there is no history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision_history_limit: Option<u32>,
}

/// An issuer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerRef {
    /// Its name.
    pub name: String,
    /// `Issuer`, which is meant where nothing is said, or `ClusterIssuer`.
    #[serde(default = "issuer")]
    pub kind: String,
    /// `cert-manager.io`.
    #[serde(default = "group")]
    pub group: String,
}

/// A certificate's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PrivateKey {
    /// Of what kind it is.
    #[serde(default)]
    pub algorithm: KeyAlgorithm,
    /// Its length in bits; none: 256 of ECDSA, 2048 of RSA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// Whether each certificate has a new one.
    #[serde(default)]
    pub rotation_policy: RotationPolicy,
    /// Without effect: it is always PKCS #8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<KeyEncoding>,
}

/// Of what kind a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum KeyAlgorithm {
    /// Of elliptic curves.
    #[default]
    #[serde(rename = "ECDSA")]
    Ecdsa,
    /// RSA.
    #[serde(rename = "RSA")]
    Rsa,
}

/// Whether each certificate has a new key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RotationPolicy {
    /// It has.
    #[default]
    Always,
    /// The key stays.
    Never,
}

/// How a key is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyEncoding {
    /// PKCS #1.
    #[serde(rename = "PKCS1")]
    Pkcs1,
    /// PKCS #8.
    #[serde(rename = "PKCS8")]
    Pkcs8,
}

/// What a Secret has beside its values.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretTemplate {
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Certificate {
    /// All names that it is for, in small letters.
    pub fn names(&self) -> BTreeSet<String> {
        let all = self.dns_names.iter().chain(Some(&self.common_name).filter(|name| !name.is_empty()));
        all.map(|name| name.to_ascii_lowercase()).collect()
    }

    /// The issuer that one of this namespace means.
    pub fn issuer(&self, namespace: &str) -> ResourceKey {
        let name = self.issuer_ref.name.clone();
        match self.issuer_ref.kind.as_str() {
            CLUSTER => ResourceKey { kind: ClusterIssuer::KIND.key(), namespace: DEFAULT_NAMESPACE.to_owned(), name },
            _ => ResourceKey { kind: Issuer::KIND.key(), namespace: namespace.to_owned(), name },
        }
    }

    /// When one of this life is renewed.
    pub fn renewal(&self, (begin, end): (UnixMillis, UnixMillis)) -> UnixMillis {
        let life = end.saturating_sub(begin);
        let before = match (self.renew_before.as_deref().and_then(duration), self.renew_before_percentage) {
            (Some(before), _) => u64::try_from(before.as_millis()).unwrap_or(u64::MAX),
            (None, Some(percent)) => life * u64::from(percent) / 100,
            (None, None) => life / 3,
        };
        // One that lives shorter than that, or that begins before it is made, would be renewed without end.
        end.saturating_sub(if before < life { before.min(life - life / 3) } else { life / 3 })
    }
}

impl Spec for Certificate {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "Certificate",
        group: GROUP,
        versions: &["v1"],
        plural: "certificates",
        short: &["cert", "certs"],
        about: "a certificate of a gateway that the mesh orders by ACME, and renews",
        example: include_str!("certificate.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        let mut fault = |path: &str, text: String| faults.push((format!("spec.{path}"), text));
        for (path, name) in [("secretName", &self.secret_name), ("issuerRef.name", &self.issuer_ref.name)] {
            if let Err(error) = subdomain(name, "name") {
                fault(path, error.to_string());
            }
        }
        if ![ISSUER, CLUSTER].contains(&&*self.issuer_ref.kind) {
            fault("issuerRef.kind", format!("{ISSUER} or {CLUSTER}"));
        }
        if self.issuer_ref.group != GROUP {
            fault("issuerRef.group", GROUP.into());
        }
        if self.names().is_empty() {
            fault("dnsNames", "at least one".into());
        }
        for name in self.names() {
            if name.starts_with("*.") {
                let text = "is proved by DNS alone, which is not supported: give its certificate as a Secret, or name the hosts";
                fault("dnsNames", format!("{name} {text}"));
            } else if let Err(error) = subdomain(&name, "name") {
                fault("dnsNames", format!("{name}: {error}"));
            }
        }
        for (path, text) in [("duration", &self.duration), ("renewBefore", &self.renew_before)] {
            if text.as_deref().is_some_and(|text| duration(text).is_none_or(|length| length < RENEW_MIN)) {
                fault(path, "a length of time such as 720h, of 5 minutes at least".into());
            }
        }
        if self.renew_before_percentage.is_some_and(|percent| !(1..100).contains(&percent)) {
            fault("renewBeforePercentage", "from 1 to 99".into());
        }
        if self.renew_before.is_some() && self.renew_before_percentage.is_some() {
            fault("renewBeforePercentage", "either it or renewBefore".into());
        }
        let fits = match (self.private_key.algorithm, self.private_key.size) {
            (_, None) => true,
            (KeyAlgorithm::Ecdsa, Some(size)) => [256, 384].contains(&size),
            (KeyAlgorithm::Rsa, Some(size)) => [2048, 3072, 4096].contains(&size),
        };
        if !fits {
            fault("privateKey.size", "256 or 384 of ECDSA; 2048, 3072 or 4096 of RSA".into());
        }
    }
}

fn is_default(key: &PrivateKey) -> bool {
    *key == PrivateKey::default()
}

fn issuer() -> String {
    ISSUER.into()
}

fn group() -> String {
    GROUP.into()
}

const ISSUER: &str = "Issuer";
const CLUSTER: &str = "ClusterIssuer";
/// Shortest time before its end at which one is renewed: cert-manager's own bound.
const RENEW_MIN: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_renewed_at_two_thirds_of_its_life_or_as_it_says() {
        let of = |more: &str| -> Certificate {
            let text = format!(r#"{{"secretName": "a", "dnsNames": ["a.b"], "issuerRef": {{"name": "i"}}{more}}}"#);
            serde_json::from_str(&text).expect("reads")
        };
        let day = 24 * 3600 * 1000;
        let life = (day, 91 * day);
        assert_eq!(of("").renewal(life), 61 * day);
        assert_eq!(of(r#", "renewBefore": "240h""#).renewal(life), 81 * day);
        assert_eq!(of(r#", "renewBeforePercentage": 50"#).renewal(life), 46 * day);
        // Never in the first third, and not before it has begun.
        assert_eq!(of(r#", "renewBefore": "2159h30m""#).renewal(life), 31 * day);
        assert_eq!(of(r#", "renewBefore": "2400h""#).renewal(life), 61 * day);
    }
}
