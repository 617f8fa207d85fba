//! How a service is called, compiled: of the levels of its `DestinationRule`s those that count for one caller, port and
//! subset (Istio's rules), and Weft's own way where they say nothing.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use weft_proto::kinds::destination_rule::{
    ConnectionPool, ConsistentHash, LoadBalancer, LocalitySetting, OutlierDetection, PortTrafficPolicy, RetryBudget,
    Simple, TrafficPolicy,
};
use weft_proto::kinds::istio::{GoDuration, is_exported};
use weft_proto::service::{Labels, ServiceName};

use super::routes::SubsetDocument;

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
    pub(crate) keeping: Keeping,
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
}

impl Default for Ejection {
    /// Weft's own.
    fn default() -> Self {
        Self {
            errors: None,
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

/// The blocks that count.
#[derive(Clone, Copy, Default)]
struct Blocks<'d> {
    balancer: Option<&'d LoadBalancer>,
    pool: Option<&'d ConnectionPool>,
    outlier: Option<&'d OutlierDetection>,
    budget: Option<&'d RetryBudget>,
}

impl<'d> Blocks<'d> {
    fn of(policy: &'d TrafficPolicy) -> Self {
        Self {
            balancer: policy.load_balancer.as_ref(),
            pool: policy.connection_pool.as_ref(),
            outlier: policy.outlier_detection.as_ref(),
            budget: policy.retry_budget.as_ref(),
        }
    }

    /// An entry for a port stands alone: what it leaves out falls to the defaults.
    fn of_port(policy: &'d TrafficPolicy, port: u16) -> Option<Self> {
        let entry = policy.port_level_settings.iter().find(|entry| entry.port.number == port)?;
        let PortTrafficPolicy { load_balancer, connection_pool, outlier_detection, .. } = entry;
        Some(Self {
            balancer: load_balancer.as_ref(),
            pool: connection_pool.as_ref(),
            outlier: outlier_detection.as_ref(),
            budget: None,
        })
    }

    /// Block by block over another level.
    fn over(self, wide: Self) -> Self {
        Self {
            balancer: self.balancer.or(wide.balancer),
            pool: self.pool.or(wide.pool),
            outlier: self.outlier.or(wide.outlier),
            budget: self.budget.or(wide.budget),
        }
    }
}

/// How a caller of the namespace calls the port of the service, or of a subset of it.
pub(crate) fn treatment(
    documents: &[Arc<SubsetDocument>],
    service: &ServiceName,
    caller: &str,
    (subset, port): (Option<&str>, u16),
) -> Treatment {
    let seen = seen(documents, service, caller);
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

/// The labels that a subset asks for, as a caller of the namespace sees it; none where no document defines it.
pub(crate) fn subset<'d>(
    documents: &'d [Arc<SubsetDocument>],
    service: &ServiceName,
    caller: &str,
    name: &str,
) -> Option<&'d Labels> {
    let mut subsets = seen(documents, service, caller).into_iter().flat_map(|one| &one.spec.subsets);
    subsets.find(|subset| subset.name == name).map(|subset| &subset.labels)
}

/// The documents that count for a caller, the oldest first: of its own namespace, else of that of the service, else of the
/// mesh's own (Istio's order).
fn seen<'d>(documents: &'d [Arc<SubsetDocument>], service: &ServiceName, caller: &str) -> Vec<&'d SubsetDocument> {
    let roots = weft_proto::kinds::authorization_policy::ROOT_NAMESPACES;
    let places = [caller, service.namespace()].into_iter().chain(roots);
    let seen = |place: &str| {
        let there = documents
            .iter()
            .map(|one| &**one)
            .filter(|one| one.key.namespace == place && is_exported(&one.spec.export_to, place, caller));
        let mut there: Vec<_> = there.collect();
        there.sort_by_key(|one| (one.created, &one.key.name));
        there
    };
    places.map(seen).find(|there| !there.is_empty()).unwrap_or_default()
}

fn compile(blocks: Blocks<'_>) -> Treatment {
    let tcp = blocks.pool.and_then(|pool| pool.tcp.as_ref());
    let http = blocks.pool.and_then(|pool| pool.http.as_ref());
    let span = |span: Option<GoDuration>| span.map(|GoDuration(span)| span);
    let idle = http.and_then(|http| span(http.idle_timeout)).map(forever);
    Treatment {
        balancer: blocks.balancer.map(|balancer| balancer.simple.unwrap_or_default()),
        hash: blocks.balancer.and_then(|balancer| balancer.consistent_hash.as_ref()).and_then(hash),
        localities: localities(blocks),
        warmup: blocks.balancer.and_then(warmup),
        limits: Limits {
            connections: tcp.and_then(|tcp| bound(tcp.max_connections)),
            pending: http.and_then(|http| bound(http.http1_max_pending_requests)),
            requests: http.and_then(|http| bound(http.http2_max_requests)),
        },
        ejection: blocks.outlier.map(ejection).unwrap_or_default(),
        retries: retries(blocks.budget, http.and_then(|http| bound(http.max_retries))),
        connect_timeout: tcp.and_then(|tcp| span(tcp.connect_timeout)),
        stream_idle_timeout: tcp.and_then(|tcp| span(tcp.idle_timeout)),
        keeping: Keeping {
            requests_max: http.map(|http| http.max_requests_per_connection).filter(|most| *most > 0),
            idle,
        },
    }
}

fn forever(span: Duration) -> Duration {
    if span.is_zero() { Duration::MAX } else { span }
}

fn bound(number: u32) -> Option<usize> {
    usize::try_from(number).ok().filter(|number| *number > 0)
}

/// Who says how instances are balanced and nothing of localities gets what Istio does: the nearest first only where failures
/// are looked at.
fn localities(blocks: Blocks<'_>) -> Localities {
    let Some(balancer) = blocks.balancer else { return Localities::Nearest };
    match &balancer.locality_lb_setting {
        Some(setting) if setting.enabled == Some(false) => Localities::Alike,
        // Without looking at failures there is nothing to fail over from.
        Some(setting) if setting.distribute.is_empty() && blocks.outlier.is_none() => Localities::Alike,
        Some(setting) => Localities::Set(Arc::new(setting.clone())),
        None if blocks.outlier.is_none() => Localities::Alike,
        None => Localities::Set(Arc::default()),
    }
}

fn warmup(balancer: &LoadBalancer) -> Option<Warmup> {
    let old = || balancer.warmup_duration_secs.map(|GoDuration(duration)| (duration, None, None));
    let new = balancer.warmup.as_ref().map(|one| (one.duration.0, one.minimum_percent, one.aggression));
    let (duration, percent, aggression) = new.or_else(old)?;
    Some(Warmup { duration, least: percent.unwrap_or(10.0) / 100.0, aggression: aggression.unwrap_or(1.0) })
}

fn hash(hash: &ConsistentHash) -> Option<Hash> {
    let cookie = |cookie: &weft_proto::kinds::destination_rule::HttpCookie| {
        let made = cookie.ttl.map(|GoDuration(ttl)| {
            let age = (!ttl.is_zero()).then(|| format!("; Max-Age={}", ttl.as_secs()));
            let path = (!cookie.path.is_empty()).then(|| format!("; Path={}", cookie.path));
            let attributes = cookie.attributes.iter().map(|one| match one.value.as_str() {
                "" => format!("; {}", one.name),
                value => format!("; {}={value}", one.name),
            });
            age.into_iter().chain(path).chain(attributes).chain(["; HttpOnly".to_owned()]).collect::<String>().into()
        });
        HashKey::Cookie { name: cookie.name.as_str().into(), made }
    };
    let header = || hash.http_header_name.parse().ok().map(HashKey::Header);
    let query = || Some(&hash.http_query_parameter_name).filter(|name| !name.is_empty());
    let key = match &hash.http_cookie {
        Some(one) => Some(cookie(one)),
        None => header().or_else(|| query().map(|name| HashKey::Query(name.as_str().into()))),
    };
    let key = key.or_else(|| hash.use_source_ip.then_some(HashKey::Source))?;
    let size = |size: u64, or: usize| usize::try_from(size).ok().filter(|size| *size > 0).unwrap_or(or);
    let by = match (&hash.maglev, &hash.ring_hash) {
        (Some(maglev), _) => HashBy::Maglev(size(maglev.table_size, MAGLEV_SIZE)),
        (None, Some(ring)) => HashBy::Ring(size(ring.minimum_ring_size, RING_SIZE)),
        (None, None) => HashBy::Ring(size(hash.minimum_ring_size, RING_SIZE)),
    };
    Some(Hash { key, by })
}

fn ejection(outlier: &OutlierDetection) -> Ejection {
    let base = outlier.base_ejection_time.map_or(Duration::from_secs(30), |span| span.0);
    let positive = |number: u32| Some(number).filter(|number| *number > 0);
    let percent = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    Ejection {
        errors: positive(outlier.consecutive_5xx_errors.unwrap_or(5)),
        gateway_errors: outlier.consecutive_gateway_errors.and_then(positive),
        local_errors: outlier
            .split_external_local_origin_errors
            .then(|| outlier.consecutive_local_origin_failures.unwrap_or(5))
            .and_then(positive),
        by_success_rate: false,
        interval: outlier.interval.map_or(Duration::from_secs(10), |span| span.0),
        base,
        most: EJECTION_MAX.max(base),
        percent_max: percent(positive(outlier.max_ejection_percent).unwrap_or(10)),
        health_min: percent(outlier.min_health_percent),
        probes: false,
    }
}

fn retries(budget: Option<&RetryBudget>, most: Option<usize>) -> RetryLimits {
    let default = RetryLimits::default();
    let most = most.and_then(|most| u32::try_from(most).ok());
    match budget {
        // A budget replaces the bound, and a bound alone replaces Weft's budget.
        Some(budget) => RetryLimits {
            percent: budget.percent.unwrap_or(default.percent),
            least: Some(budget.min_retry_concurrency).filter(|least| *least > 0).unwrap_or(default.least),
            most: None,
        },
        None => RetryLimits { most, least: most.unwrap_or(default.least), ..default },
    }
}

/// Longest ejection, unless one is longer by itself (Envoy's bound).
const EJECTION_MAX: Duration = Duration::from_secs(300);
/// Least points of a ring, unless set.
const RING_SIZE: usize = 1024;
/// Places of a table, unless set.
const MAGLEV_SIZE: usize = 65_537;
