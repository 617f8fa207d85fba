//! Listeners of Istio's `Gateway`s.

use std::net::IpAddr;

use weft_proto::kinds::istio_gateway::{Server, ServerTls, TlsMode, TlsVersion};
use weft_proto::resource::ResourceKey;
use weft_proxy::table::description::{ListenerDescription, Speaks};
use weft_proxy::tls::EdgeClients;

use super::attached;
use super::credentials::{Asked, Wanted};
use super::{Age, Ground, Own, Source, age};

pub(super) fn listeners(ground: &Ground<'_>, wanted: &mut Wanted<'_>) -> Vec<(Age, ListenerDescription)> {
    let mut made = Vec::new();
    for document in ground.specs.istio_gateways() {
        let Some(own) = ground.own.iter().find(|own| own.has(&document.spec.selector)) else { continue };
        for server in &document.spec.servers {
            let listener = listener(ground, wanted, (own, &document.key), server);
            made.push((age(document.created, &document.key), listener));
        }
    }
    made
}

fn listener(
    ground: &Ground<'_>,
    wanted: &mut Wanted<'_>,
    (own, key): (&Own<'_>, &ResourceKey),
    server: &Server,
) -> ListenerDescription {
    let tls = server.tls.as_ref();
    let of_mesh = server.is_of_mesh();
    let speaks = match (server.is_secured() && !of_mesh, server.speaks_http()) {
        (true, http) => secured(wanted, own, tls, http),
        (false, true) => Speaks::Http,
        (false, false) => Speaks::Tcp,
    };
    let bind: Option<IpAddr> = server.bind.parse().ok();
    let (streams, http) = (!server.speaks_http(), server.speaks_http());
    ListenerDescription {
        service: own.service.clone(),
        name: format!("{}/{} {}", key.namespace, key.name, server.label()),
        port: server.port.number,
        addresses: ground.addresses((server.port.number, of_mesh || own.within), bind.as_slice()),
        hosts: server.names().map(str::to_owned).collect(),
        redirects: http && tls.is_some_and(|tls| tls.https_redirect),
        strict: false,
        conflict: None,
        routes: attached::of_istio(ground.specs, key, server, streams),
        gateway_routes: Vec::new(),
        stream_routes: Vec::new(),
        speaks,
    }
}

fn secured(wanted: &mut Wanted<'_>, own: &Own<'_>, tls: Option<&ServerTls>, http: bool) -> Speaks {
    let none = ServerTls::default();
    let tls = tls.unwrap_or(&none);
    let secret = |name: &str| Source::Secret { namespace: own.service.namespace().to_owned(), name: name.to_owned() };
    let clients = match tls.mode.unwrap_or(TlsMode::Passthrough) {
        TlsMode::Passthrough | TlsMode::AutoPassthrough => return Speaks::Passthrough,
        TlsMode::Simple | TlsMode::IstioMutual => EdgeClients::Unasked,
        TlsMode::Mutual => EdgeClients::Required,
        TlsMode::OptionalMutual => EdgeClients::Optional,
    };
    let files = || Source::Files {
        chain: tls.server_certificate.clone(),
        key: tls.private_key.clone(),
        authorities: tls.ca_certificates.clone(),
    };
    let named: Vec<&String> =
        std::iter::once(&tls.credential_name).filter(|name| !name.is_empty()).chain(&tls.credential_names).collect();
    let sources = if named.is_empty() { vec![files()] } else { named.iter().map(|name| secret(name)).collect() };
    let authorities = match (clients, tls.ca_cert_credential_name.as_str()) {
        (EdgeClients::Unasked, _) => Vec::new(),
        (_, "") => named.iter().map(|name| secret(&format!("{name}-cacert"))).collect(),
        (_, name) => vec![secret(name)],
    };
    let mut edge = wanted.tls(&sources, &Asked { clients, authorities }, http);
    edge.names.clone_from(&tls.subject_alt_names);
    edge.suites.clone_from(&tls.cipher_suites);
    edge.old = tls.min_protocol_version != Some(TlsVersion::V1_3);
    edge.new = tls.max_protocol_version != Some(TlsVersion::V1_2);
    Speaks::Tls(edge)
}
