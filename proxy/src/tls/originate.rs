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
        let verifier: Arc<dyn ServerCertVerifier> = match tls.insecure_skip_verify {
            true => Arc::new(Anyone(provider)),
            false => {
                let roots = roots(held.authorities.as_deref().unwrap_or_default())?;
                let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
                Arc::new(OneOf { inner: inner.map_err(|error| error.to_string())?, names: names.to_vec() })
            }
        };
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
        let id = format!("{tls:?} {names:?} {:x}", fingerprint(&held));
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

/// Takes a certificate that is good for one of the names, or where there are none for the name that was asked for.
#[derive(Debug)]
struct OneOf {
    inner: Arc<WebPkiServerVerifier>,
    names: Vec<String>,
}

impl ServerCertVerifier for OneOf {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify = |name: &ServerName<'_>| self.inner.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        let named = self.names.iter().filter_map(|name| ServerName::try_from(name.as_str()).ok());
        let mut last = None;
        for name in named {
            match verify(&name) {
                Ok(verified) => return Ok(verified),
                Err(error) => last = Some(error),
            }
        }
        last.map_or_else(|| verify(server_name), Err)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Takes whatever certificate there is: what `insecureSkipVerify` asks for.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
