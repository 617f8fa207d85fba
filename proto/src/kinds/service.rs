//! Settings of a service: `spec` of the kind `Service` (`weft/v1`).

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Faults, Kind, Names, Spec};
use crate::service::Protocol;

/// Longest duration that a setting takes: 24 h.
pub const DURATION_MAX: Duration = Duration::from_hours(24);

/// `spec` of a `Service`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSettings {
    /// What ports speak, over what the instances declare.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortSettings>,
    /// Bound on reaching an instance. Unset: 5 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<Span>,
    /// Bound on a whole HTTP exchange; expiry is answered with 504. Unset or 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<Span>,
    /// An opaque stream on which nothing moves for this long is ended. Unset: 1 h. 0: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Span>,
    /// How often a try that can't have acted is repeated on another instance. Unset: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u8>,
    /// What to do with `%2F`, `%5C` and `\` in a path.
    #[serde(default)]
    pub escaped_slashes: EscapedSlashes,
    /// What to do with `_` in the names of header fields.
    #[serde(default)]
    pub underscore_headers: UnderscoreHeaders,
    /// What to do with calls that an instance would only queue.
    #[serde(default)]
    pub overload: OnOverload,
    /// Of a gateway: what stands before it.
    #[serde(default)]
    pub gateway_topology: GatewayTopology,
    /// Of a gateway: whether it speaks HTTP/3 where it serves HTTPS, and says so by `alt-svc`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub http3: bool,
    /// What becomes of its calls to hosts that the mesh does not know. Unset: what holds for the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
}

/// What becomes of calls to hosts that the mesh does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutboundTrafficPolicy {
    /// Unset: `ALLOW_ANY`.
    #[serde(default)]
    pub mode: OutboundMode,
}

/// What becomes of calls to hosts that the mesh does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    /// They are passed on.
    #[default]
    AllowAny,
    /// They are refused.
    RegistryOnly,
}

/// What stands before a gateway, in Istio's words (`MeshConfig`, `ProxyConfig.gatewayTopology`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayTopology {
    /// Proxies that are trusted: who calls is what the first of them has written into `X-Forwarded-For`.
    #[serde(default)]
    pub num_trusted_proxies: u32,
    /// Set where what stands before it says by the PROXY protocol who calls, on every connection: one on which nothing is said is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// How the PROXY protocol is taken: as Istio has it, there is nothing to be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyProtocol {}

impl Spec for ServiceSettings {
    const KIND: Kind = Kind::new::<Self>(Names {
        name: "Service",
        group: "weft",
        versions: &["v1"],
        plural: "services",
        short: &["svc"],
        about: "settings of a service",
        example: include_str!("service.yaml"),
    });

    fn check(&self, faults: &mut Faults) {
        for (i, port) in self.ports.iter().enumerate() {
            if self.ports[..i].iter().any(|other| other.port == port.port) {
                faults.push((format!("spec.ports[{i}].port"), format!("{} is listed twice", port.port)));
            }
        }
        if self.retries.is_some_and(|retries| retries > RETRIES_MAX) {
            faults.push(("spec.retries".into(), format!("at most {RETRIES_MAX}")));
        }
    }
}

/// Most times that a try is repeated.
const RETRIES_MAX: u8 = 10;

/// A port and what it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortSettings {
    /// 1 to 65535.
    pub port: std::num::NonZeroU16,
    /// What it speaks.
    pub protocol: Protocol,
}

/// What to do with `%2F`, `%5C` and `\` in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EscapedSlashes {
    /// Answer 400, since servers read such a path in different ways.
    #[default]
    Refuse,
    /// Pass it on as it is.
    Allow,
}

/// What to do with `_` in the names of header fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UnderscoreHeaders {
    /// Answer 400: CGI, WSGI and their like read `a_b` and `a-b` as one field (RFC 3875, 4.1.18).
    #[default]
    Refuse,
    /// Pass them on, without those that such a server would take for one that only Weft sets.
    Allow,
}

/// What to do with calls that an instance would only queue: more than it can answer within twice its usual time and 50 ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnOverload {
    /// Answer 503 with `retry-after` at once, unless another instance has room.
    #[default]
    Shed,
    /// Pass them on all the same.
    Queue,
}

/// A duration, written as Gateway API durations are: `1h30m`, `5s`, `250ms`, `0s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl std::str::FromStr for Span {
    type Err = String;

    /// Reads up to four parts of `h`, `m`, `s`, `ms`, each with an integer of at most five digits (GEP-2257).
    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is not a duration: write it like 1h30m, 5s, 250ms or 0s, at most 24h");
        let (mut total, mut rest, mut parts) = (Duration::ZERO, text, 0);
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
            let units = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
            if digits == 0 || digits > 5 {
                return Err(error());
            }
            let count: u64 = rest[..digits].parse().map_err(|_| error())?;
            total += match &rest[digits..units] {
                "h" => Duration::from_secs(count * 3600),
                "m" => Duration::from_secs(count * 60),
                "s" => Duration::from_secs(count),
                "ms" => Duration::from_millis(count),
                _ => return Err(error()),
            };
            rest = &rest[units..];
            parts += 1;
        }
        if parts == 0 || parts > 4 || total > DURATION_MAX {
            return Err(error());
        }
        Ok(Self(total))
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seconds, millis) = (self.0.as_secs(), self.0.subsec_millis());
        let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s"), (u64::from(millis), "ms")];
        if self.0.is_zero() {
            return f.write_str("0s");
        }
        parts.iter().filter(|(count, _)| *count > 0).try_for_each(|(count, unit)| write!(f, "{count}{unit}"))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_trip() {
        for text in ["0s", "5s", "250ms", "1h30m", "1h1m1s1ms"] {
            assert_eq!(text.parse::<Span>().expect(text).to_string(), text);
        }
        for text in ["", "5", "s", "5d", "-1s", "1.5s", "25h", "123456s", "1s1s1s1s1s"] {
            assert!(text.parse::<Span>().is_err(), "{text:?} was accepted");
        }
    }
}
