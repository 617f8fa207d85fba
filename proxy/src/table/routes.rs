//! Where calls of a service go, compiled: the one form that documents of every family take.

mod attached;
mod called;
mod changes;
mod cors;
mod gateway;
mod index;
mod istio;
mod matching;
mod retries;
mod streams;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderName, StatusCode};
use weft_proto::kinds::core_service::CoreService;
use weft_proto::kinds::destination_rule::DestinationRule;
use weft_proto::kinds::http_route::HttpRoute;
use weft_proto::kinds::istio::is_exported;
use weft_proto::kinds::reference_grant::ReferenceGrant;
use weft_proto::kinds::tcp_route::TcpRoute;
use weft_proto::kinds::virtual_service::VirtualService;
use weft_proto::resource::ResourceKey;
use weft_proto::service::ServiceName;

use crate::task::on_part;

pub(crate) use attached::HostRank;
pub(crate) use called::Called;
pub(crate) use changes::{Changes, PathRewrite, Rewrite};
pub(crate) use cors::{Cors, Preflight};
pub(crate) use matching::{Asking, Match};
pub(crate) use retries::{RetryOn, RetryPolicy};
pub(crate) use streams::{StreamRoutes, Streaming};

use index::Index;

/// A document about calls, as it was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document<T> {
    /// Its name.
    pub key: ResourceKey,
    /// Index of the decision that made it: of several the oldest goes first.
    pub created: u64,
    /// What it says.
    pub spec: T,
}

/// A document with rules for calls.
pub type RouteDocument = Document<VirtualService>;
/// A document with rules for calls, in the words of the Gateway API.
pub type GatewayDocument = Document<HttpRoute>;
/// A document with rules for opaque streams, in the words of the Gateway API.
pub type StreamDocument = Document<TcpRoute>;
/// A document with subsets.
pub type SubsetDocument = Document<DestinationRule>;
/// A document with a further name for some instances of a service.
pub type AliasDocument = Document<CoreService>;
/// A document that lets routes of other namespaces lead to services of its own.
pub type GrantDocument = Document<ReferenceGrant>;

/// Rules that count together.
#[derive(Debug)]
pub(crate) struct Routes {
    source: Source,
    seen: Seen,
    pub(crate) rules: Vec<Rule>,
    index: Index,
    /// Where its rules lead.
    pub(crate) backends: Vec<BackendRef>,
    /// What a call is answered with that is led to what is not there.
    pub(crate) missing: StatusCode,
}

/// What rules were compiled from.
#[derive(Debug)]
enum Source {
    Istio(Arc<RouteDocument>),
    Gateway(Vec<Arc<GatewayDocument>>),
    /// What is attached to a gateway.
    Attached,
}

/// Which callers see rules.
#[derive(Debug)]
enum Seen {
    ByAll,
    /// Those of this namespace.
    From(String),
    /// Those that the document says.
    AsExported,
}

/// Where a rule leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BackendRef {
    /// None where it may not lead there, or the name is none.
    pub(crate) service: Option<ServiceName>,
    pub(crate) subset: Option<Arc<str>>,
    pub(crate) port: Option<u16>,
    /// The kind and namespace of a document that may lead there only if that is granted.
    pub(crate) by: Option<(&'static str, Arc<str>)>,
}

/// A rule: what it matches, and what becomes of the call.
#[derive(Debug)]
pub(crate) struct Rule {
    /// How records and explanations name it.
    pub(crate) name: Box<str>,
    /// It matches if one of these does; none: it matches everything.
    pub(crate) matches: Vec<Match>,
    pub(crate) action: Action,
    /// Changes of the request and of the answer.
    pub(crate) changes: Sides,
    pub(crate) rewrite: Option<Rewrite>,
    /// Bound on the whole call; none: what the service's settings say.
    pub(crate) timeout: Option<Duration>,
    /// When a try is repeated; none: what the service's settings say.
    pub(crate) retries: Option<RetryPolicy>,
    pub(crate) fault: Option<Fault>,
    /// Where copies go, by the document's backends, and how many calls are copied.
    pub(crate) mirrors: Vec<(Chance, usize)>,
    pub(crate) cors: Option<Cors>,
    pub(crate) session: Option<Session>,
}

impl Rule {
    /// One that only does this.
    fn only(name: &str, action: Action) -> Self {
        Self {
            name: name.into(),
            matches: Vec::new(),
            action,
            changes: Sides::default(),
            rewrite: None,
            timeout: None,
            retries: None,
            fault: None,
            mirrors: Vec::new(),
            cors: None,
            session: None,
        }
    }
}

/// How calls of a session go to the same instance.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) carrier: Carrier,
    /// From its beginning, and from its last call; none: without a bound.
    pub(crate) lasts: Option<Duration>,
    pub(crate) rests: Option<Duration>,
}

/// What the caller of a session carries.
#[derive(Debug)]
pub(crate) enum Carrier {
    /// `rest` stands behind its value where it is given.
    Cookie {
        name: Box<str>,
        rest: Box<str>,
    },
    Header(HeaderName),
}

/// Changes of both directions.
#[derive(Debug, Default)]
pub(crate) struct Sides {
    pub(crate) request: Changes,
    pub(crate) response: Changes,
}

/// What becomes of a call that a rule matches.
#[derive(Debug)]
pub(crate) enum Action {
    /// It goes to one of these, by weight.
    Forward(Shares),
    /// It is told another place.
    Redirect(Redirect),
    /// It is answered.
    Answer { status: StatusCode, body: Box<str> },
}

/// Destinations by weight.
#[derive(Debug)]
pub(crate) struct Shares {
    pub(crate) shares: Vec<Share>,
    pub(crate) sum: usize,
}

/// A destination of a rule.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) weight: usize,
    /// Among the backends of the document.
    pub(crate) backend: usize,
    pub(crate) changes: Sides,
}

/// Another place: what is not said is kept.
#[derive(Debug)]
pub(crate) struct Redirect {
    pub(crate) status: StatusCode,
    pub(crate) scheme: Option<Box<str>>,
    pub(crate) authority: Option<Box<str>>,
    /// None keeps that of the authority.
    pub(crate) port: Option<u16>,
    /// Whether another authority without a port keeps the one that was called.
    pub(crate) keeps_port: bool,
    pub(crate) path: Option<PathRewrite>,
}

/// A failure that is made.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) delay: Option<(Chance, Duration)>,
    pub(crate) abort: Option<(Chance, Abort)>,
}

/// What an abort answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Abort {
    Http(StatusCode),
    /// The number of the status.
    Grpc(usize),
}

/// How many of a million.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chance(u32);

impl Chance {
    /// Of a percentage.
    fn of(percent: f64) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped; `as` saturates")]
        Self((percent.clamp(0.0, 100.0) * 10_000.0).round() as u32)
    }

    /// Whether it hits, by a share of the whole.
    pub(crate) fn hits(self, share: f64) -> bool {
        share * 1e6 < f64::from(self.0)
    }
}

impl fmt::Display for Chance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", f64::from(self.0) / 10_000.0)
    }
}

impl Routes {
    /// Compiles what documents say of the calls of a service: what is looked at first stands first. Their expressions were
    /// tried when they were accepted; what cannot be compiled all the same matches nothing. What was compiled before from the
    /// same documents is taken over.
    pub(super) fn compile(
        (istio, gateway): (&[Arc<RouteDocument>], &[Arc<GatewayDocument>]),
        called: &Called<'_>,
        before: &[Arc<Self>],
    ) -> Vec<Arc<Self>> {
        let mut by_namespace: BTreeMap<&str, Vec<Arc<GatewayDocument>>> = BTreeMap::new();
        for document in gateway {
            by_namespace.entry(&document.key.namespace).or_default().push(document.clone());
        }
        // A caller's own routes go before those of the service, and those of the Gateway API before those of Istio.
        let producers = by_namespace.remove(called.namespace());
        let groups = by_namespace.into_values().chain(producers);
        let groups = groups.map(|documents| {
            let known = before.iter().find(|routes| routes.source.is_of(&documents)).cloned();
            known.unwrap_or_else(|| Arc::new(gateway::compile(documents, called)))
        });
        let single = istio.iter().map(|document| {
            let same =
                |routes: &&Arc<Self>| matches!(&routes.source, Source::Istio(known) if Arc::ptr_eq(known, document));
            before.iter().find(same).cloned().unwrap_or_else(|| Arc::new(istio::compile(document)))
        });
        groups.chain(single).collect()
    }

    /// Whether callers of the namespace see it.
    pub(crate) fn is_seen_by(&self, namespace: &str) -> bool {
        match (&self.seen, &self.source) {
            (Seen::ByAll, _) => true,
            (Seen::From(own), _) => own == namespace,
            (Seen::AsExported, Source::Istio(document)) => {
                is_exported(&document.spec.export_to, &document.key.namespace, namespace)
            }
            (Seen::AsExported, Source::Gateway(_) | Source::Attached) => false,
        }
    }

    /// Whether a rule asks for labels of the caller.
    pub(crate) fn asks_for_labels(&self) -> bool {
        self.rules.iter().flat_map(|rule| &rule.matches).any(|block| !block.labels.is_empty())
    }

    /// The first rule that matches and the block of it that does, by their places.
    pub(crate) fn find(&self, asking: &Asking<'_>) -> Option<(usize, Option<usize>)> {
        self.index.first(asking.path, |at| {
            let blocks = &self.rules[at].matches;
            if blocks.is_empty() {
                return Some(None);
            }
            blocks.iter().position(|block| block.fits(asking)).map(Some)
        })
    }

    /// Whether a rule could match some call of this caller at the port, whatever it asks for. Where none could the plain
    /// service is called (Istio's rule).
    pub(crate) fn may_concern(&self, asking: &Asking<'_>) -> bool {
        let blocks =
            |rule: &Rule| rule.matches.is_empty() || rule.matches.iter().any(|block| block.fits_caller(asking));
        self.rules.iter().any(blocks)
    }
}

impl Source {
    fn is_of(&self, documents: &[Arc<GatewayDocument>]) -> bool {
        let Self::Gateway(known) = self else { return false };
        known.len() == documents.len() && known.iter().zip(documents).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

impl Shares {
    fn of(shares: Vec<Share>) -> Self {
        Self { sum: shares.iter().map(|share| share.weight).sum(), shares }
    }

    /// The destination that a share of the whole falls on.
    pub(crate) fn pick(&self, share: f64) -> Option<usize> {
        if self.shares.len() == 1 {
            return Some(0);
        }
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a sum of a few 32-bit weights"
        )]
        let number = (share * self.sum as f64) as usize;
        on_part(self.shares.iter().map(|one| one.weight), number)
    }
}

impl Redirect {
    /// Where to; `prefix` is the part of the path that matched.
    pub(crate) fn location(
        &self,
        (called, authority): (&str, &http::uri::Authority),
        path: &PathAndQuery,
        prefix: Option<&str>,
    ) -> String {
        let scheme = self.scheme.as_deref().unwrap_or(called);
        let given = self.authority.as_deref().and_then(|text| text.parse::<http::uri::Authority>().ok());
        let host = given.as_ref().unwrap_or(authority);
        let port = || authority.port_u16().filter(|_| self.keeps_port);
        let port = self.port.or_else(|| host.port_u16()).or_else(port);
        let default = if scheme == "https" { 443 } else { 80 };
        let port = port.filter(|port| *port != default).map(|port| format!(":{port}")).unwrap_or_default();
        let query = path.query().map(|query| format!("?{query}")).unwrap_or_default();
        let path = self.path.as_ref().map_or_else(|| path.path().into(), |new| new.apply(path.path(), prefix));
        format!("{scheme}://{}{port}{path}{query}", host.host())
    }
}

/// The backends of a document, each once.
#[derive(Default)]
struct Backends(BTreeMap<BackendRef, usize>);

impl Backends {
    fn place(&mut self, backend: BackendRef) -> usize {
        let next = self.0.len();
        *self.0.entry(backend).or_insert(next)
    }

    fn into_list(self) -> Vec<BackendRef> {
        let mut list: Vec<_> = self.0.into_iter().collect();
        list.sort_by_key(|(_, at)| *at);
        list.into_iter().map(|(backend, _)| backend).collect()
    }
}
