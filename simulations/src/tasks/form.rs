//! The form of a task: services, and steps that change something or look at it. What is not known is kept as it is, so that
//! what cannot be judged is told and never passed over.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

/// A task.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Task {
    pub(super) services: Vec<Service>,
    pub(super) steps: Vec<Step>,
}

/// A workload, or a name for several.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Service {
    pub(super) name: String,
    #[serde(default)]
    pub(super) version: String,
    #[serde(default)]
    pub(super) port: Option<Value>,
    #[serde(default)]
    pub(super) workload_port: Option<u16>,
    /// Further ports, served by the same application where it listens.
    #[serde(default)]
    pub(super) also: Vec<Port>,
    #[serde(default)]
    pub(super) protocol: String,
    #[serde(default)]
    pub(super) behaviour: String,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default = "default_namespace")]
    pub(super) namespace: String,
    #[serde(default)]
    pub(super) identity: String,
    #[serde(default)]
    pub(super) locality: String,
    #[serde(default)]
    pub(super) external: bool,
    #[serde(default)]
    pub(super) in_mesh: Option<bool>,
    /// Whether it knows nothing of the mesh, and what it calls goes through its node all the same.
    #[serde(default)]
    pub(super) intercepted: bool,
}

/// A port.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Port {
    pub(super) port: u16,
    pub(super) protocol: String,
}

/// A step.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Step {
    pub(super) id: String,
    #[serde(rename = "do")]
    pub(super) what: String,
    #[serde(default)]
    pub(super) namespace: Option<String>,
    #[serde(default)]
    pub(super) apply: Option<String>,
    #[serde(default)]
    pub(super) apply_file: Option<OneOrMany>,
    #[serde(default)]
    pub(super) delete: Option<OneOrMany>,
    #[serde(default)]
    pub(super) requests: Option<Value>,
    #[serde(default)]
    pub(super) expect: Option<Map<String, Value>>,
    /// Certificates with their keys, for a gateway.
    #[serde(default)]
    pub(super) credential: Option<OneOrMore<Credential>>,
    /// What holds for the whole mesh.
    #[serde(default)]
    pub(super) mesh_config: Option<Value>,
    #[serde(default)]
    pub(super) optional: Option<Value>,
    /// Everything else.
    #[serde(flatten)]
    pub(super) others: Map<String, Value>,
}

/// Certificates with their keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Credential {
    pub(super) name: String,
    #[serde(default = "default_namespace")]
    pub(super) namespace: String,
    /// Files by the key that they are under.
    pub(super) keys: BTreeMap<String, String>,
}

/// One or a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> OneOrMore<T> {
    pub(super) fn all(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }
}

/// One or a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(super) fn list(&self) -> Vec<&str> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many.iter().map(String::as_str).collect(),
        }
    }
}

impl Task {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
        serde_saphyr::from_str(&text).map_err(|error| failed(&error))
    }
}

impl Service {
    /// Whether something runs of it in the mesh: names that manifests make, gateways and hosts outside do not.
    pub(super) fn runs(&self) -> bool {
        let named = self.behaviour.contains("service name that selects");
        // What ends TLS itself is passed on as it is, whether or not a proxy stands beside it.
        let within = self.in_mesh != Some(false) || self.protocol == "tls";
        !named && !self.external && self.protocol != "gateway" && within
    }

    /// Whether it is a workload without a node, which knows nothing of the mesh.
    pub(super) fn is_stranger(&self) -> bool {
        self.in_mesh == Some(false) && !self.external && self.protocol != "tls" && self.protocol != "gateway"
    }

    /// The name in the certificate of a service that ends TLS itself: what its description says.
    pub(super) fn speaks_as(&self) -> String {
        let mut words = self.behaviour.split(|c: char| c.is_whitespace() || c == ',');
        words.rfind(|word| word.ends_with(".example.com")).unwrap_or("example.com").to_owned()
    }

    /// By what it is called; none of a client.
    pub(super) fn port(&self) -> Option<u16> {
        self.port.as_ref()?.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|_| self.protocol != "client")
    }

    /// Its service account, where it is not the service's name.
    pub(super) fn account(&self) -> Option<&str> {
        self.identity.rsplit_once("/sa/").map(|(_, account)| account).filter(|account| *account != self.name)
    }
}

fn default_namespace() -> String {
    "default".to_owned()
}
