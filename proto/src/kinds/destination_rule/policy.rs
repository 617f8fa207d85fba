//! How a service is called: `trafficPolicy` and its blocks. A number 0 means the same as none.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::kinds::istio::GoDuration;

/// How a service is called.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicy {
    /// Which of the instances a call goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// How many calls there may be at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPool>,
    /// When an instance that fails gets no calls for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// Mutual TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// How many retries there may be beside first tries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<RetryBudget>,
    /// What holds for one port instead: blocks that are left out fall to the defaults.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_level_settings: Vec<PortTrafficPolicy>,
}

/// How one port of a service is called.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortTrafficPolicy {
    /// The service's port.
    pub port: PortSelector,
    /// Which of the instances a call goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// How many calls there may be at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPool>,
    /// When an instance that fails gets no calls for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// Mutual TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// A port by its number.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortSelector {
    /// 1 to 65535.
    pub number: u16,
}

/// Which of the instances a call goes to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    /// How it is chosen. Unset: `LEAST_REQUEST`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simple: Option<Simple>,
    /// The same instance for the same key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistent_hash: Option<ConsistentHash>,
    /// Which localities go before others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality_lb_setting: Option<LocalitySetting>,
    /// How a new instance gets its share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Warmup>,
    /// An older form of `warmup.duration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_duration_secs: Option<GoDuration>,
}

/// How an instance is chosen, by weights in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Simple {
    /// Of two at random the one with fewer open calls.
    #[default]
    #[serde(alias = "UNSPECIFIED", alias = "LEAST_CONN")]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
}

/// The same instance for the same key: exactly one key is given. A call without it goes anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsistentHash {
    /// A header field.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub http_header_name: String,
    /// A cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_cookie: Option<HttpCookie>,
    /// The address of the caller.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub use_source_ip: bool,
    /// A parameter of the query.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub http_query_parameter_name: String,
    /// On a ring, which is what is done unasked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring_hash: Option<RingHash>,
    /// By a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maglev: Option<Maglev>,
    /// An older form of `ringHash.minimumRingSize`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub minimum_ring_size: u64,
}

/// A cookie.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpCookie {
    /// Its name.
    pub name: String,
    /// Its `Path` where it is made.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Its lifetime where it is made: unset, it never is; 0s makes one for the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<GoDuration>,
    /// Further attributes where it is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<CookieAttribute>,
}

/// An attribute of a cookie: `name=value`, or the name alone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CookieAttribute {
    /// Its name.
    pub name: String,
    /// Its value; empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
}

/// Points on a ring.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RingHash {
    /// Least number of points, all instances together. 0: 1024.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub minimum_ring_size: u64,
}

/// Places of a table.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Maglev {
    /// A prime below 5000011. 0: 65537.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub table_size: u64,
}

/// Which localities, `region/zone/subzone`, go before others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalitySetting {
    /// Unset: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Shares of localities, by that of the caller: the first entry that covers it counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub distribute: Vec<Distribute>,
    /// Which region is the next one to the caller's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failover: Vec<Failover>,
    /// Labels, `key` (as the caller has it) or `key=value`: the more of the first ones an instance has, the earlier.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failover_priority: Vec<String>,
}

/// Where calls from a locality go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Distribute {
    /// The caller's: `region/zone/*`.
    pub from: String,
    /// Percents by locality, 100 together.
    pub to: BTreeMap<String, u32>,
}

/// The next region.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failover {
    /// The caller's.
    pub from: String,
    /// Another one.
    pub to: String,
}

/// How a new instance gets its share.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Warmup {
    /// How long it takes to the full share.
    pub duration: GoDuration,
    /// What it begins with, in percent of it. Unset: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_percent: Option<f64>,
    /// More than 0: the larger, the earlier it gets most of it. Unset: 1, which is in even steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggression: Option<f64>,
}

impl Eq for Warmup {}

/// How many calls there may be at once, for each calling node and service on its own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionPool {
    /// For opaque streams, and for HTTP/1.1, which has one call a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpSettings>,
    /// For HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSettings>,
}

/// Connections.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpSettings {
    /// Opaque streams, or calls in HTTP/1.1, at once. 0: no bound.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_connections: u32,
    /// Bound on reaching an instance. Unset: what the service's settings say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<GoDuration>,
    /// How long an opaque stream may be silent. Unset: what the service's settings say. 0s: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<GoDuration>,
}

/// Calls.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpSettings {
    /// Calls that wait for one of `maxConnections` to become free. 0: no bound.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub http1_max_pending_requests: u32,
    /// Calls at once, in any version of HTTP. 0: no bound.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub http2_max_requests: u32,
    /// Calls one after the other on a connection to the application. 0: no bound.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_requests_per_connection: u32,
    /// Retries at once. 0: no bound.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_retries: u32,
    /// How long a connection to the application is kept that nobody uses. Unset: 60s. 0s: until the application closes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<GoDuration>,
    /// Whether a call in HTTP/1.1 goes on in HTTP/2: nodes always do that between each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub h2_upgrade_policy: Option<H2UpgradePolicy>,
    /// Whether the application is spoken to in the caller's version: it is, unless its port says another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_client_protocol: Option<bool>,
}

/// Whether a call in HTTP/1.1 goes on in HTTP/2 to the application: it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum H2UpgradePolicy {
    /// It does not.
    #[default]
    Default,
    /// It does not.
    DoNotUpgrade,
}

/// When an instance that fails gets no calls for a while.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutlierDetection {
    /// Answers of 500 to 599 and failures to get one, in a row. Unset: 5. 0: off.
    #[serde(default, rename = "consecutive5xxErrors", skip_serializing_if = "Option::is_none")]
    pub consecutive_5xx_errors: Option<u32>,
    /// Answers of 502, 503, 504 and failures to get one, in a row. Unset or 0: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_gateway_errors: Option<u32>,
    /// Whether failures to get an answer are counted apart.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub split_external_local_origin_errors: bool,
    /// Those, in a row. Unset: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_local_origin_failures: Option<u32>,
    /// An older name that has no effect.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub consecutive_errors: u32,
    /// How often those without failures are forgiven a former ejection. Unset: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<GoDuration>,
    /// How long an ejection lasts, times the number of ejections so far; at most 300s, or this if it is longer. Unset: 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_ejection_time: Option<GoDuration>,
    /// Most instances that may be out, in percent. 0: 10, so that of fewer than ten none ever is.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_ejection_percent: u32,
    /// Below this share of instances that are not out, in percent, all are used.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub min_health_percent: u32,
}

/// How many retries there may be at once.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudget {
    /// In percent of all calls under way. Unset: 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
    /// That many in any case. 0: 3.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub min_retry_concurrency: u32,
}

impl Eq for RetryBudget {}

/// Mutual TLS with the identities of the mesh, which is what the mesh does unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// `ISTIO_MUTUAL`.
    pub mode: TlsMode,
}

/// How a service is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// By mutual TLS with the identities of the mesh.
    IstioMutual,
}

fn is_zero<T: Copy + Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
