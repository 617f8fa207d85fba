//! What documents say, read once a version. Of a document that cannot be read the last form that could is kept.

mod gateways;
mod issuing;
mod kept;
mod outside;
mod security;
mod unenforced;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_consensus::state::State;
use weft_proto::kinds::core_service::CoreService;
use weft_proto::kinds::destination_rule::DestinationRule;
use weft_proto::kinds::gateway::Gateway;
use weft_proto::kinds::grpc_route::GrpcRoute;
use weft_proto::kinds::hosts::covers;
use weft_proto::kinds::http_route::HttpRoute;
use weft_proto::kinds::istio::is_exported;
use weft_proto::kinds::istio_gateway::IstioGateway;
use weft_proto::kinds::mesh_config::MeshConfig;
use weft_proto::kinds::order::Challenge;
use weft_proto::kinds::reference_grant::ReferenceGrant;
use weft_proto::kinds::service::{GatewayTopology, OutboundMode, ServiceSettings};
use weft_proto::kinds::tcp_route::TcpRoute;
use weft_proto::kinds::tls_route::TlsRoute;
use weft_proto::kinds::virtual_service::{Delegate, MESH, VirtualService, with_delegates};
use weft_proto::kinds::{Kinds, Spec};
use weft_proto::resource::ResourceKey;
use weft_proto::service::ServiceName;
use weft_proxy::table::authz::PolicyDescription;
use weft_proxy::table::description::{AliasDescription, Calls};
use weft_proxy::table::peers::PeersDescription;
use weft_proxy::table::routes::{
    AliasDocument, Document, GatewayDocument, GrantDocument, RouteDocument, StreamDocument, SubsetDocument,
};

use gateways::GatewaySpecs;
use issuing::IssuingSpecs;
pub use unenforced::Unenforced;

use kept::{Kept, by_age, keep, keep_document, retain, supported};
use security::SecuritySpecs;

/// What this build makes of documents.
#[derive(Debug)]
pub struct Specs {
    kinds: Kinds,
    security: SecuritySpecs,
    services: BTreeMap<ResourceKey, Kept<ServiceSettings>>,
    routes: BTreeMap<ResourceKey, Kept<RouteDocument>>,
    /// `HTTPRoute`s, and `GRPCRoute`s in their words.
    gateway_routes: BTreeMap<ResourceKey, Kept<GatewayDocument>>,
    stream_routes: BTreeMap<ResourceKey, Kept<StreamDocument>>,
    subsets: BTreeMap<ResourceKey, Kept<SubsetDocument>>,
    aliases: BTreeMap<ResourceKey, Kept<AliasDocument>>,
    grants: BTreeMap<ResourceKey, Kept<GrantDocument>>,
    gateways: GatewaySpecs,
    issuing: IssuingSpecs,
    /// Documents with the rules of those that they delegate to, the oldest first.
    joined: Vec<Arc<RouteDocument>>,
    /// What of those applies within the mesh, where only a part of them does.
    within: BTreeMap<ResourceKey, Arc<RouteDocument>>,
    calls: BTreeMap<ServiceName, Calls>,
    unknown: Vec<Unenforced>,
}

impl Specs {
    /// Nothing is read yet.
    pub fn new(kinds: Kinds) -> Self {
        Self {
            kinds,
            security: SecuritySpecs::default(),
            services: BTreeMap::new(),
            routes: BTreeMap::new(),
            gateway_routes: BTreeMap::new(),
            stream_routes: BTreeMap::new(),
            subsets: BTreeMap::new(),
            aliases: BTreeMap::new(),
            grants: BTreeMap::new(),
            gateways: GatewaySpecs::default(),
            issuing: IssuingSpecs::default(),
            joined: Vec::new(),
            within: BTreeMap::new(),
            calls: BTreeMap::new(),
            unknown: Vec::new(),
        }
    }

    /// Reads what has changed, and forgets what is gone. The services are told of whose calls documents say something else
    /// than before.
    pub(super) fn read(&mut self, state: &State) -> BTreeSet<ServiceName> {
        let there = |key: &ResourceKey| state.resources.contains_key(key);
        self.security.retain(there);
        self.services.retain(|key, _| there(key));
        self.aliases.retain(|key, _| there(key));
        self.grants.retain(|key, _| there(key));
        let mut others = self.gateways.retain(there);
        self.issuing.retain(there);
        others |= retain(&mut self.routes, there);
        others |= retain(&mut self.gateway_routes, there);
        others |= retain(&mut self.stream_routes, there);
        others |= retain(&mut self.subsets, there);
        self.unknown.clear();
        let trust_domain = state.trust_domain.as_ref();
        for resource in state.resources.values() {
            match self.kinds.find(&resource.key.kind) {
                Some(kind) if self.security.read(kind, resource, trust_domain) => {}
                Some(kind) if kind.key() == ServiceSettings::KIND.key() => {
                    let read = || supported(kind, resource).and_then(|()| ServiceSettings::of(resource));
                    keep(&mut self.services, resource, read, || None);
                }
                Some(kind) if kind.key() == VirtualService::KIND.key() => {
                    others |= keep_document(&mut self.routes, kind, resource, |spec: VirtualService| spec);
                }
                Some(kind) if kind.key() == HttpRoute::KIND.key() => {
                    others |= keep_document(&mut self.gateway_routes, kind, resource, |spec: HttpRoute| spec);
                }
                Some(kind) if kind.key() == GrpcRoute::KIND.key() => {
                    others |= keep_document(&mut self.gateway_routes, kind, resource, |spec: GrpcRoute| spec.to_http());
                }
                Some(kind) if kind.key() == TcpRoute::KIND.key() => {
                    others |= keep_document(&mut self.stream_routes, kind, resource, |spec: TcpRoute| spec);
                }
                Some(kind) if kind.key() == TlsRoute::KIND.key() => {
                    others |= keep_document(&mut self.stream_routes, kind, resource, |spec: TlsRoute| spec.to_tcp());
                }
                Some(kind) if kind.key() == CoreService::KIND.key() => {
                    keep_document(&mut self.aliases, kind, resource, |spec: CoreService| spec);
                }
                Some(kind) if kind.key() == ReferenceGrant::KIND.key() => {
                    keep_document(&mut self.grants, kind, resource, |spec: ReferenceGrant| spec);
                }
                Some(kind) if kind.key() == DestinationRule::KIND.key() => {
                    others |= keep_document(&mut self.subsets, kind, resource, |spec: DestinationRule| spec);
                }
                Some(kind) if self.issuing.read(kind, resource) => {}
                kind => match kind.and_then(|kind| self.gateways.read(kind, resource)) {
                    Some(changed) => others |= changed,
                    None => self.unknown.push(Unenforced::unknown(resource)),
                },
            }
        }
        // What is about all services is about those that are new too.
        let wide = |kept: &Kept<SubsetDocument>| kept.good.as_ref().is_some_and(|one| one.spec.host.starts_with('*'));
        if others || self.subsets.values().any(wide) { self.sort_calls(state) } else { BTreeSet::new() }
    }

    /// Puts the documents about calls to the services that they are about; tells of which they are others than before.
    fn sort_calls(&mut self, state: &State) -> BTreeSet<ServiceName> {
        let mut calls: BTreeMap<ServiceName, Calls> = BTreeMap::new();
        self.join_delegates();
        let outside = self.outside_hosts();
        for document in self.rules_within() {
            for service in document.spec.services(&document.key.namespace) {
                calls.entry(service).or_default().routes.push(document.clone());
            }
            let within = document.spec.applies(MESH, &document.key.namespace);
            for host in outside.iter().filter(|host| within && document.spec.hosts.iter().any(|own| covers(own, host)))
            {
                calls.entry(ServiceName::outside(host)).or_default().routes.push(document.clone());
            }
        }
        for document in by_age(&self.gateway_routes) {
            let hosts = self.hosts_of(&document.spec.parent_refs, &document.key.namespace);
            for service in document.spec.services(&document.key.namespace).into_iter().chain(hosts) {
                calls.entry(service).or_default().gateway_routes.push(document.clone());
            }
        }
        for document in by_age(&self.stream_routes) {
            let hosts = self.hosts_of(&document.spec.parent_refs, &document.key.namespace);
            for service in document.spec.services(&document.key.namespace).into_iter().chain(hosts) {
                calls.entry(service).or_default().stream_routes.push(document.clone());
            }
        }
        for document in by_age(&self.subsets) {
            let covered = state.services.keys().filter(|name| document.spec.covers(name)).cloned();
            let hosts = outside.iter().filter(|host| covers(&document.spec.host, host));
            let hosts = hosts.map(|host| ServiceName::outside(host));
            for service in document.spec.services(&document.key.namespace).into_iter().chain(covered).chain(hosts) {
                calls.entry(service).or_default().subsets.push(document.clone());
            }
        }
        let before = std::mem::replace(&mut self.calls, calls);
        let names = before.keys().chain(self.calls.keys());
        names.filter(|name| !same_calls(before.get(*name), self.calls.get(*name))).cloned().collect()
    }

    /// What holds for the whole mesh.
    pub(super) fn mesh(&self) -> MeshConfig {
        self.gateways.mesh().map(|one| one.spec.clone()).unwrap_or_default()
    }

    /// The documents with rules as they apply within the mesh. What is as it was is kept.
    fn rules_within(&mut self) -> Vec<Arc<RouteDocument>> {
        let (mut parts, mut documents) = (BTreeMap::new(), Vec::new());
        for document in &self.joined {
            if !document.spec.differs_by_place() {
                documents.push(document.clone());
                continue;
            }
            let Some(spec) = document.spec.at(MESH, &document.key.namespace) else { continue };
            let new = Document { spec, ..(**document).clone() };
            let known = self.within.get(&document.key).filter(|known| ***known == new).cloned();
            let part = known.unwrap_or_else(|| Arc::new(new));
            parts.insert(document.key.clone(), part.clone());
            documents.push(part);
        }
        self.within = parts;
        documents
    }

    /// Takes up the documents with rules, the oldest first, with those of the ones that they delegate to. What is as it was is
    /// kept.
    fn join_delegates(&mut self) {
        let all = by_age(&self.routes);
        let find = |root: &RouteDocument, to: &Delegate| {
            let namespace = if to.namespace.is_empty() { &root.key.namespace } else { &to.namespace };
            let is = |one: &&Arc<RouteDocument>| one.key.name == to.name && one.key.namespace == *namespace;
            let found = all.iter().find(is).filter(|found| found.spec.hosts.is_empty())?;
            let seen = is_exported(&found.spec.export_to, namespace, &root.key.namespace);
            seen.then_some((&found.spec, found.key.namespace.as_str()))
        };
        let join = |root: &Arc<RouteDocument>| {
            if !root.spec.http.iter().any(|rule| rule.delegate.is_some()) {
                return root.clone();
            }
            let spec = with_delegates(&root.spec, |to| find(root, to));
            let new = Document { spec, ..(**root).clone() };
            let known = self.joined.iter().find(|known| ***known == new).cloned();
            known.unwrap_or_else(|| Arc::new(new))
        };
        self.joined = all.iter().map(join).collect();
    }

    /// Every document with rules, with those of the ones that it delegates to, the oldest first.
    pub(super) fn routes(&self) -> &[Arc<RouteDocument>] {
        &self.joined
    }

    /// The same in the words of the Gateway API.
    pub(super) fn gateway_routes(&self) -> Vec<Arc<GatewayDocument>> {
        by_age(&self.gateway_routes)
    }

    /// The same for opaque streams.
    pub(super) fn stream_routes(&self) -> Vec<Arc<StreamDocument>> {
        by_age(&self.stream_routes)
    }

    /// Whether documents say something else of gateways than when that was asked last.
    pub(super) fn gateways_moved(&mut self) -> bool {
        self.gateways.moved()
    }

    /// What gateways are asked to prove.
    pub(super) fn challenges(&self) -> Vec<Challenge> {
        self.issuing.challenges()
    }

    /// Istio's gateways, the oldest first.
    pub(super) fn istio_gateways(&self) -> Vec<Arc<Document<IstioGateway>>> {
        self.gateways.istio()
    }

    /// Those of the Gateway API.
    pub(super) fn gateways(&self) -> Vec<Arc<Document<Gateway>>> {
        self.gateways.standard()
    }

    /// Further names of instances of services.
    pub(super) fn aliases(&self) -> Vec<AliasDescription> {
        let calls = |document: &Arc<AliasDocument>| {
            let name = ServiceName::new(&document.key.namespace, &document.key.name).ok()?;
            self.calls(&name).cloned()
        };
        let described = by_age(&self.aliases).into_iter();
        described.map(|document| AliasDescription { calls: calls(&document).unwrap_or_default(), document }).collect()
    }

    /// Which namespaces' routes may lead to services of others.
    pub(super) fn grants(&self) -> Vec<Arc<GrantDocument>> {
        by_age(&self.grants)
    }

    /// What documents say of the calls of a service.
    pub(super) fn calls(&self, service: &ServiceName) -> Option<&Calls> {
        self.calls.get(service)
    }

    /// Every policy, as it is enforced.
    pub(super) fn policies(&self) -> impl Iterator<Item = &Arc<PolicyDescription>> {
        self.security.policies()
    }

    /// What instances take at their own ports.
    pub(super) fn peers(&self) -> PeersDescription {
        self.security.peers(self.mesh().peer_authentication.mtls.mode)
    }

    /// Whether calls of some service to hosts that nobody knows are passed on by its own word.
    pub(super) fn some_pass(&self) -> bool {
        let said = self.services.values().filter_map(|kept| kept.good.as_ref()?.outbound_traffic_policy);
        said.into_iter().any(|policy| policy.mode == OutboundMode::AllowAny)
    }

    /// The settings of a service; nothing where the document can't be read and never could. What stands before gateways is said
    /// for the whole mesh where a service says nothing.
    pub(super) fn settings(&self, key: &ResourceKey) -> Option<Arc<ServiceSettings>> {
        let own = match self.services.get(key) {
            None => Arc::default(),
            Some(kept) => kept.good.clone()?,
        };
        let gateway_topology = self.mesh().default_config.gateway_topology;
        if own.gateway_topology != GatewayTopology::default() || gateway_topology == GatewayTopology::default() {
            return Some(own);
        }
        Some(Arc::new(ServiceSettings { gateway_topology, ..(*own).clone() }))
    }

    /// Every document that is not enforced.
    pub fn unenforced(&self) -> Vec<Unenforced> {
        let services = self.services.iter().filter_map(|(key, kept)| {
            let instead = match kept.good {
                Some(_) => "its last form that could be read stays in force",
                None => "calls of the service are answered with 500",
            };
            kept.unenforced(key, instead)
        });
        let routes = self.routes.iter().filter_map(|(key, kept)| kept.unenforced(key, kept.without_it()));
        let subsets = self.subsets.iter().filter_map(|(key, kept)| kept.unenforced(key, kept.without_it()));
        let gateway = self.gateway_routes.iter().filter_map(|(key, kept)| kept.unenforced(key, kept.without_it()));
        let streams = self.stream_routes.iter().filter_map(|(key, kept)| kept.unenforced(key, kept.without_it()));
        let aliases = self.aliases.iter().filter_map(|(key, kept)| kept.unenforced(key, kept.without_it()));
        let grants = self.grants.iter().filter_map(|(key, kept)| kept.unenforced(key, kept.without_it()));
        self.security
            .unenforced()
            .chain(services)
            .chain(routes)
            .chain(gateway)
            .chain(streams)
            .chain(subsets)
            .chain(aliases)
            .chain(grants)
            .chain(self.gateways.unenforced())
            .chain(self.issuing.unenforced())
            .chain(self.unknown.iter().cloned())
            .collect()
    }
}

fn same_calls(before: Option<&Calls>, now: Option<&Calls>) -> bool {
    fn same<T>(a: &[Arc<T>], b: &[Arc<T>]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
    }
    let none = Calls::default();
    let (before, now) = (before.unwrap_or(&none), now.unwrap_or(&none));
    same(&before.routes, &now.routes)
        && same(&before.gateway_routes, &now.gateway_routes)
        && same(&before.stream_routes, &now.stream_routes)
        && same(&before.subsets, &now.subsets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::Index;
    use weft_proto::document::parse;

    fn state(documents: &str, index: Index) -> State {
        let mut state = State::default();
        for mut resource in parse(Kinds::ALL, "test", documents).expect("good") {
            resource.version = index;
            state.resources.insert(resource.key.clone(), Arc::new(resource));
        }
        state
    }

    /// The same with a field that only a later version knows.
    fn later(state: &State, index: Index) -> State {
        let mut later = state.clone();
        for resource in later.resources.values_mut() {
            let resource = Arc::make_mut(resource);
            resource.version = index;
            resource.spec.replace_range(..1, "{\"later\":1,");
        }
        later
    }

    const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n\
                          spec: {selector: {matchLabels: {app: web}}, rules: [{}]}\n";
    const SETTINGS: &str = "apiVersion: weft/v1\nkind: Service\nmetadata: {name: web}\nspec: {retries: 7}\n";

    #[test]
    fn a_policy_that_cannot_be_read_denies_what_it_selects() {
        let mut specs = Specs::new(Kinds::ALL);
        let good = state(POLICY, 5);
        specs.read(&good);
        assert!(specs.unenforced().is_empty());
        specs.read(&later(&good, 6));
        let policies: Vec<_> = specs.policies().collect();
        assert_eq!(policies.len(), 1);
        assert_eq!(policies[0].policy.action, weft_proto::kinds::authorization_policy::Action::Deny);
        assert_eq!(policies[0].policy.selector.as_ref().map(|selector| selector.match_labels.len()), Some(1));
        let told = specs.unenforced();
        assert!(told.len() == 1 && told[0].version == 6 && told[0].why.contains("later"), "{told:?}");
        specs.read(&state(POLICY, 7));
        assert!(specs.unenforced().is_empty());
    }

    #[test]
    fn settings_that_cannot_be_read_leave_what_was_there() {
        let (good, key) = (state(SETTINGS, 5), parse(Kinds::ALL, "test", SETTINGS).expect("good").remove(0).key);
        let mut specs = Specs::new(Kinds::ALL);
        specs.read(&good);
        specs.read(&later(&good, 6));
        assert_eq!(specs.settings(&key).and_then(|settings| settings.retries), Some(7));
        assert!(specs.unenforced()[0].why.contains("its last form"), "{:?}", specs.unenforced());
        // One that has never known better.
        let mut fresh = Specs::new(Kinds::ALL);
        fresh.read(&later(&good, 6));
        assert_eq!(fresh.settings(&key), None);
        assert!(fresh.unenforced()[0].why.contains("500"), "{:?}", fresh.unenforced());
    }

    #[test]
    fn a_kind_that_is_not_known_is_named_and_nothing_else_is_harmed() {
        let mut specs = Specs::new(Kinds::lacking(&["AuthorizationPolicy"]));
        specs.read(&state(&format!("{POLICY}---\n{SETTINGS}"), 5));
        assert_eq!(specs.policies().count(), 0);
        let told = specs.unenforced();
        assert!(told.len() == 1 && told[0].why.contains("does not know the kind AuthorizationPolicy"), "{told:?}");
    }
}
