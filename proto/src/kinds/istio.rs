//! What the networking kinds of Istio have in common (istio/api `networking/v1alpha3`).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use regex::{Regex, RegexBuilder};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Faults;
use crate::service::{DEFAULT_NAMESPACE, InstanceName, ServiceName};

/// How a text is compared: exactly one way is given, or none, which asks only that there is something.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StringMatch {
    /// The whole text, with case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// How it begins, with case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// An expression (RE2) that covers the whole text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
}

impl StringMatch {
    /// Whether only presence is asked for.
    pub fn is_presence(&self) -> bool {
        self.exact.is_none() && self.prefix.is_none() && self.regex.as_deref().is_none_or(|regex| regex == "*")
    }

    /// The rules on it; `presence` says that none of the ways may be given.
    pub(super) fn check(&self, path: &str, presence: bool, faults: &mut Faults) {
        let ways = [&self.exact, &self.prefix, &self.regex].iter().filter(|way| way.is_some()).count();
        if ways > 1 || (ways == 0 && !presence) {
            faults.push((path.into(), "one of exact, prefix, regex".into()));
        }
        if let Some(text) = self.regex.as_ref().filter(|text| !(presence && *text == "*"))
            && let Err(why) = expression(text)
        {
            faults.push((format!("{path}.regex"), why));
        }
    }
}

/// Compiles an expression that has to cover a whole text: linear in time, bounded in size.
pub fn expression(text: &str) -> Result<Regex, String> {
    if text.is_empty() || text.len() > EXPRESSION_LENGTH_MAX {
        return Err(format!("an expression has 1 to {EXPRESSION_LENGTH_MAX} characters"));
    }
    // First by itself: what stands around it could make a whole of what is none.
    anywhere(text)?;
    anywhere(&format!("^(?:{text})$"))
}

/// Compiles an expression that is looked for anywhere in a text.
pub fn anywhere(text: &str) -> Result<Regex, String> {
    let compiled = RegexBuilder::new(text).size_limit(EXPRESSION_BYTES_MAX).build();
    compiled.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "the expression is too large once compiled".into(),
        other => other.to_string().lines().last().unwrap_or("it is no expression").trim().to_owned(),
    })
}

/// Longest expression, in characters.
const EXPRESSION_LENGTH_MAX: usize = 1024;
/// What a compiled expression may take, in bytes.
const EXPRESSION_BYTES_MAX: usize = 1 << 20;

/// A share from 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Percent {
    /// 0 to 100.
    #[serde(default)]
    pub value: f64,
}

impl Percent {
    pub(super) fn check(self, path: &str, faults: &mut Faults) {
        let small = self.value > 0.0 && self.value < PERCENT_MIN;
        if !(0.0..=100.0).contains(&self.value) || small {
            faults.push((format!("{path}.value"), format!("0, or {PERCENT_MIN} to 100")));
        }
    }
}

impl Eq for Percent {}

/// One in a million.
const PERCENT_MIN: f64 = 0.000_1;

/// A duration as Go writes it: `1h30m`, `2s`, `0.5s`, `250ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct GoDuration(pub Duration);

impl GoDuration {
    /// At least a millisecond, and whole ones; `zero` is taken too where it means something.
    pub(in crate::kinds) fn check(self, path: &str, zero: bool, faults: &mut Faults) {
        let whole = self.0.subsec_nanos().is_multiple_of(1_000_000);
        if !whole || (self.0.is_zero() && !zero) {
            faults.push((path.into(), "at least 1ms, in whole milliseconds".into()));
        }
    }
}

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = go_duration(text).filter(|length| *length <= super::service::DURATION_MAX);
        known
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not a duration: write it like 1h30m, 2s, 0.5s or 250ms, at most 24h"))
    }
}

/// Reads a duration as Go writes it, to the microsecond.
pub(in crate::kinds) fn go_duration(text: &str) -> Option<Duration> {
    let (mut seconds, mut rest) = (0.0f64, text);
    if text.is_empty() || text == "0" {
        return (!text.is_empty()).then_some(Duration::ZERO);
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit = rest[number..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |at| number + at);
        let count: f64 = rest[..number].parse().ok()?;
        seconds += count
            * match &rest[number..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    // Sums of decimal parts are not exact.
    let exact = Duration::try_from_secs_f64(seconds).ok()?;
    Some(Duration::from_micros(exact.as_nanos().div_ceil(1000).try_into().ok()?))
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_micros() {
            micros if micros.is_multiple_of(1_000_000) => write!(f, "{}s", micros / 1_000_000),
            micros if micros.is_multiple_of(1_000) => write!(f, "{}ms", micros / 1_000),
            micros => write!(f, "{micros}us"),
        }
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The service that a host in a document of this namespace names: `reviews`, `reviews.default`, `reviews.default.svc`,
/// `reviews.default.svc.ANY.DOMAIN`, `reviews.mesh`, `reviews.default.mesh`.
pub fn service_of(host: &str, namespace: &str) -> Option<ServiceName> {
    if let Some(service) = ServiceName::from_host(host) {
        return Some(service);
    }
    let host = host.to_ascii_lowercase();
    let mut parts = host.splitn(4, '.');
    let (name, space, svc) = (parts.next()?, parts.next(), parts.next());
    if svc.is_some_and(|svc| svc != "svc") {
        return None;
    }
    ServiceName::new(space.unwrap_or(namespace), name).ok()
}

/// The instance that a host names to callers of this namespace, in each way in which it can be read: behind its name stands any that its
/// service has, `web-1.web.default.mesh` or `web-1.reviews.default.svc.cluster.local`.
pub fn instance_of(host: &str, namespace: &str) -> Option<ServiceName> {
    let host = host.to_ascii_lowercase();
    let (instance, service) = host.split_once('.')?;
    instance.parse::<InstanceName>().ok()?;
    Some(service_of(service, namespace)?.of_instance(instance))
}

/// Whether a document of a namespace that names these namespaces in `exportTo` is seen by callers of another.
pub fn is_exported(export_to: &[String], own: &str, caller: &str) -> bool {
    export_to.is_empty() || export_to.iter().any(|name| name == "*" || name == caller || (name == "." && own == caller))
}

/// The rules on `exportTo`.
pub(super) fn check_export(export_to: &[String], faults: &mut Faults) {
    for (at, name) in export_to.iter().enumerate() {
        let path = format!("spec.exportTo[{at}]");
        if export_to[..at].contains(name) {
            faults.push((path, format!("{name} is listed twice")));
        } else if name == "*" && export_to.len() > 1 {
            faults.push((path, "* stands alone".into()));
        } else if name != "*" && name != "." && ServiceName::new(name, DEFAULT_NAMESPACE).is_err() {
            faults.push((path, "a namespace, '.' or '*'".into()));
        }
    }
}

/// Whether it can be the name of a header field (RFC 9110, 5.6.2).
pub(super) fn is_field_name(text: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(token)
}

/// Whether a field name means the authority.
pub fn is_host(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name == ":authority"
}

/// The number of a gRPC status (gRPC, "Status codes and their use in gRPC").
pub fn grpc_code(name: &str) -> Option<usize> {
    GRPC_STATUSES.iter().position(|known| *known == name)
}

const GRPC_STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, milliseconds) in [("2s", 2000), ("0.5s", 500), ("1h1m", 3_660_000), ("1.5s10ms", 1510), ("0s", 0)] {
            assert_eq!(text.parse::<GoDuration>().expect(text).0, Duration::from_millis(milliseconds), "{text}");
        }
        for text in ["", "5", "s", "-1s", "1d", "25h", "1..5s"] {
            assert!(text.parse::<GoDuration>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn hosts_name_services() {
        for host in
            ["reviews", "reviews.shop", "reviews.shop.svc", "reviews.shop.svc.cluster.local", "reviews.shop.mesh"]
        {
            assert_eq!(service_of(host, "shop").expect(host).to_string(), "shop/reviews", "{host}");
        }
        for host in ["reviews.shop.example.org", "*.shop", "", "a_b"] {
            assert_eq!(service_of(host, "shop"), None, "{host}");
        }
    }

    #[test]
    fn expressions_cover_the_whole_and_are_bounded() {
        let regex = expression("a|b").expect("good");
        assert!(regex.is_match("a") && !regex.is_match("ab") && !regex.is_match("xb"));
        for text in ["", "(", "a)(b", "(?:x{1000}){1000}"] {
            assert!(expression(text).is_err(), "{text}");
        }
    }
}
