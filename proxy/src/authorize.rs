//! Step 3: the verdict. Nothing else makes a [`Permit`], and nothing is forwarded without one.

use std::sync::Arc;

use http::HeaderMap;
use weft_proto::planted::{Bug, planted};

use crate::accept::{Connection, End, Peer};
use crate::identify::Relation;
use crate::net::Net;
use crate::record::Open;
use crate::reject::Reject;
use crate::revoke::{Addresses, Asked, Current};
use crate::table::Service;
use crate::table::authz::{Call, HttpCall, Noted, PolicyId, Verdict};

/// Proof that an exchange may pass.
#[derive(Debug)]
pub(crate) struct Permit {
    relation: Arc<Relation>,
    here: bool,
    /// Of the authorizations of the service's instances those that deny it, where not all allow it.
    denied: Vec<usize>,
}

/// Which rule decided, and what policies said that decide nothing.
#[derive(Debug, Default)]
pub(crate) struct Noting {
    pub(crate) by: Option<PolicyId>,
    pub(crate) noted: Vec<Noted>,
}

impl Permit {
    /// Who calls whom.
    pub(crate) fn relation(&self) -> &Arc<Relation> {
        &self.relation
    }

    /// Whether this node's own instance may serve it. Otherwise only other nodes may, which judge for themselves.
    pub(crate) fn here(&self) -> bool {
        self.here
    }

    /// Whether it covers instances with that authorization.
    pub(crate) fn covers(&self, group: usize) -> bool {
        !self.denied.contains(&group)
    }
}

/// Judges an HTTP exchange, and enters it as open. The path in `asked` is in normal form.
pub(crate) fn http<N: Net>(
    connection: &Connection<N>,
    relation: Arc<Relation>,
    asked: Asked,
    headers: &HeaderMap,
    open: &mut Open,
) -> Result<Permit, Reject> {
    judge(connection, relation, Some((asked, headers)), open)
}

/// Judges an opaque stream, and enters it as open.
pub(crate) fn stream<N: Net>(
    connection: &Connection<N>,
    relation: Arc<Relation>,
    open: &mut Open,
) -> Result<Permit, Reject> {
    judge(connection, relation, None, open)
}

fn judge<N: Net>(
    connection: &Connection<N>,
    relation: Arc<Relation>,
    request: Option<(Asked, &HeaderMap)>,
    open: &mut Open,
) -> Result<Permit, Reject> {
    let addresses = addresses(connection, &relation);
    let sni = match &connection.peer {
        Peer::Local => &relation.server_name,
        Peer::Svid(caller) => &caller.server_name,
    };
    let asked = request.as_ref().map(|(asked, headers)| http_call(asked, headers));
    let call = call(&relation, addresses, sni, asked);
    let (verdict, denied) = decide(&relation, &call);
    let elsewhere = || relation.end == End::Caller && relation.service.addresses_matter && leads_elsewhere(&relation);
    // The other node sees other addresses than this one, and has the last word on what it serves.
    let trusted = planted(Bug::CalleeTrusts) && relation.end == End::Callee;
    let permitted = verdict.allowed || elsewhere() || trusted;
    let here = verdict.allowed || trusted;
    if here || !permitted {
        open.noted(Noting { by: verdict.by, noted: verdict.noted });
    }
    let keeps_headers = relation.service.headers_matter;
    let asked = request.map(|(asked, headers)| Asked { headers: keeps_headers.then(|| headers.clone()), ..asked });
    let instance = relation.instance.filter(|_| relation.service.differs());
    let instance = instance.map(|own| relation.service.instances[own].description.id.name.clone());
    open.enter(Current { relation: relation.clone(), addresses, asked, request_fault: None, instance });
    if permitted { Ok(Permit { relation, here, denied }) } else { Err(Reject::Denied) }
}

/// Whether an open exchange would pass under a newer form of its service.
pub(crate) fn still(relation: &Relation, service: &Service, current: &Current) -> bool {
    let none = HeaderMap::new();
    let asked = current.asked.as_ref();
    let asked = asked.map(|asked| http_call(asked, asked.headers.as_ref().unwrap_or(&none)));
    let elsewhere = relation.end == End::Caller && service.addresses_matter && leads_elsewhere(relation);
    let call = call(relation, current.addresses, &relation.server_name, asked);
    let allows = |group: usize| service.authorizations[group].decide(&call).allowed;
    elsewhere
        || match &current.instance {
            None => judges(relation, service).any(allows),
            Some(name) => match service.instance(name) {
                Some(own) => allows(service.instances[own].group),
                // What its labels would select now is not known.
                None => (0..service.authorizations.len()).all(allows),
            },
        }
}

fn http_call<'a>(asked: &'a Asked, headers: &'a HeaderMap) -> HttpCall<'a> {
    HttpCall { method: asked.method.as_str(), host: &asked.host.compare, path: asked.path.path(), headers }
}

fn call<'a>(relation: &'a Relation, addresses: Addresses, sni: &'a str, http: Option<HttpCall<'a>>) -> Call<'a> {
    Call {
        caller: Some(&relation.caller),
        source_ip: addresses.source,
        destination_ip: addresses.destination,
        destination_port: relation.port.port,
        sni: Some(sni),
        http,
    }
}

/// Which of the service's authorizations may have to judge: at the callee's node that of the instance that is called, at the
/// caller's those of all instances, since none has been picked yet.
fn judges(relation: &Relation, service: &Service) -> impl Iterator<Item = usize> {
    let own = relation.instance.filter(|own| relation.end == End::Callee && *own < service.instances.len());
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
    groups.into_iter()
}

/// The verdict: of the first that allows, else of the first; and which of them deny.
pub(crate) fn decide(relation: &Relation, call: &Call<'_>) -> (Verdict, Vec<usize>) {
    let service = &relation.service;
    if !service.differs() {
        return (service.authorizations[0].decide(call), Vec::new());
    }
    let mut verdicts = judges(relation, service).map(|group| (group, service.authorizations[group].decide(call)));
    let (first, verdict) = verdicts.next().expect("one judges at least");
    let mut denied: Vec<usize> = if verdict.allowed { Vec::new() } else { vec![first] };
    let mut verdict = verdict;
    for (group, other) in verdicts {
        if !other.allowed {
            denied.push(group);
        } else if !verdict.allowed {
            verdict = other;
        }
    }
    (verdict, denied)
}

fn leads_elsewhere(relation: &Relation) -> bool {
    relation.candidates.iter().any(|index| !relation.service.endpoints[*index].here)
}

fn addresses<N: Net>(connection: &Connection<N>, relation: &Relation) -> Addresses {
    match relation.end {
        End::Caller => Addresses { source: relation.own_ip, destination: relation.own_ip },
        End::Callee => Addresses {
            source: connection.theirs.ip().to_canonical(),
            destination: connection.ours.ip().to_canonical(),
        },
    }
}
