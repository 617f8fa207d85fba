//! Services, their ports, and their instances.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::{NameError, label};

/// The namespace of a name written without one.
pub const DEFAULT_NAMESPACE: &str = "default";
/// The suffix under which services have host names: `web.mesh`, `web.default.mesh`.
pub const MESH_SUFFIX: &str = ".mesh";

/// A service's name: namespace and name, both DNS labels. Written `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    namespace: String,
    name: String,
}

impl ServiceName {
    /// A number that depends on the name alone.
    pub fn hash32(&self) -> u32 {
        hash32(&self.to_string())
    }

    /// Checks both labels.
    pub fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
        label(namespace, "namespace")?;
        label(name, "service name")?;
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// A host outside the mesh, in small letters, or a pattern of hosts: it has no namespace.
    pub fn outside(host: &str) -> Self {
        Self { namespace: String::new(), name: host.to_owned() }
    }

    /// Whether it is a host outside the mesh.
    pub fn is_outside(&self) -> bool {
        self.namespace.is_empty()
    }

    /// One instance of the service, or those of that name: `web-1.web`.
    pub fn of_instance(&self, instance: &str) -> Self {
        Self { namespace: self.namespace.clone(), name: format!("{instance}.{}", self.name) }
    }

    /// The instance that it is, and of which service.
    pub fn instance(&self) -> Option<(&str, Self)> {
        let (instance, name) = self.name.split_once('.').filter(|_| !self.is_outside())?;
        Some((instance, Self { namespace: self.namespace.clone(), name: name.to_owned() }))
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name within the namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The service that a host name of the mesh means: `web.mesh` or `web.default.mesh`, in any case.
    pub fn from_host(host: &str) -> Option<Self> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let stem = host.strip_suffix(MESH_SUFFIX)?;
        match stem.split_once('.') {
            None => Self::new(DEFAULT_NAMESPACE, stem).ok(),
            Some((name, namespace)) => Self::new(namespace, name).ok(),
        }
    }

    /// The full host name: `web.default.mesh`; of a host outside, that.
    pub fn host(&self) -> String {
        if self.is_outside() {
            return self.name.clone();
        }
        format!("{}.{}{MESH_SUFFIX}", self.name, self.namespace)
    }
}

/// FNV-1a, 32 bits.
fn hash32(text: &str) -> u32 {
    const OFFSET: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    text.bytes().fold(OFFSET, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(PRIME))
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_outside() {
            return f.write_str(&self.name);
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ServiceName {
    type Err = NameError;

    /// Reads `namespace/name`, or `name` alone in the default namespace.
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((namespace, name)) => Self::new(namespace, name),
            None => Self::new(DEFAULT_NAMESPACE, text),
        }
    }
}

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Told from the first bytes.
    #[default]
    Auto,
    /// HTTP/1.1 to the instance.
    Http,
    /// HTTP/2 with prior knowledge to the instance.
    Http2,
    /// gRPC: HTTP/2 whose refusals are gRPC statuses.
    Grpc,
    /// Opaque bytes.
    Tcp,
}

impl Protocol {
    /// Whether it is HTTP, and said to be.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc)
    }

    /// Its name in documents, on the wire and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Protocol {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        [Self::Auto, Self::Http, Self::Http2, Self::Grpc, Self::Tcp]
            .into_iter()
            .find(|protocol| protocol.as_str() == text)
            .ok_or_else(|| NameError {
                what: "protocol",
                text: text.chars().take(80).collect(),
                rule: "one of auto, http, http2, grpc, tcp",
            })
    }
}

/// A port of a service, the same on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePort {
    /// Port number, 1 to 65535.
    pub port: u16,
    /// What it speaks.
    pub protocol: Protocol,
}

/// The name of an instance, unique among those of its service on its node: a DNS label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceName(Box<str>);

impl InstanceName {
    /// The name of one that is given none.
    pub const DEFAULT: &str = "default";

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the one of an instance that was given none.
    pub fn is_default(&self) -> bool {
        self.as_str() == Self::DEFAULT
    }
}

impl Default for InstanceName {
    fn default() -> Self {
        Self(Self::DEFAULT.into())
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InstanceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        label(text, "instance name").map(|()| Self(text.into()))
    }
}

/// An instance among all of one node. Written `namespace/name`, and `namespace/name@instance` where it was given a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId {
    /// The service it is a copy of.
    pub service: ServiceName,
    /// Its name.
    pub name: InstanceName,
}

impl InstanceId {
    /// A number that depends on the names alone.
    pub fn hash32(&self) -> u32 {
        hash32(&self.to_string())
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.is_default() {
            true => self.service.fmt(f),
            false => write!(f, "{}@{}", self.service, self.name),
        }
    }
}

/// What a set of instances has in common, by which routes and policies choose among them: `version: v2`.
pub type Labels = BTreeMap<String, String>;

/// Checks a label as Kubernetes does: the key `[prefix/]name` with a DNS name and up to 63 characters, the value empty or
/// up to 63 characters; letters, digits, `-`, `_` and `.`, the first and last one a letter or digit.
pub fn check_label(key: &str, value: &str) -> Result<(), NameError> {
    let word = |text: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        bytes.len() <= 63 && outer(bytes.first()) && outer(bytes.last()) && bytes.iter().all(|byte| inner(*byte))
    };
    let error = |what, text: &str, rule| NameError { what, text: text.chars().take(80).collect(), rule };
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let prefixed =
        prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(|part| label(part, "label").is_ok()));
    if !prefixed || !word(name) {
        let rule = "[DNS name/]name: up to 63 letters, digits, '-', '_' and '.', the first and last a letter or digit";
        return Err(error("label", key, rule));
    }
    if !value.is_empty() && !word(value) {
        let rule = "empty or up to 63 letters, digits, '-', '_' and '.', the first and last a letter or digit";
        return Err(error("label's value", value, rule));
    }
    Ok(())
}

/// One running copy of a service, as its node advertises it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The service it is a copy of, and its name on its node.
    pub id: InstanceId,
    /// Its labels.
    pub labels: Labels,
    /// The ports it serves.
    pub ports: Vec<ServicePort>,
    /// The ports at which it listens for those itself, in their order; empty: at the same ones, or it is not known.
    pub targets: Vec<u16>,
    /// Whether its check passes.
    pub healthy: bool,
    /// Its share relative to others, 1 to 65535; 100 unless set.
    pub weight: u16,
}

/// Which services a node may run: `namespace/name`, `namespace/*` or `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grant {
    /// `*`
    Every,
    /// `namespace/*`
    Namespace(String),
    /// `namespace/name`
    Service(ServiceName),
}

impl Grant {
    /// Whether it covers the service.
    pub fn covers(&self, service: &ServiceName) -> bool {
        match self {
            Self::Every => true,
            Self::Namespace(namespace) => namespace == service.namespace(),
            Self::Service(granted) => granted == service,
        }
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every => f.write_str("*"),
            Self::Namespace(namespace) => write!(f, "{namespace}/*"),
            Self::Service(service) => write!(f, "{service}"),
        }
    }
}

impl FromStr for Grant {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text == "*" {
            return Ok(Self::Every);
        }
        match text.strip_suffix("/*") {
            Some(namespace) => label(namespace, "namespace").map(|()| Self::Namespace(namespace.to_owned())),
            None => text.parse().map(Self::Service),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_name_services() {
        let web = ServiceName::new("default", "web").expect("valid");
        for host in ["web.mesh", "WEB.mesh", "web.default.mesh", "web.mesh."] {
            assert_eq!(ServiceName::from_host(host).as_ref(), Some(&web), "{host}");
        }
        for host in ["web", "mesh", ".mesh", "a.b.c.mesh", "web.example", "we_b.mesh"] {
            assert_eq!(ServiceName::from_host(host), None, "{host}");
        }
    }

    #[test]
    fn labels_are_those_of_kubernetes() {
        for (key, value) in [("version", "v1"), ("app.kubernetes.io/name", "web"), ("a", ""), ("A_b.c", "1-2_3.x")] {
            assert_eq!(check_label(key, value), Ok(()), "{key}={value}");
        }
        let long = "x".repeat(64);
        for (key, value) in
            [("", "v"), ("-a", "v"), ("a/b/c", "v"), ("A.b/c", "v"), ("a", "-"), ("a", "x y"), ("a", &long)]
        {
            assert!(check_label(key, value).is_err(), "{key}={value}");
        }
    }

    #[test]
    fn grants_cover() {
        let web: ServiceName = "prod/web".parse().expect("valid");
        for (grant, covers) in [("*", true), ("prod/*", true), ("prod/web", true), ("web", false), ("dev/*", false)] {
            assert_eq!(grant.parse::<Grant>().expect(grant).covers(&web), covers, "{grant}");
        }
    }
}
