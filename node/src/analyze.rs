//! What is wrong with documents though each of them is good: what they name that is not there, and what in them has no effect.
//! Pure: documents and services in, findings out.

mod calls;
mod destinations;
mod gateways;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use weft_proto::kinds::Spec;
use weft_proto::kinds::authorization_policy::APP_LABEL;
use weft_proto::kinds::certificate::Certificate;
use weft_proto::kinds::core_service::CoreService;
use weft_proto::kinds::destination_rule::DestinationRule;
use weft_proto::kinds::gateway::Gateway;
use weft_proto::kinds::grpc_route::GrpcRoute;
use weft_proto::kinds::hosts::reading_as;
use weft_proto::kinds::http_route::HttpRoute;
use weft_proto::kinds::istio_gateway::IstioGateway;
use weft_proto::kinds::reference_grant::ReferenceGrant;
use weft_proto::kinds::secret::Secret;
use weft_proto::kinds::service_entry::ServiceEntry;
use weft_proto::kinds::tcp_route::TcpRoute;
use weft_proto::kinds::tls_route::TlsRoute;
use weft_proto::kinds::virtual_service::VirtualService;
use weft_proto::resource::Resource;
use weft_proto::service::{Labels, Protocol, ServiceName, ServicePort};

use crate::api::schema::Service;
use crate::compile::serves_gateway;
use crate::registry::GATEWAY_LABEL;

/// What was found in a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its number, which stays: see docs/commands.md.
    pub code: &'static str,
    /// How bad it is.
    pub level: Level,
    /// `KIND namespace/name`.
    pub document: String,
    /// Where in it.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Calls fail.
    Error,
    /// Something has no effect, or another one than it seems.
    Warning,
    /// Worth knowing.
    Info,
}

/// A service as the mesh knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownService {
    /// What its ports speak.
    pub ports: Vec<ServicePort>,
    /// The labels of its instances, `app` included.
    pub instances: Vec<Labels>,
}

/// The services of the mesh.
pub type Services = BTreeMap<ServiceName, KnownService>;

/// The services of the mesh, as nodes tell of them.
pub fn known(services: &[Service]) -> Services {
    let port = |text: &String| {
        let (number, protocol) = text.split_once('/')?;
        Some(ServicePort { port: number.parse().ok()?, protocol: protocol.parse().ok()? })
    };
    let service = |one: &Service| {
        let name: ServiceName = one.name.parse().ok()?;
        let app = (APP_LABEL.to_owned(), name.name().to_owned());
        let labels =
            |own: &BTreeMap<String, String>| -> Labels { own.clone().into_iter().chain([app.clone()]).collect() };
        let instances = one.instances.iter().map(|instance| labels(&instance.labels)).collect();
        Some((name, KnownService { ports: one.ports.iter().filter_map(port).collect(), instances }))
    };
    services.iter().filter_map(service).collect()
}

/// What there is.
struct Ground<'a> {
    /// None where it is not known what there is.
    services: Option<&'a Services>,
    rules: Vec<Read<'a, DestinationRule>>,
    virtual_services: Vec<Read<'a, VirtualService>>,
    http_routes: Vec<Read<'a, HttpRoute>>,
    tcp_routes: Vec<Read<'a, TcpRoute>>,
    aliases: Vec<Read<'a, CoreService>>,
    grants: Vec<Read<'a, ReferenceGrant>>,
    istio_gateways: Vec<Read<'a, IstioGateway>>,
    gateways: Vec<Read<'a, Gateway>>,
    secrets: gateways::Secrets,
    /// Hosts outside the mesh that documents name.
    outside: BTreeSet<String>,
}

/// A document and what it says.
struct Read<'a, T> {
    resource: &'a Resource,
    spec: T,
}

/// Where findings go.
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, code: &'static str, resource: &Resource, path: String, message: String) {
        let level = CODES.iter().find(|(known, ..)| *known == code).map_or(Level::Warning, |(_, level, _)| *level);
        let document = resource.key.to_string();
        self.0.push(Finding { code, level, document, path, message });
    }
}

/// Everything that is found, in the order of the documents.
pub fn analyze(resources: &[Resource], services: Option<&Services>) -> Vec<Finding> {
    let mut http_routes: Vec<Read<'_, HttpRoute>> = read(resources);
    let grpc = read::<GrpcRoute>(resources).into_iter();
    http_routes.extend(grpc.map(|one| Read { resource: one.resource, spec: one.spec.to_http() }));
    let mut tcp_routes: Vec<Read<'_, TcpRoute>> = read(resources);
    let tls = read::<TlsRoute>(resources).into_iter();
    tcp_routes.extend(tls.map(|one| Read { resource: one.resource, spec: one.spec.to_tcp() }));
    let ground = Ground {
        services,
        rules: read(resources),
        virtual_services: read(resources),
        http_routes,
        tcp_routes,
        aliases: read(resources),
        grants: read(resources),
        istio_gateways: read(resources),
        gateways: read(resources),
        secrets: read::<Secret>(resources)
            .into_iter()
            .map(|one| (one.resource.key.namespace.clone(), one.resource.key.name.clone()))
            // What is ordered comes.
            .chain(read::<Certificate>(resources).into_iter().map(|one| {
                let Read { resource, spec } = one;
                (resource.key.namespace.clone(), spec.secret_name)
            }))
            .collect(),
        outside: read::<ServiceEntry>(resources).into_iter().flat_map(|one| one.spec.hosts).collect(),
    };
    let mut findings = Findings(Vec::new());
    calls::virtual_services(&ground, &mut findings);
    calls::gateway_routes(&ground, &mut findings);
    gateways::virtual_services(&ground, &mut findings);
    gateways::certificates(&ground, &mut findings);
    destinations::rules(&ground, &mut findings);
    destinations::aliases(&ground, &mut findings);
    let mut findings = findings.0;
    findings.sort_by(|a, b| (&a.document, &a.path, a.code).cmp(&(&b.document, &b.path, b.code)));
    findings.dedup();
    findings
}

fn read<T: Spec>(resources: &[Resource]) -> Vec<Read<'_, T>> {
    let own = resources.iter().filter(|resource| resource.key.kind == T::KIND.key());
    own.filter_map(|resource| Some(Read { resource, spec: T::of(resource).ok()? })).collect()
}

impl Ground<'_> {
    /// The service that a name means, a further name of one included; none where it is not there.
    fn service(&self, name: &ServiceName) -> Option<&KnownService> {
        let services = self.services?;
        services.get(name).or_else(|| {
            let is = |one: &&Read<'_, CoreService>| {
                one.resource.key.namespace == name.namespace() && one.resource.key.name == name.name()
            };
            let alias = self.aliases.iter().find(is)?;
            services.get(&alias.spec.service(&alias.resource.key.namespace)?)
        })
    }

    /// Whether it is known that there is no such service, and no host outside of that name.
    fn lacks(&self, name: &ServiceName) -> bool {
        let known = match name.is_outside() {
            true => self.outside.contains(name.name()),
            false => reading_as(name).any(|host| self.outside.contains(&host)),
        };
        self.services.is_some() && !known && self.service(name).is_none()
    }

    /// Whether a service has a port: a gateway those that documents say.
    fn has_port(&self, (name, service): (&ServiceName, &KnownService), port: u16) -> bool {
        let mut gates = service.instances.iter().filter(|labels| labels.contains_key(GATEWAY_LABEL));
        service.ports.iter().any(|own| own.port == port)
            || gates.any(|labels| {
                let documents = self.istio_gateways.iter().map(|one| one.resource);
                let mut documents = documents.chain(self.gateways.iter().map(|one| one.resource));
                documents.any(|one| serves_gateway(one, name, labels) && gateways::has_port(one, port))
            })
    }

    /// Whether a further name is meant.
    fn is_alias(&self, name: &ServiceName) -> bool {
        self.services.is_some_and(|services| !services.contains_key(name))
    }
}

/// Whether HTTP rules say nothing of the port.
fn is_opaque(port: ServicePort) -> bool {
    port.protocol == Protocol::Tcp
}

/// Every code, how bad it is, and what it means.
pub const CODES: [(&str, Level, &str); 21] = [
    ("WFT101", Level::Error, "a service that is not there"),
    ("WFT102", Level::Error, "a subset that no DestinationRule defines"),
    ("WFT103", Level::Error, "a port that the service does not have"),
    ("WFT104", Level::Warning, "a subset without instances"),
    ("WFT105", Level::Error, "a service of another namespace without a ReferenceGrant"),
    ("WFT106", Level::Error, "a delegate that is not there"),
    ("WFT107", Level::Error, "a gateway that is not there"),
    ("WFT108", Level::Error, "rules that the gateway does not take"),
    ("WFT109", Level::Error, "a certificate that is not there"),
    ("WFT110", Level::Error, "hosts that the gateway does not serve"),
    ("WFT201", Level::Warning, "a rule that is never reached"),
    ("WFT202", Level::Warning, "a destination that gets nothing"),
    ("WFT203", Level::Warning, "HTTP rules for a port that speaks no HTTP, or rules for streams of one that does"),
    ("WFT204", Level::Warning, "a document without effect, since another goes before it"),
    ("WFT205", Level::Info, "retries of calls that may not be safe to repeat"),
    ("WFT206", Level::Warning, "rules for others to take up that none does"),
    ("WFT301", Level::Warning, "instances that are never left out"),
    ("WFT302", Level::Warning, "failover without a look at failures"),
    ("WFT303", Level::Warning, "settings of a port that the service does not have"),
    ("WFT304", Level::Warning, "a subset that no route names"),
    ("WFT401", Level::Warning, "a further name that a service has already"),
];
