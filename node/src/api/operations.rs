//! What the API changes: tokens and services.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use weft_consensus::replica::ProposeError;
use weft_consensus::state::State;
use weft_proto::Index;
use weft_proto::command::{Command, Outcome, Proposal, Reason, TokenRecord};
use weft_proto::identity::{Identity, NodeName};
use weft_proto::service::{Grant, InstanceId, InstanceName, ServiceName};
use weft_proto::wire::mesh::JoinLine;

use super::schema::{
    Applied, Error, Reached, Removed, Service, ServiceInstance, ServiceSpec, Services, Token, TokenCreated,
    TokenRequest,
};
use crate::join::{sha256, write_line};
use crate::node::Node;
use crate::registry::{Local, LocalInstance, UNDECLARED_AFTER, Untaken};
use crate::world::{World, random};

/// Bound on one decision of the log.
pub(super) const DECISION_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of a join token: 30 days.
const TOKEN_LIFETIME_MAX_S: u64 = 30 * 24 * 60 * 60;
/// Most nodes that one token admits.
const TOKEN_USES_MAX: u32 = 10_000;
/// Addresses that a join line carries.
const LINE_ADDRESSES_MAX: usize = 5;

/// A failure as the API answers it.
#[derive(Debug)]
pub struct Failure {
    /// HTTP status.
    pub status: StatusCode,
    /// Body.
    pub error: Error,
}

impl Failure {
    pub(super) fn new(status: StatusCode, reason: &str, message: impl Into<String>) -> Self {
        Self { status, error: Error { reason: reason.into(), message: message.into(), faults: Vec::new() } }
    }

    /// The request makes no sense.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", message)
    }

    /// What is asked for is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", message)
    }

    /// Our fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }

    pub(super) fn faults(message: &str, faults: Vec<String>) -> Self {
        let mut failure = Self::bad(message);
        failure.error.faults = faults;
        failure
    }
}

impl From<ProposeError> for Failure {
    fn from(error: ProposeError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not-decided", error.to_string())
    }
}

pub(super) type Answered<T> = Result<T, Failure>;

impl<W: World> Node<W> {
    /// `POST /v1/tokens`
    pub async fn api_create_token(&self, request: TokenRequest) -> Answered<TokenCreated> {
        if !(1..=TOKEN_LIFETIME_MAX_S).contains(&request.lifetime_s) {
            return Err(Failure::bad(format!("the lifetime must be 1 s to {} days", TOKEN_LIFETIME_MAX_S / 86_400)));
        }
        if !(1..=TOKEN_USES_MAX).contains(&request.uses) {
            return Err(Failure::bad(format!("uses must be 1 to {TOKEN_USES_MAX}")));
        }
        let mut services: Vec<Grant> = Vec::new();
        for text in &request.services {
            services.push(text.parse().map_err(|error| Failure::bad(format!("service {text:?}: {error}")))?);
        }
        let (id, secret): ([u8; 5], [u8; 16]) = (random(&self.world), random(&self.world));
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let expires = self.world.now() + request.lifetime_s * 1000;
        let record =
            TokenRecord { id: id.clone(), secret_hash: sha256(&secret), expires, uses: request.uses, services };
        self.decide(Command::CreateToken(record)).await?;
        Ok(TokenCreated { line: self.join_line(&id, &secret), id, expires })
    }

    fn join_line(&self, id: &str, secret: &[u8]) -> String {
        let status = self.replica.status().borrow().clone();
        let known = status.voters.iter().filter_map(|voter| self.book.address(voter));
        let mut addresses = vec![self.site.address.to_string()];
        addresses.extend(
            known.map(|address| address.to_string()).filter(|address| *address != self.site.address.to_string()),
        );
        addresses.truncate(LINE_ADDRESSES_MAX);
        let root = self.state().roots.last().map(|root| sha256(root).to_vec()).unwrap_or_default();
        write_line(&JoinLine {
            addresses,
            root_fingerprint: root.into(),
            token_id: id.to_owned(),
            token_secret: secret.to_vec().into(),
            trust_domain: self.trust_domain().to_string(),
        })
    }

    /// `GET /v1/tokens`
    pub fn api_tokens(&self) -> Vec<Token> {
        let now = self.world.now();
        let state = self.state();
        let token = |record: &weft_consensus::state::Token| Token {
            id: record.token.id.clone(),
            state: match () {
                () if record.revoked => "revoked",
                () if record.token.expires <= now => "expired",
                () if record.used >= record.token.uses => "used-up",
                () => "usable",
            }
            .into(),
            used: record.used,
            uses: record.token.uses,
            expires: record.token.expires,
            services: record.token.services.iter().map(ToString::to_string).collect(),
        };
        state.tokens.values().map(token).collect()
    }

    /// `DELETE /v1/tokens/{id}`
    pub async fn api_revoke_token(&self, id: &str) -> Answered<Value> {
        self.decide(Command::RevokeToken { id: id.to_owned() }).await?;
        Ok(json!({}))
    }

    /// `GET /v1/services`
    pub fn api_services(&self) -> Services {
        let state = self.state();
        let services = state.services.keys().map(|name| self.describe(&state, name)).collect();
        let local = self.local.borrow();
        let refused = local.refused.iter().map(|(service, why)| format!("{service}: {why}"));
        Services { services, faults: local.faults.iter().cloned().chain(refused).collect() }
    }

    fn describe(&self, state: &State, name: &ServiceName) -> Service {
        let record = state.services.get(name);
        let local = self.local.borrow().clone();
        let mut instances: Vec<ServiceInstance> = local.of(name).map(|one| self.own(&local, one)).collect();
        for facts in self.live().values().filter(|facts| facts.name != *self.name()) {
            for instance in facts.instances.iter().filter(|instance| instance.id.service == *name) {
                instances.push(ServiceInstance {
                    node: facts.name.to_string(),
                    name: instance.id.name.to_string(),
                    labels: instance.labels.clone(),
                    weight: instance.weight,
                    healthy: instance.healthy,
                    unchecked: false,
                    problem: String::new(),
                });
            }
        }
        let account = record.map_or(name, |record| &record.account).clone();
        let ports = record.map(|record| record.ports.as_slice()).unwrap_or_default();
        Service {
            name: name.to_string(),
            address: record.map(|record| record.address.to_string()).unwrap_or_default(),
            host: name.host(),
            identity: Identity::service(self.trust_domain().clone(), account).to_string(),
            ports: ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect(),
            instances,
        }
    }

    fn own(&self, local: &Local, instance: &LocalInstance) -> ServiceInstance {
        let healthy = local.is_healthy(&instance.id);
        let problem = match local.problem(&instance.id) {
            Some(why) => why.to_owned(),
            None if !healthy => "not checked yet".into(),
            None => String::new(),
        };
        ServiceInstance {
            node: self.name().to_string(),
            name: instance.id.name.to_string(),
            labels: instance.labels.clone(),
            weight: instance.weight,
            healthy,
            unchecked: instance.check.is_none(),
            problem,
        }
    }

    /// `POST /v1/services`: written to `services.d/`, then waited for until the mesh has taken or refused it.
    pub async fn api_add_service(&self, spec: ServiceSpec) -> Answered<Service> {
        let InstanceId { service, name } = (self.registrar.register)(&spec)
            .map_err(|faults| Failure::faults("the instance is not registered", faults))?;
        let deadline = Instant::now() + DECISION_TIMEOUT;
        let (mut states, mut locals) = (self.replica.state(), self.local.subscribe());
        loop {
            let refused = locals.borrow_and_update().refused.get(&service).cloned();
            let state = states.borrow_and_update().clone();
            // A service that the mesh keeps for a while after its last instance has gone is declared anew.
            let taken = locals.borrow().is_taken(&state, self.name(), &service);
            if taken && refused.is_none() {
                return Ok(self.describe(&state, &service));
            }
            let waited = tokio::time::timeout_at(deadline, async {
                tokio::select! { biased; _ = states.changed() => {}, _ = locals.changed() => {} }
            });
            if let Some(Untaken::Refused(why)) = refused {
                let _ = (self.registrar.unregister)(&service, Some(&name));
                return Err(Failure::new(StatusCode::CONFLICT, "refused", format!("{service}: {why}")));
            }
            if waited.await.is_err() {
                let text = format!(
                    "{service} is registered on this host; the mesh has not taken it yet and goes on trying: see `weft status`"
                );
                return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "not-decided", text));
            }
        }
    }

    /// `DELETE /v1/services/{namespace}/{name}?instance=`
    pub fn api_remove_service(&self, name: &str, instance: Option<&String>) -> Answered<Removed> {
        let service: ServiceName = name.parse().map_err(|error| Failure::bad(format!("{error}")))?;
        let only = instance.map(|name| name.parse::<InstanceName>()).transpose();
        let only = only.map_err(|error| Failure::bad(format!("{error}")))?;
        let removed = (self.registrar.unregister)(&service, only.as_ref()).map_err(Failure::internal)?;
        if removed.is_empty() {
            let instance = only.map(|name| format!("instance {name} of ")).unwrap_or_default();
            return Err(Failure::not_found(format!("this host runs no {instance}service {service}")));
        }
        let state = self.state();
        let others =
            state.services.get(&service).is_some_and(|record| record.declared.keys().any(|node| node != self.name()));
        let stays = others || self.local.borrow().runs(&service) || !state.services.contains_key(&service);
        Ok(Removed {
            instances: removed.iter().map(ToString::to_string).collect(),
            forgotten_in_s: (!stays).then_some(UNDECLARED_AFTER.as_secs()),
        })
    }

    /// `DELETE /v1/nodes/{name}`
    pub async fn api_remove_node(&self, name: &str) -> Answered<Applied> {
        let node: NodeName = name.parse().map_err(|error| Failure::bad(format!("{error}")))?;
        if node == *self.name() && self.state().nodes.len() > 1 {
            let text =
                format!("{node} is the node of this host: ask another node, so that it is not removed by mistake");
            return Err(Failure::new(StatusCode::CONFLICT, "conflict", text));
        }
        let (index, _) = self.decide(Command::RemoveNode { node }).await?;
        Ok(Applied { index, changes: vec![format!("node {name} removed")], warnings: Vec::new() })
    }

    /// `GET /v1/index`: what is read here after it is linearizable.
    pub async fn api_index(&self) -> Answered<Reached> {
        let index = self.replica.read_index(DECISION_TIMEOUT).await?;
        // What is read is what was published, which follows what was applied.
        let mut published = self.replica.state();
        let reached = published.wait_for(|state| state.index >= index);
        match timeout(DECISION_TIMEOUT, reached).await {
            Ok(Ok(_)) => Ok(Reached { index }),
            _ => Err(ProposeError::Timeout.into()),
        }
    }

    /// Proposes a command; answers where it was applied and what came of it.
    pub(crate) async fn decide(&self, command: Command) -> Answered<(Index, Outcome)> {
        let proposal = Proposal { key: random(&self.world), at: self.world.now(), command };
        match self.replica.propose(proposal, DECISION_TIMEOUT).await? {
            (_, Outcome::Refused(refusal)) => Err(refused(refusal.reason, refusal.detail)),
            done => Ok(done),
        }
    }
}

pub(super) fn refused(reason: Reason, detail: String) -> Failure {
    let status = match reason {
        Reason::NotFound | Reason::NodeUnknown | Reason::TokenUnknown => StatusCode::NOT_FOUND,
        _ => StatusCode::CONFLICT,
    };
    Failure::new(status, reason.as_str(), detail)
}
