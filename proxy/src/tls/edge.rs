//! TLS with callers from outside the mesh: certificates that documents give, told apart by what callers ask for.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use weft_proto::UnixMillis;
use weft_proto::kinds::secret::Credential;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{ALPN_H1, ALPN_H2};

/// What a port of a gateway is to do with TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EdgeTls {
    /// Certificates with their keys, of which each caller is shown one that it can read.
    pub credentials: Vec<Credential>,
    /// Why there is none, where there should be one.
    pub lacks: Option<String>,
    /// Whether callers show certificates.
    pub clients: EdgeClients,
    /// The authorities of callers, PEM.
    pub authorities: Vec<u8>,
    /// Certificates that those have revoked, PEM.
    pub revoked: Vec<u8>,
    /// Names of which a caller's certificate must have one; none: any will do.
    pub names: Vec<String>,
    /// Whether TLS 1.2 is spoken.
    pub old: bool,
    /// Whether TLS 1.3 is.
    pub new: bool,
    /// The suites of TLS 1.2, by their names of OpenSSL; none: all.
    pub suites: Vec<String>,
    /// Whether what follows is HTTP.
    pub http: bool,
}

/// Whether callers show certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EdgeClients {
    /// They are not asked.
    #[default]
    Unasked,
    /// They may, and what they show must be good.
    Optional,
    /// They must.
    Required,
}

/// The configuration of a port; an error says why there can be none.
pub(crate) fn server_config(edge: &EdgeTls) -> Result<Arc<ServerConfig>, String> {
    if let Some(why) = &edge.lacks {
        return Err(why.clone());
    }
    let keys = edge.credentials.iter().map(certified).collect::<Result<Vec<_>, String>>()?;
    if keys.is_empty() {
        return Err("there is no certificate".into());
    }
    let provider = Arc::new(provider(&edge.suites));
    let versions: Vec<&SupportedProtocolVersion> =
        [(edge.new, &rustls::version::TLS13), (edge.old, &rustls::version::TLS12)]
            .into_iter()
            .filter_map(|(spoken, version)| spoken.then_some(version))
            .collect();
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&versions);
    let builder = builder.map_err(|error| error.to_string())?;
    let builder = match edge.clients {
        EdgeClients::Unasked => builder.with_no_client_auth(),
        EdgeClients::Optional | EdgeClients::Required => {
            let mut verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&edge.authorities)?), provider)
                    .with_crls(revocations(&edge.revoked)?);
            if edge.clients == EdgeClients::Optional {
                verifier = verifier.allow_unauthenticated();
            }
            builder.with_client_cert_verifier(verifier.build().map_err(|error| error.to_string())?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(Fitting(keys)));
    if edge.http {
        config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_H1.to_vec()];
    }
    Ok(Arc::new(config))
}

/// The cryptography, with these suites of TLS 1.2 and all of TLS 1.3.
fn provider(suites: &[String]) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let named = |name: &str| suites.is_empty() || suites.iter().any(|suite| *suite == open_ssl(name));
    let all = std::mem::take(&mut provider.cipher_suites);
    let kept = all.into_iter().filter(|suite| suite.tls13().is_some() || suite.suite().as_str().is_none_or(named));
    provider.cipher_suites = kept.collect();
    provider
}

/// `TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256` as OpenSSL writes it: `ECDHE-RSA-AES128-GCM-SHA256`.
fn open_ssl(name: &str) -> String {
    let name = name.trim_start_matches("TLS_").replace("_WITH", "").replace("AES_", "AES").replace('_', "-");
    name.trim_end_matches("-SHA256").to_owned()
        + if name.contains("CHACHA20") || !name.ends_with("-SHA256") { "" } else { "-SHA256" }
}

pub(super) fn certified(credential: &Credential) -> Result<Arc<CertifiedKey>, String> {
    let chain = credential.chain.as_deref().ok_or("the credential has no certificate (tls.crt or cert)")?;
    let key = credential.key.as_deref().ok_or("the credential has no key (tls.key or key)")?;
    let chain = certificates(chain)?;
    if chain.is_empty() {
        return Err("the credential's certificate is none in PEM".into());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| "the credential's key is none in PEM".to_owned())?;
    let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| format!("the credential's key: {error}"))?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|_| "the credential's key is not that of its certificate".to_owned())?;
    Ok(Arc::new(certified))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.map_err(|error| format!("a certificate cannot be read: {error}"))
}

pub(super) fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for one in certificates(pem)? {
        roots.add(one).map_err(|error| format!("an authority of callers: {error}"))?;
    }
    if roots.is_empty() { Err("the authorities of callers are missing (ca.crt or cacert)".into()) } else { Ok(roots) }
}

fn revocations(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    all.map_err(|error| format!("a list of what was revoked cannot be read: {error}"))
}

/// Whether a credential can be served: its certificate and key can be read and belong together.
pub fn check_credential(credential: &Credential) -> Result<(), String> {
    if credential.chain.is_some() || credential.key.is_some() {
        certified(credential)?;
    }
    match &credential.authorities {
        Some(pem) => roots(pem).map(drop),
        None => Ok(()),
    }
}

/// When a credential's certificate begins and ends, in milliseconds since 1970; none where it cannot be read.
pub fn credential_validity(credential: &Credential) -> Option<(UnixMillis, UnixMillis)> {
    super::validity(&certificates(credential.chain.as_deref()?).ok()?)
}

/// The hosts that a credential's certificate is for.
pub fn credential_names(credential: &Credential) -> Vec<String> {
    let leaf = credential.chain.as_deref().and_then(|pem| certificates(pem).ok()?.into_iter().next());
    let names = |leaf: CertificateDer<'static>| {
        let (_, parsed) = X509Certificate::from_der(&leaf).ok()?;
        let own = parsed.subject_alternative_name().ok()??;
        let name = |one: &GeneralName<'_>| match one {
            GeneralName::DNSName(text) => Some((*text).to_owned()),
            _ => None,
        };
        Some(own.value.general_names.iter().filter_map(name).collect())
    };
    leaf.and_then(names).unwrap_or_default()
}

/// Whether a certificate has one of these names, as a DNS name or as a URI.
pub(crate) fn has_name(certificate: &CertificateDer<'_>, names: &[String]) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    let Ok(Some(own)) = parsed.subject_alternative_name() else { return false };
    own.value.general_names.iter().any(|own| match own {
        GeneralName::DNSName(text) | GeneralName::URI(text) | GeneralName::RFC822Name(text) => {
            names.iter().any(|name| name == text)
        }
        _ => false,
    })
}

/// Shows each caller a certificate for the name that it asks for, of a kind that it can read.
#[derive(Debug)]
struct Fitting(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Fitting {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let [only] = &self.0[..] {
            return Some(only.clone());
        }
        let readable = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        let named = |key: &&Arc<CertifiedKey>| {
            let name = hello.server_name().and_then(|name| ServerName::try_from(name.to_owned()).ok());
            let parsed = key.cert.first().and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
            name.zip(parsed).is_some_and(|(name, parsed)| rustls::client::verify_server_name(&parsed, &name).is_ok())
        };
        let fitting = self.0.iter().filter(readable).find(named);
        fitting.or_else(|| self.0.iter().find(readable)).or(self.0.first()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_have_their_names_of_open_ssl() {
        for (name, expected) in [
            ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
            ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"),
            ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"),
        ] {
            assert_eq!(open_ssl(name), expected);
        }
        let only = provider(&["ECDHE-RSA-AES128-GCM-SHA256".to_owned()]);
        assert_eq!(only.cipher_suites.iter().filter(|suite| suite.tls13().is_none()).count(), 1);
        assert_eq!(only.cipher_suites.iter().filter(|suite| suite.tls13().is_some()).count(), 3);
    }
}
