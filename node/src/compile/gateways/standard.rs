//! Listeners of the Gateway API's `Gateway`s.

use std::net::IpAddr;

use weft_proto::kinds::gateway::{Gateway, Listener, ObjectRef, TERMINATE_OPTION, ValidationMode};
use weft_proto::kinds::istio::service_of;
use weft_proto::resource::ResourceKey;
use weft_proxy::table::description::{ListenerDescription, Speaks};
use weft_proxy::table::routes::Document;
use weft_proxy::tls::{EdgeClients, EdgeTls};

use super::attached;
use super::credentials::{Asked, Wanted};
use super::{Age, Ground, Own, Source, age};

pub(super) fn listeners(ground: &Ground<'_>, wanted: &mut Wanted<'_>) -> Vec<(Age, ListenerDescription)> {
    let mut made = Vec::new();
    for document in ground.specs.gateways() {
        let Some(own) = ground.own.iter().find(|own| serves(own, &document)) else { continue };
        for listener in &document.spec.listeners {
            let listener = self::listener(ground, wanted, (own, &document), listener);
            made.push((age(document.created, &document.key), listener));
        }
    }
    made
}

/// Whether a gateway of this node serves the document: it has its name, or one that Istio makes of it, or its label; or it is
/// named among the addresses.
pub(super) fn serves(own: &Own<'_>, document: &Document<Gateway>) -> bool {
    let (key, service) = (&document.key, own.service);
    let named = |address: &weft_proto::kinds::gateway::Address| {
        address.r#type == "Hostname" && service_of(&address.value, &key.namespace).as_ref() == Some(service)
    };
    let mut hosts = document.spec.addresses.iter().filter(|address| address.r#type == "Hostname").peekable();
    if hosts.peek().is_some() {
        return hosts.any(named);
    }
    let label = own.labels.get(NAME_LABEL);
    let by_name = service.name() == key.name || service.name().strip_suffix("-istio") == Some(&key.name);
    service.namespace() == key.namespace && (by_name || label == Some(&key.name))
}

fn listener(
    ground: &Ground<'_>,
    wanted: &mut Wanted<'_>,
    (own, document): (&Own<'_>, &Document<Gateway>),
    listener: &Listener,
) -> ListenerDescription {
    let (key, spec) = (&document.key, &document.spec);
    let ips: Vec<IpAddr> = spec.addresses.iter().filter_map(|address| address.value.parse().ok()).collect();
    // TLS of the mesh's own ends with the link.
    let of_mesh = is_of_mesh(listener);
    let speaks = match (listener.protocol.as_str(), listener.passes_through()) {
        ("HTTP", _) => Speaks::Http,
        ("TCP", _) => Speaks::Tcp,
        ("HTTPS", false) if of_mesh => Speaks::Http,
        (_, false) if of_mesh => Speaks::Tcp,
        (_, true) => Speaks::Passthrough,
        (protocol, false) => Speaks::Tls(secured(ground, wanted, (key, spec), (listener, protocol == "HTTPS"))),
    };
    let host = listener.hostname.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| "*".into());
    ListenerDescription {
        service: own.service.clone(),
        name: format!("{}/{} {}", key.namespace, key.name, listener.name),
        port: listener.port,
        addresses: ground.addresses((listener.port, of_mesh || own.within || spec.within), &ips),
        redirects: false,
        strict: true,
        conflict: None,
        routes: Vec::new(),
        gateway_routes: attached::http(ground.specs, key, (listener, &host)),
        stream_routes: attached::streams(ground.specs, key, (listener, &host)),
        hosts: vec![host],
        speaks,
    }
}

/// Whether its TLS is that of the mesh itself.
pub(super) fn is_of_mesh(listener: &Listener) -> bool {
    option(listener) == Some("ISTIO_MUTUAL")
}

fn option(listener: &Listener) -> Option<&str> {
    listener.tls.as_ref()?.options.get(TERMINATE_OPTION).map(String::as_str)
}

fn secured(
    ground: &Ground<'_>,
    wanted: &mut Wanted<'_>,
    (key, gateway): (&ResourceKey, &Gateway),
    (listener, http): (&Listener, bool),
) -> EdgeTls {
    let mut refused = None;
    let mut source = |to: &ObjectRef| {
        let namespace = to.namespace.clone().unwrap_or_else(|| key.namespace.clone());
        let granted = || {
            let own = ground.specs.grants().into_iter().filter(|one| one.key.namespace == namespace);
            own.into_iter().any(|one| one.spec.allows_secret(&key.namespace, &to.name))
        };
        if namespace != key.namespace && !granted() {
            let text = format!("no ReferenceGrant of {namespace} lets gateways of {} have {}", key.namespace, to.name);
            refused.get_or_insert(text);
        }
        Source::Secret { namespace, name: to.name.clone() }
    };
    let refs = listener.tls.iter().flat_map(|tls| &tls.certificate_refs);
    let sources: Vec<Source> = refs.map(&mut source).collect();
    let asked = match (gateway.validation(listener), option(listener)) {
        (Some(validation), _) if validation.mode == ValidationMode::AllowValidOnly => Asked {
            clients: EdgeClients::Required,
            authorities: validation.ca_certificate_refs.iter().map(&mut source).collect(),
        },
        (_, Some(mode @ ("MUTUAL" | "OPTIONAL_MUTUAL"))) => Asked {
            clients: if mode == "MUTUAL" { EdgeClients::Required } else { EdgeClients::Optional },
            authorities: sources.iter().filter_map(beside).collect(),
        },
        _ => Asked::default(),
    };
    let mut edge = wanted.tls(&sources, &asked, http);
    edge.lacks = refused.or(edge.lacks);
    edge
}

/// Where the authorities of callers may stand apart.
fn beside(source: &Source) -> Option<Source> {
    let Source::Secret { namespace, name } = source else { return None };
    Some(Source::Secret { namespace: namespace.clone(), name: format!("{name}-cacert") })
}

/// The label by which Istio tells what a gateway serves.
const NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";
