//! Who is let through a handshake.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerMisbehaved,
    SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use weft_proto::identity::Identity;

use super::names::{TlsError, peer_identity, validity};
use super::{ALPN_JOIN, Clock, Identities, Time, provider};

const DIGEST_LENGTH: usize = 32;

/// At which time a certificate has to be valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Times {
    /// Now.
    Now,
    /// At any, where it is an admitted node's for the key that it was admitted with. Then the admission is what is
    /// trusted, and the certificate only says whose key it is.
    AnyOfMembers,
}

/// Verifies callers: any valid SVID of the trust domain.
pub(super) struct Callers {
    identities: Arc<Identities>,
    times: Times,
}

/// Verifies a callee: the SVID of exactly the identity that was called.
pub(super) struct Callee {
    identities: Arc<Identities>,
    expected: Identity,
    times: Times,
}

/// Shows one certificate, whatever the server asks for.
pub(super) struct Own(pub(super) Arc<CertifiedKey>);

impl Callers {
    pub(super) fn new(identities: Arc<Identities>, times: Times) -> Self {
        Self { identities, times }
    }
}

impl Callee {
    pub(super) fn new(identities: Arc<Identities>, expected: Identity, times: Times) -> Self {
        Self { identities, expected, times }
    }
}

/// Path, validity, usage; then the SPIFFE rules; then the trust domain. Answers whom the certificate names.
fn verify_svid(
    (identities, times): (&Identities, Times),
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    usage: KeyUsage,
    now: UnixTime,
) -> Result<Identity, Error> {
    let set = identities.current();
    if identities.is_revoked(std::slice::from_ref(leaf)) {
        return Err(CertificateError::Revoked.into());
    }
    let admitted = match (times, peer_identity(std::slice::from_ref(leaf))) {
        (Times::AnyOfMembers, Ok(Identity::Node { name, .. })) => identities.is_admitted(&name, leaf),
        _ => None,
    };
    let at = match (admitted, validity(std::slice::from_ref(leaf))) {
        (Some(false), _) => return Err(CertificateError::ApplicationVerificationFailure.into()),
        (Some(true), Some((start, _))) => UnixTime::since_unix_epoch(Duration::from_millis(start)),
        _ => now,
    };
    verify_path(&set.roots, leaf, intermediates, usage, at, identities.provider())?;
    let identity = peer_identity(std::slice::from_ref(leaf)).map_err(refused)?;
    if *identity.trust_domain() != set.trust_domain {
        return Err(CertificateError::NotValidForName.into());
    }
    Ok(identity)
}

fn verify_path(
    roots: &[CertificateDer<'static>],
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    usage: KeyUsage,
    now: UnixTime,
    provider: &CryptoProvider,
) -> Result<(), Error> {
    let certificate = EndEntityCert::try_from(leaf).map_err(translate)?;
    let anchors: Vec<TrustAnchor<'_>> = roots.iter().filter_map(|root| anchor_from_trusted_cert(root).ok()).collect();
    let algorithms = provider.signature_verification_algorithms.all;
    certificate
        .verify_for_usage(algorithms, &anchors, intermediates, now, usage, None, None)
        .map(|_| ())
        .map_err(translate)
}

fn translate(error: webpki::Error) -> Error {
    use webpki::Error as Path;
    match error {
        Path::BadDer | Path::BadDerTime => CertificateError::BadEncoding.into(),
        Path::CertExpired { .. } => CertificateError::Expired.into(),
        Path::CertNotValidYet { .. } => CertificateError::NotValidYet.into(),
        Path::UnknownIssuer => CertificateError::UnknownIssuer.into(),
        Path::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose.into(),
        other => CertificateError::Other(OtherError(Arc::new(other))).into(),
    }
}

fn refused(error: TlsError) -> Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

macro_rules! handshake_signatures {
    ($($provider:tt)+) => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _certificate: &CertificateDer<'_>,
            _signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let provider: &CryptoProvider = &self.$($provider)+;
            verify_tls13_signature(message, certificate, signature, &provider.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            let provider: &CryptoProvider = &self.$($provider)+;
            provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ClientCertVerifier for Callers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        verify_svid((&self.identities, self.times), end_entity, intermediates, KeyUsage::client_auth(), now)?;
        Ok(ClientCertVerified::assertion())
    }

    handshake_signatures!(identities.provider);
}

impl ServerCertVerifier for Callee {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let own = (&*self.identities, self.times);
        let found = verify_svid(own, end_entity, intermediates, KeyUsage::server_auth(), now)?;
        if found != self.expected {
            return Err(refused(TlsError::WrongIdentity {
                found: Box::new(found),
                expected: Box::new(self.expected.clone()),
            }));
        }
        Ok(ServerCertVerified::assertion())
    }

    handshake_signatures!(identities.provider);
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// How a node that knows only the fingerprint of the root calls: it goes on only with a chain that ends in a
/// certificate with that SHA-256 digest and verifies up to it. It shows no certificate; it has none yet.
pub fn join_client_config(fingerprint: [u8; DIGEST_LENGTH], clock: Clock) -> Arc<ClientConfig> {
    let provider = provider();
    let pinned = Pinned { fingerprint, provider: provider.clone() };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider knows TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    config.time_provider = Arc::new(Time(clock));
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Arc::new(config)
}

struct Pinned {
    fingerprint: [u8; DIGEST_LENGTH],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = intermediates.last().ok_or(Error::NoCertificatesPresented)?;
        if self.digest(root) != self.fingerprint {
            return Err(CertificateError::UnknownIssuer.into());
        }
        let roots = [root.clone().into_owned()];
        verify_path(&roots, end_entity, intermediates, KeyUsage::server_auth(), now, &self.provider)?;
        match peer_identity(std::slice::from_ref(end_entity)).map_err(refused)? {
            Identity::Node { .. } => Ok(ServerCertVerified::assertion()),
            _ => Err(CertificateError::NotValidForName.into()),
        }
    }

    handshake_signatures!(provider);
}

impl Pinned {
    fn digest(&self, certificate: &CertificateDer<'_>) -> Vec<u8> {
        let suite = self.provider.cipher_suites.iter().find_map(|suite| suite.tls13()).expect("TLS 1.3 suites");
        let hash = suite.common.hash_provider.hash(certificate.as_ref());
        hash.as_ref().to_vec()
    }
}

macro_rules! quiet_debug {
    ($($name:ident),*) => { $(
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )* };
}
quiet_debug!(Callers, Callee, Own, Pinned);
