//! Whether policies allow it.

use http::HeaderMap;

use super::relation::{Current, Relation};
use super::{Question, http_call};
use crate::call::End;
use crate::table::Service;
use crate::table::authz::{Call, Noted, PolicyId, Verdict};

/// Which rule decided, and what policies said that decide nothing.
#[derive(Debug, Default)]
pub(crate) struct Noting {
    pub(crate) by: Option<PolicyId>,
    pub(crate) noted: Vec<Noted>,
}

/// The verdict: of the first authorization that allows, else of the first; and which of them deny, where they differ.
pub(crate) fn verdict(question: &Question<'_>) -> (Verdict, Vec<usize>) {
    let (relation, call) = (question.relation, call(question));
    let service = &relation.service;
    if !service.differs() {
        return (service.authorizations[0].decide(&call), Vec::new());
    }
    let mut verdicts = judges(relation, service).into_iter().map(|group| {
        let verdict = service.authorizations[group].decide(&call);
        (group, verdict)
    });
    let (first, mut verdict) = verdicts.next().expect("one judges at least");
    let mut denied: Vec<usize> = if verdict.allowed { Vec::new() } else { vec![first] };
    for (group, other) in verdicts {
        if !other.allowed {
            denied.push(group);
        } else if !verdict.allowed {
            verdict = other;
        }
    }
    (verdict, denied)
}

/// Whether an open exchange is denied by a newer form of its service; none where that is gone.
pub(crate) fn denies(service: Option<&Service>, current: &Current) -> bool {
    let (relation, Some(service)) = (&current.relation, service) else { return true };
    if service.same_policies(&relation.service) && !service.differs() {
        return false;
    }
    // Headers that were not kept cannot be judged, and what cannot be decided is denied.
    if service.headers_matter && current.asked.as_ref().is_some_and(|asked| asked.headers.is_none()) {
        return true;
    }
    let caller = relation.end == End::Caller && !relation.is_gate();
    if caller && service.addresses_matter && relation.leads_elsewhere() {
        return false;
    }
    let none = HeaderMap::new();
    let asked = current.asked.as_ref();
    let http = asked.map(|asked| http_call(asked, asked.headers.as_ref().unwrap_or(&none)));
    let question = Question { relation, addresses: current.addresses, sni: &relation.server_name, http };
    let call = call(&question);
    let allows = |group: usize| service.authorizations[group].decide(&call).allowed;
    !match current.instance {
        None => judges(relation, service).into_iter().any(allows),
        // It may have another place in the newer form.
        Some(own) => match service.instance(&relation.service.instances[own].description.id.name) {
            Some(own) => allows(service.instances[own].group),
            // What its labels would select now is not known.
            None => (0..service.authorizations.len()).all(allows),
        },
    }
}

/// What is judged.
pub(crate) fn call<'a>(question: &Question<'a>) -> Call<'a> {
    Call {
        // Somebody outside is nobody that is known.
        caller: question.relation.known_caller(),
        plain_at: question.relation.plain_at(),
        source_ip: question.addresses.source,
        remote_ip: question.addresses.remote,
        destination_ip: question.addresses.destination,
        destination_port: question.relation.port.port,
        sni: Some(question.sni),
        http: question.http,
    }
}

/// Which of the service's authorizations may have to judge where no instance is known yet: at the callee's node that of
/// the instance that is called, at the caller's those of all instances, at a gateway that of the gateway here.
fn judges(relation: &Relation, service: &Service) -> Vec<usize> {
    let own = relation.instance.filter(|_| relation.end == End::Callee || relation.is_gate());
    let mut groups = match own {
        Some(own) => vec![service.instances[own].group],
        None if !service.differs() => Vec::new(),
        None => service.endpoints.iter().map(|endpoint| endpoint.group).collect(),
    };
    if groups.is_empty() {
        groups.push(0);
    }
    groups.sort_unstable();
    groups.dedup();
    groups
}
