//! Step 3: the verdict. Nothing else makes a [`Permit`], and nothing is forwarded without one.

use std::sync::Arc;

use http::HeaderMap;
use weft_proto::planted::{Bug, planted};

use crate::accept::{Connection, End};
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
    let sni = connection.server_name.as_deref().unwrap_or(&relation.server_name);
    let asked = request.as_ref().map(|(asked, headers)| http_call(asked, headers));
    let verdict = decide(&relation, &relation.service, addresses, sni, asked);
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
    open.enter(Current { relation: relation.clone(), addresses, asked, request_fault: None });
    if permitted { Ok(Permit { relation, here }) } else { Err(Reject::Denied) }
}

/// Whether an open exchange would pass under a newer form of its service.
pub(crate) fn still(relation: &Relation, service: &Service, current: &Current) -> bool {
    let none = HeaderMap::new();
    let asked = current.asked.as_ref();
    let call = asked.map(|asked| http_call(asked, asked.headers.as_ref().unwrap_or(&none)));
    let elsewhere = relation.end == End::Caller && service.addresses_matter && leads_elsewhere(relation);
    elsewhere || decide(relation, service, current.addresses, &relation.server_name, call).allowed
}

fn http_call<'a>(asked: &'a Asked, headers: &'a HeaderMap) -> HttpCall<'a> {
    HttpCall { method: asked.method.as_str(), host: &asked.host.compare, path: asked.path.path(), headers }
}

fn decide(
    relation: &Relation,
    service: &Service,
    addresses: Addresses,
    sni: &str,
    http: Option<HttpCall<'_>>,
) -> Verdict {
    service.authorization.decide(&Call {
        caller: Some(&relation.caller),
        source_ip: addresses.source,
        destination_ip: addresses.destination,
        destination_port: relation.port.port,
        sni: Some(sni),
        http,
    })
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
