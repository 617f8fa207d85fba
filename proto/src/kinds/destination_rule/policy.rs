//! How a service is called: `trafficPolicy` and its blocks. A number 0 means the same as none.

use serde::{Deserialize, Serialize};

use super::balancing::LoadBalancer;
use super::is_zero;
use crate::kinds::istio::GoDuration;
use crate::kinds::secret::Credential;

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
    /// Opaque streams go through the destination, which is an HTTP proxy, to somewhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
    /// The destination is told who calls, in front of each connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// What holds for one port instead: blocks that are left out fall to the defaults.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_level_settings: Vec<PortTrafficPolicy>,
}

impl TrafficPolicy {
    /// What is taken and has no effect here.
    pub(super) fn hints(&self, path: &str) -> Vec<String> {
        let ports = self.port_level_settings.iter().enumerate();
        let ports = ports.map(|(at, one)| (format!("{path}.portLevelSettings[{at}]"), one.connection_pool.as_ref()));
        let pools = std::iter::once((path.to_owned(), self.connection_pool.as_ref())).chain(ports);
        let hints = |(path, pool): (String, Option<&ConnectionPool>)| {
            let (tcp, http) = pool.map_or((None, None), |pool| (pool.tcp.as_ref(), pool.http.as_ref()));
            let given = [
                ("tcp.tcpKeepalive", tcp.is_some_and(|tcp| tcp.tcp_keepalive.is_some())),
                ("http.http2KeepAlive", http.is_some_and(|http| http.http2_keep_alive.is_some())),
                ("http.maxConcurrentStreams", http.is_some_and(|http| http.max_concurrent_streams > 0)),
            ];
            let given = given.into_iter().filter(|(_, given)| *given);
            let hint = |(name, _)| {
                format!(
                    "{path}.connectionPool.{name} has no effect: nodes probe their links and bound them by themselves"
                )
            };
            given.map(hint).collect::<Vec<_>>()
        };
        pools.flat_map(hints).collect()
    }
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
    /// How long an opaque stream may last, and a connection to the application be used. Unset: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connection_duration: Option<GoDuration>,
    /// Probes on connections that nothing moves on: nodes always probe their links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_keepalive: Option<TcpKeepalive>,
}

/// Probes on connections that nothing moves on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpKeepalive {
    /// How many may stay unanswered.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub probes: u32,
    /// How long nothing moves before the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<GoDuration>,
    /// From one to the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<GoDuration>,
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
    /// Exchanges at once on one connection in HTTP/2: between nodes a link carries 1024, and there are as many links as need be.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_concurrent_streams: u32,
    /// Probes in HTTP/2: nodes always probe their links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http2_keep_alive: Option<Http2KeepAlive>,
    /// Whether a call in HTTP/1.1 goes on to the application in HTTP/2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub h2_upgrade_policy: Option<H2UpgradePolicy>,
    /// Whether the application is spoken to in the caller's version: it is, unless its port says another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_client_protocol: Option<bool>,
}

/// Probes in HTTP/2.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Http2KeepAlive {
    /// From one to the next.
    pub interval: GoDuration,
    /// How long an answer may take.
    pub timeout: GoDuration,
}

/// Whether a call in HTTP/1.1 goes on in HTTP/2 to the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum H2UpgradePolicy {
    /// It does not.
    #[default]
    Default,
    /// It does not.
    DoNotUpgrade,
    /// It does, on every port that speaks HTTP.
    Upgrade,
}

/// When an instance that fails gets no calls for a while.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutlierDetection {
    /// Answers of 500 to 599 and failures to get one, in a row. Unset: 5. 0: off.
    #[serde(default, rename = "consecutive5xxErrors", skip_serializing_if = "Option::is_none")]
    pub consecutive_5xx_errors: Option<u32>,
    /// Answers that are failures instead of those of 500 to 599.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outlier_detection_http_error_codes: Vec<u16>,
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

/// A way through an HTTP proxy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tunnel {
    /// The method by which the proxy is asked. Unset: `CONNECT`, the only one that is taken.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// A name or an address.
    pub target_host: String,
    /// 1 to 65535.
    pub target_port: u16,
}

impl Tunnel {
    /// Where it leads, as the proxy is asked.
    pub fn target(&self) -> String {
        match self.target_host.parse() {
            Ok(std::net::IpAddr::V6(ip)) => format!("[{ip}]:{}", self.target_port),
            _ => format!("{}:{}", self.target_host, self.target_port),
        }
    }
}

/// The PROXY protocol, in front of each connection and of TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyProtocol {
    /// Unset: `V1`.
    #[serde(default)]
    pub version: ProxyVersion,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum ProxyVersion {
    /// A line of text.
    #[default]
    V1,
    /// Binary.
    V2,
}

/// TLS towards a host outside the mesh. Within the mesh there is mutual TLS with its own identities, whatever is said here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tls {
    /// Unset: `DISABLE`.
    #[serde(default)]
    pub mode: TlsMode,
    /// A file with the own certificate, PEM.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub client_certificate: String,
    /// A file with its key, PEM.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub private_key: String,
    /// A file with the authorities of the host, PEM. Unset: those of the system.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ca_certificates: String,
    /// A `Secret` in the place of files, at gateways.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub credential_name: String,
    /// Names of which the host's certificate must have one. Unset: that which is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
    /// The name that is asked for. Unset: the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sni: String,
    /// Takes whatever certificate the host has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure_skip_verify: bool,
    /// What a node holds of all that, or why it does not: filled in where it is enforced.
    #[serde(skip)]
    pub held: Option<Result<Credential, String>>,
}

/// How a service is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// Plainly.
    #[default]
    Disable,
    /// By TLS.
    Simple,
    /// By TLS with a certificate of one's own.
    Mutual,
    /// By mutual TLS with the identities of the mesh.
    IstioMutual,
}
