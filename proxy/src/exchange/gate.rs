//! The gate: who comes in at a gateway is judged by the policies of that, before it is asked where the exchange goes.

use std::sync::Arc;

use http::HeaderMap;

use weft_proto::planted::{Bug, planted};

use super::authorize::{enter, settings};
use crate::call::{Addresses, Asked, Peer};
use crate::connection::Connection;
use crate::decide::relation::Current;
use crate::decide::{Decision, Question, decide, http_call};
use crate::edge;
use crate::lane::Leg;
use crate::net::Net;
use crate::record::Open;
use crate::reject::Reject;

/// Lets an exchange pass, or not. What has passed is judged by the gateway's policies again when those change. The callee is told who
/// called.
pub(super) fn pass<N: Net>(
    connection: &Connection<N>,
    leg: &Arc<Leg>,
    request: Option<(&Asked, &mut HeaderMap)>,
    open: &mut Open,
) -> Result<(), Reject> {
    let relation = &leg.relation;
    if !relation.is_gate() || planted(Bug::GateOpen) {
        return Ok(());
    }
    let trusted = settings(leg).trusted_proxies;
    let headers = request.as_ref().map(|(_, headers)| &**headers);
    let peer = connection.theirs.ip().to_canonical();
    let behind = match &connection.peer {
        Peer::Outside(outside) => outside.behind,
        Peer::Svid(_) | Peer::Local | Peer::Plain(_) => None,
    };
    let nearest = behind.unwrap_or(peer);
    let addresses = Addresses {
        source: peer,
        destination: connection.ours.ip().to_canonical(),
        remote: edge::client(nearest, headers, trusted),
    };
    let http = request.as_ref().map(|(asked, headers)| http_call(asked, headers));
    let (decision, noting) = decide(&Question { relation, addresses, sni: sni(connection, leg), http });
    open.noted(noting);
    let kept = request.as_ref().map(|(asked, headers)| {
        let headers = relation.service.headers_matter.then(|| HeaderMap::clone(headers));
        Asked { headers, ..asked.copy() }
    });
    if let Decision::Refuse(reject) = decision {
        enter(leg, addresses, None, open);
        open.asked(kept);
        return Err(reject);
    }
    open.passes(Current {
        relation: relation.clone(),
        addresses,
        asked: kept,
        request_fault: None,
        instance: relation.instance,
        gate: None,
    });
    // Who calls from within is no concern of those outside.
    if let Some((_, headers)) = request.filter(|_| matches!(connection.peer, Peer::Outside(_))) {
        edge::tell(headers, (nearest, relation.scheme), trusted, &connection.core.recorder.random);
    }
    Ok(())
}

/// What the caller has asked for by SNI.
fn sni<'a, N: Net>(connection: &'a Connection<N>, leg: &'a Leg) -> &'a str {
    match &connection.peer {
        Peer::Outside(outside) => &outside.server_name,
        Peer::Svid(caller) => &caller.server_name,
        Peer::Local | Peer::Plain(_) => &leg.relation.server_name,
    }
}
