//! TLS towards hosts outside the mesh, by what documents say of it.

use std::cmp::Ordering;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use weft_proto::kinds::destination_rule::{Tls, TlsMode};

use super::ALPN_H2;
use super::edge::{certified, roots};

/// How TLS is spoken towards a host.
#[derive(Clone)]
pub(crate) struct Origination {
    /// Tells it apart from others.
    id: Arc<str>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    /// What is asked for by SNI; none: the host.
    sni: Option<Arc<str>>,
}

/// TLS towards one host.
#[derive(Clone)]
pub(crate) struct Secure {
    id: Arc<str>,
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
}

impl Origination {
    /// That of a block of a document; `names` are those of the host's own document. None where it says that there is none.
    pub(crate) fn of(tls: &Tls, names: &[String]) -> Option<Result<Self, String>> {
        matches!(tls.mode, TlsMode::Simple | TlsMode::Mutual).then(|| Self::build(tls, names))
    }

    fn build(tls: &Tls, names: &[String]) -> Result<Self, String> {
        let held = tls.held.clone().unwrap_or_else(|| Err("its certificates are not here yet".into()))?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| error.to_string())?;
        let names = if tls.subject_alt_names.is_empty() { names } else { &tls.subject_alt_names };
        let parse = |name: &String| {
            let parsed = ServerName::try_from(name.clone());
            parsed.map_err(|_| format!("{name:?} of subjectAltNames is no name of a host, and others are not checked"))
        };
        let authorities = match tls.insecure_skip_verify {
            true => None,
            false => {
                let roots = roots(held.authorities.as_deref().unwrap_or_default())?;
                let made = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
                Some(made.map_err(|error| error.to_string())?)
            }
        };
        let id = format!("{tls:?} {names:?} {:x}", fingerprint(&held));
        let names = names.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let verifier = Arc::new(Judge { authorities, names, provider });
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let http1 = match tls.mode {
            TlsMode::Mutual => {
                let own = certified(&held)?;
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(own)))
            }
            _ => builder.with_no_client_auth(),
        };
        let mut http2 = http1.clone();
        http2.alpn_protocols = vec![ALPN_H2.to_vec()];
        let sni = Some(&*tls.sni).filter(|sni| !sni.is_empty()).map(Into::into);
        Ok(Self { id: id.into(), http1: Arc::new(http1), http2: Arc::new(http2), sni })
    }

    /// Towards a host.
    pub(crate) fn towards(&self, host: &str, http2: bool) -> Result<Secure, String> {
        let name = self.sni.as_deref().unwrap_or(host).to_owned();
        let id = format!("{} {name} {http2}", self.id).into();
        let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
        Ok(Secure { id, config: if http2 { &self.http2 } else { &self.http1 }.clone(), name })
    }
}

/// Certificates that were renewed make other connections.
fn fingerprint(held: &weft_proto::kinds::secret::Credential) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (&held.chain, &held.key, &held.authorities, &held.revoked).hash(&mut hasher);
    hasher.finish()
}

impl std::fmt::Debug for Origination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Origination").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Secure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secure").field("name", &self.name).finish_non_exhaustive()
    }
}

impl PartialEq for Secure {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Secure {}

impl PartialOrd for Secure {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Secure {
    fn cmp(&self, other: &Self) -> Ordering {
        self.id.cmp(&other.id)
    }
}

/// Takes a certificate of an authority that is good for one of the names, or where there are none for the name that was asked for;
/// without authorities whatever certificate there is.
#[derive(Debug)]
struct Judge {
    authorities: Option<Arc<WebPkiServerVerifier>>,
    names: Vec<ServerName<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(inner) = &self.authorities else { return Ok(ServerCertVerified::assertion()) };
        let verify = |name: &ServerName<'_>| inner.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        let Some((last, others)) = self.names.split_last() else { return verify(server_name) };
        others.iter().find_map(|name| verify(name).ok()).map_or_else(|| verify(last), Ok)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_cannot_be_checked_is_no_reason_to_check_another_one() {
        let own = rcgen::generate_simple_self_signed(vec!["api.example.net".to_owned()]).expect("a certificate");
        let held = weft_proto::kinds::secret::Credential {
            authorities: Some(own.cert.pem().into_bytes()),
            ..weft_proto::kinds::secret::Credential::default()
        };
        let tls = |name: &str| Tls {
            mode: TlsMode::Simple,
            subject_alt_names: vec![name.to_owned()],
            held: Some(Ok(held.clone())),
            ..Tls::default()
        };
        assert!(Origination::of(&tls("api.example.net"), &[]).is_some_and(|made| made.is_ok()));
        let refused = Origination::of(&tls("spiffe://far/ns/a/sa/b"), &[]).and_then(Result::err);
        assert!(refused.as_ref().is_some_and(|why| why.contains("spiffe://far")), "{refused:?}");
    }
}
