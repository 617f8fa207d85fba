//! Documents that people write, YAML or JSON, to resources and back.
//!
//! Nothing is dropped in silence: an unknown kind, version or field is refused with its path. Every fault of every
//! document is reported in one pass.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::identity::{label, subdomain};
use crate::kinds::{Faults, Kinds};
use crate::resource::{KindName, Resource, ResourceKey};
use crate::service::DEFAULT_NAMESPACE;
use crate::typed::typed;

/// Most bytes that one call takes.
pub const TEXT_LENGTH_MAX: usize = 4 << 20;
/// Most documents that one call takes.
pub const DOCUMENTS_MAX: usize = 1000;

/// What is wrong with a document, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// File or stream it came from.
    pub source: String,
    /// Its place in the stream, counted from 1; 0 when the stream could not be read at all.
    pub document: usize,
    /// Its name as far as known.
    pub name: String,
    /// Path of the field, such as `spec.rules[0].to[0].operation.paths[1]`; empty for the whole.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if self.document > 0 {
            write!(f, ", document {}", self.document)?;
        }
        if !self.name.is_empty() {
            write!(f, " ({})", self.name)?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Reads a stream of documents of kinds that are known. Either all are good, or every fault is told. Those of kinds that only run
/// things on Kubernetes are left out.
pub fn parse(kinds: Kinds, source: &str, text: &str) -> Result<Vec<Resource>, Vec<Fault>> {
    parse_telling(kinds, source, text).map(|(resources, _)| resources)
}

/// The same with a line for each document that is left out.
pub fn parse_telling(kinds: Kinds, source: &str, text: &str) -> Result<(Vec<Resource>, Vec<String>), Vec<Fault>> {
    let whole = |message: String| {
        vec![Fault { source: source.to_owned(), document: 0, name: String::new(), path: String::new(), message }]
    };
    if text.len() > TEXT_LENGTH_MAX {
        return Err(whole(format!("{} bytes; at most {TEXT_LENGTH_MAX} are taken at once", text.len())));
    }
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)
        .map_err(|error| whole(format!("not valid YAML: {}", error.without_snippet())))?;
    let documents: Vec<Value> = documents.into_iter().filter(|document| !document.is_null()).collect();
    if documents.len() > DOCUMENTS_MAX {
        return Err(whole(format!("{} documents; at most {DOCUMENTS_MAX} are taken at once", documents.len())));
    }
    let (mut resources, mut left, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    for (position, document) in documents.into_iter().enumerate() {
        let name = describe(&document);
        if is_left_out(&document) {
            left.push(format!("{source}, document {}: {name} means nothing here, and is left out", position + 1));
            continue;
        }
        match read(kinds, document) {
            Ok(resource) => resources.push(resource),
            Err(found) => faults.extend(found.into_iter().map(|(path, message)| Fault {
                source: source.to_owned(),
                document: position + 1,
                name: name.clone(),
                path,
                message,
            })),
        }
    }
    if faults.is_empty() { Ok((resources, left)) } else { Err(faults) }
}

/// Whether it is of a kind that only runs things on Kubernetes: hosts run theirs by themselves. What protects something there is none
/// of these.
fn is_left_out(document: &Value) -> bool {
    let said = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
    let key = KindName::of(said("apiVersion"), said("kind"));
    LEFT_OUT.iter().any(|(group, kinds)| *group == key.group && kinds.contains(&&*key.name))
}

/// Kinds that only run things on Kubernetes, by their groups.
const LEFT_OUT: [(&str, &[&str]); 5] = [
    ("", &["Namespace", "ServiceAccount", "Pod", "PersistentVolumeClaim"]),
    ("apps", &["Deployment", "ReplicaSet", "StatefulSet", "DaemonSet"]),
    ("rbac.authorization.k8s.io", &["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"]),
    ("autoscaling", &["HorizontalPodAutoscaler"]),
    ("policy", &["PodDisruptionBudget"]),
];

/// What the document says that can never match, a line each.
pub fn hints(kinds: Kinds, resource: &Resource) -> Vec<String> {
    let hints = kinds.find(&resource.key.kind).map(|kind| kind.hints(&resource.spec)).unwrap_or_default();
    hints.into_iter().map(|hint| format!("{}: {hint}", resource.key)).collect()
}

/// The document as people read it: `apiVersion`, `kind`, `metadata`, `spec`.
pub fn render(resource: &Resource) -> Value {
    let mut metadata = Map::new();
    metadata.insert("name".into(), json!(resource.key.name));
    metadata.insert("namespace".into(), json!(resource.key.namespace));
    if !resource.labels.is_empty() {
        metadata.insert("labels".into(), json!(resource.labels));
    }
    if !resource.annotations.is_empty() {
        metadata.insert("annotations".into(), json!(resource.annotations));
    }
    if resource.version > 0 {
        metadata.insert("resourceVersion".into(), json!(resource.version.to_string()));
    }
    let spec = serde_json::from_str::<Value>(&resource.spec).unwrap_or(Value::Null);
    let mut document = json!({
        "apiVersion": resource.api_version,
        "kind": resource.key.kind.name,
        "metadata": metadata,
    });
    let fields = Kinds::ALL.find(&resource.key.kind).map_or(&[][..], |kind| kind.fields);
    match (spec, fields) {
        (Value::Object(fields), [_, ..]) => fields.into_iter().for_each(|(name, value)| document[name] = value),
        (spec, _) => document["spec"] = spec,
    }
    document
}

/// Puts what stands beside `metadata` in documents of some kinds where others have their `spec`.
fn gather(mut document: Value, fields: &[&str]) -> Value {
    if let Some(whole) = document.as_object_mut().filter(|_| !fields.is_empty()) {
        let spec: Map<String, Value> =
            fields.iter().filter_map(|name| whole.remove(*name).map(|value| ((*name).to_owned(), value))).collect();
        whole.insert("spec".into(), Value::Object(spec));
    }
    document
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Envelope {
    api_version: String,
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    spec: Value,
    /// Written by Kubernetes; harmless.
    #[serde(default, rename = "status")]
    _status: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    resource_version: Option<String>,
    #[serde(default, rename = "creationTimestamp")]
    _creation_timestamp: Option<Value>,
    #[serde(default, rename = "generation")]
    _generation: Option<Value>,
    #[serde(default, rename = "uid")]
    _uid: Option<Value>,
    #[serde(default, rename = "managedFields")]
    _managed_fields: Option<Value>,
}

fn describe(document: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    match (document.get("kind"), document.pointer("/metadata/name")) {
        (Some(kind), Some(name)) => format!("{} {}", text(kind), text(name)),
        (Some(kind), None) => text(kind),
        _ => String::new(),
    }
}

fn read(kinds: Kinds, document: Value) -> Result<Resource, Faults> {
    let said = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
    let fields = kinds.find(&KindName::of(said("apiVersion"), said("kind"))).map_or(&[][..], |kind| kind.fields);
    let envelope: Envelope = typed(gather(document, fields), "")?;
    let key = KindName::of(&envelope.api_version, &envelope.kind);
    let kind = kinds.find(&key).or_else(|| kinds.iter().find(|kind| kind.name == key.name)).ok_or_else(|| {
        vec![("kind".to_owned(), format!("{:?} is not supported; supported are {}", envelope.kind, kinds.names()))]
    })?;
    let mut faults = Faults::new();
    if kind.api_versions().all(|known| known != envelope.api_version) {
        let known = kind.api_versions().collect::<Vec<_>>().join(" or ");
        let text = format!("{:?} is not supported for {}; write {known}", envelope.api_version, kind.name);
        faults.push(("apiVersion".into(), text));
    }
    let namespace = envelope.metadata.namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    // Some are named like the service that they are about.
    let named = if kind.name == "Service" { label } else { subdomain };
    let names = [
        ("metadata.name", named(&envelope.metadata.name, "name")),
        ("metadata.namespace", label(&namespace, "namespace")),
    ];
    for (field, checked) in names {
        faults.extend(checked.err().map(|error| (field.into(), error.to_string())));
    }
    let is_the_one = kind.namespaces.contains(&&*namespace) && envelope.metadata.name == "default";
    if !kind.namespaces.is_empty() && !is_the_one {
        let text = format!("there is one for the whole mesh: `default` in {}", kind.namespaces.join(" or "));
        faults.push(("metadata".into(), text));
    }
    let version = envelope.metadata.resource_version.map_or(Ok(0), |text| text.parse());
    if version.is_err() {
        faults.push(("metadata.resourceVersion".into(), "not a version that `weft get` printed".into()));
    }
    let spec = if envelope.spec.is_null() { json!({}) } else { envelope.spec };
    let canonical = spec.to_string();
    let wrong = kind.check(spec).err().unwrap_or_default().into_iter();
    faults.extend(wrong.map(|(path, text)| match path.strip_prefix("spec.").filter(|_| !kind.fields.is_empty()) {
        Some(short) => (short.to_owned(), text),
        None => (path, text),
    }));
    match version {
        Ok(version) if faults.is_empty() => Ok(Resource {
            key: ResourceKey { kind: key, namespace, name: envelope.metadata.name },
            api_version: envelope.api_version,
            labels: envelope.metadata.labels,
            annotations: envelope.metadata.annotations,
            spec: canonical,
            created: 0,
            version,
        }),
        _ => Err(faults),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Spec;
    use crate::kinds::authorization_policy::{Action, AuthorizationPolicy};

    fn faults(text: &str) -> Vec<String> {
        parse(Kinds::ALL, "test", text).expect_err("must be refused").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_only_runs_things_on_kubernetes_is_left_out_and_told() {
        let own = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 1}\n---\n\
                   apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: r}\nrules: []\n---\n\
                   apiVersion: weft/v1\nkind: Service\nmetadata: {name: web}\n";
        let (resources, left) = parse_telling(Kinds::ALL, "test", own).expect("good");
        assert_eq!(resources.len(), 1);
        assert_eq!(left[1], "test, document 2: Role r means nothing here, and is left out");
        // What protects something there must not be lost without a word.
        let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {}\n";
        assert!(faults(policy)[0].contains("not supported"));
    }

    #[test]
    fn reads_a_policy_and_renders_it_again() {
        let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web}\n\
                    spec:\n  action: DENY\n  rules:\n  - to: [{operation: {paths: ['/admin*', '/a/{*}/b']}}]\n";
        let resources = parse(Kinds::ALL, "test", text).expect("good");
        assert_eq!(resources[0].key.to_string(), "AuthorizationPolicy default/web");
        let policy = AuthorizationPolicy::of(&resources[0]).expect("typed");
        assert_eq!(policy.action, Action::Deny);
        let again = parse(Kinds::ALL, "again", &render(&resources[0]).to_string()).expect("rendered form is good");
        assert_eq!(again, resources);
    }

    #[test]
    fn names_unknown_fields_by_path() {
        let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web}\n\
                    spec: {rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}\n";
        let found = faults(text);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("spec.rules[0].from[0].source.requestPrincipals"), "{found:?}");
    }

    #[test]
    fn tells_every_fault_of_every_document() {
        let text = "kind: Gizmo\napiVersion: v1\nmetadata: {name: x}\n---\n\
                    kind: AuthorizationPolicy\napiVersion: security.istio.io/v2\nmetadata: {name: X}\n\
                    spec: {rules: [{to: [{operation: {ports: ['0'], paths: ['a*b']}}]}]}\n";
        let found = faults(text);
        assert_eq!(found.len(), 5, "{found:#?}");
    }

    #[test]
    fn what_holds_for_the_whole_mesh_is_one_document() {
        let text =
            |metadata: &str| format!("apiVersion: weft/v1\nkind: MeshConfig\nmetadata: {metadata}\nspec: {{}}\n");
        for wrong in ["{name: default}", "{name: other, namespace: weft-system}"] {
            let found = faults(&text(wrong));
            assert!(found.len() == 1 && found[0].contains("metadata: there is one"), "{found:?}");
        }
        for right in ["{name: default, namespace: weft-system}", "{name: default, namespace: istio-system}"] {
            assert!(parse(Kinds::ALL, "test", &text(right)).is_ok());
        }
    }

    #[test]
    fn refuses_yaml_that_is_not() {
        assert!(faults("a: [")[0].contains("not valid YAML"));
    }
}
