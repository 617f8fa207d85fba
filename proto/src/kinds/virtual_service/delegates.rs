//! Rules of other documents in the place of those that delegate to them (istio/istio `pilot/pkg/model/virtualservice.go`).

use std::collections::BTreeMap;

use super::{Delegate, Destination, HttpMatch, HttpRoute, VirtualService};
use crate::kinds::istio::{StringMatch, service_of};

/// The document with the rules of those that it delegates to, which `find` gives with their namespaces; a rule whose delegate
/// is not there is left out.
pub fn with_delegates<'d>(
    root: &VirtualService,
    find: impl Fn(&Delegate) -> Option<(&'d VirtualService, &'d str)>,
) -> VirtualService {
    let rules = root.http.iter().flat_map(|rule| match &rule.delegate {
        None => vec![rule.clone()],
        Some(delegate) => match find(delegate) {
            None => Vec::new(),
            Some((other, namespace)) => other.http.iter().filter_map(|own| merged(rule, own, namespace)).collect(),
        },
    });
    VirtualService { http: rules.collect(), ..root.clone() }
}

/// A rule of a delegate in the place of the one that delegates; none where no calls are left for it.
fn merged(root: &HttpRoute, own: &HttpRoute, namespace: &str) -> Option<HttpRoute> {
    let mut rule = own.clone();
    rule.matches = match (&root.matches[..], &own.matches[..]) {
        (asked, []) => asked.to_vec(),
        ([], asked) => asked.to_vec(),
        (roots, owns) => {
            let pairs = roots.iter().flat_map(|root| owns.iter().filter_map(|own| both(root, own)));
            let pairs: Vec<HttpMatch> = pairs.collect();
            if pairs.is_empty() {
                return None;
            }
            pairs
        }
    };
    rule.name = joined(&root.name, &own.name);
    let mirrors = rule.mirrors.iter_mut().map(|mirror| &mut mirror.destination);
    let places = rule.route.iter_mut().map(|to| &mut to.destination).chain(&mut rule.mirror).chain(mirrors);
    places.for_each(|to| qualify(to, namespace));
    rule.rewrite = rule.rewrite.or_else(|| root.rewrite.clone());
    rule.timeout = rule.timeout.or(root.timeout);
    rule.retries = rule.retries.or_else(|| root.retries.clone());
    rule.fault = rule.fault.or_else(|| root.fault.clone());
    rule.cors_policy = rule.cors_policy.or_else(|| root.cors_policy.clone());
    rule.headers = rule.headers.or_else(|| root.headers.clone());
    if rule.mirror.is_none() && rule.mirrors.is_empty() {
        rule.mirror.clone_from(&root.mirror);
        rule.mirrors.clone_from(&root.mirrors);
    }
    rule.mirror_percentage = rule.mirror_percentage.or(root.mirror_percentage);
    rule.mirror_percent = rule.mirror_percent.or(root.mirror_percent);
    Some(rule)
}

/// A short name in a delegate is one of its own namespace.
fn qualify(to: &mut Destination, namespace: &str) {
    if let Some(service) = service_of(&to.host, namespace) {
        to.host = format!("{}.{}", service.name(), service.namespace());
    }
}

fn joined(root: &str, own: &str) -> String {
    match (root, own) {
        ("", own) => own.to_owned(),
        (root, "") => root.to_owned(),
        (root, own) => format!("{root}-{own}"),
    }
}

/// What matches both, where the delegate's asks for no more than a part of what the root's does.
fn both(root: &HttpMatch, own: &HttpMatch) -> Option<HttpMatch> {
    if root.uri.is_some() && own.uri.is_some() && root.ignore_uri_case != own.ignore_uri_case {
        return None;
    }
    let other_port = root.port.is_some() && own.port.is_some() && root.port != own.port;
    let spaces = (&root.source_namespace, &own.source_namespace);
    let other_space = !spaces.0.is_empty() && !spaces.1.is_empty() && spaces.0 != spaces.1;
    let label = |(name, value): (&String, &String)| root.source_labels.get(name).is_none_or(|other| other == value);
    let wider = !root.gateways.is_empty() && own.gateways.iter().any(|gateway| !root.gateways.contains(gateway));
    if other_port || other_space || wider || !own.source_labels.iter().all(label) {
        return None;
    }
    let mut labels = root.source_labels.clone();
    labels.extend(own.source_labels.clone());
    Some(HttpMatch {
        name: joined(&root.name, &own.name),
        uri: narrower(root.uri.as_ref(), own.uri.as_ref())?,
        ignore_uri_case: root.ignore_uri_case || own.ignore_uri_case,
        scheme: narrower(root.scheme.as_ref(), own.scheme.as_ref())?,
        method: narrower(root.method.as_ref(), own.method.as_ref())?,
        authority: narrower(root.authority.as_ref(), own.authority.as_ref())?,
        headers: narrower_each(&root.headers, &own.headers)?,
        without_headers: narrower_each(&root.without_headers, &own.without_headers)?,
        query_params: narrower_each(&root.query_params, &own.query_params)?,
        port: own.port.or(root.port),
        source_labels: labels,
        source_namespace: if spaces.1.is_empty() { spaces.0.clone() } else { spaces.1.clone() },
        gateways: if own.gateways.is_empty() { root.gateways.clone() } else { own.gateways.clone() },
    })
}

/// The narrower of two; none of them conflict.
fn narrower(root: Option<&StringMatch>, own: Option<&StringMatch>) -> Option<Option<StringMatch>> {
    let (Some(wide), Some(narrow)) = (root, own) else { return Some(own.or(root).cloned()) };
    let within = match (&wide.exact, &wide.prefix, &narrow.exact, &narrow.prefix) {
        (Some(wide), _, Some(narrow), _) => wide == narrow,
        (_, Some(wide), Some(narrow), _) | (_, Some(wide), _, Some(narrow)) => narrow.starts_with(wide.as_str()),
        // An expression, or one that only asks for presence, beside anything.
        _ => false,
    };
    within.then(|| Some(narrow.clone()))
}

type Texts = BTreeMap<String, StringMatch>;

fn narrower_each(root: &Texts, own: &Texts) -> Option<Texts> {
    let mut all = root.clone();
    for (name, text) in own {
        let narrow = narrower(root.get(name), Some(text))?;
        all.extend(narrow.map(|narrow| (name.clone(), narrow)));
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> VirtualService {
        serde_saphyr::from_str(text).expect("a document")
    }

    #[test]
    fn rules_of_a_delegate_stand_in_the_place_of_the_one_that_delegates() {
        let root = read(
            "hosts: [web]
http:
- name: shop
  match: [{uri: {prefix: /shop}}, {uri: {exact: /cart}}]
  delegate: {name: shop, namespace: shop}
  timeout: 5s
- delegate: {name: gone}
- route: [{destination: {host: web}}]",
        );
        let own = read(
            "http:
- name: new
  match: [{uri: {prefix: /shop/new}, headers: {a: {exact: b}}}, {uri: {exact: /else}}]
  route: [{destination: {host: new}}]
  timeout: 1s
- match: [{uri: {regex: .*}}]
  route: [{destination: {host: never}}]
- route: [{destination: {host: old.other}}]",
        );
        let all = with_delegates(&root, |to| (to.name == "shop").then_some((&own, "shop")));
        let told = |rule: &HttpRoute| {
            let uri = |block: &HttpMatch| {
                let uri = block.uri.clone().unwrap_or_default();
                uri.exact.or(uri.prefix).unwrap_or_default()
            };
            let uris: Vec<String> = rule.matches.iter().map(uri).collect();
            let timeout = rule.timeout.map(|timeout| timeout.to_string()).unwrap_or_default();
            format!("{} {} {} {timeout}", rule.name, uris.join(","), rule.route[0].destination.host)
        };
        let rules: Vec<String> = all.http.iter().map(told).collect();
        assert_eq!(rules, ["shop-new /shop/new new.shop 1s", "shop /shop,/cart old.other 5s", "  web "]);
    }
}
