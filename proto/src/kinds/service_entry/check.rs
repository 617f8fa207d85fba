//! The rules that a `ServiceEntry` keeps beyond its form (Istio's validation).

use std::net::IpAddr;

use super::{EntryEndpoint, Location, Resolution, ServiceEntry};
use crate::identity::label;
use crate::kinds::Faults;
use crate::kinds::hosts::is_host_name;
use crate::kinds::istio::check_export;

pub(super) fn entry(entry: &ServiceEntry, faults: &mut Faults) {
    hosts(entry, faults);
    ports(entry, faults);
    for (at, address) in entry.addresses.iter().enumerate() {
        let path = format!("spec.addresses[{at}]");
        let block = address.parse::<ipnet::IpNet>().is_ok();
        if !block && address.parse::<IpAddr>().is_err() {
            faults.push((path, "an address, or a block of them such as 192.0.2.0/24".into()));
        } else if block && !matches!(entry.resolution, Resolution::None | Resolution::Static) {
            faults.push((path, "a block goes with the resolutions NONE and STATIC only".into()));
        }
    }
    if entry.location == Location::MeshInternal {
        let text = "what is of the mesh runs a node, or is registered on one: weft service add";
        faults.push(("spec.location".into(), text.into()));
    }
    resolution(entry, faults);
    for (at, endpoint) in entry.endpoints.iter().enumerate() {
        self::endpoint(entry, endpoint, &format!("spec.endpoints[{at}]"), faults);
    }
    check_export(&entry.export_to, faults);
}

fn hosts(entry: &ServiceEntry, faults: &mut Faults) {
    if entry.hosts.is_empty() || entry.hosts.len() > HOSTS_MAX {
        faults.push(("spec.hosts".into(), format!("1 to {HOSTS_MAX}")));
    }
    for (at, host) in entry.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{at}]");
        if !is_host_name(host) {
            faults.push((path, format!("{host:?} is no host name: write it like example.com or *.example.com")));
        } else if host.ends_with(".mesh") || !host.contains('.') {
            faults.push((path, format!("{host:?} is a name of the mesh's own")));
        } else if entry.hosts[..at].contains(host) {
            faults.push((path, format!("{host} is listed twice")));
        }
    }
}

fn ports(entry: &ServiceEntry, faults: &mut Faults) {
    if entry.ports.is_empty() {
        faults.push(("spec.ports".into(), "give at least one".into()));
    }
    for (at, port) in entry.ports.iter().enumerate() {
        let path = format!("spec.ports[{at}]");
        if port.number == 0 || port.target_port == Some(0) {
            faults.push((format!("{path}.number"), "1 to 65535".into()));
        }
        if label(&port.name, "name").is_err() {
            faults.push((format!("{path}.name"), "a name in small letters, such as http".into()));
        }
        if !port.protocol.is_empty() && !PROTOCOLS.contains(&port.protocol.to_ascii_uppercase().as_str()) {
            faults.push((format!("{path}.protocol"), format!("one of {}", PROTOCOLS.join(", "))));
        }
        let before = &entry.ports[..at];
        if before.iter().any(|other| other.number == port.number || other.name == port.name) {
            faults.push((path, "its number or name is that of another one".into()));
        }
    }
}

fn resolution(entry: &ServiceEntry, faults: &mut Faults) {
    let path = || "spec.resolution".to_owned();
    let wildcard = entry.hosts.iter().any(|host| host.starts_with('*'));
    match entry.resolution {
        Resolution::None if !entry.endpoints.is_empty() => {
            faults.push((path(), "NONE goes to what the caller names, and not to endpoints".into()));
        }
        Resolution::Static if entry.endpoints.is_empty() => faults.push((path(), "STATIC needs endpoints".into())),
        Resolution::Dns | Resolution::DnsRoundRobin if entry.endpoints.is_empty() && wildcard => {
            faults.push((path(), "a wildcard has no address: give endpoints, or NONE or DYNAMIC_DNS".into()));
        }
        Resolution::DnsRoundRobin if entry.endpoints.len() > 1 => {
            faults.push((path(), "DNS_ROUND_ROBIN takes one endpoint at most".into()));
        }
        Resolution::DynamicDns => {
            if !entry.hosts.iter().all(|host| host.starts_with('*')) {
                faults.push((path(), "DYNAMIC_DNS is for wildcards only".into()));
            }
            if !entry.endpoints.is_empty() || !entry.addresses.is_empty() {
                faults.push((path(), "DYNAMIC_DNS takes neither endpoints nor addresses".into()));
            }
        }
        _ => {}
    }
}

fn endpoint(entry: &ServiceEntry, endpoint: &EntryEndpoint, path: &str, faults: &mut Faults) {
    let parsed = endpoint.address.parse::<IpAddr>().ok();
    if parsed.is_some_and(|ip| ip.to_canonical().is_loopback() || ip.is_unspecified() || ip.is_multicast()) {
        faults.push((format!("{path}.address"), "this is no address of another host".into()));
    }
    let ip = parsed.is_some();
    let named = is_host_name(&endpoint.address) && !endpoint.address.starts_with('*');
    if entry.resolution == Resolution::Static && !ip {
        faults.push((format!("{path}.address"), "STATIC takes an address".into()));
    } else if !ip && !named {
        faults.push((format!("{path}.address"), "an address, or a name of a host".into()));
    }
    for (name, number) in &endpoint.ports {
        if *number == 0 || entry.ports.iter().all(|port| port.name != *name) {
            faults.push((format!("{path}.ports.{name}"), "the name of a port above, with 1 to 65535".into()));
        }
    }
    if endpoint.weight == Some(0) {
        faults.push((format!("{path}.weight"), "1 to 65535".into()));
    }
}

/// Most hosts of one document.
const HOSTS_MAX: usize = 256;
const PROTOCOLS: [&str; 8] = ["HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "TCP", "TLS"];

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        let entry: ServiceEntry = serde_json::from_str(text).expect("a document");
        let mut faults = Faults::new();
        super::entry(&entry, &mut faults);
        faults.into_iter().map(|(path, text)| format!("{path}: {text}")).collect()
    }

    #[test]
    fn what_is_no_host_outside_is_refused_where_it_stands() {
        let cases = [
            (r#"{"hosts": ["a.example"], "ports": [{"number": 80, "name": "http"}], "resolution": "DNS"}"#, ""),
            (r#"{"hosts": ["orders"], "ports": [{"number": 80, "name": "http"}]}"#, "spec.hosts[0]"),
            (r#"{"hosts": ["a.example"]}"#, "spec.ports"),
            (
                r#"{"hosts": ["*.a.example"], "ports": [{"number": 1, "name": "a"}], "resolution": "DNS"}"#,
                "spec.resolution",
            ),
            (
                r#"{"hosts": ["a.example"], "ports": [{"number": 1, "name": "a"}], "resolution": "STATIC"}"#,
                "spec.resolution",
            ),
            (
                r#"{"hosts": ["a.example"], "ports": [{"number": 1, "name": "a"}], "resolution": "STATIC",
                    "endpoints": [{"address": "127.0.0.1"}]}"#,
                "spec.endpoints[0].address",
            ),
            (
                r#"{"hosts": ["a.example"], "ports": [{"number": 1, "name": "a"}], "resolution": "STATIC",
                    "endpoints": [{"address": "b.example"}]}"#,
                "spec.endpoints[0].address",
            ),
            (
                r#"{"hosts": ["a.example"], "ports": [{"number": 1, "name": "a"}], "location": "MESH_INTERNAL"}"#,
                "spec.location",
            ),
            (
                r#"{"hosts": ["a.example"], "addresses": ["192.0.2.0/24"], "ports": [{"number": 1, "name": "a"}],
                    "resolution": "DNS"}"#,
                "spec.addresses[0]",
            ),
        ];
        for (text, path) in cases {
            let found = faults(text);
            assert_eq!(found.len(), usize::from(!path.is_empty()), "{text}: {found:?}");
            assert!(found.iter().all(|fault| fault.starts_with(&format!("{path}: "))), "{text}: {found:?}");
        }
    }
}
