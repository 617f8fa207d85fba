//! The mesh's certificate authority: makes the root, signs SVIDs. It decides nothing; admission is decided by the log.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;
use weft_proto::UnixMillis;
use weft_proto::command::CertificateRecord;
use weft_proto::identity::TrustDomain;
use weft_proto::service::ServiceName;

/// How long a root is valid: 10 years.
pub const ROOT_LIFETIME_MS: u64 = 10 * 365 * DAY_MS;
/// How long an SVID is valid: 24 h, so that it outlives an outage of the control plane.
pub const LEAF_LIFETIME_MS: u64 = DAY_MS;
/// How far validity starts in the past, for clocks that are behind.
pub const BACKDATE_MS: u64 = 5 * 60 * 1000;
/// Bytes of a serial number; the first bit is cleared, so that it is positive (RFC 5280, 4.1.2.2).
pub const SERIAL_LENGTH: usize = 16;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// A root certificate and its signing key.
pub struct Authority {
    root: CertificateDer<'static>,
    key: KeyPair,
}

/// A certificate that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AuthorityError(String);

impl From<rcgen::Error> for AuthorityError {
    fn from(error: rcgen::Error) -> Self {
        Self(error.to_string())
    }
}

impl Authority {
    /// Makes a new root for the trust domain.
    pub fn create(
        trust_domain: &TrustDomain,
        serial: [u8; SERIAL_LENGTH],
        now: UnixMillis,
    ) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.not_before = moment(now.saturating_sub(BACKDATE_MS))?;
        params.not_after = moment(now + ROOT_LIFETIME_MS)?;
        params.serial_number = Some(positive(serial));
        params.distinguished_name = common_name(&format!("weft root of {trust_domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let uri = format!("spiffe://{trust_domain}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        let root = params.self_signed(&key)?.der().clone();
        Ok(Self { root, key })
    }

    /// The authority of a root whose signing key is at hand.
    pub fn from_parts(root: &[u8], key: &[u8]) -> Result<Self, AuthorityError> {
        let key = KeyPair::try_from(key)?;
        Ok(Self { root: CertificateDer::from(root.to_vec()), key })
    }

    /// The root certificate, DER.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The signing key, PKCS #8. It goes nowhere unless sealed.
    pub fn secret(&self) -> Vec<u8> {
        self.key.serialize_der()
    }

    /// Signs an SVID for the key that the request proves possession of. Only the key is taken from the request.
    /// An SVID of a service account names the `services` that have it as hosts too, for clients that look at those.
    pub fn sign(
        &self,
        csr: &[u8],
        record: &CertificateRecord,
        services: &[ServiceName],
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))?;
        let mut params = CertificateParams::default();
        params.not_before = moment(record.not_before)?;
        params.not_after = moment(record.not_after)?;
        params.serial_number = Some(SerialNumber::from_slice(&record.serial));
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = vec![SanType::URI(record.identity.to_string().try_into()?)];
        for service in services {
            params.subject_alt_names.push(SanType::DnsName(service.host().try_into()?));
        }
        let issuer = Issuer::from_ca_cert_der(&self.root, &self.key)?;
        let mut request = request;
        request.params = params;
        Ok(request.signed_by(&issuer)?.der().clone())
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// Makes a certificate signing request for a new key of its own: the request and the key, both DER.
pub fn request() -> Result<(Vec<u8>, Vec<u8>), AuthorityError> {
    request_for(&KeyPair::generate()?)
}

/// Makes a certificate signing request for a node's lasting key, which is in PKCS #8: the request and the key, both DER.
pub fn request_of(key: &[u8]) -> Result<(Vec<u8>, Vec<u8>), AuthorityError> {
    request_for(&KeyPair::try_from(key)?)
}

fn request_for(key: &KeyPair) -> Result<(Vec<u8>, Vec<u8>), AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(key)?;
    Ok((csr.der().to_vec(), key.serialize_der()))
}

/// Whether the request is well formed and signed by the key that it names: that key, without what says of which kind it is.
pub fn check_request(csr: &[u8]) -> Result<Vec<u8>, AuthorityError> {
    let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))?;
    Ok(request.public_key.der_bytes().to_vec())
}

/// Clears the first bit of a random serial and makes its first byte other than zero, so that DER keeps its length.
pub fn serial(mut bytes: [u8; SERIAL_LENGTH]) -> Vec<u8> {
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    bytes.to_vec()
}

fn positive(bytes: [u8; SERIAL_LENGTH]) -> SerialNumber {
    SerialNumber::from_slice(&serial(bytes))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished_name = DistinguishedName::new();
    distinguished_name.push(DnType::CommonName, name);
    distinguished_name
}

fn moment(at: UnixMillis) -> Result<OffsetDateTime, AuthorityError> {
    let seconds = i64::try_from(at / 1000).map_err(|_| AuthorityError("a time out of range".into()))?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| AuthorityError(error.to_string()))
}
