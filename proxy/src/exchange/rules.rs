//! What a rule does to an exchange: the request is changed before it is judged, an answer may be made in the place of the
//! callee's, a delay or a failure may be added.

use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, Response, Uri};
use weft_proto::kinds::service::EscapedSlashes;

use crate::call::Asked;
use crate::decide::relation::Relation;
use crate::decide::route::{self, Ruled};
use crate::forward::answer::AnswerBody;
use crate::forward::made;
use crate::host::Host;
use crate::path;
use crate::reject::Reject;
use crate::request::Received;
use crate::table::routes::{Action, Asking, Match};
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
        port: relation.port.port,
        namespace: Some(relation.namespace()),
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
    let rule = ruled.rule();
    if let Some(rewrite) = &rule.rewrite {
        if let Some(path) = &rewrite.path {
            let prefix = ruled.block().and_then(Match::prefix);
            let new = path.apply(asked.path.path(), prefix).into_owned();
            let query = asked.path.query().map(|query| format!("?{query}")).unwrap_or_default();
            retarget(received, &format!("{new}{query}"), slashes, asked)?;
        }
        rename(received, rewrite.authority.as_deref(), asked)?;
    }
    for changes in [Some(&rule.changes), ruled.share().map(|share| &share.changes)].into_iter().flatten() {
        changes.request.apply(&mut received.head.headers);
        rename(received, changes.request.host.as_deref(), asked)?;
    }
    Ok(())
}

fn retarget(received: &mut Received, target: &str, slashes: EscapedSlashes, asked: &mut Asked) -> Result<(), Reject> {
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    let normal = path::normalise(&target, slashes).map_err(Reject::Path)?.into_owned();
    let path = PathAndQuery::try_from(normal).map_err(|_| Reject::BadRequest("the rewritten target is not one"))?;
    received.head.uri = Uri::from(path.clone());
    asked.path = path;
    Ok(())
}

fn rename(received: &mut Received, host: Option<&str>, asked: &mut Asked) -> Result<(), Reject> {
    let Some(host) = host else { return Ok(()) };
    received.host = Host::of(host.as_bytes(), &mut None).ok_or(Reject::BadRequest("the rewritten Host is not one"))?;
    asked.host = received.host.clone();
    Ok(())
}

/// What the rule answers in the place of a callee.
pub(super) fn answer(ruled: &Ruled, asked: &Asked) -> Option<Response<AnswerBody>> {
    match &ruled.rule().action {
        Action::Forward(_) => None,
        Action::Redirect(to) => {
            Some(made::redirect(to, &asked.host, &asked.path, ruled.block().and_then(Match::prefix)))
        }
        Action::Answer { status, body } => Some(made::text(*status, body)),
    }
}

/// A delay and a failure, each drawn on its own.
pub(super) fn fault(ruled: &Ruled, random: &Random) -> (Option<Duration>, Option<Response<AnswerBody>>) {
    let Some(fault) = ruled.fault() else { return (None, None) };
    let delay = fault.delay.filter(|(chance, _)| chance.hits(random.share())).map(|(_, span)| span);
    let abort = fault.abort.filter(|(chance, _)| chance.hits(random.share())).map(|(_, abort)| made::abort(abort));
    (delay, abort)
}

/// Changes the answer as the rule says.
pub(super) fn change_answer(ruled: &Ruled, headers: &mut HeaderMap) {
    ruled.rule().changes.response.apply(headers);
    if let Some(share) = ruled.share() {
        share.changes.response.apply(headers);
    }
}

#[cfg(test)]
mod tests;
