//! Names in certificates and handshakes: SPIFFE IDs in SVIDs, targets in SNI.

use aws_lc_rs::digest;
use rustls::pki_types::{CertificateDer, ServerName};
use weft_proto::UnixMillis;
use weft_proto::identity::{Identity, NodeName};
use weft_proto::service::{InstanceId, ServiceName};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

const NODE_SUFFIX: &str = ".node.weft";
const SERVICE_SUFFIX: &str = ".mesh";

/// Why a certificate is not accepted or a handshake not begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// This node holds no certificate of that identity.
    #[error("this node holds no certificate of {0} yet")]
    NoCertificate(Box<Identity>),
    /// Not an SVID.
    #[error("the certificate is not an X.509-SVID: {0}")]
    NotAnSvid(String),
    /// An SVID, but not the one that was expected.
    #[error("the certificate names {found}, not {expected}")]
    WrongIdentity {
        /// Whom it names.
        found: Box<Identity>,
        /// Whom it should name.
        expected: Box<Identity>,
    },
}

/// What a handshake is for; it travels as SNI.
///
/// `8080.web.default.mesh` is a port of a service, `web.default.mesh` its first port, `v2.8080.web.default.mesh` the port at
/// one instance, `a.node.weft` a node: they never meet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A service.
    Service {
        /// Its name.
        service: ServiceName,
        /// Its port; none means the first.
        port: Option<u16>,
    },
    /// One instance of a service on the node that is asked.
    Instance {
        /// Its service, and its name on the node.
        instance: InstanceId,
        /// The service's port.
        port: u16,
    },
    /// A node.
    Node(NodeName),
}

impl Target {
    /// As SNI; what is no service of the mesh has a name that no node takes.
    pub fn server_name(&self) -> ServerName<'static> {
        let text = match self {
            Self::Service { service, port: Some(port) } => format!("{port}.{}", service.host()),
            Self::Service { service, port: None } => service.host(),
            Self::Instance { instance, port } => format!("{}.{port}.{}", instance.name, instance.service.host()),
            Self::Node(name) => format!("{name}{NODE_SUFFIX}"),
        };
        let name = ServerName::try_from(text);
        name.unwrap_or_else(|_| ServerName::try_from("invalid").expect("a DNS name (RFC 6761, 6.4)"))
    }

    /// From SNI, in any case.
    pub fn parse(sni: &str) -> Option<Self> {
        let sni = sni.to_ascii_lowercase();
        if let Some(name) = sni.strip_suffix(NODE_SUFFIX) {
            return name.parse().ok().map(Self::Node);
        }
        let labels: Vec<&str> = sni.strip_suffix(SERVICE_SUFFIX)?.split('.').collect();
        let port = |text: &str| text.parse().ok().filter(|port| *port > 0);
        match labels.as_slice() {
            [instance, number, name, namespace] => Some(Self::Instance {
                instance: InstanceId { service: ServiceName::new(namespace, name).ok()?, name: instance.parse().ok()? },
                port: port(number)?,
            }),
            [number, name, namespace] => {
                Some(Self::Service { service: ServiceName::new(namespace, name).ok()?, port: Some(port(number)?) })
            }
            [name, namespace] => Some(Self::Service { service: ServiceName::new(namespace, name).ok()?, port: None }),
            _ => None,
        }
    }
}

/// The SHA-256 of a certificate.
pub(crate) fn digest(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
    bytes
}

/// The identity that the first certificate of a chain names, after the checks that X.509-SVID (sections 2 to 5)
/// asks of a leaf: exactly one URI SAN, a SPIFFE ID; not a CA; digitalSignature set; neither keyCertSign nor cRLSign.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<Identity, TlsError> {
    let refuse = |why: &str| TlsError::NotAnSvid(why.to_owned());
    let leaf = chain.first().ok_or_else(|| refuse("there is none"))?;
    let (rest, certificate) = X509Certificate::from_der(leaf).map_err(|_| refuse("it cannot be decoded"))?;
    if !rest.is_empty() {
        return Err(refuse("bytes follow it"));
    }
    let (mut uris, mut signs) = (Vec::new(), false);
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => return Err(refuse("it is a CA's")),
            ParsedExtension::KeyUsage(usage) => {
                if usage.key_cert_sign() || usage.crl_sign() {
                    return Err(refuse("its key may sign certificates"));
                }
                signs = usage.digital_signature();
            }
            ParsedExtension::SubjectAlternativeName(names) => {
                uris.extend(names.general_names.iter().filter_map(|name| match name {
                    GeneralName::URI(uri) => Some(*uri),
                    _ => None,
                }));
            }
            _ => {}
        }
    }
    if !signs {
        return Err(refuse("digitalSignature is not set"));
    }
    match uris.as_slice() {
        [uri] => {
            let identity: Identity = uri.parse().map_err(|error| TlsError::NotAnSvid(format!("{error}")))?;
            // A trust domain alone is an authority's identity, never a leaf's.
            if identity.names_a_workload() { Ok(identity) } else { Err(refuse("its SPIFFE ID has no path")) }
        }
        [] => Err(refuse("it has no URI SAN")),
        _ => Err(refuse("it has more than one URI SAN")),
    }
}

/// The key that a certificate certifies, without what says of which kind it is.
pub(super) fn public_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.public_key().subject_public_key.data.to_vec())
}

/// The serial number of the first certificate of a chain, as its issuer has chosen it.
pub(super) fn serial(chain: &[CertificateDer<'_>]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
    Some(certificate.raw_serial().to_vec())
}

/// When the first certificate of a chain begins and ends to be valid.
pub fn validity(chain: &[CertificateDer<'_>]) -> Option<(UnixMillis, UnixMillis)> {
    let (_, certificate) = X509Certificate::from_der(chain.first()?).ok()?;
    let validity = certificate.validity();
    let millis = |seconds: i64| u64::try_from(seconds).unwrap_or(0) * 1000;
    Some((millis(validity.not_before.timestamp()), millis(validity.not_after.timestamp())))
}

/// When the first certificate of a chain ends.
pub fn expiry(chain: &[CertificateDer<'_>]) -> Option<UnixMillis> {
    validity(chain).map(|(_, end)| end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_round_trip() {
        for text in ["8080.web.default.mesh", "web.default.mesh", "v2.8080.web.default.mesh", "a.node.weft"] {
            let target = Target::parse(text).expect(text);
            assert_eq!(target.server_name().to_str(), text);
        }
        for text in ["web.mesh", "x.y.z.w.mesh", "0.web.default.mesh", "a.b.c.mesh", "example.com", "localhost"] {
            assert_eq!(Target::parse(text), None, "{text}");
        }
    }
}
