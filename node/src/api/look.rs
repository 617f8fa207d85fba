//! What the API tells: how the mesh looks, who enforces what, what would happen to a call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;
use weft_consensus::status::Role;
use weft_proto::facts::NodeFacts;
use weft_proto::identity::{Identity, NodeName};
use weft_proto::kinds::hosts::called;
use weft_proto::planted::{Bug, planted};
use weft_proto::service::{DEFAULT_NAMESPACE, ServiceName};
use weft_proto::wire::cluster::{ControlRequest, EnforcedReply, EnforcedRequest, control_request, control_response};
use weft_proto::{Index, UnixMillis};
use weft_proxy::explain::{Explanation, Spoken};

use super::operations::{Answered, DECISION_TIMEOUT, Failure};
use super::schema::{Enforced, ExplainRequest, Lagging, Listen, Listened, ListenedService, Member, Status};
use crate::intercept::{Intercept, Intercepted};
use crate::node::Node;
use crate::serve::wait_enforced;
use crate::world::World;

/// Longest wait for a change to be in force everywhere.
const ENFORCED_TIMEOUT_MAX_MS: u64 = 600_000;

impl<W: World> Node<W> {
    /// `POST /v1/listen`
    pub fn api_listen(&self, request: &Listen) -> Answered<Listened> {
        let names = request.services.iter().map(|name| called(name));
        let names: Vec<ServiceName> =
            names.collect::<Result<_, _>>().map_err(|error| Failure::bad(format!("{error}")))?;
        let before = self.local.borrow().listened.clone();
        if let Some(name) = names.iter().find(|name| request.remove && !before.contains(*name)) {
            return Err(Failure::not_found(format!("{name} is not listened for; `weft listen` lists what is")));
        }
        let listened = (self.registrar.listen)(&names, request.remove).map_err(Failure::internal)?;
        let (state, table) = (self.state(), self.plane().table());
        let address = |name: &ServiceName| match name.is_outside() {
            true => table.service(name)?.loopback().map(|address| address.to_string()),
            false => state.services.get(name).map(|record| record.address.to_string()),
        };
        let service =
            |name: &ServiceName| ListenedService { name: name.to_string(), address: address(name).unwrap_or_default() };
        Ok(Listened { services: listened.iter().map(service).collect(), captured: self.site.captures_all() })
    }

    /// `GET /v1/intercept`
    pub fn api_intercepted(&self) -> Intercepted {
        let local = self.local.borrow().clone();
        let ports = || local.instances.values().flat_map(|instance| &instance.ports);
        let inbound = local.intercepted.iter().flat_map(|kept| &kept.interception.inbound);
        let idle = inbound.filter(|port| !ports().any(|own| own.target.port() == **port));
        Intercepted { idle: idle.copied().collect(), kept: local.intercepted.clone() }
    }

    /// `POST /v1/intercept`
    pub fn api_intercept(&self, request: &Intercept) -> Answered<Intercepted> {
        (self.registrar.intercept)(request.kept.as_ref()).map_err(Failure::internal)?;
        Ok(self.api_intercepted())
    }

    /// `GET /v1/status`
    pub fn api_status(&self) -> Status {
        let (status, state) = (self.replica.status().borrow().clone(), self.state());
        let enforced = self.enforced.borrow().clone();
        let no_leader_for_s = status.leaderless_since.map(|since| since.elapsed().as_secs());
        let problems = self.problems().into_iter().map(|problem| problem.text).collect();
        Status {
            node: self.name().to_string(),
            trust_domain: self.trust_domain().to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            role: status.role.to_string(),
            leader: status.leader.as_ref().map(ToString::to_string),
            term: status.term,
            voters: status.voters.iter().map(ToString::to_string).collect(),
            applied: status.applied,
            enforced: enforced.index,
            no_leader_for_s,
            nodes_live: self.live().len(),
            nodes_admitted: state.nodes.len(),
            address: self.site.address.to_string(),
            proxy: self.config.proxy.map(|address| address.to_string()),
            loopback: self.site.loopback(&self.local.borrow().listened),
            metrics: self.config.metrics.map(|address| address.to_string()),
            certificate_expires: *self.expires.borrow(),
            problems,
        }
    }

    /// `GET /v1/members`: what changes with every decision is asked of each live node.
    pub async fn api_members(&self) -> Vec<Member> {
        let told: BTreeMap<NodeName, EnforcedReply> = self.ask_unenforced().await.into_iter().collect();
        let (status, state, live) = (self.replica.status().borrow().clone(), self.state(), self.live());
        let role = |name: &NodeName| match () {
            () if status.leader.as_ref() == Some(name) => Role::Leader.to_string(),
            () if status.voters.contains(name) => Role::Voter.to_string(),
            () => Role::Replica.to_string(),
        };
        let member = |(name, record): (&NodeName, &weft_consensus::state::NodeRecord)| {
            let facts = live.get(name);
            let text = |of: fn(&NodeFacts) -> &str| facts.map(|facts| of(facts)).unwrap_or_default().to_owned();
            Member {
                name: name.to_string(),
                live: facts.is_some(),
                role: role(name),
                address: text(|facts| &facts.address),
                zone: text(|facts| &facts.zone),
                version: text(|facts| &facts.version),
                enforced: told.get(name).map_or(0, |told| told.enforced),
                refused: text(|facts| &facts.refused),
                services: facts.map(|facts| facts.instances.iter().map(instance_label).collect()).unwrap_or_default(),
                raft_id: record.raft_id,
                certificate_expires: told.get(name).map_or(0, |told| told.certificate_expires),
            }
        };
        state.nodes.iter().map(member).collect()
    }

    /// `GET /v1/enforced`: asks every live node at once, so that the answer is exact and needs no round of gossip.
    pub async fn api_enforced(&self, query: &BTreeMap<String, String>) -> Answered<Enforced> {
        let number = |name: &str| query.get(name).map(|text| text.parse::<u64>()).transpose();
        let index = number("index").map_err(|_| Failure::bad("index is a number"))?;
        let index = index.unwrap_or_else(|| self.state().index);
        let timeout = number("timeout_ms").map_err(|_| Failure::bad("timeout_ms is a number"))?;
        let bound = Duration::from_millis(timeout.unwrap_or(0).min(ENFORCED_TIMEOUT_MAX_MS));
        Ok(self.enforced_at(index, bound).await)
    }

    /// Which live nodes enforce an index, waited for up to the bound.
    pub(crate) async fn enforced_at(&self, index: Index, bound: Duration) -> Enforced {
        let start = Instant::now();
        let live = self.live();
        let asked = live.keys().map(|name| self.ask_enforced(name, index, start + bound));
        let answers = join_all(asked).await;
        let lagging: Vec<Lagging> = live
            .keys()
            .zip(answers)
            .filter(|(_, answer)| !answer.lacks.is_empty())
            .map(|(name, answer)| Lagging { node: name.to_string(), enforced: answer.enforced, why: answer.lacks })
            .collect();
        let absent: Vec<String> =
            self.state().nodes.keys().filter(|name| !live.contains_key(*name)).map(ToString::to_string).collect();
        let took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Enforced { index, nodes: live.len(), enforced: live.len() - lagging.len(), lagging, absent, took_ms }
    }

    /// What a node enforces, waited for until it enforces the index.
    async fn ask_enforced(&self, name: &NodeName, index: Index, deadline: Instant) -> EnforcedReply {
        if planted(Bug::WaitingSkipped) && name != self.name() {
            return EnforcedReply { enforced: index, ..EnforcedReply::default() };
        }
        if name == self.name() {
            return wait_enforced(self.enforced.clone(), index, deadline).await.reply(index, *self.expires.borrow());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        let request = ControlRequest { kind: Some(control_request::Kind::Enforced(EnforcedRequest { index, wait })) };
        let unknown = |lacks: String| EnforcedReply { lacks, ..EnforcedReply::default() };
        let grace = left + Duration::from_secs(1);
        match self.control.exchange_within(name, request, grace).await.map(|response| response.kind) {
            Ok(Some(control_response::Kind::Enforced(reply))) => reply,
            Ok(_) => unknown("it answered something else than was asked".into()),
            Err(error) => unknown(format!("it cannot be reached: {error}")),
        }
    }

    /// What every live node does not enforce: the node, and its documents or why it cannot be asked.
    pub(super) async fn ask_unenforced(&self) -> Vec<(NodeName, EnforcedReply)> {
        let live = self.live();
        let asked = live.keys().map(|name| self.ask_enforced(name, 0, Instant::now()));
        let answers = join_all(asked).await;
        live.keys().cloned().zip(answers).collect()
    }

    /// `POST /v1/explain`
    pub fn api_explain(&self, request: &ExplainRequest) -> Answered<Explanation> {
        let mut headers = HeaderMap::new();
        for line in &request.headers {
            let (name, value) =
                line.split_once(':').ok_or_else(|| Failure::bad(format!("{line:?} is not `name: value`")))?;
            let name: HeaderName =
                name.trim().parse().map_err(|_| Failure::bad(format!("{name:?} is not a header name")))?;
            let value: HeaderValue =
                value.trim().parse().map_err(|_| Failure::bad(format!("the value of {name} is not one")))?;
            headers.append(name, value);
        }
        let spoken = match &request.method {
            Some(method) => Spoken::Http { method, path: request.path.as_deref().unwrap_or("/"), headers: &headers },
            None => Spoken::Stream { server_name: request.sni.as_deref() },
        };
        if let Some(gateway) = &request.gateway {
            let gateway: ServiceName = gateway.parse().map_err(|error| Failure::bad(format!("{error}")))?;
            let from = request.from.parse().map_err(|_| Failure::bad(format!("{:?} is no address", request.from)))?;
            let entry = self.plane.explain_entry((&gateway, request.port), (&request.to, from), spoken);
            return entry.map_err(Failure::bad);
        }
        let caller = self.parse_caller(&request.from)?;
        let service = called(&request.to).map_err(|error| Failure::bad(format!("{error}")))?;
        self.plane.explain(&caller, &service, request.port, spoken).map_err(Failure::bad)
    }

    fn parse_caller(&self, text: &str) -> Answered<Identity> {
        let failure = |error: weft_proto::identity::NameError| Failure::bad(error.to_string());
        if text.starts_with("spiffe://") {
            return text.parse().map_err(failure);
        }
        let trust_domain = self.trust_domain().clone();
        match text.strip_prefix("node/") {
            Some(name) => {
                let name: NodeName = name.parse().map_err(failure)?;
                match self.state().nodes.contains_key(&name) {
                    true => Ok(Identity::node(trust_domain, name)),
                    false => Err(Failure::not_found(format!("there is no node {name}; see `weft members`"))),
                }
            }
            None => {
                let name: ServiceName = text.parse().map_err(failure)?;
                match self.state().services.get(&name) {
                    Some(record) => Ok(Identity::service(trust_domain, record.account.clone())),
                    None => Err(Failure::not_found(format!(
                        "there is no service {name}; see `weft service list`. A caller that is not of the mesh is written as a \
                         SPIFFE ID"
                    ))),
                }
            }
        }
    }

    /// `POST /v1/certificates/renew`: answers once every certificate of this node is a new one.
    pub async fn api_renew(&self) -> Answered<Value> {
        let before = self.serials();
        self.renew.notify_one();
        let deadline = Instant::now() + DECISION_TIMEOUT;
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        while Instant::now() < deadline {
            ticks.tick().await;
            let after = self.serials();
            if after.len() >= before.len() && after.iter().all(|(identity, leaf)| before.get(identity) != Some(leaf)) {
                let expires: UnixMillis = *self.expires.borrow();
                return Ok(json!({ "renewed": after.len(), "expires": expires }));
            }
        }
        Err(Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not-decided",
            "not every certificate was renewed in time; see the log",
        ))
    }

    fn serials(&self) -> BTreeMap<Identity, Vec<u8>> {
        let current = self.identities.current();
        let leaf = |certificate: &Arc<rustls::sign::CertifiedKey>| certificate.cert.first().map(|leaf| leaf.to_vec());
        current.certificates.iter().filter_map(|(identity, cert)| Some((identity.clone(), leaf(cert)?))).collect()
    }
}

fn instance_label(instance: &weft_proto::service::Instance) -> String {
    let mark = if instance.healthy { "" } else { "!" };
    let text = instance.id.to_string();
    let text = text.strip_prefix(DEFAULT_NAMESPACE).and_then(|rest| rest.strip_prefix('/')).unwrap_or(&text);
    format!("{mark}{text}")
}
