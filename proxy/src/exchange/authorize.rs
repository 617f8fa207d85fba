//! Authorize: decides about an exchange, which is open from then on.

use std::sync::Arc;

use http::HeaderMap;

use crate::attempt::Route;
use crate::call::{Addresses, Asked, End, Peer};
use crate::connection::Connection;
use crate::decide::relation::{Current, Relation};
use crate::decide::route::Ruled;
use crate::decide::{Decision, Question, decide, http_call};
use crate::lane::Leg;
use crate::net::Net;
use crate::record::Open;
use crate::reject::Reject;
use crate::table::Settings;

/// Decides about an exchange, and enters it as open.
pub(super) fn authorize<N: Net>(
    connection: &Connection<N>,
    (leg, ruled): (Arc<Leg>, Option<Arc<Ruled>>),
    request: Option<(Asked, &HeaderMap)>,
    open: &mut Open,
) -> Result<Route, Reject> {
    let relation = &leg.relation;
    let addresses = addresses(connection, relation);
    let sni = match &connection.peer {
        Peer::Local | Peer::Outside(_) | Peer::Plain(_) => &relation.server_name,
        Peer::Svid(caller) => &caller.server_name,
    };
    let http = request.as_ref().map(|(asked, headers)| http_call(asked, headers));
    let (decision, noting) = decide(&Question { relation, addresses, sni, http });
    open.noted(noting);
    enter(&leg, addresses, request, open);
    match decision {
        Decision::Forward(permit) => Ok(Route::new(leg, permit, ruled)),
        Decision::Refuse(reject) => Err(reject),
    }
}

/// It may be judged again from here on. Always inlined: what is asked is large, and would be moved twice more.
#[inline(always)]
#[expect(clippy::inline_always, reason = "counted: 300 instructions an exchange")]
pub(super) fn enter(leg: &Leg, addresses: Addresses, request: Option<(Asked, &HeaderMap)>, open: &mut Open) {
    let relation = leg.relation.clone();
    let keeps_headers = relation.service.headers_matter;
    let asked = request.map(|(asked, headers)| Asked { headers: keeps_headers.then(|| headers.clone()), ..asked });
    let instance = relation.instance;
    let current = Current { relation, addresses, asked, request_fault: None, instance, gate: None };
    open.enter(current, &leg.lane.series);
}

pub(super) fn addresses<N: Net>(connection: &Connection<N>, relation: &Relation) -> Addresses {
    match relation.end {
        End::Caller => relation.own_addresses(),
        End::Callee => {
            let source = connection.theirs.ip().to_canonical();
            Addresses { source, destination: connection.ours.ip().to_canonical(), remote: source }
        }
    }
}

pub(super) fn settings(leg: &Leg) -> &Settings {
    &leg.relation.service.settings
}
