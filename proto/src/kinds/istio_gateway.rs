//! Ports through which calls come from outside the mesh, field for field as Istio's `Gateway` (networking.istio.io/v1). A field
//! that is not listed is refused.

mod check;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::hosts::meeting;
use super::{Faults, Kind, Names, Spec};

/// `spec` of a `Gateway`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IstioGateway {
    /// Labels of the gateways that serve it, in whatever namespace; none: all gateways.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    /// What is served.
    #[serde(default)]
    pub servers: Vec<Server>,
}

/// A port, and for which hosts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Server {
    /// The port.
    pub port: ServerPort,
    /// The address that is listened on. Unset: all that the host has.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub bind: String,
    /// `[namespace/]host`: which documents may attach to it, and for which hosts. `*` is any, `.` the own namespace.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// What is done with TLS; needed for HTTPS and TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
    /// Its name in records.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// A port of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerPort {
    /// 1 to 65535.
    pub number: u16,
    /// HTTP, HTTPS, GRPC, GRPC-WEB, HTTP2, MONGO, TCP or TLS.
    pub protocol: String,
    /// Its name, unique in the document.
    #[serde(default)]
    pub name: String,
    /// Without effect, as in Istio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
}

/// What is done with TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerTls {
    /// On a plain port: every call is told to come by https.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub https_redirect: bool,
    /// Unset: `PASSTHROUGH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<TlsMode>,
    /// A file on the gateway's host with its chain, PEM.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub server_certificate: String,
    /// A file with its key, PEM.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub private_key: String,
    /// A file with the authorities of callers, PEM.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ca_certificates: String,
    /// A `Secret` in the gateway's namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub credential_name: String,
    /// At most two, of different kinds of keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credential_names: Vec<String>,
    /// A `Secret` with the authorities of callers; goes before those of the credential.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ca_cert_credential_name: String,
    /// Names of which a caller's certificate must have one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
    /// Unset: TLS 1.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_protocol_version: Option<TlsVersion>,
    /// Unset: TLS 1.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_protocol_version: Option<TlsVersion>,
    /// Suites of TLS 1.2 by their names of OpenSSL; those that are not known are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cipher_suites: Vec<String>,
}

/// What is done with TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// It is passed on as it is, by the name that the caller asks for.
    Passthrough,
    /// It ends here.
    Simple,
    /// It ends here, and the caller needs a certificate.
    Mutual,
    /// It ends here; a certificate of the caller is checked if there is one.
    OptionalMutual,
    /// It ends here with the gateway's own identity, and the caller needs one of the mesh.
    IstioMutual,
    /// Names of the mesh are passed on to their services without a rule.
    AutoPassthrough,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TlsVersion {
    /// What is best.
    #[serde(rename = "TLS_AUTO")]
    Auto,
    /// TLS 1.0, which is not spoken.
    #[serde(rename = "TLSV1_0")]
    V1_0,
    /// TLS 1.1, which is not spoken.
    #[serde(rename = "TLSV1_1")]
    V1_1,
    /// TLS 1.2.
    #[serde(rename = "TLSV1_2")]
    V1_2,
    /// TLS 1.3.
    #[serde(rename = "TLSV1_3")]
    V1_3,
}

impl Server {
    /// What it is told apart by among the servers of its document.
    pub fn label(&self) -> String {
        match self.port.name.as_str() {
            "" => format!("{} {}", self.port.number, self.port.protocol),
            name => name.to_owned(),
        }
    }

    /// Whether its streams are HTTP once TLS has ended.
    pub fn speaks_http(&self) -> bool {
        let passes = self.tls.as_ref().is_some_and(|tls| tls.mode.is_none_or(|mode| mode == TlsMode::Passthrough));
        match self.port.protocol.to_ascii_uppercase().as_str() {
            "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" => true,
            "HTTPS" => !passes,
            _ => false,
        }
    }

    /// Whether its streams are of TLS.
    pub fn is_secured(&self) -> bool {
        matches!(self.port.protocol.to_ascii_uppercase().as_str(), "HTTPS" | "TLS")
    }

    /// Whether its TLS is that of the mesh itself, which ends with the link.
    pub fn is_of_mesh(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.mode == Some(TlsMode::IstioMutual))
    }

    /// What a document of another namespace may serve here of a host: the narrower one of both.
    pub fn meets<'a>(&'a self, own: &str, host: &'a str, namespace: &str) -> Vec<&'a str> {
        let admitted = |one: &'a String| {
            let (space, name) = one.split_once('/').unwrap_or(("*", one));
            let space = if space == "." { own } else { space };
            (space == "*" || space == namespace).then(|| meeting(name, host)).flatten()
        };
        self.hosts.iter().filter_map(admitted).collect()
    }

    /// The hosts that it is for, whoever serves them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().map(|one| one.split_once('/').map_or(one.as_str(), |(_, name)| name))
    }
}

impl Spec for IstioGateway {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "Gateway",
        group: "networking.istio.io",
        versions: &["v1", "v1beta1", "v1alpha3"],
        plural: "gateways",
        short: &["gw"],
        about: "ports through which calls come from outside",
        example: include_str!("istio_gateway.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        check::gateway(self, faults);
    }

    fn hints(&self) -> Vec<String> {
        check::hints(self)
    }
}
