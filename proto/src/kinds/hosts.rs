//! Names of hosts, and patterns of them: a name, `*.suffix`, or `*`.

use std::net::IpAddr;

use ipnet::IpNet;

use super::istio::service_of;
use crate::identity::NameError;
use crate::service::{MESH_SUFFIX, ServiceName};

/// Whether a pattern covers a name, or all that another pattern covers.
pub fn covers(pattern: &str, other: &str) -> bool {
    match pattern.strip_prefix('*') {
        None => pattern == other,
        Some("") => true,
        // `*.foo.com` covers neither `foo.com` nor `.foo.com`.
        Some(end) => other.len() > end.len() && other.ends_with(end),
    }
}

/// What two patterns have in common: the narrower one, where either covers the other.
pub fn meeting<'a>(one: &'a str, other: &'a str) -> Option<&'a str> {
    match (covers(one, other), covers(other, one)) {
        (true, _) => Some(other),
        (false, true) => Some(one),
        (false, false) => None,
    }
}

/// What a host means in a document of a namespace: a service by one of its names, else a host outside the mesh.
pub fn meant(host: &str, namespace: &str) -> Option<ServiceName> {
    let outside = || host.contains('.').then(|| ServiceName::outside(&host.to_ascii_lowercase()));
    service_of(host, namespace).or_else(outside)
}

/// The hosts outside whose names read like that of a service: `example.com` is `example` in the namespace `com`.
pub fn reading_as(name: &ServiceName) -> impl Iterator<Item = String> {
    ["", ".svc", ".svc.cluster.local"].into_iter().map(|end| format!("{}.{}{end}", name.name(), name.namespace()))
}

/// Whether a host, or pattern of hosts, can be none of the mesh by its form.
pub fn is_foreign(host: &str) -> bool {
    let own = host.ends_with(MESH_SUFFIX) || host.ends_with(".svc") || host.contains(".svc.");
    !own && host.len() > 2 && host.contains('.') && host.parse::<IpAddr>().is_err() && service_of(host, "a").is_none()
}

/// Reads what is called: `web`, `prod/web`, or a host outside the mesh such as `api.example.com`.
pub fn called(text: &str) -> Result<ServiceName, NameError> {
    let outside = text.contains('.') && !text.ends_with(MESH_SUFFIX) && is_host_name(text) && !text.starts_with('*');
    if outside { Ok(ServiceName::outside(text)) } else { text.parse() }
}

/// The addresses that a text means: one, or a block of them such as `10.0.0.0/8`.
pub fn block(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse().ok().map(|address: IpAddr| address.into()))
}

/// Whether it is a name of a host, in small letters, or such a name behind `*.`.
pub fn is_host_name(text: &str) -> bool {
    let plain = text.strip_prefix("*.").unwrap_or(text);
    let label = |label: &str| {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.len() <= LABEL_LENGTH_MAX && label.bytes().all(fits)
    };
    plain.len() <= NAME_LENGTH_MAX && plain.parse::<std::net::IpAddr>().is_err() && plain.split('.').all(label)
}

/// Longest label and longest name (RFC 1035, 2.3.4).
const LABEL_LENGTH_MAX: usize = 63;
const NAME_LENGTH_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrower_one_is_served() {
        for (one, other, common) in [
            ("*", "a.com", Some("a.com")),
            ("*.com", "a.b.com", Some("a.b.com")),
            ("a.com", "*.com", Some("a.com")),
            ("*.b.com", "*.com", Some("*.b.com")),
            ("*.com", "com", None),
            ("a.com", "b.com", None),
            ("*", "*", Some("*")),
        ] {
            assert_eq!(meeting(one, other), common, "{one} and {other}");
        }
    }

    #[test]
    fn names_of_hosts_are_told_from_what_is_none() {
        for good in ["a", "httpbin.example.com", "*.example.com", "a_b.com"] {
            assert!(is_host_name(good), "{good}");
        }
        for bad in ["", "*", "*.", "a..b", "10.0.0.1", "A.com", "a/b", "*a.com", "a.*.com"] {
            assert!(!is_host_name(bad), "{bad}");
        }
    }
}
