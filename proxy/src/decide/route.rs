//! From what is asked for to a backend: the service whose policies, identity, links and limits count from here on. At the
//! callee's node the link has said who is called, and nothing is routed.

use std::sync::Arc;

use weft_proto::service::ServicePort;

use super::relation::Relation;
use crate::call::End;
use crate::reject::Reject;
use crate::table::routes::{Action, Asking, BackendRef, Fault, Match, Routes, Rule, Share};
use crate::table::{Service, Table};

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

/// The rules that count for calls of a service by this caller: those of the first document that it sees.
pub(crate) fn routes(relation: &Relation) -> Option<&Arc<Routes>> {
    let routes = &relation.service.routes;
    if relation.end == End::Callee || routes.is_empty() {
        return None;
    }
    let namespace = relation.namespace();
    routes.iter().find(|routes| routes.is_seen_by(namespace))
}

/// The rule for a request; none where the plain service is called. `draw` gives a share of the whole.
pub(crate) fn route(
    relation: &Relation,
    asking: &Asking<'_>,
    draw: impl FnOnce() -> f64,
) -> Result<Option<Ruled>, Reject> {
    let Some(routes) = routes(relation) else { return Ok(None) };
    let Some((rule, block)) = routes.find(asking) else {
        return if routes.may_concern(asking) { Err(Reject::NoRoute) } else { Ok(None) };
    };
    let share = match &routes.rules[rule].action {
        Action::Forward(shares) => Some(shares.pick(draw()).ok_or(Reject::NoBackend(routes.missing))?),
        Action::Redirect(_) | Action::Answer { .. } => None,
    };
    Ok(Some(Ruled { routes: routes.clone(), rule, block, share }))
}

/// What a rule's destination is under a table; nothing where there is no such service, port or subset.
pub(crate) fn backend(table: &Table, relation: &Relation, to: &BackendRef) -> Option<Backend> {
    let service = table.service(to.service.as_ref()?)?;
    let port = match (to.port, &service.ports[..]) {
        (Some(number), _) => service.port(number)?,
        (None, [only]) => *only,
        (None, _) => service.port(relation.port.port)?,
    };
    if let Some(name) = &to.subset {
        service.subset(name, relation.namespace())?;
    }
    Some(Backend { service: service.clone(), port, subset: to.subset.clone() })
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
