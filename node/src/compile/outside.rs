//! Hosts outside the mesh: each is a service of which every node has the instances itself.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use weft_consensus::state::State;
use weft_proto::kinds::destination_rule::{Tls, TlsMode};
use weft_proto::kinds::hosts::{block, covers};
use weft_proto::kinds::secret::Credential;
use weft_proto::kinds::service::{OnOverload, OutboundMode, ServiceSettings};
use weft_proto::kinds::service_entry::{EntryEndpoint, EntryPort, Resolution, ServiceEntry};
use weft_proto::loopback::addresses;
use weft_proto::service::{InstanceId, InstanceName, ServiceName, ServicePort};
use weft_proxy::table::description::{
    EndpointDescription, LocalInstance, LocalPort, OutsideDescription, ServiceDescription,
};
use weft_proxy::table::outside::ANY;
use weft_proxy::table::routes::{Document, SubsetDocument};

use super::gateways::{Held, Source};
use super::{Site, Specs};
use crate::config::Loopback;
use crate::registry::Local;

/// What hosts outside are made from.
pub(super) struct Ground<'a> {
    pub(super) site: &'a Site,
    pub(super) specs: &'a Specs,
    pub(super) held: &'a Held,
}

/// Whether calls to hosts that no document names are passed on.
#[derive(Debug, Clone, Copy)]
struct Passing {
    /// Those of services that say nothing of that.
    unless_said: bool,
    /// Those of some services that say so.
    by_some: bool,
}

/// Hosts outside, by name, with the instances that this node has of them, and what those need of certificates.
pub(super) fn services(
    ground: &Ground<'_>,
    sources: &mut BTreeSet<Source>,
) -> (Vec<ServiceDescription>, Vec<LocalInstance>) {
    let (mut services, mut instances) = (BTreeMap::new(), Vec::new());
    let mut add = |(mut service, own): (ServiceDescription, Vec<LocalInstance>)| {
        // Of several documents about a host the oldest counts.
        let Entry::Vacant(place) = services.entry(service.name.clone()) else { return };
        service.calls = ground.specs.calls(&service.name).cloned().unwrap_or_default();
        for one in &mut service.calls.subsets {
            *one = with_held(ground, one, sources);
        }
        place.insert(service);
        instances.extend(own);
    };
    let entries = ground.specs.entries();
    for document in &entries {
        document.spec.hosts.iter().for_each(|host| add(service(ground, document, host)));
    }
    let passing = Passing {
        unless_said: ground.specs.mesh().outbound_traffic_policy.mode == OutboundMode::AllowAny,
        by_some: ground.specs.some_pass(),
    };
    for host in ground.specs.ruled_hosts() {
        let covering = entries.iter().filter_map(|document| {
            let patterns = document.spec.hosts.iter().filter(|pattern| covers(pattern, &host));
            patterns.map(String::len).max().map(|length| (length, document))
        });
        add(match covering.max_by_key(|(length, _)| *length) {
            Some((_, document)) => service(ground, document, &host),
            None => at_any_port(ground, &host, passing),
        });
    }
    if passing.unless_said || passing.by_some {
        add(at_any_port(ground, ANY, passing));
    }
    (services.into_values().collect(), instances)
}

/// Gives each host that has a name and ports a loopback address, by its name; those of services go before.
pub(super) fn place_on_loopback(services: &mut [ServiceDescription], site: &Site, (state, local): (&State, &Local)) {
    let mut taken: BTreeSet<Ipv4Addr> = state.services.values().map(|record| record.address).collect();
    // Where callers say by the address where they want to go, an address of this host leads nowhere.
    let is_named = |one: &&mut ServiceDescription| {
        let dialled = one.outside.as_ref().is_some_and(|outside| outside.dialled);
        !one.ports.is_empty() && !one.name.name().contains('*') && !dialled
    };
    for service in services.iter_mut().filter(is_named) {
        let asked_for = local.listened.contains(&service.name);
        let address = addresses(&service.name).find(|address| taken.insert(*address));
        service.address = address.filter(|_| asked_for || site.loopback != Loopback::Off);
        if asked_for || site.serves(&service.name) {
            service.listened = service.ports.iter().map(|port| port.port).collect();
        }
    }
}

fn service(
    ground: &Ground<'_>,
    document: &Document<ServiceEntry>,
    host: &str,
) -> (ServiceDescription, Vec<LocalInstance>) {
    let spec = &document.spec;
    let ports: Vec<ServicePort> =
        spec.ports.iter().map(|port| ServicePort { port: port.number, protocol: port.speaks() }).collect();
    let itself = [EntryEndpoint { address: host.to_owned(), ..EntryEndpoint::default() }];
    let places = if spec.endpoints.is_empty() { &itself[..] } else { &spec.endpoints[..] };
    let outside = OutsideDescription {
        namespace: document.key.namespace.clone(),
        document: document.key.name.clone(),
        export_to: spec.export_to.clone(),
        names: spec.subject_alt_names.clone(),
        addresses: spec.addresses.iter().filter_map(|text| block(text)).collect(),
        anywhere: match spec.addresses.is_empty() {
            true => spec.ports.iter().filter(|port| port.is_stream()).map(|port| port.number).collect(),
            false => Vec::new(),
        },
        dialled: spec.resolution == Resolution::None,
        targets: spec.ports.iter().map(|port| (port.number, port.target())).collect(),
        any_port: false,
        passes: false,
    };
    let mut made = describe(host, (ports, outside));
    let mut instances = Vec::new();
    for (at, place) in places.iter().enumerate() {
        let (endpoint, instance) = self::place(ground.site, &made.name, (at, place), &spec.ports);
        made.endpoints.push(endpoint);
        instances.push(instance);
    }
    (made, instances)
}

/// Hosts that no `ServiceEntry` names: every one of them, or those that only rules name, which are reached by these alone where calls are
/// not passed on otherwise.
fn at_any_port(ground: &Ground<'_>, host: &str, passing: Passing) -> (ServiceDescription, Vec<LocalInstance>) {
    let outside = OutsideDescription { any_port: true, passes: passing.unless_said, ..OutsideDescription::default() };
    let mut made = describe(host, (Vec::new(), outside));
    if !passing.unless_said && !passing.by_some {
        return (made, Vec::new());
    }
    let itself = EntryEndpoint { address: host.to_owned(), ..EntryEndpoint::default() };
    let (endpoint, instance) = place(ground.site, &made.name, (0, &itself), &[]);
    made.endpoints.push(endpoint);
    (made, vec![instance])
}

fn describe(host: &str, (ports, outside): (Vec<ServicePort>, OutsideDescription)) -> ServiceDescription {
    let name = ServiceName::outside(host);
    // What a host outside does is no concern of this node's, which serves none of its calls.
    let settings = ServiceSettings { overload: OnOverload::Queue, ..ServiceSettings::default() };
    ServiceDescription {
        account: name.clone(),
        name,
        labels: BTreeMap::new(),
        address: None,
        listened: Vec::new(),
        ports,
        settings: Some(Arc::new(settings)),
        calls: Default::default(),
        endpoints: Vec::new(),
        outside: Some(outside),
    }
}

fn place(
    site: &Site,
    service: &ServiceName,
    (at, place): (usize, &EntryEndpoint),
    ports: &[EntryPort],
) -> (EndpointDescription, LocalInstance) {
    let instance: InstanceName = format!("place-{at}").parse().expect("a label");
    let ip: Option<IpAddr> = place.address.parse().ok();
    let target = |port: &EntryPort| LocalPort {
        port: port.number,
        target: SocketAddr::new(
            ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
            place.ports.get(&port.name).copied().unwrap_or_else(|| port.target()),
        ),
        protocol: port.speaks(),
    };
    let local = LocalInstance {
        id: InstanceId { service: service.clone(), name: instance.clone() },
        labels: place.labels.clone(),
        weight: place.weight.unwrap_or(1),
        ports: ports.iter().map(target).collect(),
        host: ip.is_none().then(|| place.address.as_str().into()),
        healthy: true,
    };
    let endpoint = EndpointDescription {
        node: site.node.clone(),
        instance,
        labels: place.labels.clone(),
        address: site.address,
        zone: if place.locality.is_empty() { site.zone.clone() } else { place.locality.clone() },
        ports: ports.iter().map(|port| port.number).collect(),
        targets: Vec::new(),
        weight: place.weight.unwrap_or(1),
        healthy: true,
        gateway: false,
    };
    (endpoint, local)
}

/// The document with what this node holds of the certificates that it names.
fn with_held(
    ground: &Ground<'_>,
    document: &Arc<SubsetDocument>,
    sources: &mut BTreeSet<Source>,
) -> Arc<SubsetDocument> {
    if document.spec.tls_blocks().next().is_none() {
        return document.clone();
    }
    let spec = document.spec.with_held(|tls| held(ground, (tls, &document.key.namespace), sources));
    Arc::new(Document { spec, ..(**document).clone() })
}

fn held(
    ground: &Ground<'_>,
    (tls, namespace): (&Tls, &str),
    sources: &mut BTreeSet<Source>,
) -> Option<Result<Credential, String>> {
    if !matches!(tls.mode, TlsMode::Simple | TlsMode::Mutual) {
        return None;
    }
    let mut of = |source: Source| {
        let held = ground.held.0.get(&source).cloned();
        sources.insert(source);
        held.unwrap_or_else(|| Err("its certificates are not here yet".into()))
    };
    let own = match tls.credential_name.as_str() {
        "" if tls.client_certificate.is_empty() && tls.ca_certificates.is_empty() => Ok(Credential::default()),
        "" => of(Source::Files {
            chain: tls.client_certificate.clone(),
            key: tls.private_key.clone(),
            authorities: tls.ca_certificates.clone(),
        }),
        name => of(Source::Secret { namespace: namespace.to_owned(), name: name.to_owned() }),
    };
    let own = match own {
        Ok(own) => own,
        Err(why) => return Some(Err(why)),
    };
    if own.authorities.is_some() || tls.insecure_skip_verify {
        return Some(Ok(own));
    }
    Some(of(Source::System).map(|system| Credential { authorities: system.authorities, ..own }))
}
