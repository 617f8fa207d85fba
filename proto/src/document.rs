//! Documents that people write, YAML or JSON, to resources and back.
//!
//! Nothing is dropped in silence: an unknown kind, version or field is refused with its path. Every fault of every
//! document is reported in one pass.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::identity::label;
use crate::policy::{Action, AuthorizationPolicy, Condition, Operation, Source, TargetRef};
use crate::resource::{Kind, Resource, ResourceKey};
use crate::service::DEFAULT_NAMESPACE;
use crate::settings::ServiceSettings;

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

/// Reads a stream of documents. Either all are good, or every fault is told.
pub fn parse(source: &str, text: &str) -> Result<Vec<Resource>, Vec<Fault>> {
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
    let (mut resources, mut faults) = (Vec::new(), Vec::new());
    for (position, document) in documents.into_iter().enumerate() {
        let name = describe(&document);
        match read(document) {
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
    if faults.is_empty() { Ok(resources) } else { Err(faults) }
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
    json!({
        "apiVersion": resource.key.kind.api_versions()[0],
        "kind": resource.key.kind.as_str(),
        "metadata": metadata,
        "spec": serde_json::from_str::<Value>(&resource.spec).unwrap_or(Value::Null),
    })
}

/// The policy that a resource of kind `AuthorizationPolicy` holds.
pub fn authorization_policy(resource: &Resource) -> Result<AuthorizationPolicy, String> {
    serde_json::from_str(&resource.spec).map_err(|error| format!("{}: {error}", resource.key))
}

/// The settings that a resource of kind `Service` holds.
pub fn service_settings(resource: &Resource) -> Result<ServiceSettings, String> {
    serde_json::from_str(&resource.spec).map_err(|error| format!("{}: {error}", resource.key))
}

type Faults = Vec<(String, String)>;

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

fn read(document: Value) -> Result<Resource, Faults> {
    let envelope: Envelope = typed(document, "")?;
    let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == envelope.kind).ok_or_else(|| {
        let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
        vec![("kind".to_owned(), format!("{:?} is not supported; supported are {}", envelope.kind, known.join(", ")))]
    })?;
    let mut faults = Faults::new();
    if !kind.api_versions().contains(&envelope.api_version.as_str()) {
        let known = kind.api_versions().join(" or ");
        faults.push((
            "apiVersion".into(),
            format!("{:?} is not supported for {kind}; write {known}", envelope.api_version),
        ));
    }
    let namespace = envelope.metadata.namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    for (field, text, what) in
        [("metadata.name", &envelope.metadata.name, "name"), ("metadata.namespace", &namespace, "namespace")]
    {
        if let Err(error) = label(text, what) {
            faults.push((field.into(), error.to_string()));
        }
    }
    let version = envelope.metadata.resource_version.map_or(Ok(0), |text| text.parse());
    if version.is_err() {
        faults.push(("metadata.resourceVersion".into(), "not a version that `weft get` printed".into()));
    }
    let spec = if envelope.spec.is_null() { json!({}) } else { envelope.spec };
    let canonical = match kind {
        Kind::AuthorizationPolicy => check::<AuthorizationPolicy>(spec, check_policy),
        Kind::Service => check::<ServiceSettings>(spec, check_settings),
    };
    match (canonical, version) {
        (Ok(spec), Ok(version)) if faults.is_empty() => Ok(Resource {
            key: ResourceKey { kind, namespace, name: envelope.metadata.name },
            labels: envelope.metadata.labels,
            annotations: envelope.metadata.annotations,
            spec,
            created: 0,
            version,
        }),
        (canonical, _) => {
            faults.extend(canonical.err().unwrap_or_default());
            Err(faults)
        }
    }
}

fn check<T: DeserializeOwned>(spec: Value, rules: fn(&T, &mut Faults)) -> Result<String, Faults> {
    let canonical = spec.to_string();
    let parsed: T = typed(spec, "spec")?;
    let mut faults = Faults::new();
    rules(&parsed, &mut faults);
    if faults.is_empty() { Ok(canonical) } else { Err(faults) }
}

fn typed<T: DeserializeOwned>(value: Value, prefix: &str) -> Result<T, Faults> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let inner = error.path().to_string();
        let path = match (prefix, inner.as_str()) {
            ("", ".") => String::new(),
            (prefix, ".") => prefix.to_owned(),
            ("", inner) => inner.to_owned(),
            (prefix, inner) => format!("{prefix}.{inner}"),
        };
        vec![(path, error.inner().to_string())]
    })
}

fn check_settings(settings: &ServiceSettings, faults: &mut Faults) {
    for (i, port) in settings.ports.iter().enumerate() {
        if settings.ports[..i].iter().any(|other| other.port == port.port) {
            faults.push((format!("spec.ports[{i}].port"), format!("{} is listed twice", port.port)));
        }
    }
    if settings.retries.is_some_and(|retries| retries > 10) {
        faults.push(("spec.retries".into(), "at most 10".into()));
    }
}

fn check_policy(policy: &AuthorizationPolicy, faults: &mut Faults) {
    if policy.selector.is_some() && !policy.target_refs.is_empty() {
        faults.push(("spec.targetRefs".into(), "selector and targetRefs exclude each other".into()));
    }
    for (i, target) in policy.target_refs.iter().enumerate() {
        check_target(&format!("spec.targetRefs[{i}]"), target, faults);
    }
    if policy.action == Action::Deny && policy.rules.is_empty() {
        faults.push((
            "spec.rules".into(),
            "a DENY policy without rules never matches; write `rules: [{}]` to deny everything".into(),
        ));
    }
    for (r, rule) in policy.rules.iter().enumerate() {
        for (i, from) in rule.from.iter().enumerate() {
            check_source(&format!("spec.rules[{r}].from[{i}].source"), &from.source, faults);
        }
        for (i, to) in rule.to.iter().enumerate() {
            check_operation(&format!("spec.rules[{r}].to[{i}].operation"), &to.operation, faults);
        }
        for (i, condition) in rule.when.iter().enumerate() {
            check_condition(&format!("spec.rules[{r}].when[{i}]"), condition, faults);
        }
    }
}

fn check_target(path: &str, target: &TargetRef, faults: &mut Faults) {
    if target.kind != "Service" || !matches!(target.group.as_str(), "" | "core" | "weft") {
        faults.push((
            format!("{path}.kind"),
            format!("{}/{} is not supported; name a Service", target.group, target.kind),
        ));
    }
    if let Err(error) = label(&target.name, "name") {
        faults.push((format!("{path}.name"), error.to_string()));
    }
}

fn check_source(path: &str, source: &Source, faults: &mut Faults) {
    let strings = [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
    ];
    strings.iter().for_each(|(field, values)| check_values(&format!("{path}.{field}"), values, faults));
    for (field, values) in [("principals", &source.principals), ("notPrincipals", &source.not_principals)] {
        for (i, value) in values.iter().enumerate().filter(|(_, value)| value.starts_with("spiffe://")) {
            let bare = value.trim_start_matches("spiffe://");
            faults.push((format!("{path}.{field}[{i}]"), format!("write it without spiffe://: {bare}")));
        }
    }
    let blocks = [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ];
    blocks.iter().for_each(|(field, values)| check_blocks(&format!("{path}.{field}"), values, faults));
}

fn check_operation(path: &str, operation: &Operation, faults: &mut Faults) {
    let strings = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
    ];
    strings.iter().for_each(|(field, values)| check_values(&format!("{path}.{field}"), values, faults));
    for (field, values) in [("ports", &operation.ports), ("notPorts", &operation.not_ports)] {
        check_ports(&format!("{path}.{field}"), values, faults);
    }
    for (field, values) in [("paths", &operation.paths), ("notPaths", &operation.not_paths)] {
        check_paths(&format!("{path}.{field}"), values, faults);
    }
}

fn check_condition(path: &str, condition: &Condition, faults: &mut Faults) {
    if condition.values.is_empty() && condition.not_values.is_empty() {
        faults.push((path.to_owned(), "values or notValues must not be empty".into()));
    }
    let key_path = format!("{path}.key");
    let pairs = [("values", &condition.values), ("notValues", &condition.not_values)];
    let each = |check: fn(&str, &[String], &mut Faults), faults: &mut Faults| {
        pairs.iter().for_each(|(field, values)| check(&format!("{path}.{field}"), values, faults));
    };
    match condition.key.as_str() {
        "source.ip" | "remote.ip" | "destination.ip" => each(check_blocks, faults),
        "destination.port" => each(check_ports, faults),
        "source.namespace" | "source.principal" | "connection.sni" => each(check_values, faults),
        key if header_name(key).is_some_and(|name| !name.is_empty()) => each(check_values, faults),
        key if key.starts_with("request.auth.") => {
            faults.push((key_path, format!("{key} needs RequestAuthentication, which is not supported yet")));
        }
        key => faults.push((
            key_path,
            format!(
                "{key:?} is not supported; supported are request.headers[name], source.ip, remote.ip, source.namespace, \
                 source.principal, destination.ip, destination.port, connection.sni"
            ),
        )),
    }
}

/// The header that a condition's key names: `request.headers[x-tenant]` names `x-tenant`.
pub fn header_name(key: &str) -> Option<&str> {
    key.strip_prefix("request.headers[")?.strip_suffix(']')
}

fn check_values(path: &str, values: &[String], faults: &mut Faults) {
    for (i, value) in values.iter().enumerate() {
        let stars = value.matches('*').count();
        let placed = stars == 0 || (stars == 1 && (value.starts_with('*') || value.ends_with('*')));
        if value.is_empty() || !placed {
            faults.push((format!("{path}[{i}]"), format!("{value:?}: write an exact value, prefix*, *suffix or *")));
        }
    }
}

fn check_paths(path: &str, values: &[String], faults: &mut Faults) {
    for (i, value) in values.iter().enumerate() {
        let at = format!("{path}[{i}]");
        if value.contains("{*}") || value.contains("{**}") {
            if let Err(message) = check_template(value) {
                faults.push((at, message));
            }
        } else {
            let mut found = Faults::new();
            check_values(path, std::slice::from_ref(value), &mut found);
            faults.extend(found.into_iter().map(|(_, message)| (at.clone(), message)));
        }
    }
}

/// Istio's path templates: `{*}` and `{**}` stand for whole segments, `{**}` at most once, no other `*` beside them.
fn check_template(value: &str) -> Result<(), String> {
    if !value.starts_with('/') {
        return Err(format!("{value:?}: a path template starts with /"));
    }
    let mut any = 0;
    for segment in value.split('/').skip(1) {
        any += usize::from(segment == "{**}");
        if segment != "{*}" && segment != "{**}" && segment.contains(['*', '{', '}']) {
            return Err(format!("{value:?}: {{*}} and {{**}} stand for whole segments and do not mix with *"));
        }
    }
    if any > 1 {
        return Err(format!("{value:?}: {{**}} may stand once"));
    }
    Ok(())
}

fn check_ports(path: &str, values: &[String], faults: &mut Faults) {
    for (i, value) in values.iter().enumerate() {
        if !value.parse::<u16>().is_ok_and(|port| port > 0) {
            faults.push((format!("{path}[{i}]"), format!("{value:?} is not a port: 1 to 65535")));
        }
    }
}

fn check_blocks(path: &str, values: &[String], faults: &mut Faults) {
    for (i, value) in values.iter().enumerate() {
        if value.parse::<ipnet::IpNet>().is_err() && value.parse::<std::net::IpAddr>().is_err() {
            faults.push((format!("{path}[{i}]"), format!("{value:?} is not an address or a CIDR block")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        parse("test", text).expect_err("must be refused").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn reads_a_policy_and_renders_it_again() {
        let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web}\n\
                    spec:\n  action: DENY\n  rules:\n  - to: [{operation: {paths: ['/admin*', '/a/{*}/b']}}]\n";
        let resources = parse("test", text).expect("good");
        assert_eq!(resources[0].key.to_string(), "AuthorizationPolicy default/web");
        let policy = authorization_policy(&resources[0]).expect("typed");
        assert_eq!(policy.action, Action::Deny);
        let again = parse("again", &render(&resources[0]).to_string()).expect("rendered form is good");
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
    fn refuses_yaml_that_is_not() {
        assert!(faults("a: [")[0].contains("not valid YAML"));
    }
}
