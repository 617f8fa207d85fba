//! How a service is called, compiled: of the levels of its `DestinationRule`s those that count for one caller, port and
//! subset (Istio's rules), and Weft's own way where they say nothing.

mod blocks;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use weft_proto::kinds::destination_rule::{LocalitySetting, ProxyVersion, Simple, Tls};
use weft_proto::kinds::istio::is_exported;
use weft_proto::service::Labels;

use super::routes::SubsetDocument;
use blocks::{Blocks, compile};

/// How a service, or a subset of it, is called.
#[derive(Debug, Clone, Default)]
pub(crate) struct Treatment {
    /// How an instance is chosen; none: Weft's own way.
    pub(crate) balancer: Option<Simple>,
    pub(crate) hash: Option<Hash>,
    pub(crate) localities: Localities,
    pub(crate) warmup: Option<Warmup>,
    pub(crate) limits: Limits,
    pub(crate) ejection: Ejection,
    pub(crate) retries: RetryLimits,
    /// Bound on reaching an instance; none: what the service's settings say.
    pub(crate) connect_timeout: Option<Duration>,
    /// How long an opaque stream may be silent, 0 for ever; none: what the service's settings say.
    pub(crate) stream_idle_timeout: Option<Duration>,
    /// How long an opaque stream may last.
    pub(crate) stream_duration_max: Option<Duration>,
    /// Whether the application is spoken to in HTTP/2 where its port speaks HTTP.
    pub(crate) http2: bool,
    pub(crate) keeping: Keeping,
    /// TLS towards hosts outside the mesh.
    pub(crate) tls: Option<Tls>,
    pub(crate) preamble: Option<Preamble>,
}

/// What is said to the destination on each connection before all that callers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Preamble {
    /// Who calls.
    Proxy(ProxyVersion),
    /// Where an opaque stream is to go from there, by HTTP's CONNECT.
    Connect(Arc<str>),
}

impl Treatment {
    /// The version of the PROXY protocol by which the destination is told who calls.
    pub(crate) fn tells_callers(&self) -> Option<ProxyVersion> {
        match self.preamble {
            Some(Preamble::Proxy(version)) => Some(version),
            _ => None,
        }
    }
}

/// The key whose calls go to the same instance, and how that is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hash {
    pub(crate) key: HashKey,
    pub(crate) by: HashBy,
}

/// What the key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HashKey {
    Header(HeaderName),
    Cookie {
        name: Box<str>,
        /// What stands behind the value where it is made; none: it is not made.
        made: Option<Box<str>>,
    },
    Query(Box<str>),
    Source,
}

/// How the instance of a key is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HashBy {
    /// The next of at least so many points on a ring.
    Ring(usize),
    /// A place in a table of so many (Eisenbud et al., "Maglev", NSDI 2016, 3.4).
    Maglev(usize),
}

/// Which instances go before others by where they are.
#[derive(Debug, Clone, Default)]
pub(crate) enum Localities {
    /// Own node, own zone, own region, anywhere.
    #[default]
    Nearest,
    /// All alike.
    Alike,
    /// As a document says.
    Set(Arc<LocalitySetting>),
    /// The same where the caller's region has so many instances; else regions alone count.
    ZoneAware(Arc<LocalitySetting>, usize),
}

/// How a new instance gets its share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Warmup {
    pub(crate) duration: Duration,
    /// Share that it begins with.
    pub(crate) least: f64,
    pub(crate) aggression: f64,
}

/// How many calls there may be at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) connections: Option<usize>,
    pub(crate) pending: Option<usize>,
    pub(crate) requests: Option<usize>,
}

/// When an instance that fails gets no calls for a while.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ejection {
    /// Failures in a row: of any kind, of gateways, of reaching it where those are counted apart.
    pub(crate) errors: Option<u32>,
    /// Which answers are failures; none: those of 500 to 599.
    pub(crate) codes: Option<Codes>,
    pub(crate) gateway_errors: Option<u32>,
    pub(crate) local_errors: Option<u32>,
    /// Whether an instance is held against the others' share of successes.
    pub(crate) by_success_rate: bool,
    pub(crate) interval: Duration,
    pub(crate) base: Duration,
    pub(crate) most: Duration,
    /// Share of the instances that may be out, in percent.
    pub(crate) percent_max: usize,
    /// Share of those that are not, below which all are used, in percent.
    pub(crate) health_min: usize,
    /// Whether one call tells before it gets its share again.
    pub(crate) probes: bool,
}

/// Statuses of HTTP, 0 to 1023.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Codes([u64; 16]);

impl Codes {
    /// None where there is none.
    fn of(codes: &[u16]) -> Option<Self> {
        let mut bits = [0; 16];
        for code in codes {
            *bits.get_mut(usize::from(code / 64))? |= 1 << (code % 64);
        }
        (!codes.is_empty()).then_some(Self(bits))
    }

    pub(crate) fn contain(self, code: u16) -> bool {
        self.0.get(usize::from(code / 64)).is_some_and(|bits| bits & (1 << (code % 64)) != 0)
    }
}

/// How many retries there may be at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RetryLimits {
    /// Share of the calls under way, in percent.
    pub(crate) percent: f64,
    /// So many in any case.
    pub(crate) least: u32,
    /// No more than this.
    pub(crate) most: Option<u32>,
}

/// How long connections to the application are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Keeping {
    /// Calls on one, at least 1; none: no bound.
    pub(crate) requests_max: Option<u32>,
    /// Unused; none: Weft's own bound.
    pub(crate) idle: Option<Duration>,
    /// From when it was made; none: no bound.
    pub(crate) age: Option<Duration>,
}

impl Default for Ejection {
    /// Weft's own.
    fn default() -> Self {
        Self {
            errors: None,
            codes: None,
            gateway_errors: Some(5),
            local_errors: None,
            by_success_rate: true,
            interval: Duration::from_secs(10),
            base: Duration::from_secs(30),
            most: Duration::from_mins(10),
            percent_max: 50,
            health_min: 50,
            probes: true,
        }
    }
}

impl Default for RetryLimits {
    fn default() -> Self {
        Self { percent: 20.0, least: 3, most: None }
    }
}

impl Limits {
    /// Whether there is any.
    pub(crate) fn are_set(&self) -> bool {
        *self != Self::default()
    }
}

/// Who asks how a service is called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker<'a> {
    /// Empty for a node.
    pub(crate) namespace: &'a str,
    pub(crate) labels: &'a Labels,
}

/// How a caller calls the port of the service, or of a subset of it.
pub(crate) fn treatment(
    documents: &[Arc<SubsetDocument>],
    home: &str,
    caller: Asker<'_>,
    (subset, port): (Option<&str>, u16),
) -> Treatment {
    let seen = seen(documents, home, caller);
    let wide = seen.iter().find_map(|one| one.spec.traffic_policy.as_ref());
    let wide = wide.map(|wide| Blocks::of_port(wide, port).unwrap_or_else(|| Blocks::of(wide))).unwrap_or_default();
    let mut subsets = seen.iter().flat_map(|one| &one.spec.subsets);
    let narrow = subsets.find(|one| Some(one.name.as_str()) == subset).and_then(|one| one.traffic_policy.as_ref());
    let blocks = match narrow {
        None => wide,
        Some(policy) => Blocks::of_port(policy, port).unwrap_or_else(|| Blocks::of(policy).over(wide)),
    };
    compile(blocks)
}

/// The labels that a subset asks for, as a caller sees it; none where no document defines it.
pub(crate) fn subset<'d>(
    documents: &'d [Arc<SubsetDocument>],
    home: &str,
    caller: Asker<'_>,
    name: &str,
) -> Option<&'d Labels> {
    let mut subsets = seen(documents, home, caller).into_iter().flat_map(|one| &one.spec.subsets);
    subsets.find(|subset| subset.name == name).map(|subset| &subset.labels)
}

/// The documents that count for a caller, the oldest first: of its own namespace, else of that of the service, else of the
/// mesh's own; there those that select it by its labels, else those for all; and of these those for the service itself, else
/// those of the longest end of its name (Istio's order).
fn seen<'d>(documents: &'d [Arc<SubsetDocument>], home: &str, caller: Asker<'_>) -> Vec<&'d SubsetDocument> {
    let roots = weft_proto::kinds::authorization_policy::ROOT_NAMESPACES;
    let places = [caller.namespace, home].into_iter().chain(roots);
    let seen = |place: &str| {
        let there = documents.iter().map(|one| &**one).filter(|one| {
            let selects = one.spec.workload_selector.is_none() || place == caller.namespace;
            let exported = is_exported(&one.spec.export_to, place, caller.namespace);
            one.key.namespace == place && exported && selects && one.spec.is_for(caller.labels)
        });
        let mut there: Vec<_> = there.collect();
        let selecting = there.iter().any(|one| one.spec.workload_selector.is_some());
        there.retain(|one| one.spec.workload_selector.is_some() == selecting);
        let reach =
            |one: &SubsetDocument| if one.spec.host.starts_with('*') { one.spec.host.len() } else { usize::MAX };
        let narrowest = there.iter().map(|one| reach(one)).max();
        there.retain(|one| Some(reach(one)) == narrowest);
        there.sort_by_key(|one| (one.created, &one.key.name));
        there
    };
    places.map(seen).find(|there| !there.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use weft_proto::document;
    use weft_proto::kinds::destination_rule::DestinationRule;
    use weft_proto::kinds::{Kinds, Spec};

    use weft_proto::service::ServiceName;

    use super::super::routes::Document;
    use super::*;

    /// Each allows as many calls as its name says.
    const DOCUMENTS: &str = r#"
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: d1, namespace: istio-system},
 spec: {host: "*.local", trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1}}}}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: d2, namespace: shop},
 spec: {host: "*.shop.svc.cluster.local", trafficPolicy: {connectionPool: {http: {http2MaxRequests: 2}}}}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: d3, namespace: shop},
 spec: {host: web, trafficPolicy: {connectionPool: {http: {http2MaxRequests: 3}}}}}
---
{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: d4, namespace: shop},
 spec: {host: web.shop.svc.cluster.local, workloadSelector: {matchLabels: {app: front}},
        trafficPolicy: {connectionPool: {http: {http2MaxRequests: 4}}}}}
"#;

    #[test]
    fn the_narrowest_document_for_service_and_caller_counts() {
        let resources = document::parse(Kinds::ALL, "test", DOCUMENTS).expect("valid");
        let document = |(at, resource): (usize, &weft_proto::resource::Resource)| {
            let spec = DestinationRule::of(resource).expect("checked");
            Arc::new(Document { key: resource.key.clone(), created: at as u64, spec })
        };
        let documents: Vec<Arc<SubsetDocument>> = resources.iter().enumerate().map(document).collect();
        let requests = |service: &str, namespace: &str, app: &str| {
            let service: ServiceName = service.parse().expect("a name");
            let about = |one: &&Arc<SubsetDocument>| {
                one.spec.services(&one.key.namespace).contains(&service) || one.spec.covers(&service)
            };
            let about: Vec<_> = documents.iter().filter(about).cloned().collect();
            let labels = [("app".to_owned(), app.to_owned())].into();
            treatment(&about, service.namespace(), Asker { namespace, labels: &labels }, (None, 80)).limits.requests
        };
        assert_eq!(requests("other/db", "other", "any"), Some(1), "the mesh's own");
        assert_eq!(requests("shop/db", "other", "front"), Some(2), "that of the callee's namespace");
        assert_eq!(requests("shop/web", "other", "front"), Some(3), "a selector is for its own namespace");
        assert_eq!(requests("shop/web", "shop", "back"), Some(3));
        assert_eq!(requests("shop/web", "shop", "front"), Some(4), "the caller that it selects");
    }
}
