//! Which of the instances a call goes to: the block `loadBalancer`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::is_zero;
use crate::kinds::istio::GoDuration;

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
    /// The caller's own zone first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_aware_lb_setting: Option<ZoneAwareSetting>,
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

/// The caller's own zone first, then its region, then others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ZoneAwareSetting {
    /// Unset: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Which region is the next one to the caller's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failover: Vec<Failover>,
    /// Labels that go before places, as in `localityLbSetting`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failover_priority: Vec<String>,
    /// With fewer instances in the caller's region its zones are alike. Unset: 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_cluster_size: Option<u32>,
}

impl ZoneAwareSetting {
    /// Which localities go before others.
    pub fn order(&self) -> LocalitySetting {
        let (failover, failover_priority) = (self.failover.clone(), self.failover_priority.clone());
        LocalitySetting { enabled: self.enabled, failover, failover_priority, ..LocalitySetting::default() }
    }
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
