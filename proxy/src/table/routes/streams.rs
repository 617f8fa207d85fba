//! Where opaque streams to a service go, compiled.

use std::sync::Arc;

use weft_proto::kinds::istio::is_exported;
use weft_proto::kinds::virtual_service::L4Match;
use weft_proto::service::{Labels, ServiceName};

use super::{BackendRef, Backends, RouteDocument, Share, Shares, Sides, StreamDocument, gateway, istio};

/// Rules that count together.
#[derive(Debug)]
pub(crate) struct StreamRoutes {
    seen: Seen,
    rules: Vec<StreamRule>,
    /// Where they lead.
    pub(crate) backends: Vec<BackendRef>,
}

/// Which callers see them.
#[derive(Debug)]
enum Seen {
    ByAll,
    /// Those of this namespace.
    From(String),
    /// Those that the document says.
    AsExported(Arc<RouteDocument>),
}

#[derive(Debug)]
struct StreamRule {
    name: Box<str>,
    /// It matches if one of these does; none: it matches everything.
    matches: Vec<L4Match>,
    shares: Shares,
}

/// A stream as rules see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streaming<'a> {
    pub(crate) port: u16,
    /// The caller's namespace; empty for a node.
    pub(crate) namespace: &'a str,
    /// The caller's labels.
    pub(crate) labels: &'a Labels,
}

impl StreamRoutes {
    /// What is looked at first stands first: a caller's own routes, those of the service, then those of Istio.
    pub(in crate::table) fn compile(
        istio: &[Arc<RouteDocument>],
        gateway: &[Arc<StreamDocument>],
        service: &ServiceName,
    ) -> Vec<Arc<Self>> {
        let own = |document: &&Arc<StreamDocument>| document.key.namespace == service.namespace();
        let consumers = gateway.iter().filter(|document| !own(document));
        let routes = consumers.chain(gateway.iter().filter(own)).map(|document| of_gateway(document, service));
        let rules = istio.iter().filter(|document| !document.spec.tcp.is_empty()).map(of_istio);
        routes.chain(rules).map(Arc::new).collect()
    }

    /// Whether callers of the namespace see them.
    pub(crate) fn are_seen_by(&self, namespace: &str) -> bool {
        match &self.seen {
            Seen::ByAll => true,
            Seen::From(own) => own == namespace,
            Seen::AsExported(document) => is_exported(&document.spec.export_to, &document.key.namespace, namespace),
        }
    }

    /// Whether a rule asks for labels of the caller.
    pub(crate) fn ask_for_labels(&self) -> bool {
        self.rules.iter().flat_map(|rule| &rule.matches).any(|block| !block.source_labels.is_empty())
    }

    /// The first rule that matches: its name, and where the share of the whole falls that is drawn; none: it leads nowhere.
    pub(crate) fn find(&self, streaming: &Streaming<'_>, draw: impl FnOnce() -> f64) -> Option<(&str, Option<usize>)> {
        let fits = |block: &L4Match| {
            let label = |(name, value): (&String, &String)| streaming.labels.get(name) == Some(value);
            block.port.is_none_or(|port| port == streaming.port)
                && (block.source_namespace.is_empty() || block.source_namespace == streaming.namespace)
                && block.source_labels.iter().all(label)
        };
        let rule = self.rules.iter().find(|rule| rule.matches.is_empty() || rule.matches.iter().any(fits))?;
        Some((&rule.name, rule.shares.pick(draw()).map(|at| rule.shares.shares[at].backend)))
    }
}

fn of_istio(document: &Arc<RouteDocument>) -> StreamRoutes {
    let mut backends = Backends::default();
    let rules = document.spec.tcp.iter().enumerate().map(|(at, rule)| {
        let share = |to: &weft_proto::kinds::virtual_service::StreamDestination| Share {
            weight: to.weight as usize,
            backend: backends.place(istio::backend(document, &to.destination)),
            changes: Sides::default(),
        };
        StreamRule {
            name: format!("{}/{}[{at}]", document.key.namespace, document.key.name).into(),
            matches: rule.matches.clone(),
            shares: Shares::of(rule.route.iter().map(share).collect()),
        }
    });
    let rules = rules.collect();
    StreamRoutes { seen: Seen::AsExported(document.clone()), rules, backends: backends.into_list() }
}

fn of_gateway(document: &Arc<StreamDocument>, service: &ServiceName) -> StreamRoutes {
    let (key, spec) = (&document.key, &document.spec);
    let (mut backends, parents) = (Backends::default(), spec.services(&key.namespace));
    let own = spec.parent_refs.iter().filter(|parent| parent.service(&key.namespace).as_ref() == Some(service));
    let ports: Vec<Option<u16>> = own.map(|parent| parent.port.map(std::num::NonZeroU16::get)).collect();
    let matches = match ports.contains(&None) {
        true => Vec::new(),
        false => ports.iter().map(|port| L4Match { port: *port, ..L4Match::default() }).collect(),
    };
    let rules = spec.rules.iter().enumerate().map(|(at, rule)| {
        let shares = rule.backend_refs.iter().filter(|to| to.weight > 0).map(|to| Share {
            weight: to.weight as usize,
            backend: backends.place(gateway::backend(key, &parents, (to.namespace.as_deref(), &to.name), to.port)),
            changes: Sides::default(),
        });
        StreamRule {
            name: format!("{}/{}[{at}]", key.namespace, key.name).into(),
            matches: matches.clone(),
            shares: Shares::of(shares.collect()),
        }
    });
    let rules = rules.collect();
    let seen = if key.namespace == service.namespace() { Seen::ByAll } else { Seen::From(key.namespace.clone()) };
    StreamRoutes { seen, rules, backends: backends.into_list() }
}
