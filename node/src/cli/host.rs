//! Options that say something of a host: `weft up`, `weft init` and `weft join` have them alike.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use clap::{Args, FromArgMatches, ValueEnum};
use weft_proxy::plane::Transport;

use super::Stopped;
use super::file::File;
use super::kept::{self, Said};
use super::values::{self, Listening};
use crate::api::schema::ServiceSpec;
use crate::config::{Bind, Dns, Loopback, MESH_PORT};

/// Most cores of the data plane.
const WORKERS_MAX: i64 = 1024;

#[derive(Debug, Args)]
pub(super) struct HostOptions {
    /// Where other nodes reach this one [default: the address that this host sends from]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(super) advertise: Option<String>,
    /// Where links arrive, on UDP and TCP [default: [::]:7946, or 0.0.0.0:7946 on a host without IPv6]
    #[arg(long, value_name = "ADDRESS", value_parser = values::address)]
    pub(super) listen: Option<SocketAddr>,
    /// Where this node is, for balancing and failover
    #[arg(long, default_value = "default", value_name = "REGION[/ZONE[/SUBZONE]]", value_parser = values::locality)]
    pub(super) zone: String,
    /// Where the forward proxy (HTTP and SOCKS5) listens [default: 127.0.0.1:15001]
    #[arg(long, value_name = "ADDRESS|off", value_parser = values::listening)]
    pub(super) proxy: Option<Listening>,
    /// Where /metrics, /livez and /readyz are served [default: 127.0.0.1:15020]
    #[arg(long, value_name = "ADDRESS|off", value_parser = values::listening)]
    pub(super) metrics: Option<Listening>,
    /// Where names of services are answered by DNS, on UDP and TCP; auto: at 127.0.0.1:15053, unless another process has that
    #[arg(long, value_name = "auto|off|ADDRESS", default_value = "auto", value_parser = dns)]
    pub(super) dns: Dns,
    /// Which services are reached at loopback addresses of their own: off, all, names parted by commas; auto: all with CAP_NET_ADMIN, none without, so that no port is taken from another program
    #[arg(long, value_name = "auto|off|all|SERVICE,...", default_value = "auto", value_parser = loopback)]
    pub(super) loopback: Loopback,
    /// A further plain listener for a port of a service; may be repeated
    #[arg(long, value_name = "ADDRESS=SERVICE:PORT")]
    pub(super) bind: Vec<Bind>,
    /// This node serves the gateway of that name, and the Gateway documents that its name or labels select; may be repeated
    #[arg(long, value_name = "[NAMESPACE/]NAME[=KEY=VALUE,...]", value_parser = values::gateway)]
    pub(super) gateway: Vec<ServiceSpec>,
    /// The same of a gateway that takes only callers of the mesh, such as one through which calls leave it: no port of this host
    /// is listened on; may be repeated
    #[arg(long, value_name = "[NAMESPACE/]NAME[=KEY=VALUE,...]", value_parser = values::egress_gateway)]
    pub(super) egress_gateway: Vec<ServiceSpec>,
    /// Another port of this host for a port of gateways, where it may not listen on that; may be repeated
    #[arg(long, value_name = "PORT=PORT", value_parser = values::ports)]
    pub(super) gateway_port: Vec<(u16, u16)>,
    /// What links to other nodes run over: auto is TCP within a zone, QUIC between zones, and the other where one is blocked
    #[arg(long, value_enum, default_value_t = Over::Auto)]
    pub(super) transport: Over,
    /// Cores of the data plane [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=WORKERS_MAX))]
    pub(super) workers: Option<u16>,
    /// Share of access records that are written; denials and failures always are
    #[arg(long, value_name = "SHARE", default_value = "0.01", value_parser = values::share)]
    pub(super) access_sample: f64,
    /// Voters wanted: 1, 3, 5 or 7
    #[arg(long, value_name = "N", default_value = "5", value_parser = values::voters)]
    pub(super) voters: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Over {
    Auto,
    Tcp,
    Quic,
}

impl HostOptions {
    /// With what was said before and is not said otherwise now.
    pub(super) fn of(said: &[Said]) -> Result<Self, Stopped> {
        let words = said.iter().flat_map(|(name, value)| [name.clone(), value.clone()]);
        let command = Self::augment_args(clap::Command::new("up").no_binary_name(true));
        let matches = command.try_get_matches_from(words).map_err(|error| {
            Stopped::usage(format!("what was said of this host before ({}) is not good any more: {error}", kept::FILE))
        })?;
        Self::from_arg_matches(&matches).map_err(|error| Stopped::usage(error.to_string()))
    }

    /// What holds of a host: what the command line says, else the file, else what was said before; and what is kept of it for the next
    /// start, which what stands in the file is not: it is there.
    pub(super) fn in_force(data_dir: &Path, file: &File) -> Result<(Self, Vec<Said>), Stopped> {
        let given = kept::given(std::env::args());
        let said = kept::with_former(data_dir, given.clone())?;
        let host = Self::of(&kept::joined(&kept::joined(&said, &file.said()), &given))?;
        Ok((host, said))
    }

    /// Every gateway of the host.
    pub(super) fn gateways(&self) -> impl Iterator<Item = &ServiceSpec> {
        self.gateway.iter().chain(&self.egress_gateway)
    }
}

impl From<Over> for Transport {
    fn from(over: Over) -> Self {
        match over {
            Over::Auto => Self::Auto,
            Over::Tcp => Self::Tcp,
            Over::Quic => Self::Quic,
        }
    }
}

fn dns(text: &str) -> Result<Dns, String> {
    match text {
        "auto" => Ok(Dns::Auto),
        "off" => Ok(Dns::Off),
        text => values::address(text).map(Dns::At),
    }
}

fn loopback(text: &str) -> Result<Loopback, String> {
    match text {
        "auto" => Ok(Loopback::Auto),
        "off" => Ok(Loopback::Off),
        "all" | "on" => Ok(Loopback::All),
        names => {
            let parsed = names.split(',').map(|name| name.trim().parse().map_err(|error| format!("{error}")));
            Ok(Loopback::Only(parsed.collect::<Result<_, _>>()?))
        }
    }
}

/// Every address of the host.
pub(super) fn default_listen() -> SocketAddr {
    match crate::os::has_ipv6() {
        true => (Ipv6Addr::UNSPECIFIED, MESH_PORT).into(),
        false => (Ipv4Addr::UNSPECIFIED, MESH_PORT).into(),
    }
}

pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
