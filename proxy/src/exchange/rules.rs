//! What a rule does to an exchange: the request is changed before it is judged, an answer may be made in the place of the
//! callee's, a delay or a failure may be added.

use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Response, Uri};
use weft_proto::kinds::service::EscapedSlashes;
use weft_proto::planted::{Bug, planted};

use crate::call::Asked;
use crate::decide::relation::Relation;
use crate::decide::route::{self, Ruled};
use crate::forward::answer::AnswerBody;
use crate::forward::made;
use crate::host::Host;
use crate::reject::Reject;
use crate::request::Received;
use crate::table::routes::{Action, Asking, Match, Preflight};
use crate::task::Random;

/// The rule that a request falls under; none where the plain service is called.
pub(super) fn find(
    relation: &Relation,
    received: &Received,
    asked: &Asked,
    random: &Random,
) -> Result<Option<Ruled>, Reject> {
    let asking = Asking {
        method: asked.method.as_str(),
        path: asked.path.path(),
        query: asked.path.query(),
        authority: asked.host.authority.as_str(),
        headers: &received.head.headers,
        scheme: relation.scheme,
        port: relation.called,
        namespace: relation.namespace(),
        labels: &relation.labels,
    };
    route::route(relation, &asking, || random.share())
}

/// Changes the request as its rule says, and what is judged with it.
pub(super) fn change(
    received: &mut Received,
    ruled: &Ruled,
    slashes: EscapedSlashes,
    asked: &mut Asked,
) -> Result<(), Reject> {
    if let Some(target) = ruled.target(asked.path.path(), asked.path.query(), slashes) {
        let path = PathAndQuery::try_from(target.map_err(Reject::Path)?);
        asked.path = path.map_err(|_| Reject::BadRequest("the rewritten target is not one"))?;
        received.head.uri = Uri::from(asked.path.clone());
    }
    ruled.changes().for_each(|sides| sides.request.apply(&mut received.head.headers));
    if let Some(host) = ruled.host() {
        let host = Host::of(host.as_bytes(), &mut None).ok_or(Reject::BadRequest("the rewritten Host is not one"))?;
        received.host = host.clone();
        asked.host = host;
    }
    Ok(())
}

/// What the rule answers in the place of a callee, a preflight included; else the origin that may share the answer to come.
pub(super) fn answer(
    (ruled, scheme): (&Ruled, &str),
    asked: &Asked,
    headers: &HeaderMap,
) -> Result<Option<HeaderValue>, Box<Response<AnswerBody>>> {
    let rule = ruled.rule();
    let (origin, preflight) = match rule.cors.as_ref().map(|cors| (cors, cors.preflight(&asked.method, headers))) {
        None => (None, None),
        Some((_, Preflight::Answered(fields))) => (None, Some(made::fields(fields))),
        Some((cors, Preflight::Forwarded)) => (cors.origin(headers), None),
    };
    let made = preflight.or_else(|| match &rule.action {
        Action::Forward(_) => None,
        Action::Redirect(to) => {
            Some(made::redirect((to, scheme), &asked.host, &asked.path, ruled.block().and_then(Match::prefix)))
        }
        Action::Answer { status, body } => Some(made::text(*status, body)),
    });
    match made {
        None => Ok(origin),
        Some(mut response) => {
            change_answer(ruled, origin, response.headers_mut());
            Err(Box::new(response))
        }
    }
}

/// A delay and a failure, each drawn on its own.
pub(super) fn fault(ruled: &Ruled, random: &Random) -> (Option<Duration>, Option<Response<AnswerBody>>) {
    let Some(fault) = ruled.fault().filter(|_| !planted(Bug::FaultLeftOut)) else { return (None, None) };
    let delay = fault.delay.filter(|(chance, _)| chance.hits(random.share())).map(|(_, span)| span);
    let abort = fault.abort.filter(|(chance, _)| chance.hits(random.share())).map(|(_, abort)| made::abort(abort));
    (delay, abort)
}

/// Changes the answer as the rule says; `origin` may share it.
pub(super) fn change_answer(ruled: &Ruled, origin: Option<HeaderValue>, headers: &mut HeaderMap) {
    if let Some((cors, origin)) = ruled.rule().cors.as_ref().zip(origin) {
        cors.share(origin, headers);
    }
    ruled.changes().for_each(|sides| sides.response.apply(headers));
}

#[cfg(test)]
mod tests;
