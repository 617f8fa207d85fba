//! Certificates that prove that a name is ours, within the handshake (RFC 8737).

use std::sync::Arc;

use ::aws_lc_rs::digest::{SHA256, digest};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, version};

/// What whoever asks for proof offers by ALPN, and nobody else.
pub(crate) const ALPN_PROOF: &[u8] = b"acme-tls/1";

/// What ends such a handshake: a certificate of its own authority, for the name alone, that has the key authorization's digest.
pub(crate) fn server_config(host: &str, key_authorization: &str) -> Result<Arc<ServerConfig>, String> {
    let make = || -> Result<(Vec<u8>, Vec<u8>), rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_owned()])?;
        let digest = digest(&SHA256, key_authorization.as_bytes());
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest.as_ref())];
        Ok((params.self_signed(&key)?.der().to_vec(), key.serialize_der()))
    };
    let (certificate, key) = make().map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(|error| error.to_string())?;
    let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| error.to_string())?;
    // Not checked as others are: of what it says that must be understood it is the other end that has to.
    let certified = CertifiedKey::new(vec![certificate.into()], key);
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![ALPN_PROOF.to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;

    #[test]
    fn a_certificate_proves_by_an_extension_that_must_be_understood() {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).expect("a name");
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest(&SHA256, b"t.k").as_ref())];
        let made = params.self_signed(&key).expect("signs");
        let (_, parsed) = X509Certificate::from_der(made.der()).expect("parses");
        let own = parsed.extensions().iter().find(|one| one.oid.to_id_string() == "1.3.6.1.5.5.7.1.31");
        let own = own.expect("id-pe-acmeIdentifier");
        assert!(own.critical);
        assert_eq!(own.value[..2], [4, 32]);
        assert_eq!(server_config("a.example", "t.k").expect("good").alpn_protocols, [ALPN_PROOF]);
    }
}
