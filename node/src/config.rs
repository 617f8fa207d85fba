//! A node's configuration, checked once at the start. No environment is read and no default is taken afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use weft_proto::identity::{NodeName, TrustDomain};
use weft_proto::kinds::Kinds;
use weft_proto::service::ServiceName;
use weft_proxy::plane::Transport;

use crate::api::schema::ServiceSpec;

/// The name of a new mesh, unless set.
pub const TRUST_DOMAIN: &str = "mesh.local";
/// The port of links, UDP and TCP, unless set.
pub const MESH_PORT: u16 = 7946;
/// The forward proxy's address unless set.
pub const PROXY_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15_001);
/// Where metrics and health are served unless set.
pub const METRICS_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15_020);

/// Where names are answered by DNS unless set, where that is free.
pub const DNS_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15_053);

/// All that a node must know before it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where its state lives.
    pub data_dir: PathBuf,
    /// How it comes to be part of a mesh.
    pub start: Start,
    /// Its name. One with state has it for good, and does not start under another.
    pub name: Option<NodeName>,
    /// The host's name, for a node that is made now and is given none.
    pub host_name: Option<NodeName>,
    /// `host:port` that other nodes reach it at; none takes the host's first address that is not loopback.
    pub advertise: Option<String>,
    /// Where links arrive.
    pub listen: SocketAddr,
    /// Failure domain.
    pub zone: String,
    /// Forward proxy; none switches it off.
    pub proxy: Option<SocketAddr>,
    /// Metrics and health; none switches it off.
    pub metrics: Option<SocketAddr>,
    /// Names by DNS.
    pub dns: Dns,
    /// Which services' loopback addresses to listen on.
    pub loopback: Loopback,
    /// Further plain listeners for services' ports.
    pub binds: Vec<Bind>,
    /// Gateways that it serves.
    pub gateways: Vec<ServiceSpec>,
    /// Other ports than those that documents say, for ports of gateways.
    pub gateway_ports: BTreeMap<u16, u16>,
    /// What links to other nodes run over.
    pub transport: Transport,
    /// Cores of the data plane.
    pub workers: usize,
    /// Share of access records that are written, 0 to 1. Denials and failures are always written.
    pub access_sample: f64,
    /// Voters wanted: 1, 3, 5 or 7.
    pub voters: usize,
    /// Most connections of applications at once.
    pub connections_max: usize,
    /// The kinds of documents that are known: all, but for those that a later version has brought.
    pub kinds: Kinds,
}

/// Where names of services are answered by DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dns {
    /// Nowhere.
    Off,
    /// At the usual place, unless another process has that.
    Auto,
    /// Here.
    At(SocketAddr),
}

/// Which services' loopback addresses a host listens on. Whoever listens on a port of one takes that port from every
/// program of the host that wants it on all addresses, whenever that starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loopback {
    /// None.
    Off,
    /// All where no port has to be listened on for it, else none: there is no port of which it is certain that no program
    /// of the host will ever want it.
    Auto,
    /// These services', all their ports.
    Only(BTreeSet<ServiceName>),
    /// All.
    All,
}

impl Loopback {
    /// Whether to listen on a service's ports.
    pub fn listens(&self, service: &ServiceName) -> bool {
        match self {
            Self::Off | Self::Auto => false,
            Self::Only(services) => services.contains(service),
            Self::All => true,
        }
    }
}

/// A listener `address=service:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Where to listen.
    pub address: SocketAddr,
    /// What callers reach there.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
}

/// How a node comes to be part of a mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// It makes the mesh.
    Found {
        /// The mesh's name.
        trust_domain: TrustDomain,
        /// Whether a call that no ALLOW policy covers is denied.
        deny_by_default: bool,
        /// Whether one that is part of a mesh already goes on, as a service that is started again does.
        unless_done: bool,
    },
    /// It joins one.
    Join {
        /// The line that `weft token create` printed.
        line: String,
    },
    /// It has been part of one.
    Resume,
}

impl std::str::FromStr for Bind {
    type Err = String;

    /// Reads `127.0.0.1:9000=web:8080`.
    fn from_str(text: &str) -> Result<Self, String> {
        let error =
            || format!("{text:?} is not a bind: write ADDRESS:PORT=SERVICE:PORT, such as 127.0.0.1:9000=web:8080");
        let (address, target) = text.split_once('=').ok_or_else(error)?;
        let (service, port) = target.rsplit_once(':').ok_or_else(error)?;
        Ok(Self {
            address: address.parse().map_err(|_| error())?,
            service: service.parse().map_err(|name_error| format!("{}: {name_error}", error()))?,
            port: port.parse().ok().filter(|port| *port > 0).ok_or_else(error)?,
        })
    }
}
