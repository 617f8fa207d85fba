//! What becomes of an exchange: a pure function of the table, the parties, the request and what was said before. The
//! exchange itself, the judging of open exchanges after a change, and `weft explain` all ask here.

mod asked;
pub(crate) mod hash;
pub(crate) mod identify;
pub(crate) mod judge;
pub(crate) mod localities;
mod peer;
mod reached;
pub(crate) mod relation;
pub(crate) mod route;

use std::sync::Arc;

use http::HeaderMap;
use weft_proto::planted::{Bug, planted};

use crate::call::{Addresses, Asked, End};
use crate::reject::Reject;
use crate::table::authz::HttpCall;
use judge::Noting;
use relation::Relation;

/// What is asked about an exchange.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    /// Who calls whom, as the route has it.
    pub(crate) relation: &'a Arc<Relation>,
    pub(crate) addresses: Addresses,
    /// What the caller asked for by SNI.
    pub(crate) sni: &'a str,
    /// None of an opaque stream.
    pub(crate) http: Option<HttpCall<'a>>,
}

/// What becomes of it.
#[derive(Debug)]
pub(crate) enum Decision {
    /// It may be sent, on these terms.
    Forward(Permit),
    /// It ends here.
    Refuse(Reject),
}

/// Proof that an exchange may pass. Nothing else makes one, and nothing is forwarded without.
#[derive(Debug, Clone)]
pub(crate) struct Permit {
    relation: Arc<Relation>,
    here: bool,
    /// Of the authorizations of the service's instances those that deny it, where not all allow it.
    denied: Vec<usize>,
}

/// Decides, and tells by which rule.
pub(crate) fn decide(question: &Question<'_>) -> (Decision, Noting) {
    let Question { relation, .. } = question;
    if !relation.service.understood {
        return (Decision::Refuse(Reject::Misconfigured), Noting::default());
    }
    let (verdict, denied) = judge::verdict(question);
    let elsewhere = || {
        let caller = relation.end == End::Caller && !relation.is_gate();
        caller && relation.service.addresses_matter && relation.leads_elsewhere()
    };
    // The other node sees other addresses than this one, and has the last word on what it serves.
    let trusted = planted(Bug::CalleeTrusts) && relation.end == End::Callee;
    let here = verdict.allowed || trusted;
    if !here && !elsewhere() {
        let noting = Noting { by: verdict.by, noted: verdict.noted };
        return (Decision::Refuse(Reject::Denied), noting);
    }
    let noting = if here { Noting { by: verdict.by, noted: verdict.noted } } else { Noting::default() };
    (Decision::Forward(Permit { relation: (*relation).clone(), here, denied }), noting)
}

impl Permit {
    /// Who calls whom.
    pub(crate) fn relation(&self) -> &Arc<Relation> {
        &self.relation
    }

    /// Whether this node's own instances may serve it. Otherwise only other nodes may, which judge for themselves.
    pub(crate) fn here(&self) -> bool {
        self.here
    }

    /// Whether it covers instances with that authorization.
    pub(crate) fn covers(&self, group: usize) -> bool {
        !self.denied.contains(&group)
    }
}

/// The request as policies see it. The path in `asked` is in normal form.
pub(crate) fn http_call<'a>(asked: &'a Asked, headers: &'a HeaderMap) -> HttpCall<'a> {
    HttpCall { method: asked.method.as_str(), host: &asked.host.compare, path: asked.path.path(), headers }
}
