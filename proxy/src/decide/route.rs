//! From what is asked for to a backend: the service whose policies, identity, links and limits count from here on. At the
//! callee's node the link has said who is called, and nothing is routed.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use weft_proto::kinds::service::EscapedSlashes;
use weft_proto::planted::{Bug, planted};
use weft_proto::service::ServicePort;

use super::relation::Relation;
use crate::call::Parties;
use crate::path;
use crate::reject::Reject;
use crate::table::routes::{Action, Asking, BackendRef, Fault, Match, Routes, Rule, Share, Sides, Streaming};
use crate::table::{Meant, Service, Table};

/// Who is called.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) service: Arc<Service>,
    pub(crate) port: ServicePort,
    /// Which of its instances; none: all.
    pub(crate) subset: Option<Arc<str>>,
}

/// The rule that an exchange falls under, and its share.
#[derive(Debug, Clone)]
pub(crate) struct Ruled {
    routes: Arc<Routes>,
    rule: usize,
    /// Which of the rule's blocks matched.
    block: Option<usize>,
    /// Where the rule forwards: which of its destinations.
    share: Option<usize>,
}

/// The rule for a request; none where the plain service is called. `draw` gives a share of the whole.
pub(crate) fn route(
    relation: &Relation,
    asking: &Asking<'_>,
    draw: impl FnOnce() -> f64,
) -> Result<Option<Ruled>, Reject> {
    let Some(routes) = &relation.routes else { return Ok(None) };
    if planted(Bug::GoesPast) && relation.service.name.is_outside() {
        return Ok(None);
    }
    let Some((rule, block)) = routes.find(asking) else {
        return if routes.may_concern(asking) { Err(Reject::NoRoute) } else { Ok(None) };
    };
    let share = match &routes.rules[rule].action {
        Action::Forward(shares) => Some(shares.pick(draw()).ok_or(Reject::NoBackend(routes.missing))?),
        Action::Redirect(_) | Action::Answer { .. } => None,
    };
    Ok(Some(Ruled { routes: routes.clone(), rule, block, share }))
}

/// The rule that an opaque stream falls under.
#[derive(Debug)]
pub(crate) struct StreamRuled<'r> {
    /// Its name.
    pub(crate) rule: &'r str,
    /// Where it leads: the place among the backends of all rules of the caller's relation, and the backend; none: nowhere.
    pub(crate) to: Option<(usize, &'r BackendRef)>,
}

/// The rule for an opaque stream, of TLS with the name that it asks for; none where the plain service is called.
pub(crate) fn stream<'r>(
    relation: &'r Relation,
    (destination, tls): (Option<IpAddr>, Option<&str>),
    draw: impl FnOnce() -> f64,
) -> Option<StreamRuled<'r>> {
    let routes = relation.stream_routes.as_ref()?;
    // By a name alone a service is called at its own address.
    let named = || relation.service.name.name().parse().ok().filter(|_| relation.service.name.is_outside());
    let destination = destination.or_else(named).or_else(|| relation.service.loopback().map(IpAddr::from));
    let (port, namespace) = (relation.called, relation.namespace());
    let streaming = Streaming { port, namespace, labels: &relation.labels, destination, tls };
    let (rule, to) = routes.find(&streaming, draw)?;
    let before = relation.routes.as_ref().map_or(0, |routes| routes.backends.len());
    Some(StreamRuled { rule, to: to.map(|to| (before + to, &routes.backends[to])) })
}

/// What a rule's destination is under a table; nothing where there is no such service, port or subset.
pub(crate) fn backend(table: &Table, relation: &Relation, to: &BackendRef) -> Option<Backend> {
    let name = to.service.as_ref()?;
    if let Some((kind, namespace)) = &to.by
        && !table.grants(kind, namespace, name)
    {
        return None;
    }
    let Meant { service, port, subset, .. } = table.meant(name, to.port)?;
    let port = match (port, &service.ports[..]) {
        (Some(number), _) => service.port(number)?,
        (None, [only]) => *only,
        (None, _) => service.port(relation.port.port)?,
    };
    if let Some(name) = &to.subset {
        service.subset(name, relation.asker())?;
    }
    Some(Backend { service: service.clone(), port, subset: to.subset.clone().or(subset) })
}

impl Backend {
    /// Its calls by a caller of this node.
    pub(crate) fn parties(&self, relation: &Relation) -> Parties {
        let caller = relation.onward().clone();
        Parties { subset: self.subset.clone(), ..Parties::of_caller(caller, &self.service.name, self.port.port) }
    }
}

impl Ruled {
    pub(crate) fn rule(&self) -> &Rule {
        &self.routes.rules[self.rule]
    }

    pub(crate) fn share(&self) -> Option<&Share> {
        match (&self.rule().action, self.share) {
            (Action::Forward(shares), Some(at)) => shares.shares.get(at),
            _ => None,
        }
    }

    /// Where its share leads, by its place among the backends of the document.
    pub(crate) fn to(&self) -> Option<(usize, &BackendRef)> {
        self.share().map(|share| (share.backend, &self.routes.backends[share.backend]))
    }

    /// Where each of its shares leads, by their places among the backends of the document.
    pub(crate) fn ways(&self) -> impl Iterator<Item = (usize, &BackendRef)> {
        let shares = match &self.rule().action {
            Action::Forward(shares) => &shares.shares[..],
            _ => &[],
        };
        shares.iter().map(|share| (share.backend, &self.routes.backends[share.backend]))
    }

    /// The same rule with another share of it.
    pub(crate) fn with_share(&self, share: usize) -> Self {
        Self { share: Some(share), ..self.clone() }
    }

    /// Where copies go that a share of the whole falls on, by their places among the backends of the document.
    pub(crate) fn copies(&self, draw: impl Fn() -> f64) -> impl Iterator<Item = (usize, &BackendRef)> {
        let hit = self.rule().mirrors.iter().filter(move |(chance, _)| chance.hits(draw()));
        hit.map(|(_, backend)| (*backend, &self.routes.backends[*backend]))
    }

    /// The target that the request has then, in its normal form; none where the rule leaves it as it is.
    pub(crate) fn target(
        &self,
        path: &str,
        query: Option<&str>,
        slashes: EscapedSlashes,
    ) -> Option<Result<String, path::Refusal>> {
        let rewrite = self.rule().rewrite.as_ref()?.path.as_ref()?;
        let new = rewrite.apply(path, self.block().and_then(Match::prefix));
        let slash = if new.starts_with('/') { "" } else { "/" };
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        Some(path::normalise(&format!("{slash}{new}{query}"), slashes).map(Cow::into_owned))
    }

    /// The authority that it has then; what the rule says goes before what its destination says (Istio's order).
    pub(crate) fn host(&self) -> Option<&str> {
        let rewrite = self.rule().rewrite.as_ref().and_then(|rewrite| rewrite.authority.as_deref());
        rewrite.or_else(|| self.changes().find_map(|sides| sides.request.host.as_deref()))
    }

    /// Changes of header fields: those of the rule, then on top of them those of its destination.
    pub(crate) fn changes(&self) -> impl Iterator<Item = &Sides> {
        [Some(&self.rule().changes), self.share().map(|share| &share.changes)].into_iter().flatten()
    }

    /// What a call is refused with that leads to what is not there.
    pub(crate) fn missing(&self) -> Reject {
        Reject::NoBackend(self.routes.missing)
    }

    /// The block that matched.
    pub(crate) fn block(&self) -> Option<&Match> {
        self.block.map(|at| &self.rule().matches[at])
    }

    pub(crate) fn fault(&self) -> Option<&Fault> {
        self.rule().fault.as_ref()
    }
}
