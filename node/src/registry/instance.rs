//! One instance of this host, as it was told to run it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use weft_proto::kinds::authorization_policy::APP_LABEL;
use weft_proto::service::{InstanceId, Labels, ServiceName, ServicePort, check_label};

use crate::api::schema::{PortSpec, ServiceSpec};
use crate::checks::Check;

/// The label by which others know an instance for a gateway.
pub const GATEWAY_LABEL: &str = "weft.mesh/gateway";
/// The value of the label where only callers of the mesh come in; of other gateways it is `true`.
pub const EGRESS: &str = "egress";
/// Weight of an instance that names none.
const WEIGHT: u16 = 100;
/// Most ports of one service.
const PORTS_MAX: usize = 64;
/// Most labels of one instance.
const LABELS_MAX: usize = 64;

/// One instance that this host runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalInstance {
    /// The service, and its name among those of the service on this host.
    pub id: InstanceId,
    /// The service account, in the service's namespace.
    pub account: ServiceName,
    /// Its labels.
    pub labels: Labels,
    /// The service's ports and where the application listens.
    pub ports: Vec<LocalPort>,
    /// How its health is told.
    pub check: Option<Check>,
    /// The unit of the service manager that it is: its processes call as its service.
    pub unit: Option<String>,
    /// Which local processes call as its service.
    pub caller: CallerClaim,
    /// Its share relative to other instances.
    pub weight: u16,
    /// Whether it is a gateway, which this node serves itself.
    pub gateway: bool,
}

impl LocalInstance {
    /// The ports at which it listens, in the order of its ports; none where they are the same.
    pub(super) fn targets(&self) -> Vec<u16> {
        match self.ports.iter().all(|port| port.target.port() == port.port.port) {
            true => Vec::new(),
            false => self.ports.iter().map(|port| port.target.port()).collect(),
        }
    }
}

/// One port of a [`LocalInstance`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalPort {
    /// The port callers use, and what it speaks.
    pub port: ServicePort,
    /// Where the application listens.
    pub target: SocketAddr,
}

/// Which local processes call as a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerClaim {
    /// None.
    Nobody,
    /// Those of this user.
    User(u32),
    /// All that no other service claims.
    Any,
}

/// What only a host knows of the names in a specification.
pub struct Names<'a> {
    /// The number of a user.
    pub user: &'a dyn Fn(&str) -> Option<u32>,
    /// The address of `host:port`.
    pub address: &'a dyn Fn(&str) -> Option<SocketAddr>,
}

/// Checks a specification.
pub fn parse(spec: &ServiceSpec, names: &Names<'_>) -> Result<LocalInstance, Vec<String>> {
    let mut faults = Vec::new();
    let service = spec.name.parse::<ServiceName>().map_err(|error| faults.push(format!("name: {error}"))).ok();
    let name = spec.instance.as_deref().map(str::parse).transpose();
    let name = name.map_err(|error| faults.push(format!("instance: {error}"))).ok().map(Option::unwrap_or_default);
    let account = service.as_ref().and_then(|service| {
        let named = spec.service_account.as_deref().map(|name| ServiceName::new(service.namespace(), name));
        let named = named.transpose().map_err(|error| faults.push(format!("serviceAccount: {error}"))).ok()?;
        Some(named.unwrap_or_else(|| service.clone()))
    });
    check_labels(spec, service.as_ref(), &mut faults);
    let gateway = spec.gateway || spec.egress;
    if (spec.ports.is_empty() && !gateway) || spec.ports.len() > PORTS_MAX {
        faults.push(format!("ports: {} given; name 1 to {PORTS_MAX}", spec.ports.len()));
    }
    let mut ports: Vec<LocalPort> = Vec::new();
    for (i, port) in spec.ports.iter().enumerate() {
        match parse_port(port, names) {
            Ok(port) if ports.iter().any(|other| other.port.port == port.port.port) => {
                faults.push(format!("ports[{i}].port: {} is listed twice", port.port.port));
            }
            Ok(port) => ports.push(port),
            Err(fault) => faults.push(format!("ports[{i}].{fault}")),
        }
    }
    if gateway && spec.check.is_some() {
        faults.push("check: a gateway has none; this node serves it itself".into());
    }
    let check = spec.check.as_deref().map(Check::parse).transpose();
    let check = check.map_err(|error| faults.push(format!("check: {error}"))).ok().flatten();
    let caller = parse_caller(spec, names.user).map_err(|fault| faults.push(fault)).ok();
    faults.extend(spec.unit.as_deref().and_then(unit_fault));
    faults.extend((spec.weight == Some(0)).then(|| "weight: 1 to 65535".to_owned()));
    if gateway && !spec.ports.is_empty() {
        faults.push("ports: those of a gateway are what Gateway documents say".into());
    }
    let own = gateway.then(|| (GATEWAY_LABEL.to_owned(), if spec.egress { EGRESS } else { "true" }.to_owned()));
    match (service, name, account, caller) {
        (Some(service), Some(name), Some(account), Some(caller)) if faults.is_empty() => Ok(LocalInstance {
            id: InstanceId { service, name },
            account,
            labels: spec.labels.clone().into_iter().chain(own).collect(),
            ports,
            check,
            unit: spec.unit.clone(),
            caller,
            weight: spec.weight.unwrap_or(WEIGHT),
            gateway,
        }),
        _ => Err(faults),
    }
}

fn parse_port(spec: &PortSpec, names: &Names<'_>) -> Result<LocalPort, String> {
    if spec.port == 0 {
        return Err("port: 1 to 65535".into());
    }
    let target = match spec.target.as_deref() {
        None => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), spec.port),
        Some(text) => text.parse().ok().or_else(|| (names.address)(text)).ok_or_else(|| {
            format!("target: {text:?} is not ADDRESS:PORT or NAME:PORT, such as 127.0.0.1:8081, or its name is not known here")
        })?,
    };
    if target.port() == 0 {
        return Err("target: its port is 1 to 65535".into());
    }
    Ok(LocalPort { port: ServicePort { port: spec.port, protocol: spec.protocol }, target })
}

fn check_labels(spec: &ServiceSpec, service: Option<&ServiceName>, faults: &mut Vec<String>) {
    for (key, value) in &spec.labels {
        if let Err(error) = check_label(key, value) {
            faults.push(format!("labels: {error}"));
        }
        if key == APP_LABEL && service.is_some_and(|service| service.name() != value) {
            faults.push(format!("labels: {APP_LABEL} is always the service's name, and cannot be {value:?}"));
        }
    }
    if spec.labels.len() > LABELS_MAX {
        faults.push(format!("labels: {} given; at most {LABELS_MAX}", spec.labels.len()));
    }
}

/// What is wrong with the name of a unit (systemd.unit(5)).
fn unit_fault(unit: &str) -> Option<String> {
    let known = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let good = unit.ends_with(".service") && unit.len() <= UNIT_LENGTH_MAX && unit.chars().all(known);
    let template = unit.ends_with("@.service");
    match (good, template) {
        (true, false) => None,
        (true, true) => Some(format!("unit: {unit:?} is a template: name one of its instances, such as web@1.service")),
        (false, _) => Some(format!("unit: {unit:?} is no name of a service unit, such as web.service")),
    }
}

/// Longest name of a unit (systemd.unit(5)).
const UNIT_LENGTH_MAX: usize = 255;

fn parse_caller(spec: &ServiceSpec, user: impl Fn(&str) -> Option<u32>) -> Result<CallerClaim, String> {
    match (spec.user.as_deref(), spec.caller.as_deref()) {
        (Some(_), Some(_)) => Err("user and caller exclude each other".into()),
        (None, None) => Ok(CallerClaim::Nobody),
        (None, Some("any")) => Ok(CallerClaim::Any),
        (None, Some(other)) => Err(format!("caller: {other:?} is not known; the only value is any")),
        (Some(name), None) => match name.parse().ok().or_else(|| user(name)) {
            Some(id) => Ok(CallerClaim::User(id)),
            None => Err(format!("user: there is no user {name:?} on this host")),
        },
    }
}
