//! Workload identity: SPIFFE IDs of services and nodes.
//!
//! Source of the rules: SPIFFE-ID specification, sections 2.1 to 2.4. Limits: 2048 bytes for an ID, 255 for a
//! trust domain.

use std::fmt;
use std::str::FromStr;

use crate::name::shorten;
pub use crate::name::{NameError, label, subdomain};
use crate::service::ServiceName;

/// Longest SPIFFE ID in bytes (SPIFFE-ID 2.3).
pub const ID_LENGTH_MAX: usize = 2048;
/// Longest trust domain in bytes (SPIFFE-ID 2.3).
pub const TRUST_DOMAIN_LENGTH_MAX: usize = 255;
const SCHEME: &str = "spiffe://";

/// The name of a mesh; the authority part of every identity in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The name itself, for example `mesh.example`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
        if text.is_empty() || text.len() > TRUST_DOMAIN_LENGTH_MAX || !text.chars().all(legal) {
            return Err(NameError {
                what: "trust domain",
                text: shorten(text),
                rule: "1 to 255 characters of a-z, 0-9, '.', '-' and '_'",
            });
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a node, unique in its mesh: a DNS label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

impl NodeName {
    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        label(text, "node name").map(|()| Self(text.to_owned()))
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who someone is: the subject of a certificate and the caller or callee of an exchange.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// `spiffe://<trust-domain>/ns/<namespace>/sa/<service account>`
    Service {
        /// The mesh.
        trust_domain: TrustDomain,
        /// Namespace and name of the service account: those of the service, unless it was given another account.
        service: ServiceName,
    },
    /// `spiffe://<trust-domain>/node/<name>`
    Node {
        /// The mesh.
        trust_domain: TrustDomain,
        /// The node.
        name: NodeName,
    },
    /// Any other valid SPIFFE ID, of another mesh or of another issuer's naming.
    Foreign {
        /// Its trust domain.
        trust_domain: TrustDomain,
        /// Its path, with the leading slash.
        path: String,
    },
}

impl Identity {
    /// The identity of a service account of this mesh.
    pub fn service(trust_domain: TrustDomain, service: ServiceName) -> Self {
        Self::Service { trust_domain, service }
    }

    /// The identity of a node of this mesh.
    pub fn node(trust_domain: TrustDomain, name: NodeName) -> Self {
        Self::Node { trust_domain, name }
    }

    /// The trust domain that vouches for it.
    pub fn trust_domain(&self) -> &TrustDomain {
        match self {
            Self::Service { trust_domain, .. }
            | Self::Node { trust_domain, .. }
            | Self::Foreign { trust_domain, .. } => trust_domain,
        }
    }

    /// Whether it may be that of a leaf certificate: one without a path is an authority's (X.509-SVID, 2).
    pub fn names_a_workload(&self) -> bool {
        !matches!(self, Self::Foreign { path, .. } if path.is_empty())
    }

    /// The namespace, where the identity has one. A foreign ID of Istio's form `/ns/<ns>/sa/<account>` has one too.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Service { service, .. } => Some(service.namespace()),
            Self::Node { .. } => None,
            Self::Foreign { path, .. } => path.strip_prefix("/ns/").and_then(|rest| rest.split('/').next()),
        }
    }

    /// The ID without its scheme, as policies write it.
    pub fn principal(&self) -> String {
        match self {
            Self::Service { trust_domain, service } => {
                format!("{trust_domain}/ns/{}/sa/{}", service.namespace(), service.name())
            }
            Self::Node { trust_domain, name } => format!("{trust_domain}/node/{name}"),
            Self::Foreign { trust_domain, path } => format!("{trust_domain}{path}"),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.principal())
    }
}

impl FromStr for Identity {
    type Err = NameError;

    /// Accepts exactly the IDs that the SPIFFE-ID specification allows, lower-case scheme and trust domain included.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = |rule| NameError { what: "SPIFFE ID", text: shorten(text), rule };
        if text.len() > ID_LENGTH_MAX {
            return Err(error("at most 2048 bytes"));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| error("starts with spiffe://"))?;
        let (domain, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let trust_domain: TrustDomain = domain.parse()?;
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        for segment in &segments {
            if segment.is_empty() || *segment == "." || *segment == ".." || !segment.chars().all(legal) {
                return Err(error("path segments of letters, digits, '.', '-', '_'; none empty, '.' or '..'"));
            }
        }
        Ok(match segments.as_slice() {
            ["ns", namespace, "sa", name] => match ServiceName::new(namespace, name) {
                Ok(service) => Self::Service { trust_domain, service },
                Err(_) => Self::Foreign { trust_domain, path: path.to_owned() },
            },
            ["node", name] => match name.parse() {
                Ok(name) => Self::Node { trust_domain, name },
                Err(_) => Self::Foreign { trust_domain, path: path.to_owned() },
            },
            _ => Self::Foreign { trust_domain, path: path.to_owned() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        for text in [
            "spiffe://mesh.local/ns/default/sa/web",
            "spiffe://mesh.local/node/a-1",
            "spiffe://cluster.local/ns/x/sa/y",
            "spiffe://td",
        ] {
            assert_eq!(text.parse::<Identity>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn refuses_what_the_specification_refuses() {
        for text in [
            "",
            "spiffe://",
            "SPIFFE://td/a",
            "spiffe://TD/a",
            "spiffe://td/",
            "spiffe://td//a",
            "spiffe://td/./a",
            "spiffe://td/../a",
            "spiffe://td/a?b",
            "spiffe://td/a#b",
            "spiffe://u@td/a",
            "spiffe://td:1/a",
            "spiffe://td/a%20b",
            "http://td/a",
            "spiffe://td/a\0",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text:?} was accepted");
        }
        assert!(format!("spiffe://td/{}", "a".repeat(2048)).parse::<Identity>().is_err());
    }

    #[test]
    fn an_odd_service_path_is_foreign_and_never_a_service() {
        let identity: Identity = "spiffe://td/ns/Default/sa/web".parse().expect("valid SPIFFE ID");
        assert!(matches!(identity, Identity::Foreign { .. }));
    }
}
