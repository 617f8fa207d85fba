//! What documents say of the calls of a service by one caller.

use std::sync::Arc;

use weft_proto::identity::Identity;
use weft_proto::service::Labels;

use crate::call::{End, Parties};
use crate::table::aliases::Alias;
use crate::table::destinations::Asker;
use crate::table::routes::{Routes, StreamRoutes};
use crate::table::{Service, Table};

/// The namespace of an identity; empty for a node.
pub(super) fn namespace(identity: &Identity) -> &str {
    identity.namespace().unwrap_or_default()
}

/// The rules that count for calls: those that stand first of what the caller sees.
pub(super) fn routes(parties: &Parties, service: &Service, alias: Option<&Alias>) -> Option<Arc<Routes>> {
    let seen = |routes: &&Arc<Routes>| routes.is_seen_by(namespace(&parties.caller));
    let all = alias.map_or(&service.routes, |alias| &alias.routes);
    all.iter().filter(|_| are_routed(parties, alias)).find(seen).cloned()
}

/// The same for opaque streams.
pub(super) fn stream_routes(parties: &Parties, service: &Service, alias: Option<&Alias>) -> Option<Arc<StreamRoutes>> {
    let sees = |routes: &&Arc<StreamRoutes>| routes.are_seen_by(namespace(&parties.caller));
    let all = alias.map_or(&service.stream_routes, |alias| &alias.stream_routes);
    all.iter().filter(|_| are_routed(parties, alias)).find(sees).cloned()
}

/// Whether rules may lead these calls elsewhere: those of a subset have been led there.
fn are_routed(parties: &Parties, alias: Option<&Alias>) -> bool {
    parties.end == End::Caller && (parties.subset.is_none() || alias.is_some())
}

/// The labels of the service that asks, where a document about the called one may ask for any.
pub(super) fn labels(
    table: &Table,
    (parties, asking): (&Parties, &Identity),
    (service, alias): (&Service, Option<&Alias>),
) -> Labels {
    let (routes, streams) =
        alias.map_or((&service.routes, &service.stream_routes), |alias| (&alias.routes, &alias.stream_routes));
    let rules = || routes.iter().any(|routes| routes.asks_for_labels());
    let asks = || service.has_treatment() || rules() || streams.iter().any(|one| one.ask_for_labels());
    if parties.end == End::Callee || !(alias.is_some() || asks()) {
        return Labels::new();
    }
    let caller = table.services().find(|one| one.identity == *asking);
    caller.map(|caller| caller.common_labels()).unwrap_or_default()
}

/// Which of a service's instances are meant.
#[derive(Debug)]
pub(super) enum Which {
    All,
    /// Those that have these labels.
    Labelled(Labels),
    /// Those of that name.
    Called(Box<str>),
    /// Those of a subset that is not defined.
    None,
}

impl Which {
    pub(super) fn of(parties: &Parties, (service, alias): (&Service, Option<&Alias>), asker: Asker<'_>) -> Self {
        let Some(subset) = parties.subset.as_deref() else { return Self::All };
        if let Some(alias) = alias {
            return Self::Labelled(alias.description.document.spec.labels());
        }
        if let Some(instance) = Table::instance_of(subset) {
            return Self::Called(instance.into());
        }
        service.subset(subset, asker).cloned().map_or(Self::None, Self::Labelled)
    }
}
