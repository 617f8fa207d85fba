//! Pure: what a committed command does to the state. The same on every node; it never fails, it refuses.

use std::net::Ipv4Addr;
use std::sync::Arc;

use weft_proto::Index;
use weft_proto::command::{
    Admission, CertificateRecord, Command, Found, Outcome, Proposal, Reason, Refusal, ResourceAction, ResourceChange,
    TokenRecord,
};
use weft_proto::identity::{Identity, NodeName};
use weft_proto::planted::{Bug, planted};
use weft_proto::resource::Resource;
use weft_proto::service::{Grant, ServiceName, ServicePort};

use crate::state::{Answer, NodeRecord, ServiceRecord, State, Token, merge};

/// Answers kept for retries.
pub const ANSWERS_MAX: usize = 4096;
/// Join tokens kept.
pub const TOKENS_MAX: usize = 10_000;
/// Ports of one service.
pub const PORTS_MAX: usize = 64;
/// How long a token that no longer works is still listed: 7 days.
const TOKEN_KEPT_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// How long a certificate that has ended is still known: 1 h.
const CERTIFICATE_KEPT_MS: u64 = 60 * 60 * 1000;
/// Services' loopback addresses: the first one, and the length of the prefix that all share.
pub const ADDRESSES: (std::net::Ipv4Addr, u8) = (std::net::Ipv4Addr::new(127, 64, 0, 0), 10);
const ADDRESSES_BASE: u32 = ADDRESSES.0.to_bits();
const ADDRESSES_COUNT: u32 = 1 << (32 - ADDRESSES.1);

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
        Command::DeclareService { node, service, ports } => declare_service(state, node, service, ports),
        Command::WithdrawService { node, service } => withdraw_service(state, node, service),
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

fn declare_service(state: &mut State, node: &NodeName, service: &ServiceName, ports: &[ServicePort]) -> Applied {
    granted(state, node, service)?;
    let known = state.services.get(service);
    let mut declared = known.map(|record| record.declared.clone()).unwrap_or_default();
    declared.insert(node.clone(), ports.to_vec());
    let merged = merge(&declared, Some(node)).map_err(|port| {
        let text = format!(
            "port {} of {service} speaks another protocol elsewhere than {} on {node}; declare one protocol, or settle it with a Service document",
            port.port, port.protocol
        );
        refuse(Reason::Conflict, text)
    })?;
    if merged.len() > PORTS_MAX {
        return Err(refuse(Reason::Full, format!("{service} would have {} ports; at most {PORTS_MAX}", merged.len())));
    }
    let address = match known {
        Some(record) => record.address,
        None => allot(state, service).ok_or_else(|| refuse(Reason::Full, "every loopback address is in use"))?,
    };
    state.services.insert(service.clone(), ServiceRecord { address, ports: merged, declared });
    Ok(Outcome::Declared { address })
}

fn withdraw_service(state: &mut State, node: &NodeName, service: &ServiceName) -> Applied {
    let Some(record) = state.services.get_mut(service) else { return Ok(Outcome::Done) };
    record.declared.remove(node);
    if record.declared.is_empty() {
        state.services.remove(service);
    } else if let Ok(ports) = merge(&record.declared, None) {
        record.ports = ports;
    }
    Ok(Outcome::Done)
}

/// An address that depends on the name alone unless it is taken: the same service gets the same one in a mesh made anew.
fn allot(state: &State, service: &ServiceName) -> Option<Ipv4Addr> {
    let start = service.hash32();
    let taken: std::collections::BTreeSet<Ipv4Addr> = state.services.values().map(|record| record.address).collect();
    (0..ADDRESSES_COUNT)
        .map(|step| Ipv4Addr::from(ADDRESSES_BASE + (start.wrapping_add(step) % ADDRESSES_COUNT)))
        .filter(|address| !matches!(address.octets()[3], 0 | 255))
        .find(|address| !taken.contains(address))
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
