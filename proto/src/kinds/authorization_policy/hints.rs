//! What a document says that can never match: taken as it is, and worth a word to whoever wrote it.

use super::{AuthorizationPolicy, Rule};

/// One line for each part of a policy that matches nothing, with its path in the document.
pub(super) fn of_policy(policy: &AuthorizationPolicy) -> Vec<String> {
    policy.rules.iter().enumerate().flat_map(|(at, rule)| of_rule(at, rule)).collect()
}

fn of_rule(at: usize, rule: &Rule) -> Vec<String> {
    let mut hints = Vec::new();
    let mut look = |path: String, values: &[String], never: fn(&str) -> Option<&'static str>| {
        for value in values {
            if let Some(why) = never(value) {
                hints.push(format!("spec.rules[{at}].{path}: {value:?} never matches: {why}"));
            }
        }
    };
    for (i, from) in rule.from.iter().enumerate() {
        let source = &from.source;
        look(format!("from[{i}].source.principals"), &source.principals, principal);
        look(format!("from[{i}].source.notPrincipals"), &source.not_principals, principal);
        look(format!("from[{i}].source.namespaces"), &source.namespaces, namespace);
        look(format!("from[{i}].source.notNamespaces"), &source.not_namespaces, namespace);
    }
    for (i, to) in rule.to.iter().enumerate() {
        let operation = &to.operation;
        look(format!("to[{i}].operation.methods"), &operation.methods, method);
        look(format!("to[{i}].operation.notMethods"), &operation.not_methods, method);
        look(format!("to[{i}].operation.paths"), &operation.paths, path);
        look(format!("to[{i}].operation.notPaths"), &operation.not_paths, path);
        look(format!("to[{i}].operation.hosts"), &operation.hosts, host);
        look(format!("to[{i}].operation.notHosts"), &operation.not_hosts, host);
    }
    for (i, condition) in rule.when.iter().enumerate() {
        let never: fn(&str) -> Option<&'static str> = match condition.key.as_str() {
            "source.principal" => principal,
            "source.namespace" => namespace,
            _ => continue,
        };
        look(format!("when[{i}].values"), &condition.values, never);
        look(format!("when[{i}].notValues"), &condition.not_values, never);
    }
    hints
}

fn method(value: &str) -> Option<&'static str> {
    let bad = value.bytes().any(|byte| byte.is_ascii_lowercase() || byte.is_ascii_whitespace());
    bad.then_some("methods are written in capitals")
}

fn path(value: &str) -> Option<&'static str> {
    if !value.starts_with(['/', '*', '{']) {
        return Some("paths start with '/'");
    }
    if value.contains(['?', '#']) {
        return Some("paths are compared without what follows '?' or '#'");
    }
    let normal = ["//", "/./", "/../"].iter().all(|part| !value.contains(part));
    let ends = ["/.", "/.."].iter().all(|end| !value.ends_with(end));
    (!normal || !ends).then_some("paths are compared in their normal form, without '//', '/./' and '/../'")
}

fn host(value: &str) -> Option<&'static str> {
    value.contains("://").then_some("hosts are written without a scheme")
}

/// Identities are `TRUST-DOMAIN/ns/NAMESPACE/...` and `TRUST-DOMAIN/node/NAME`.
fn principal(value: &str) -> Option<&'static str> {
    if value.starts_with("spiffe://") {
        return Some("principals are written without spiffe://");
    }
    let whole = !value.contains('*');
    let service = value.split('/').nth(1) == Some("ns") && value.split('/').count() == 5;
    let node = value.split('/').nth(1) == Some("node") && value.split('/').count() == 3;
    (whole && !service && !node)
        .then_some("principals are whole identities, TRUST-DOMAIN/ns/NAMESPACE/sa/NAME, or patterns")
}

fn namespace(value: &str) -> Option<&'static str> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '*');
    (!value.chars().all(legal)).then_some("a namespace is small letters, digits and '-'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_never_match_is_told_with_its_place() {
        let policy: AuthorizationPolicy = serde_json::from_value(serde_json::json!({
            "action": "DENY",
            "rules": [
                { "to": [{ "operation": { "methods": ["GET", "get"], "paths": ["/admin*", "admin", "*.php", "/a?b=1"] } }] },
                { "from": [{ "source": { "principals": ["spiffe://m/ns/default/sa/web", "m/ns/default/sa/web", "web", "*"] } }] },
                { "from": [{ "source": { "namespaces": ["Bad NS", "good-1"] } }], "to": [{ "operation": { "paths": ["/a//b", "/x/../y"] } }] },
                { "when": [{ "key": "source.principal", "values": ["web", "m/node/a"] }] },
            ],
        }))
        .expect("a policy");
        let hints = of_policy(&policy);
        assert_eq!(hints.len(), 9, "{hints:?}");
        assert!(hints[0].starts_with("spec.rules[0].to[0].operation.methods: \"get\" never matches"), "{hints:?}");
        assert!(hints[3].starts_with("spec.rules[1].from[0].source.principals"), "{hints:?}");
    }
}
