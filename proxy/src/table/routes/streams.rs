//! Where opaque streams to a service go, compiled.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use weft_proto::kinds::hosts;
use weft_proto::kinds::istio::is_exported;
use weft_proto::kinds::virtual_service::{L4Match, StreamDestination, TlsMatch};
use weft_proto::service::Labels;

use super::{BackendRef, Backends, Called, RouteDocument, Share, Shares, Sides, StreamDocument, gateway, istio};

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
    /// Those that come in at a gateway; what no rule is for goes nowhere.
    AtGateway,
}

#[derive(Debug)]
struct StreamRule {
    name: Box<str>,
    /// It matches if one of these does; none: it matches everything.
    matches: Vec<Block>,
    shares: Shares,
}

/// What must hold of a stream, all of it.
#[derive(Debug, Clone)]
struct Block {
    l4: L4Match,
    /// Which addresses may be called; none: any.
    subnets: Vec<IpNet>,
    names: Names,
}

/// Which names of TLS are meant.
#[derive(Debug, Clone)]
enum Names {
    /// Whatever the stream is.
    Any,
    /// Any stream of TLS.
    Tls,
    /// One of TLS that asks for one of these; `*` stands for any beginning.
    These(Vec<Box<str>>),
}

/// A stream as rules see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streaming<'a> {
    pub(crate) port: u16,
    /// The caller's namespace; empty for a node.
    pub(crate) namespace: &'a str,
    /// The caller's labels.
    pub(crate) labels: &'a Labels,
    /// The address that is called, where its caller has named one.
    pub(crate) destination: Option<IpAddr>,
    /// Of a stream of TLS: the name that is asked for, empty where none is.
    pub(crate) tls: Option<&'a str>,
}

impl StreamRoutes {
    /// What is looked at first stands first: a caller's own routes, those of the service, then those of Istio.
    pub(in crate::table) fn compile(
        istio: &[Arc<RouteDocument>],
        gateway: &[Arc<StreamDocument>],
        called: &Called<'_>,
    ) -> Vec<Arc<Self>> {
        let mut by_namespace: BTreeMap<&str, Vec<&StreamDocument>> = BTreeMap::new();
        for document in gateway {
            by_namespace.entry(&document.key.namespace).or_default().push(document);
        }
        let producers = by_namespace.remove(called.namespace()).map(|own| of_gateway(&own, Seen::ByAll, called));
        let consumers = by_namespace.into_iter();
        let routes = consumers.map(|(own, documents)| of_gateway(&documents, Seen::From(own.to_owned()), called));
        let speaks = |document: &&Arc<RouteDocument>| !(document.spec.tcp.is_empty() && document.spec.tls.is_empty());
        let rules = istio.iter().filter(speaks).map(of_istio);
        routes.chain(producers).chain(rules).map(Arc::new).collect()
    }

    /// The rules for streams that come in at a port of a gateway: `passes` where they are of TLS and passed on as they are.
    pub(in crate::table) fn at_gateway(
        istio: &[Arc<RouteDocument>],
        gateway: &[(Vec<String>, Arc<StreamDocument>)],
        passes: bool,
    ) -> Self {
        let mut backends = Backends::default();
        let mut rules: Vec<((u8, Reverse<usize>), StreamRule)> = Vec::new();
        for (hosts, document) in gateway {
            let names: Vec<Names> = match document.spec.hostnames.is_some() && passes {
                true => hosts.iter().map(|host| Names::These(vec![host.as_str().into()])).collect(),
                false => vec![Names::Any],
            };
            rules.extend(of_document(document, &names, &[None], &mut backends));
        }
        rules.sort_by_key(|(rank, _)| *rank);
        let mut rules: Vec<StreamRule> = rules.into_iter().map(|(_, rule)| rule).collect();
        for document in istio {
            let own = istio_rules(document, &mut backends);
            rules.extend(own.into_iter().filter(|rule| !passes || rule.asks_for_names()));
        }
        Self { seen: Seen::AtGateway, rules, backends: backends.into_list() }
    }

    /// Whether callers of the namespace see them.
    pub(crate) fn are_seen_by(&self, namespace: &str) -> bool {
        match &self.seen {
            Seen::ByAll | Seen::AtGateway => true,
            Seen::From(own) => own == namespace,
            Seen::AsExported(document) => is_exported(&document.spec.export_to, &document.key.namespace, namespace),
        }
    }

    /// Whether a rule asks for labels of the caller.
    pub(crate) fn ask_for_labels(&self) -> bool {
        self.blocks().any(|block| !block.l4.source_labels.is_empty())
    }

    /// Whether a rule for the port asks what a stream of TLS asks for, so that its first bytes are waited for.
    pub(crate) fn ask_for_names(&self, port: u16) -> bool {
        let here = |block: &&Block| block.l4.port.is_none_or(|own| own == port);
        self.blocks().filter(here).any(|block| !matches!(block.names, Names::Any))
    }

    fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.rules.iter().flat_map(|rule| &rule.matches)
    }

    /// The first rule that matches: its name, and where the share of the whole falls that is drawn; none: it leads nowhere.
    pub(crate) fn find(&self, streaming: &Streaming<'_>, draw: impl FnOnce() -> f64) -> Option<(&str, Option<usize>)> {
        let fits = |block: &Block| block.fits(streaming);
        let Some(rule) = self.rules.iter().find(|rule| rule.matches.is_empty() || rule.matches.iter().any(fits)) else {
            // By the Gateway API a stream that no route is for goes nowhere where there are any.
            let strict = match self.seen {
                Seen::AsExported(_) => false,
                Seen::AtGateway => true,
                Seen::ByAll | Seen::From(_) => self.ask_for_names(streaming.port),
            };
            return strict.then_some(("no route", None));
        };
        Some((&rule.name, rule.shares.pick(draw()).map(|at| rule.shares.shares[at].backend)))
    }
}

impl StreamRule {
    fn asks_for_names(&self) -> bool {
        self.matches.iter().any(|block| !matches!(block.names, Names::Any))
    }
}

impl Block {
    fn of(l4: L4Match, names: Names) -> Self {
        Self { subnets: subnets(&l4), l4, names }
    }

    fn holds(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|block| block.contains(&address))
    }

    fn fits(&self, streaming: &Streaming<'_>) -> bool {
        let label = |(name, value): (&String, &String)| streaming.labels.get(name) == Some(value);
        let l4 = &self.l4;
        l4.port.is_none_or(|port| port == streaming.port)
            && (l4.source_namespace.is_empty() || l4.source_namespace == streaming.namespace)
            && l4.source_labels.iter().all(label)
            && (self.subnets.is_empty() || streaming.destination.is_some_and(|to| self.holds(to)))
            && self.names.mean(streaming.tls)
    }
}

/// The blocks of addresses that texts say, which were looked at when the document was accepted.
fn subnets(l4: &L4Match) -> Vec<IpNet> {
    l4.destination_subnets.iter().filter_map(|text| hosts::block(text)).collect()
}

impl Names {
    fn mean(&self, tls: Option<&str>) -> bool {
        let is = |name: &str, pattern: &str| match pattern.strip_prefix('*') {
            Some(end) => name.len() > end.len() && name.ends_with(end),
            None => name == pattern,
        };
        match (self, tls) {
            (Self::Any, _) | (Self::Tls, Some(_)) => true,
            (Self::These(patterns), Some(name)) => patterns.iter().any(|pattern| is(name, pattern)),
            _ => false,
        }
    }

    /// Lower is looked at earlier: a whole name, then the longest end, then any of TLS (the Gateway API's order).
    fn rank(&self) -> (u8, Reverse<usize>) {
        match self {
            Self::These(names) => {
                let longest = names.iter().map(|name| name.len()).max().unwrap_or(0);
                (u8::from(names.iter().all(|name| name.starts_with('*'))), Reverse(longest))
            }
            Self::Tls => (2, Reverse(0)),
            Self::Any => (3, Reverse(0)),
        }
    }
}

fn of_istio(document: &Arc<RouteDocument>) -> StreamRoutes {
    let mut backends = Backends::default();
    let rules = istio_rules(document, &mut backends);
    StreamRoutes { seen: Seen::AsExported(document.clone()), rules, backends: backends.into_list() }
}

fn istio_rules(document: &RouteDocument, backends: &mut Backends) -> Vec<StreamRule> {
    let mut shares = |route: &[StreamDestination]| {
        let share = |to: &StreamDestination| Share {
            weight: to.weight as usize,
            backend: backends.place(istio::backend(document, &to.destination)),
            changes: Sides::default(),
        };
        Shares::of(route.iter().map(share).collect())
    };
    let name = |list: &str, at: usize| format!("{}/{}[{list}{at}]", document.key.namespace, document.key.name).into();
    let spec = &document.spec;
    let by_name = |block: &TlsMatch| {
        let names = block.sni_hosts.iter().map(|name| name.to_ascii_lowercase().into()).collect();
        Block::of(block.l4(), Names::These(names))
    };
    let tls = spec.tls.iter().enumerate().map(|(at, rule)| StreamRule {
        name: name("tls ", at),
        matches: rule.matches.iter().map(by_name).collect(),
        shares: shares(&rule.route),
    });
    let mut rules: Vec<StreamRule> = tls.collect();
    let any = |l4: &L4Match| Block::of(l4.clone(), Names::Any);
    rules.extend(spec.tcp.iter().enumerate().map(|(at, rule)| StreamRule {
        name: name("", at),
        matches: rule.matches.iter().map(any).collect(),
        shares: shares(&rule.route),
    }));
    rules
}

/// The documents of a namespace, the oldest first.
fn of_gateway(documents: &[&StreamDocument], seen: Seen, called: &Called<'_>) -> StreamRoutes {
    let mut backends = Backends::default();
    let mut rules: Vec<((u8, Reverse<usize>), StreamRule)> = Vec::new();
    for document in documents {
        let (key, spec) = (&document.key, &document.spec);
        let ports = called.ports(&spec.parent_refs, &key.namespace);
        // A name of its own for each block: a longer one of another document may stand between them.
        let names: Vec<Names> = match &spec.hostnames {
            None => vec![Names::Any],
            Some(names) if names.is_empty() => vec![Names::Tls],
            Some(names) => names.iter().map(|name| Names::These(vec![name.as_str().into()])).collect(),
        };
        rules.extend(of_document(document, &names, &ports, &mut backends));
    }
    rules.sort_by_key(|(rank, _)| *rank);
    StreamRoutes { seen, rules: rules.into_iter().map(|(_, rule)| rule).collect(), backends: backends.into_list() }
}

/// The rules of a document, once for each of the names.
fn of_document(
    document: &StreamDocument,
    names: &[Names],
    ports: &[Option<u16>],
    backends: &mut Backends,
) -> Vec<((u8, Reverse<usize>), StreamRule)> {
    let (key, spec) = (&document.key, &document.spec);
    let parents = spec.services(&key.namespace);
    let block = |port: Option<u16>, names: &Names| Block::of(L4Match { port, ..L4Match::default() }, names.clone());
    let mut rules = Vec::new();
    for (at, rule) in spec.rules.iter().enumerate() {
        for names in names {
            let shares = rule.backend_refs.iter().filter(|to| to.weight > 0).map(|to| Share {
                weight: to.weight as usize,
                backend: backends.place(gateway::backend(
                    key,
                    &parents,
                    (&to.kind, to.service(&key.namespace)),
                    to.port,
                )),
                changes: Sides::default(),
            });
            let rule = StreamRule {
                name: format!("{}/{}[{at}]", key.namespace, key.name).into(),
                shares: Shares::of(shares.collect()),
                matches: ports.iter().map(|port| block(*port, names)).collect(),
            };
            rules.push((names.rank(), rule));
        }
    }
    rules
}
