//! Where certificates are ordered: cert-manager's `Issuer` and `ClusterIssuer`, field for field as far as ACME (RFC 8555) goes. A
//! field that is not listed is refused.

use std::cmp::Reverse;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hosts::covers;
use super::{Faults, Kind, Names, Spec};

/// What an `Issuer` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// An ACME server, and an account there.
    pub acme: Acme,
}

/// An `Issuer` for all namespaces. It stands in the namespace `default`, and its Secrets do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterIssuer(pub Issuer);

/// An ACME server, and an account there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Acme {
    /// Its directory (RFC 8555, 7.1.1): a URL of `https`.
    pub server: String,
    /// Where the server's people reach whoever has the account.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub email: String,
    /// Authorities that the server is trusted by, PEM in base64; empty: those that the host trusts.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ca_bundle: String,
    /// The Secret with the account's key (`tls.key`); made where it is not there.
    pub private_key_secret_ref: SecretRef,
    /// What the server's operator knows the account's owner by (RFC 8555, 7.3.4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_account_binding: Option<ExternalAccount>,
    /// How it is proved that names are ours: the one with the narrowest selector that means a name, the first of equals.
    pub solvers: Vec<Solver>,
}

/// A Secret of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretRef {
    /// Its name.
    pub name: String,
    /// Which of its values; empty: the usual one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
}

/// An account elsewhere that an ACME account belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalAccount {
    /// What it is known by.
    #[serde(rename = "keyID")]
    pub key_id: String,
    /// The Secret with its key of HMAC, in base64url, by default as `secret`.
    pub key_secret_ref: SecretRef,
}

/// How it is proved that names are ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Solver {
    /// The names that it is for; none: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<SolverSelector>,
    /// Over plain HTTP, at port 80 (RFC 8555, 8.3). What it says of ingresses and routes is without effect: every gateway answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http01: Option<Value>,
    /// Within the handshake of TLS, at port 443 (RFC 8737). Weft's own.
    #[serde(default, rename = "tlsAlpn01", skip_serializing_if = "Option::is_none")]
    pub tls_alpn01: Option<Empty>,
    /// By records of DNS: not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns01: Option<Value>,
}

/// Nothing more is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

/// The names that a solver is for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SolverSelector {
    /// These names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    /// These names and all below them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_zones: Vec<String>,
}

/// A way to prove that a name is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ChallengeType {
    /// RFC 8555, 8.3.
    #[serde(rename = "HTTP-01")]
    Http01,
    /// RFC 8737.
    #[serde(rename = "TLS-ALPN-01")]
    TlsAlpn01,
}

impl fmt::Display for ChallengeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http01 => "HTTP-01",
            Self::TlsAlpn01 => "TLS-ALPN-01",
        })
    }
}

impl Acme {
    /// How it is proved that the name is ours; none where no solver is for it.
    pub fn solver(&self, name: &str) -> Option<ChallengeType> {
        let ranked = self.solvers.iter().filter_map(|solver| Some((solver.rank(name)?, solver)));
        let (_, solver) = ranked.min_by_key(|(rank, _)| Reverse(*rank))?;
        Some(if solver.tls_alpn01.is_some() { ChallengeType::TlsAlpn01 } else { ChallengeType::Http01 })
    }
}

impl Solver {
    /// How narrowly it means the name; none where it does not.
    fn rank(&self, name: &str) -> Option<(bool, usize)> {
        let Some(selector) = &self.selector else { return Some((false, 0)) };
        if selector.dns_names.is_empty() && selector.dns_zones.is_empty() {
            return Some((false, 0));
        }
        if selector.dns_names.iter().any(|own| own == name) {
            return Some((true, 0));
        }
        let zones = selector.dns_zones.iter().filter(|zone| *zone == name || covers(&format!("*.{zone}"), name));
        zones.map(|zone| (false, zone.len())).max()
    }
}

impl Spec for Issuer {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "Issuer",
        group: GROUP,
        versions: &["v1"],
        plural: "issuers",
        short: &[],
        about: "an ACME server where certificates are ordered, and an account there",
        example: include_str!("issuer.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        let acme = &self.acme;
        if !acme.server.starts_with("https://") {
            faults.push(("spec.acme.server".into(), "the URL of a directory, of https".into()));
        }
        if !acme.email.is_empty() && !acme.email.contains('@') {
            faults.push(("spec.acme.email".into(), "an address of mail".into()));
        }
        if super::from_base64(&acme.ca_bundle).is_none() {
            faults.push(("spec.acme.caBundle".into(), "it is not base64".into()));
        }
        let mut named = |path: &str, secret: &SecretRef| {
            if let Err(error) = crate::identity::subdomain(&secret.name, "name") {
                faults.push((format!("spec.acme.{path}.name"), error.to_string()));
            }
        };
        named("privateKeySecretRef", &acme.private_key_secret_ref);
        if let Some(external) = &acme.external_account_binding {
            named("externalAccountBinding.keySecretRef", &external.key_secret_ref);
        }
        if acme.solvers.is_empty() {
            faults.push(("spec.acme.solvers".into(), "at least one: {http01: {}} or {tlsAlpn01: {}}".into()));
        }
        for (at, solver) in acme.solvers.iter().enumerate() {
            let path = format!("spec.acme.solvers[{at}]");
            if solver.dns01.is_some() {
                faults.push((format!("{path}.dns01"), "not supported: names are proved by http01 or tlsAlpn01".into()));
            } else if solver.http01.is_some() == solver.tls_alpn01.is_some() {
                faults.push((path, "one of http01 and tlsAlpn01".into()));
            }
        }
    }
}

impl Spec for ClusterIssuer {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "ClusterIssuer",
        group: GROUP,
        versions: &["v1"],
        plural: "clusterissuers",
        short: &[],
        about: "the same for all namespaces",
        example: include_str!("cluster_issuer.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        self.0.check(faults);
    }
}

/// The group of cert-manager's kinds.
pub const GROUP: &str = "cert-manager.io";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_solver_proves_a_name() {
        let text = r#"{"server": "https://ca", "privateKeySecretRef": {"name": "a"}, "solvers": [
            {"http01": {}},
            {"selector": {"dnsZones": ["example.com"]}, "tlsAlpn01": {}},
            {"selector": {"dnsZones": ["in.example.com"]}, "http01": {}},
            {"selector": {"dnsNames": ["x.in.example.com"]}, "tlsAlpn01": {}}
        ]}"#;
        let acme: Acme = serde_json::from_str(text).expect("reads");
        for (name, expected) in [
            ("other.org", ChallengeType::Http01),
            ("example.com", ChallengeType::TlsAlpn01),
            ("a.b.example.com", ChallengeType::TlsAlpn01),
            ("a.in.example.com", ChallengeType::Http01),
            ("x.in.example.com", ChallengeType::TlsAlpn01),
        ] {
            assert_eq!(acme.solver(name), Some(expected), "{name}");
        }
        let only = Acme { solvers: acme.solvers[1..].to_vec(), ..acme };
        assert_eq!(only.solver("other.org"), None);
    }
}
