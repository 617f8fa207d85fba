//! Which rule a call falls under, where it goes and what is done to it, as golden scripts: `tests/scripts/routes/`, with
//! documents from `tests/documents/`.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use http::header::HOST;
use http::{HeaderName, Request};
use weft_proto::document;
use weft_proto::identity::Identity;
use weft_proto::kinds::grpc_route::GrpcRoute;
use weft_proto::kinds::{Kinds, Spec};
use weft_proto::resource::Resource;
use weft_proto::service::{Protocol, ServiceName, ServicePort};

use crate::call::Parties;
use crate::decide::relation::{Ground, Place};
use crate::golden::{self, Line, Told};
use crate::request::{Origin, read};
use crate::table::description::{
    AliasDescription, Calls, Description, EndpointDescription, Intercepts, ServiceDescription,
};
use crate::table::peers::PeersDescription;
use crate::table::routes::{
    AliasDocument, BackendRef, Document, GatewayDocument, GrantDocument, RouteDocument, SubsetDocument,
};
use crate::table::{Meant, Table};
use crate::upstream::Upstreams;

use super::*;

/// Services, and the documents about their calls.
struct Script {
    services: BTreeMap<ServiceName, ServiceDescription>,
    routes: Vec<Arc<RouteDocument>>,
    gateway: Vec<Arc<GatewayDocument>>,
    subsets: Vec<Arc<SubsetDocument>>,
    aliases: Vec<Arc<AliasDocument>>,
    grants: Vec<Arc<GrantDocument>>,
    random: Random,
}

impl Default for Script {
    fn default() -> Self {
        let (services, routes, gateway, subsets) = (BTreeMap::new(), Vec::new(), Vec::new(), Vec::new());
        let (aliases, grants) = (Vec::new(), Vec::new());
        Self { services, routes, gateway, subsets, aliases, grants, random: Random::new(7) }
    }
}

impl Script {
    fn run(&mut self, mut line: Line<'_>) -> Told {
        let told = match line.word()? {
            "service" => self.service(&mut line)?,
            "apply" => self.apply(line.word()?)?,
            "call" => self.call(&mut line)?,
            // Many calls: where they went.
            "calls" => {
                let number: usize = line.word()?.parse()?;
                let words: Vec<&str> = std::iter::from_fn(|| line.word().ok()).collect();
                let mut shares: BTreeMap<String, usize> = BTreeMap::new();
                for _ in 0..number {
                    *shares.entry(self.call(&mut Line::of(&words))?).or_default() += 1;
                }
                shares.iter().map(|(told, count)| format!("{count} x {told}")).collect()
            }
            other => return Err(format!("there is no command {other}").into()),
        };
        line.end()?;
        Ok(told)
    }

    /// `service NAME PORT VERSION...`: a service with an instance of each version.
    fn service(&mut self, line: &mut Line<'_>) -> Told {
        let name: ServiceName = line.word()?.parse()?;
        let ports: Vec<ServicePort> = line.word()?.split(',').map(port).collect::<Result<_, _>>()?;
        let versions: Vec<&str> = std::iter::from_fn(|| line.word().ok()).collect();
        let endpoint = |version: &&str| EndpointDescription {
            node: format!("n-{version}").parse().expect("a name"),
            instance: version.parse().expect("a name"),
            labels: [("version".to_owned(), (*version).to_owned())].into(),
            address: (Ipv4Addr::new(10, 0, 0, 1), 7946).into(),
            zone: String::new(),
            ports: ports.iter().map(|port| port.port).collect(),
            targets: Vec::new(),
            weight: 100,
            healthy: true,
            gateway: false,
        };
        let service = ServiceDescription {
            name: name.clone(),
            account: name.clone(),
            labels: [("tier".to_owned(), name.name().to_owned())].into(),
            address: None,
            listened: Vec::new(),
            endpoints: versions.iter().map(endpoint).collect(),
            outside: None,
            ports,
            settings: Some(Arc::default()),
            calls: Calls::default(),
        };
        self.services.insert(name, service);
        Ok(String::new())
    }

    /// Documents as they are; another form of one takes its place.
    fn apply(&mut self, name: &str) -> Told {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/documents/{name}.yaml"));
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let resources = match document::parse(Kinds::ALL, name, &text) {
            Ok(resources) => resources,
            Err(faults) => return Ok(faults.iter().map(|fault| format!("{fault}\n")).collect()),
        };
        for resource in resources {
            match resource.key.kind.name.as_str() {
                "VirtualService" => put(&mut self.routes, &resource)?,
                "HTTPRoute" => put(&mut self.gateway, &resource)?,
                "GRPCRoute" => put_as(&mut self.gateway, &resource, |spec: GrpcRoute| spec.to_http())?,
                "Service" => put(&mut self.aliases, &resource)?,
                "ReferenceGrant" => put(&mut self.grants, &resource)?,
                _ => put(&mut self.subsets, &resource)?,
            }
        }
        Ok(String::new())
    }

    fn table(&self) -> Result<Table, Box<dyn Error>> {
        let calls = |name: &ServiceName| Calls {
            routes: about(&self.routes, |one| one.spec.services(&one.key.namespace).contains(name)),
            gateway_routes: about(&self.gateway, |one| one.spec.services(&one.key.namespace).contains(name)),
            stream_routes: Vec::new(),
            subsets: about(&self.subsets, |one| one.spec.services(&one.key.namespace).contains(name)),
        };
        let services = self.services.values();
        let services =
            services.map(|service| Arc::new(ServiceDescription { calls: calls(&service.name), ..service.clone() }));
        let alias = |document: &Arc<AliasDocument>| {
            let name = ServiceName::new(&document.key.namespace, &document.key.name).expect("a name");
            AliasDescription { document: document.clone(), calls: calls(&name) }
        };
        let description = Description {
            index: 1,
            trust_domain: "mesh.test".parse()?,
            node: "me".parse()?,
            zone: String::new(),
            deny_by_default: false,
            peers: PeersDescription::default(),
            services: services.collect(),
            policies: Vec::new(),
            local: Vec::new(),
            callers: BTreeMap::new(),
            caller_any: None,
            caller_groups: BTreeMap::new(),
            aliases: self.aliases.iter().map(alias).collect(),
            grants: self.grants.clone(),
            binds: Vec::new(),
            intercepts: Intercepts::default(),
            gateways: Vec::new(),
            challenges: Vec::new(),
        };
        Ok(Table::build(description, None)?)
    }

    /// `call METHOD SERVICE[:PORT]/PATH [from=CALLER] [host=HOST] [NAME:VALUE...]`
    fn call(&self, line: &mut Line<'_>) -> Told {
        let (method, target) = (line.word()?, line.word()?);
        let (authority, path) = target.split_at(target.find('/').ok_or("no path")?);
        let (name, number) = authority.split_once(':').map_or((authority, None), |(name, port)| (name, Some(port)));
        let caller: ServiceName = line.named("from")?.unwrap_or("shop".parse()?);
        let host: String = line.named("host")?.unwrap_or_else(|| authority.to_owned());
        let mut request = Request::builder().method(method).uri(path).header(HOST, host);
        while let Ok(field) = line.word() {
            let (name, value) = field.split_once(':').ok_or("a field is NAME:VALUE")?;
            request = request.header(name, value);
        }
        let table = self.table()?;
        let number = number.map(str::parse::<u16>).transpose()?;
        let Meant { service, port: number, subset, .. } =
            table.meant(&name.parse()?, number).ok_or("there is no such service")?;
        let port = match number {
            Some(number) => service.port(number),
            None => service.ports.first().copied(),
        };
        let port = port.ok_or("there is no such port")?;
        let caller = Identity::service(table.trust_domain.clone(), caller);
        let parties = Parties { subset, ..Parties::of_caller(caller, &service.name, port.port) };
        let (place, upstreams) = (Place { core: 0, cores: 1 }, Upstreams::default());
        let relation = Relation::new(Ground { table: &table, place, upstreams: &upstreams }, &parties, service, port);
        let origin = Origin { from_node: false, host: None, client: ([127, 0, 0, 1], 1).into() };
        let before = request.body(())?.into_parts().0;
        let received = read(before, &mut None, &origin, &self.random).map_err(|reject| format!("{reject:?}"))?;
        Ok(self.follow(&table, &relation, received) + "\n")
    }

    fn copies(&self, table: &Table, relation: &Relation, ruled: &Ruled) -> String {
        let copy = |(_, to): (usize, &BackendRef)| {
            let subset = to.subset.as_ref().map(|subset| format!(" {subset}")).unwrap_or_default();
            let to = route::backend(table, relation, to).map(|to| to.service.name.to_string());
            format!(", copied to {}{subset}", to.as_deref().unwrap_or("nothing"))
        };
        ruled.copies(|| self.random.share()).map(copy).collect()
    }

    fn follow(&self, table: &Table, relation: &Relation, mut received: Received) -> String {
        let slashes = relation.service.settings.escaped_slashes;
        let rejected = |reject: &Reject| format!("{} {}", reject.status().as_u16(), reject.reason());
        let mut asked = match received.normalise(slashes) {
            Ok(asked) => asked,
            Err(reject) => return rejected(&reject),
        };
        let ruled = match find(relation, &received, &asked, &self.random) {
            Ok(None) => return format!("{} by no rule", relation.service.name),
            Ok(Some(ruled)) => ruled,
            Err(reject) => return rejected(&reject),
        };
        let rule = &ruled.rule().name;
        let origin = match answer((&ruled, "http"), &asked, &received.head.headers) {
            Ok(origin) => origin,
            Err(response) => {
                let fields = shown(response.headers(), &["content-length", "content-type"]);
                return format!("{}{fields} by {rule}", response.status().as_u16());
            }
        };
        let Some(backend) = ruled.to().and_then(|(_, to)| route::backend(table, relation, to)) else {
            return format!("{} by {rule}", rejected(&ruled.missing()));
        };
        let (path, host) = (asked.path.clone(), asked.host.clone());
        if let Err(reject) = change(&mut received, &ruled, slashes, &mut asked) {
            return rejected(&reject);
        }
        let mut told = backend.service.name.to_string();
        told += &backend.subset.map(|subset| format!(" {subset}")).unwrap_or_default();
        if backend.port != relation.port {
            write!(told, " at {}", backend.port.port).expect("a string takes all");
        }
        if asked.path != path {
            write!(told, ", path {}", asked.path).expect("a string takes all");
        }
        if asked.host.value != host.value {
            write!(told, ", host {}", asked.host.authority).expect("a string takes all");
        }
        told += &shown(&received.head.headers, &["traceparent"]);
        let mut answered = HeaderMap::new();
        change_answer(&ruled, origin, &mut answered);
        if !answered.is_empty() {
            write!(told, ", answered with{}", shown(&answered, &[])).expect("a string takes all");
        }
        told += &self.copies(table, relation, &ruled);
        match fault(&ruled, &self.random) {
            (None, None) => {}
            (delay, abort) => {
                told += &delay.map(|delay| format!(", delayed by {delay:?}")).unwrap_or_default();
                let grpc = |response: &Response<AnswerBody>| response.headers().get("grpc-status").cloned();
                let failed = |one: Response<AnswerBody>| format!(", failed with {} {:?}", one.status(), grpc(&one));
                told += &abort.map(failed).unwrap_or_default();
            }
        }
        told += &ruled.rule().timeout.map(|timeout| format!(", within {timeout:?}")).unwrap_or_default();
        let retries = ruled.rule().retries.as_ref();
        told +=
            &retries.and_then(|retries| retries.attempts).map(|most| format!(", {most} retries")).unwrap_or_default();
        format!("{told} by {rule}")
    }
}

fn about<T>(documents: &[Arc<T>], is: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
    documents.iter().filter(|one| is(one)).cloned().collect()
}

/// Fields but for those that are of no interest.
fn shown(headers: &HeaderMap, without: &[&str]) -> String {
    let fields = headers.iter().filter(|(name, _)| !without.contains(&name.as_str()));
    let text = |(name, value): (&HeaderName, &http::HeaderValue)| format!(" {name}:{}", value.to_str().unwrap_or("?"));
    fields.map(text).collect()
}

fn put<T: Spec>(documents: &mut Vec<Arc<Document<T>>>, resource: &Resource) -> Result<(), String> {
    put_as(documents, resource, |spec: T| spec)
}

fn put_as<T: Spec, U>(
    documents: &mut Vec<Arc<Document<U>>>,
    resource: &Resource,
    form: impl FnOnce(T) -> U,
) -> Result<(), String> {
    let known = documents.iter().position(|one| one.key == resource.key);
    let created = known.map_or(documents.len() as u64, |at| documents[at].created);
    let document = Arc::new(Document { key: resource.key.clone(), created, spec: form(T::of(resource)?) });
    match known {
        Some(at) => documents[at] = document,
        None => documents.push(document),
    }
    Ok(())
}

fn port(text: &str) -> Result<ServicePort, Box<dyn Error>> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "http"));
    Ok(ServicePort { port: number.parse()?, protocol: protocol.parse::<Protocol>()? })
}

#[test]
fn calls_fall_under_the_rules_that_the_scripts_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts/routes");
    golden::run(&folder, Script::run);
}
