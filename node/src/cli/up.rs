//! `weft up`: options to a checked configuration, then the node.

use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::{Args, FromArgMatches, ValueEnum};
use weft_proto::identity::{NodeName, TrustDomain};
use weft_proxy::plane::Transport;

use super::kept::{self, Said};
use super::values::{self, Listening};
use super::{Done, Ended, Stopped};
use crate::api::schema::ServiceSpec;
use crate::config::{Bind, Config, Loopback, MESH_PORT, METRICS_ADDRESS, PROXY_ADDRESS, Start};
use crate::telemetry::{self, LogFormat};

/// Longest join line that is read from a file: 64 KiB.
const JOIN_LINE_LENGTH_MAX: u64 = 64 << 10;
/// Most cores of the data plane.
const WORKERS_MAX: i64 = 1024;

#[derive(Debug, Args)]
pub(super) struct Up {
    /// Make a new mesh; the line with which other hosts join it is printed
    #[arg(long, conflicts_with_all = ["join", "join_file"])]
    init: bool,
    /// Name of the new mesh
    #[arg(long, value_name = "NAME", requires = "init", default_value = "mesh.local")]
    trust_domain: TrustDomain,
    /// In the new mesh, deny every call that no ALLOW policy covers
    #[arg(long, requires = "init")]
    deny_by_default: bool,
    /// Join a mesh with the line that `weft token create` printed
    #[arg(long, value_name = "LINE", conflicts_with = "join_file")]
    join: Option<String>,
    /// The same from a file, or from standard input with -, which other users of this host cannot see
    #[arg(long, value_name = "FILE")]
    join_file: Option<PathBuf>,
    /// Name of a new node [default: the host name's first label]
    #[arg(long)]
    name: Option<NodeName>,
    /// Where other nodes reach this one [default: the address that this host sends from]
    #[arg(long, value_name = "HOST[:PORT]")]
    advertise: Option<String>,
    /// Where links arrive, on UDP and TCP [default: [::]:7946, or 0.0.0.0:7946 on a host without IPv6]
    #[arg(long, value_name = "ADDRESS", value_parser = values::address)]
    listen: Option<SocketAddr>,
    /// Where this node is, for balancing and failover
    #[arg(long, default_value = "default", value_name = "REGION[/ZONE[/SUBZONE]]", value_parser = values::locality)]
    zone: String,
    /// Where the forward proxy (HTTP and SOCKS5) listens [default: 127.0.0.1:15001]
    #[arg(long, value_name = "ADDRESS|off", value_parser = values::listening)]
    proxy: Option<Listening>,
    /// Where /metrics, /livez and /readyz are served [default: 127.0.0.1:15020]
    #[arg(long, value_name = "ADDRESS|off", value_parser = values::listening)]
    metrics: Option<Listening>,
    /// Which services are reached at loopback addresses of their own: off, all, names parted by commas; auto: all with CAP_NET_ADMIN, none without, so that no port is taken from another program
    #[arg(long, value_name = "auto|off|all|SERVICE,...", default_value = "auto", value_parser = loopback)]
    loopback: Loopback,
    /// A further plain listener for a port of a service; may be repeated
    #[arg(long, value_name = "ADDRESS=SERVICE:PORT")]
    bind: Vec<Bind>,
    /// This node serves the gateway of that name, and the Gateway documents that its name or labels select; may be repeated
    #[arg(long, value_name = "[NAMESPACE/]NAME[=KEY=VALUE,...]", value_parser = values::gateway)]
    gateway: Vec<ServiceSpec>,
    /// The same of a gateway that takes only callers of the mesh, such as one through which calls leave it: no port of this host
    /// is listened on; may be repeated
    #[arg(long, value_name = "[NAMESPACE/]NAME[=KEY=VALUE,...]", value_parser = values::egress_gateway)]
    egress_gateway: Vec<ServiceSpec>,
    /// Another port of this host for a port of gateways, where it may not listen on that; may be repeated
    #[arg(long, value_name = "PORT=PORT", value_parser = values::ports)]
    gateway_port: Vec<(u16, u16)>,
    /// What links to other nodes run over: auto is TCP within a zone, QUIC between zones, and the other where one is blocked
    #[arg(long, value_enum, default_value_t = Over::Auto)]
    transport: Over,
    /// Cores of the data plane [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=WORKERS_MAX))]
    workers: Option<u16>,
    /// Share of access records that are written; denials and failures always are
    #[arg(long, value_name = "SHARE", default_value = "0.01", value_parser = values::share)]
    access_sample: f64,
    /// Voters wanted: 1, 3, 5 or 7
    #[arg(long, value_name = "N", default_value = "5", value_parser = values::voters)]
    voters: usize,
    /// How the log is written to standard error
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Auto)]
    log_format: LogFormat,
    /// What is logged: a level, or levels by module such as info,weft::join=debug
    #[arg(long, value_name = "FILTER", default_value = "info,openraft=error")]
    log: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Over {
    Auto,
    Tcp,
    Quic,
}

impl Up {
    /// Runs the node until it is told to stop.
    pub(super) fn execute(self, data_dir: PathBuf) -> Ended {
        telemetry::start_log(self.log_format, &self.log).map_err(Stopped::usage)?;
        telemetry::start_metrics().map_err(Stopped::failed)?;
        let said = kept::with_former(&data_dir, kept::given(std::env::args()))?;
        let config = self.with(&said)?.config(data_dir)?;
        crate::run(config, &said).map_err(|error| Stopped::failed(format!("{error:#}")))?;
        Ok(Done::text(String::new()))
    }

    /// With these options, where the command line may not have had them.
    fn with(self, said: &[Said]) -> Result<Self, Stopped> {
        let words = said.iter().flat_map(|(name, value)| [name.clone(), value.clone()]);
        let command = Self::augment_args(clap::Command::new("up").no_binary_name(true));
        let matches = command.try_get_matches_from(words).map_err(|error| {
            Stopped::usage(format!("what was said of this host before ({}) is not good any more: {error}", kept::FILE))
        })?;
        let former = Self::from_arg_matches(&matches).map_err(|error| Stopped::usage(error.to_string()))?;
        let Self { init, trust_domain, deny_by_default, join, join_file, name, log_format, log, .. } = self;
        Ok(Self { init, trust_domain, deny_by_default, join, join_file, name, log_format, log, ..former })
    }

    fn config(self, data_dir: PathBuf) -> Result<Config, Stopped> {
        let join = match (self.join, self.join_file) {
            (Some(line), _) => Some(line),
            (None, Some(file)) => Some(read_line(&file)?),
            (None, None) => None,
        };
        let start = match join {
            _ if self.init => Start::Found { trust_domain: self.trust_domain, deny_by_default: self.deny_by_default },
            Some(line) => Start::Join { line: line.trim().to_owned() },
            None => Start::Resume,
        };
        Ok(Config {
            data_dir,
            start,
            name: self.name,
            host_name: values::node_name(&host_name()),
            advertise: self.advertise,
            listen: self.listen.unwrap_or_else(default_listen),
            zone: self.zone,
            proxy: self.proxy.map_or(Some(PROXY_ADDRESS), |Listening(address)| address),
            metrics: self.metrics.map_or(Some(METRICS_ADDRESS), |Listening(address)| address),
            loopback: self.loopback,
            binds: self.bind,
            gateways: self.gateway.into_iter().chain(self.egress_gateway).collect(),
            gateway_ports: self.gateway_port.into_iter().collect(),
            transport: match self.transport {
                Over::Auto => Transport::Auto,
                Over::Tcp => Transport::Tcp,
                Over::Quic => Transport::Quic,
            },
            workers: self.workers.map_or_else(cores, usize::from),
            access_sample: self.access_sample,
            voters: self.voters,
            connections_max: crate::os::connections_max(),
            kinds: weft_proto::kinds::Kinds::ALL,
        })
    }
}

fn read_line(file: &Path) -> Result<String, Stopped> {
    let read = |mut from: Box<dyn Read>| {
        let mut text = String::new();
        from.by_ref().take(JOIN_LINE_LENGTH_MAX).read_to_string(&mut text).map(|_| text)
    };
    let text = if file.as_os_str() == "-" {
        read(Box::new(io::stdin()))
    } else {
        fs::File::open(file).and_then(|file| read(Box::new(file)))
    };
    text.map_err(|error| Stopped::failed(format!("--join-file {}: {error}", file.display())))
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

fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default()
}

/// Every address of the host. The kernel lists no IPv6 addresses where it has none to give.
fn default_listen() -> SocketAddr {
    let has_ipv6 = fs::read_to_string("/proc/net/if_inet6").is_ok_and(|addresses| !addresses.trim().is_empty());
    match has_ipv6 {
        true => (Ipv6Addr::UNSPECIFIED, MESH_PORT).into(),
        false => (Ipv4Addr::UNSPECIFIED, MESH_PORT).into(),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Command;
    use crate::cli::tests::parse;

    fn config(line: &str) -> Config {
        let Ok(Command::Up(up)) = parse(line) else { panic!("{line:?} is not up") };
        up.config(PathBuf::from("/x")).expect(line)
    }

    #[test]
    fn options_become_a_configuration() {
        let config = config(
            "weft up --init --trust-domain t.example --deny-by-default --name a --advertise h --listen 127.0.0.1:1 --zone z \
             --proxy off --transport quic --metrics 127.0.0.1:2 --loopback off --bind 127.0.0.1:3=prod/web:80 --workers 2 \
             --access-sample 1 --voters 3",
        );
        let found = Start::Found { trust_domain: "t.example".parse().expect("valid"), deny_by_default: true };
        assert_eq!(config.start, found);
        assert_eq!(config.name.expect("named").as_str(), "a");
        assert_eq!((config.proxy, config.metrics), (None, "127.0.0.1:2".parse().ok()));
        assert_eq!((config.loopback, config.workers, config.voters), (Loopback::Off, 2, 3));
        assert_eq!(config.transport, Transport::Quic);
        assert_eq!((config.listen.port(), config.advertise.as_deref(), config.zone.as_str()), (1, Some("h"), "z"));
        assert_eq!(config.binds.len(), 1);
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let config = config("weft up");
        assert_eq!(config.start, Start::Resume);
        assert_eq!((config.proxy, config.metrics), (Some(PROXY_ADDRESS), Some(METRICS_ADDRESS)));
        assert_eq!((config.voters, config.listen.port()), (5, MESH_PORT));
        let web = "web".parse().expect("a name");
        assert!(!config.loopback.listens(&web));
        assert!(config.listen.ip().is_unspecified() && config.workers > 0);
    }

    #[test]
    fn a_join_line_comes_from_a_file_too() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), "weft-join-line\n").expect("written");
        let config = config(&format!("weft up --join-file {}", file.path().display()));
        assert_eq!(config.start, Start::Join { line: "weft-join-line".into() });
    }
}
