//! The rules that a `Gateway` keeps beyond its form (Istio's validation).

use super::{IstioGateway, Server, ServerTls, TlsMode, TlsVersion};
use crate::identity::label;
use crate::kinds::Faults;
use crate::kinds::hosts::is_host_name;

pub(super) fn gateway(gateway: &IstioGateway, faults: &mut Faults) {
    if gateway.servers.is_empty() {
        faults.push(("spec.servers".into(), "give at least one".into()));
    }
    for (at, one) in gateway.servers.iter().enumerate() {
        let path = format!("spec.servers[{at}]");
        let same = |other: &Server| !one.port.name.is_empty() && other.port.name == one.port.name;
        if gateway.servers[..at].iter().any(same) {
            faults.push((format!("{path}.port.name"), format!("{} is the name of another port", one.port.name)));
        }
        server(one, &path, faults);
    }
}

fn server(server: &Server, path: &str, faults: &mut Faults) {
    let protocol = server.port.protocol.to_ascii_uppercase();
    if server.port.number == 0 {
        faults.push((format!("{path}.port.number"), "1 to 65535".into()));
    }
    if server.port.name.is_empty() {
        faults.push((format!("{path}.port.name"), "give it a name".into()));
    }
    if !PROTOCOLS.contains(&protocol.as_str()) {
        faults.push((format!("{path}.port.protocol"), format!("one of {}", PROTOCOLS.join(", "))));
    }
    if !server.bind.is_empty() && server.bind.parse::<std::net::IpAddr>().is_err() {
        faults.push((format!("{path}.bind"), "an address of the host, such as 192.0.2.1".into()));
    }
    if server.hosts.is_empty() {
        faults.push((format!("{path}.hosts"), "name at least one, or \"*\"".into()));
    }
    for (at, host) in server.hosts.iter().enumerate() {
        let (space, name) = host.split_once('/').unwrap_or(("*", host));
        if !(name == "*" || is_host_name(name)) {
            let text = "a host is written like shop.example.com, *.example.com or *".to_owned();
            faults.push((format!("{path}.hosts[{at}]"), text));
        }
        if space != "*" && space != "." && label(space, "namespace").is_err() {
            faults.push((format!("{path}.hosts[{at}]"), "a namespace, '.' or '*' stands before the /".into()));
        }
    }
    let path = format!("{path}.tls");
    match (&server.tls, protocol.as_str()) {
        (None, "HTTPS" | "TLS") => faults.push((path, "HTTPS and TLS need it".into())),
        (None, _) => {}
        (Some(given), "HTTPS" | "TLS") => tls(given, &path, faults),
        (Some(given), "HTTP") if *given == only_redirect() || *given == ServerTls::default() => {}
        (Some(_), "HTTP") => faults.push((path, "a plain port takes httpsRedirect only".into())),
        (Some(_), other) => faults.push((path, format!("it does not go with {other}"))),
    }
}

fn only_redirect() -> ServerTls {
    ServerTls { https_redirect: true, ..ServerTls::default() }
}

fn tls(tls: &ServerTls, path: &str, faults: &mut Faults) {
    let files = !tls.server_certificate.is_empty() || !tls.private_key.is_empty();
    let sources = [files, !tls.credential_name.is_empty(), !tls.credential_names.is_empty()];
    let given = sources.iter().filter(|given| **given).count();
    let needs = match tls.mode {
        Some(TlsMode::Simple | TlsMode::Mutual | TlsMode::OptionalMutual) => true,
        None | Some(TlsMode::Passthrough | TlsMode::IstioMutual) => false,
        Some(TlsMode::AutoPassthrough) => {
            let text = "AUTO_PASSTHROUGH is not supported: PASSTHROUGH with rules by sniHosts does the same";
            return faults.push((format!("{path}.mode"), text.into()));
        }
    };
    if needs && given != 1 {
        let text = "exactly one of credentialName, credentialNames, serverCertificate with privateKey";
        faults.push((path.into(), text.into()));
    }
    let authorities = [&tls.ca_certificates, &tls.ca_cert_credential_name].iter().any(|one| !one.is_empty());
    if !needs && (given > 0 || authorities) {
        faults.push((path.into(), "a certificate goes with SIMPLE, MUTUAL and OPTIONAL_MUTUAL only".into()));
    }
    if files && (tls.server_certificate.is_empty() || tls.private_key.is_empty()) {
        faults.push((path.into(), "serverCertificate and privateKey go together".into()));
    }
    if tls.credential_names.len() > 2 {
        faults.push((format!("{path}.credentialNames"), "at most two".into()));
    }
    let mutual = matches!(tls.mode, Some(TlsMode::Mutual | TlsMode::OptionalMutual));
    if mutual && files && tls.ca_certificates.is_empty() && tls.ca_cert_credential_name.is_empty() {
        faults.push((format!("{path}.caCertificates"), "the authorities of callers are needed".into()));
    }
    if !mutual && authorities && tls.mode == Some(TlsMode::Simple) {
        faults.push((format!("{path}.caCertificates"), "SIMPLE asks callers for no certificate".into()));
    }
    if matches!(tls.max_protocol_version, Some(TlsVersion::V1_0 | TlsVersion::V1_1)) {
        faults.push((format!("{path}.maxProtocolVersion"), "TLS 1.2 is the oldest that is spoken".into()));
    }
    let (least, most) = (tls.min_protocol_version, tls.max_protocol_version);
    if most.zip(least).is_some_and(|(most, least)| most != TlsVersion::Auto && least > most) {
        faults.push((format!("{path}.maxProtocolVersion"), "it is older than minProtocolVersion".into()));
    }
    if tls.https_redirect {
        faults.push((format!("{path}.httpsRedirect"), "it goes with plain HTTP only".into()));
    }
}

/// What in it has no effect.
pub(super) fn hints(gateway: &IstioGateway) -> Vec<String> {
    let all = gateway.servers.iter().enumerate().filter_map(|(at, one)| Some((at, one.tls.as_ref()?)));
    let mut hints = Vec::new();
    for (at, tls) in all {
        let unknown = tls.cipher_suites.iter().filter(|name| !CIPHER_SUITES.contains(&name.as_str()));
        hints.extend(unknown.map(|name| format!("spec.servers[{at}].tls.cipherSuites: {name} is not spoken")));
        if matches!(tls.min_protocol_version, Some(TlsVersion::V1_0 | TlsVersion::V1_1)) {
            hints.push(format!("spec.servers[{at}].tls.minProtocolVersion: TLS 1.2 is the oldest that is spoken"));
        }
    }
    hints
}

const PROTOCOLS: [&str; 8] = ["HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "MONGO", "TCP", "TLS"];
/// Suites of TLS 1.2 that are spoken, by their names of OpenSSL.
pub(super) const CIPHER_SUITES: [&str; 6] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
];
