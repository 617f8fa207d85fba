//! The blocks of a document that count for a call, and what they say.

use std::sync::Arc;
use std::time::Duration;

use weft_proto::kinds::destination_rule::{
    ConnectionPool, ConsistentHash, H2UpgradePolicy, LoadBalancer, OutlierDetection, PortTrafficPolicy, ProxyProtocol,
    RetryBudget, Tls, TrafficPolicy, Tunnel,
};
use weft_proto::kinds::istio::GoDuration;

use super::{
    Codes, Ejection, Hash, HashBy, HashKey, Keeping, Limits, Localities, Preamble, RetryLimits, Treatment, Warmup,
};

/// The blocks that count.
#[derive(Clone, Copy, Default)]
pub(super) struct Blocks<'d> {
    balancer: Option<&'d LoadBalancer>,
    pool: Option<&'d ConnectionPool>,
    outlier: Option<&'d OutlierDetection>,
    budget: Option<&'d RetryBudget>,
    tls: Option<&'d Tls>,
    tunnel: Option<&'d Tunnel>,
    proxy_protocol: Option<&'d ProxyProtocol>,
}

impl<'d> Blocks<'d> {
    pub(super) fn of(policy: &'d TrafficPolicy) -> Self {
        Self {
            balancer: policy.load_balancer.as_ref(),
            pool: policy.connection_pool.as_ref(),
            outlier: policy.outlier_detection.as_ref(),
            budget: policy.retry_budget.as_ref(),
            tls: policy.tls.as_ref(),
            tunnel: policy.tunnel.as_ref(),
            proxy_protocol: policy.proxy_protocol.as_ref(),
        }
    }

    /// An entry for a port stands alone: what it leaves out falls to the defaults.
    pub(super) fn of_port(policy: &'d TrafficPolicy, port: u16) -> Option<Self> {
        let entry = policy.port_level_settings.iter().find(|entry| entry.port.number == port)?;
        let PortTrafficPolicy { load_balancer, connection_pool, outlier_detection, tls, .. } = entry;
        Some(Self {
            balancer: load_balancer.as_ref(),
            pool: connection_pool.as_ref(),
            outlier: outlier_detection.as_ref(),
            tls: tls.as_ref(),
            ..Self::default()
        })
    }

    /// Block by block over another level.
    pub(super) fn over(self, wide: Self) -> Self {
        Self {
            balancer: self.balancer.or(wide.balancer),
            pool: self.pool.or(wide.pool),
            outlier: self.outlier.or(wide.outlier),
            budget: self.budget.or(wide.budget),
            tls: self.tls.or(wide.tls),
            // They exclude each other.
            tunnel: self.tunnel.or(wide.tunnel.filter(|_| self.proxy_protocol.is_none())),
            proxy_protocol: self.proxy_protocol.or(wide.proxy_protocol.filter(|_| self.tunnel.is_none())),
        }
    }
}

/// What they say.
pub(super) fn compile(blocks: Blocks<'_>) -> Treatment {
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
        stream_duration_max: tcp.and_then(|tcp| span(tcp.max_connection_duration)),
        http2: http.is_some_and(|http| http.h2_upgrade_policy == Some(H2UpgradePolicy::Upgrade)),
        keeping: Keeping {
            requests_max: http.map(|http| http.max_requests_per_connection).filter(|most| *most > 0),
            idle,
            age: tcp.and_then(|tcp| span(tcp.max_connection_duration)),
        },
        tls: blocks.tls.cloned(),
        preamble: preamble(blocks),
    }
}

fn preamble(blocks: Blocks<'_>) -> Option<Preamble> {
    let tunnel = blocks.tunnel.map(|tunnel| Preamble::Connect(tunnel.target().into()));
    tunnel.or_else(|| blocks.proxy_protocol.map(|told| Preamble::Proxy(told.version)))
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
    if let Some(setting) = &balancer.zone_aware_lb_setting {
        let least = setting.min_cluster_size.unwrap_or(ZONE_AWARE_MIN);
        return match setting.enabled {
            Some(false) => Localities::Alike,
            _ => Localities::ZoneAware(Arc::new(setting.order()), usize::try_from(least).unwrap_or(usize::MAX)),
        };
    }
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
        codes: Codes::of(&outlier.outlier_detection_http_error_codes),
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
/// Instances of a region below which its zones are alike, unless set.
const ZONE_AWARE_MIN: u32 = 6;
/// Least points of a ring, unless set.
const RING_SIZE: usize = 1024;
/// Places of a table, unless set.
const MAGLEV_SIZE: usize = 65_537;
