//! What options take, read once: ports, addresses, durations, names.

use std::net::SocketAddr;
use std::time::Duration;

use weft_proto::identity::{self, NodeName};
use weft_proto::kinds::Kinds;
use weft_proto::kinds::hosts::called;
use weft_proto::kinds::service::Span;
use weft_proto::service::{Protocol, ServiceName, check_label};

use crate::api::schema::{PortSpec, ServiceSpec};
use crate::checks::Check;

/// Longest life of a join token, as the API has it: 30 days.
const LIFETIME_MAX_S: u64 = 30 * 24 * 60 * 60;
/// Longest name of a kind with its group, in characters.
const KIND_LENGTH_MAX: usize = 300;
/// Longest wait for a change to be in force, as the API has it: 10 minutes.
const WAIT_MAX: Duration = Duration::from_mins(10);
/// Longest DNS label.
const LABEL_LENGTH_MAX: usize = 63;

/// An address to listen on, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listening(pub(crate) Option<SocketAddr>);

/// Reads `127.0.0.1:15001` or `off`.
pub(crate) fn listening(text: &str) -> Result<Listening, String> {
    match text {
        "off" => Ok(Listening(None)),
        text => address(text).map(|address| Listening(Some(address))),
    }
}

/// Reads `0.0.0.0:7946` or `[::]:7946`.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    let address: Result<SocketAddr, _> = text.parse();
    address.ok().filter(|address| address.port() > 0).ok_or_else(|| {
        "write ADDRESS:PORT, such as 127.0.0.1:7946 or [::]:7946, with a port from 1 to 65535".to_owned()
    })
}

/// Reads a port of `service add`: `8080`, `8080/http`, `8080:9090`, `8080:127.0.0.1:9090/http`.
pub(crate) fn port(text: &str) -> Result<(PortSpec, bool), String> {
    let error = || "write PORT[:TARGET][/PROTOCOL], such as 8080, 8080:9090/http or 443:10.0.0.7:8443/tcp".to_owned();
    let (rest, protocol) = match text.rsplit_once('/') {
        Some((rest, protocol)) => (rest, Some(protocol.parse::<Protocol>().map_err(|error| error.to_string())?)),
        None => (text, None),
    };
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(error);
    let (port, target) = match rest.split_once(':') {
        None => (number(rest)?, None),
        Some((port, target)) => (number(port)?, Some(self::target(target).ok_or_else(error)?)),
    };
    Ok((PortSpec { port, target, protocol: protocol.unwrap_or_default() }, protocol.is_some()))
}

/// Reads `version=v2`.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, such as version=v2")?;
    check_label(key, value).map_err(|error| error.to_string())?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Reads a gateway of `up`: `edge`, `istio-system/istio-ingressgateway=istio=ingressgateway`.
pub(crate) fn gateway(text: &str) -> Result<ServiceSpec, String> {
    let (name, labels) = text.split_once('=').map_or((text, ""), |(name, labels)| (name, labels));
    let name: ServiceName = name.parse().map_err(|error| format!("{error}"))?;
    let labels = labels.split(',').filter(|one| !one.is_empty()).map(label).collect::<Result<_, String>>()?;
    Ok(ServiceSpec {
        name: name.to_string(),
        instance: None,
        labels,
        service_account: None,
        ports: Vec::new(),
        check: None,
        unit: None,
        user: None,
        caller: None,
        weight: None,
        gateway: true,
        egress: false,
    })
}

/// The same of one that takes only callers of the mesh.
pub(crate) fn egress_gateway(text: &str) -> Result<ServiceSpec, String> {
    gateway(text).map(|spec| ServiceSpec { gateway: false, egress: true, ..spec })
}

/// Reads `80=8080`.
pub(crate) fn ports(text: &str) -> Result<(u16, u16), String> {
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let both = text.split_once('=').and_then(|(port, own)| Some((number(port)?, number(own)?)));
    both.ok_or_else(|| "write PORT=PORT, such as 80=8080".to_owned())
}

/// A target is a port of this host, or an address with its port.
fn target(text: &str) -> Option<String> {
    let local = text.strip_prefix("localhost:").unwrap_or(text);
    match local.parse::<u16>() {
        Ok(0) => None,
        Ok(port) => Some(format!("127.0.0.1:{port}")),
        Err(_) => address(text).map(|address| address.to_string()).ok().or_else(|| host_and_port(text)),
    }
}

/// A name with a port, which the node looks up.
fn host_and_port(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let label = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let named = !host.is_empty() && host.bytes().all(label) && host.bytes().any(|byte| byte.is_ascii_alphabetic());
    (named && port.parse::<u16>().is_ok_and(|port| port > 0)).then(|| text.to_owned())
}

/// Reads the life of a token: `90s`, `1h30m`, `7d`.
pub(crate) fn lifetime(text: &str) -> Result<u64, String> {
    let error = || "write it like 45m, 1h30m or 7d; at least 1s, at most 30d".to_owned();
    let (mut seconds, mut rest) = (0_u64, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
        let count: u64 = rest[..digits].parse().map_err(|_| error())?;
        let mut units = rest[digits..].chars();
        let unit = match units.next() {
            Some('d') => 86_400,
            Some('h') => 3600,
            Some('m') => 60,
            Some('s') => 1,
            _ => return Err(error()),
        };
        seconds = count.checked_mul(unit).and_then(|part| seconds.checked_add(part)).ok_or_else(error)?;
        rest = units.as_str();
    }
    (1..=LIFETIME_MAX_S).contains(&seconds).then_some(seconds).ok_or_else(error)
}

/// Reads how long to wait: `500ms`, `30s`, `2m`.
pub(crate) fn wait(text: &str) -> Result<Duration, String> {
    let Span(span) = text.parse()?;
    if span > WAIT_MAX {
        return Err("at most 10m".to_owned());
    }
    Ok(span)
}

/// Reads a share from 0 to 1.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    let share: Option<f64> = text.parse().ok();
    share.filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "write a number from 0 to 1".to_owned())
}

/// Reads a number of voters.
pub(crate) fn voters(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(voters @ (1 | 3 | 5 | 7)) => Ok(voters),
        _ => Err("write 1, 3, 5 or 7".to_owned()),
    }
}

/// Reads the id of a token.
pub(crate) fn token_id(text: &str) -> Result<String, String> {
    let good = !text.is_empty() && text.len() <= LABEL_LENGTH_MAX && text.chars().all(|c| c.is_ascii_alphanumeric());
    good.then(|| text.to_owned()).ok_or_else(|| "write an id that `weft token list` prints".to_owned())
}

/// The name of a kind. Which there are the node knows, which may be of another version.
pub(crate) fn kind(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    match !text.is_empty() && text.len() <= KIND_LENGTH_MAX && text.chars().all(legal) {
        true => Ok(text.to_owned()),
        false => Err(format!("a kind is written in letters: one of {}", Kinds::ALL.names())),
    }
}

/// Reads where a host is: `region`, `region/zone` or `region/zone/subzone`, of DNS labels.
pub(crate) fn locality(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split('/').collect();
    if parts.len() > 3 || parts.iter().any(|part| identity::label(part, "zone").is_err()) {
        let what = "write REGION[/ZONE[/SUBZONE]], each a DNS label, such as eu-west/a";
        return Err(what.to_owned());
    }
    Ok(text.to_owned())
}

/// Reads the name of a document: DNS labels with '.' between them.
pub(crate) fn document(text: &str) -> Result<String, String> {
    identity::subdomain(text, "name").map(|()| text.to_owned()).map_err(|error| error.to_string())
}

/// Reads a DNS label: a namespace.
pub(crate) fn name(text: &str) -> Result<String, String> {
    identity::label(text, "name").map(|()| text.to_owned()).map_err(|error| error.to_string())
}

/// Reads a check, and keeps its text.
pub(crate) fn check(text: &str) -> Result<String, String> {
    Check::parse(text).map(|check| check.to_string())
}

/// A service and perhaps its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Callee {
    pub(crate) service: ServiceName,
    pub(crate) port: Option<u16>,
}

/// Reads `web`, `prod/web`, `web:8080` or `example.com:443`.
pub(crate) fn callee(text: &str) -> Result<Callee, String> {
    let (service, port) = match text.split_once(':') {
        None => (text, None),
        Some((service, port)) => {
            let port: Option<u16> = port.parse().ok().filter(|port| *port > 0);
            (service, Some(port.ok_or_else(|| "its port must be 1 to 65535".to_owned())?))
        }
    };
    let service = called(service).map_err(|error| format!("write SERVICE, SERVICE:PORT or a host outside: {error}"))?;
    Ok(Callee { service, port })
}

/// A node's name out of a host's: its first label in lower case, other characters made `-`. None if nothing is left.
pub(crate) fn node_name(host: &str) -> Option<NodeName> {
    let first = host.trim().split('.').next().unwrap_or_default().to_ascii_lowercase();
    let legal = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
    let text: String = first.chars().map(legal).take(LABEL_LENGTH_MAX).collect();
    text.trim_matches('-').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        let read = |text: &str| port(text).map(|(spec, named)| (spec.port, spec.target, spec.protocol, named));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read("8080"), Ok((8080, None, Protocol::Auto, false)));
        assert_eq!(read("8080/http"), Ok((8080, None, Protocol::Http, true)));
        assert_eq!(read("80:8080/http2"), Ok((80, some("127.0.0.1:8080"), Protocol::Http2, true)));
        assert_eq!(read("80:localhost:8080"), Ok((80, some("127.0.0.1:8080"), Protocol::Auto, false)));
        assert_eq!(read("80:10.0.0.7:8080/tcp"), Ok((80, some("10.0.0.7:8080"), Protocol::Tcp, true)));
        assert_eq!(read("80:[::1]:8080/tcp"), Ok((80, some("[::1]:8080"), Protocol::Tcp, true)));
        assert_eq!(read("80:db.internal:8080"), Ok((80, some("db.internal:8080"), Protocol::Auto, false)));
        for text in ["", "0", "65536", "http", "80:", "80:0", "80:host", "80:host:0", "80/udp", "80:81:82", "80/"] {
            assert!(port(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn durations_are_read_and_bounded() {
        for (text, seconds) in [("1h", 3600), ("90s", 90), ("1h30m", 5400), ("30d", LIFETIME_MAX_S)] {
            assert_eq!(lifetime(text), Ok(seconds), "{text}");
        }
        for text in ["", "0s", "31d", "1", "h", "1w", "-1h", "1.5h", "99999999999999999999d", "18446744073709551615d"] {
            assert!(lifetime(text).is_err(), "{text:?} was accepted");
        }
        assert_eq!(wait("500ms"), Ok(Duration::from_millis(500)));
        assert!(wait("11m").is_err());
    }

    #[test]
    fn node_names_come_from_host_names() {
        for (host, name) in [("Alpha.example.org\n", "alpha"), ("db_1", "db-1"), ("-x-", "x"), ("a", "a")] {
            assert_eq!(node_name(host).expect(host).as_str(), name);
        }
        assert_eq!(node_name(""), None);
        assert_eq!(node_name("___"), None);
        assert_eq!(node_name(&"ä".repeat(80)), None);
    }

    #[test]
    fn callees_shares_and_switches_are_read() {
        let callee_of = |text| callee(text).map(|callee| (callee.service.to_string(), callee.port));
        assert_eq!(callee_of("web"), Ok(("default/web".into(), None)));
        assert_eq!(callee_of("prod/web:8080"), Ok(("prod/web".into(), Some(8080))));
        assert_eq!(callee_of("api.example.com:443"), Ok(("api.example.com".into(), Some(443))));
        for text in ["web:", "web:0", "web:80:81", "We", ""] {
            assert!(callee(text).is_err(), "{text:?} was accepted");
        }
        assert_eq!(listening("off"), Ok(Listening(None)));
        assert!(listening("127.0.0.1").is_err() && listening("127.0.0.1:0").is_err() && listening("on").is_err());
        assert!(share("0.01").is_ok() && share("1.1").is_err() && share("NaN").is_err());
        assert!(voters("3").is_ok() && voters("4").is_err() && voters("0").is_err());
    }
}
