//! Pure: what a committed command does to the state. The same on every node; it never fails, it refuses.

mod services;

use std::sync::Arc;

use weft_proto::Index;
use weft_proto::command::{
    Admission, CertificateRecord, Command, Found, Outcome, Proposal, Reason, Refusal, ResourceAction, ResourceChange,
    TokenRecord,
};
use weft_proto::identity::{Identity, NodeName};
use weft_proto::planted::{Bug, planted};
use weft_proto::resource::Resource;
use weft_proto::service::{Grant, ServiceName};

use crate::state::{Answer, NodeRecord, State, Token};

pub use services::PORTS_MAX;

/// Answers kept for retries.
pub const ANSWERS_MAX: usize = 4096;
/// Join tokens kept.
pub const TOKENS_MAX: usize = 10_000;
/// How long a token that no longer works is still listed: 7 days.
const TOKEN_KEPT_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// How long a certificate that has ended is still known: 1 h.
const CERTIFICATE_KEPT_MS: u64 = 60 * 60 * 1000;

/// Applies a proposal at an index. The answer to one that was applied before is the one that it got then, with the index
/// that it has had since: others may have been decided in between.
pub fn apply(state: &mut State, index: Index, proposal: &Proposal) -> (Index, Outcome) {
    state.index = index;
    // Of whoever proposes, and not the latest of all: one clock that was days ahead once would end every token that is
    // made from then on.
    state.clock = proposal.at;
    if let Some(answer) = state.recent.iter().rev().find(|answer| answer.key == proposal.key)
        && !planted(Bug::AnswersForgotten)
    {
        return (answer.index, answer.outcome.clone());
    }
    let outcome = run(state, index, &proposal.command).unwrap_or_else(Outcome::Refused);
    if state.recent.len() >= ANSWERS_MAX {
        state.recent.pop_front();
    }
    state.recent.push_back(Answer { key: proposal.key, index, outcome: outcome.clone() });
    (index, outcome)
}

type Applied = Result<Outcome, Refusal>;

fn refuse(reason: Reason, detail: impl Into<String>) -> Refusal {
    Refusal { reason, detail: detail.into() }
}

fn run(state: &mut State, index: Index, command: &Command) -> Applied {
    if state.trust_domain.is_none() && !matches!(command, Command::Found(_)) {
        return Err(refuse(Reason::NotFounded, "the mesh is not founded yet"));
    }
    match command {
        Command::Found(found) => apply_found(state, index, found),
        Command::CreateToken(token) => create_token(state, token),
        Command::RevokeToken { id } => revoke_token(state, id),
        Command::Admit(admission) => admit(state, index, admission),
        Command::GrantAuthority { node, sealed } => {
            known_node(state, node)?;
            state.sealed_authority.insert(node.clone(), sealed.clone());
            Ok(Outcome::Done)
        }
        Command::DeclareService { node, service, ports, account } => {
            services::declare(state, node, (service, account), ports)
        }
        Command::WithdrawService { node, service } => {
            services::withdraw(state, node, service);
            Ok(Outcome::Done)
        }
        Command::RemoveNode { node } => remove_node(state, node),
        Command::ChangeResources(changes) => change_resources(state, index, changes),
        Command::RecordCertificate(record) => record_certificate(state, record),
        Command::Raise { version } => {
            state.version = state.version.max(*version);
            Ok(Outcome::Done)
        }
        // The machine has stopped before it.
        Command::Later(_) => Err(refuse(Reason::Other, "this version of weft does not know the command: upgrade it")),
    }
}

fn apply_found(state: &mut State, index: Index, found: &Found) -> Applied {
    if let Some(trust_domain) = &state.trust_domain {
        return Err(refuse(Reason::Founded, format!("mesh {trust_domain} exists already")));
    }
    state.trust_domain = Some(found.trust_domain.clone());
    state.deny_by_default = found.deny_by_default;
    state.roots = vec![found.root_certificate.clone()];
    state.version = found.version;
    state.sealed_authority.insert(found.node.name.clone(), found.sealed_authority.clone());
    let record = NodeRecord { keys: found.node.clone(), raft_id: 1, services: vec![Grant::Every], admitted: index };
    state.nodes.insert(found.node.name.clone(), record);
    state.raft_id_next = 2;
    Ok(Outcome::Done)
}

fn create_token(state: &mut State, token: &TokenRecord) -> Applied {
    let now = state.clock;
    state.tokens.retain(|_, old| old.token.expires.saturating_add(TOKEN_KEPT_MS) > now);
    if state.tokens.contains_key(&token.id) {
        return Err(refuse(Reason::Conflict, format!("token {} exists already", token.id)));
    }
    if state.tokens.len() >= TOKENS_MAX {
        return Err(refuse(
            Reason::Full,
            format!("there are {TOKENS_MAX} tokens already; expired ones go after 7 days"),
        ));
    }
    state.tokens.insert(token.id.clone(), Token { token: token.clone(), used: 0, revoked: false });
    Ok(Outcome::Done)
}

fn revoke_token(state: &mut State, id: &str) -> Applied {
    let token = state.tokens.get_mut(id);
    token
        .ok_or_else(|| refuse(Reason::NotFound, format!("there is no token {id:?}; see `weft token list`")))?
        .revoked = true;
    Ok(Outcome::Done)
}

fn admit(state: &mut State, index: Index, admission: &Admission) -> Applied {
    const REMEDY: &str = "ask for a new join line: `weft token create`";
    let now = state.clock;
    // The answer to a node that was admitted may have been lost: with the keys that it was admitted with it is the same one.
    if let Some(known) = state.nodes.get(&admission.node.name).filter(|known| known.keys == admission.node) {
        return Ok(Outcome::Admitted { raft_id: known.raft_id });
    }
    let token = state.tokens.get_mut(&admission.token_id);
    let is_it = |secret_hash: &[u8]| equal(secret_hash, &admission.secret_hash) || planted(Bug::SecretUnchecked);
    let token = token.filter(|token| is_it(&token.token.secret_hash));
    let Some(token) = token else {
        return Err(refuse(Reason::TokenUnknown, format!("the join token is not known here; {REMEDY}")));
    };
    if token.revoked && !planted(Bug::RevokedTokenTaken) {
        return Err(refuse(Reason::TokenRevoked, format!("the join token has been revoked; {REMEDY}")));
    }
    if token.token.expires <= now && !planted(Bug::ExpiredTokenTaken) {
        return Err(refuse(Reason::TokenExpired, format!("the join token has expired; {REMEDY}")));
    }
    if token.used >= token.token.uses && !planted(Bug::UsesUncounted) {
        let text = format!("the join token has been used {} of {} times; {REMEDY}", token.used, token.token.uses);
        return Err(refuse(Reason::TokenUsedUp, text));
    }
    let name = &admission.node.name;
    if state.nodes.contains_key(name) {
        return Err(refuse(
            Reason::NameTaken,
            format!("there is a node {name} already; choose another name with --name"),
        ));
    }
    token.used += 1;
    let raft_id = state.raft_id_next;
    state.raft_id_next += 1;
    let services = token.token.services.clone();
    state.nodes.insert(name.clone(), NodeRecord { keys: admission.node.clone(), raft_id, services, admitted: index });
    Ok(Outcome::Admitted { raft_id })
}

/// What a node was is forgotten; its certificates are not to be trusted until they end by themselves.
fn remove_node(state: &mut State, node: &NodeName) -> Applied {
    known_node(state, node)?;
    if state.nodes.len() == 1 {
        return Err(refuse(Reason::Conflict, format!("node {node} is the only one of the mesh")));
    }
    if let Some(holders) = only_holder(state, node) {
        return Err(refuse(Reason::Conflict, holders));
    }
    state.nodes.remove(node);
    state.sealed_authority.remove(node);
    let declared = state.services.iter().filter(|(_, record)| record.declared.contains_key(node));
    let declared: Vec<ServiceName> = declared.map(|(name, _)| name.clone()).collect();
    declared.iter().for_each(|service| services::withdraw(state, node, service));
    let now = state.clock;
    state.revoked.retain(|_, not_after| not_after.saturating_add(CERTIFICATE_KEPT_MS) > now);
    let of_node = state.certificates.iter().filter(|(_, record)| record.node == *node);
    let serials: Vec<(Vec<u8>, u64)> = of_node.map(|(serial, record)| (serial.clone(), record.not_after)).collect();
    for (serial, not_after) in serials {
        state.certificates.remove(&serial);
        state.revoked.insert(serial, not_after);
    }
    Ok(Outcome::Done)
}

/// The authority's key must not go with the last node that holds it.
fn only_holder(state: &State, node: &NodeName) -> Option<String> {
    let alone = state.sealed_authority.len() == 1 && state.sealed_authority.contains_key(node);
    alone.then(|| format!("node {node} alone holds the authority's key yet: another one is given it as soon as it is live and known to \
             the leader; try again then"))
}

/// Compares in a time that does not depend on where the first difference is.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

fn known_node<'a>(state: &'a State, node: &NodeName) -> Result<&'a NodeRecord, Refusal> {
    state.nodes.get(node).ok_or_else(|| refuse(Reason::NodeUnknown, format!("there is no node {node} in this mesh")))
}

fn granted(state: &State, node: &NodeName, service: &ServiceName) -> Result<(), Refusal> {
    let any = planted(Bug::GrantsUnchecked);
    if known_node(state, node)?.services.iter().any(|grant| grant.covers(service)) || any {
        return Ok(());
    }
    let text =
        format!("node {node} was not admitted for service {service}: join it on a token made with --service {service}");
    Err(refuse(Reason::NotGranted, text))
}

fn change_resources(state: &mut State, index: Index, changes: &[ResourceChange]) -> Applied {
    for change in changes {
        let key = change.action.key();
        let actual = state.resources.get(key).map_or(0, |resource| resource.version);
        if let Some(expected) = change.expected.filter(|expected| *expected != actual) {
            let text =
                format!("{key} is at version {actual}, not {expected}: someone changed it meanwhile; look at it again");
            return Err(refuse(Reason::Conflict, text));
        }
        if matches!(change.action, ResourceAction::Delete(_)) && actual == 0 {
            return Err(refuse(Reason::NotFound, format!("there is no {key}")));
        }
    }
    let lines = changes.iter().map(|change| change_resource(state, index, &change.action));
    Ok(Outcome::Changed(lines.collect()))
}

fn change_resource(state: &mut State, index: Index, action: &ResourceAction) -> String {
    let key = action.key();
    let ResourceAction::Put(resource) = action else {
        state.resources.remove(key);
        return format!("{key} deleted");
    };
    let old = state.resources.get(key);
    let same = |old: &Arc<Resource>| {
        old.api_version == resource.api_version
            && old.spec == resource.spec
            && old.labels == resource.labels
            && old.annotations == resource.annotations
    };
    if old.is_some_and(same) {
        return format!("{key} unchanged");
    }
    let word = if old.is_some() { "changed" } else { "created" };
    let created = old.map_or(index, |old| old.created);
    let resource = Resource { created, version: index, ..resource.clone() };
    state.resources.insert(key.clone(), Arc::new(resource));
    format!("{key} {word}")
}

fn record_certificate(state: &mut State, record: &CertificateRecord) -> Applied {
    let now = state.clock;
    state.certificates.retain(|_, old| old.not_after.saturating_add(CERTIFICATE_KEPT_MS) > now);
    known_node(state, &record.node)?;
    let ours = Some(record.identity.trust_domain()) == state.trust_domain.as_ref();
    match &record.identity {
        Identity::Node { name, .. } if ours && *name == record.node => {}
        Identity::Service { service, .. } if ours => granted(state, &record.node, service)?,
        other => {
            return Err(refuse(Reason::NotGranted, format!("node {} was not admitted for {other}", record.node)));
        }
    }
    if state.certificates.contains_key(&record.serial) {
        return Err(refuse(Reason::Conflict, "a certificate with this serial number was issued already"));
    }
    state.certificates.insert(record.serial.clone(), record.clone());
    Ok(Outcome::Done)
}
