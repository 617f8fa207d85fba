//! `weft up`: options to a checked configuration, then the node.

use std::fs;
use std::path::PathBuf;

use clap::Args;

use super::file::File;
use super::host::{HostOptions, cores, default_listen};
use super::start::{self, Begin, read_line};
use super::values::{self, Listening};
use super::{Done, Ended, Stopped};
use crate::config::{Config, METRICS_ADDRESS, PROXY_ADDRESS, Start};
use crate::telemetry::{self, LogFormat};

/// What is logged unless something else is said.
const LOG: &str = "info,openraft=error";
#[derive(Debug, Args)]
pub(super) struct Up {
    #[command(flatten)]
    pub(super) begin: Begin,
    #[command(flatten)]
    host: HostOptions,
    /// File with options by their names, which those of the command line go before [default: /etc/weft/weft.yaml, for the node of
    /// /var/lib/weft, where it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How the log is written to standard error [default: auto]
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// What is logged: a level, or levels by module such as info,weft::join=debug [default: info,openraft=error]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

impl Up {
    /// Runs the node until it is told to stop.
    pub(super) fn execute(self, data_dir: PathBuf) -> Ended {
        let file = File::read(self.config.as_ref(), &data_dir)?;
        let format = self.log_format.or(file.log_format()?).unwrap_or(LogFormat::Auto);
        let filter = self.log.or_else(|| file.log.clone()).unwrap_or_else(|| LOG.to_owned());
        telemetry::start_log(format, &filter).map_err(Stopped::usage)?;
        telemetry::start_metrics().map_err(Stopped::failed)?;
        let (host, said) = HostOptions::in_force(&data_dir, &file)?;
        // What `weft init` or `weft join` has left counts where nothing else is said.
        let (begin, left) = match self.begin.says_nothing() {
            true => (start::read(&data_dir)?, true),
            false => (Some(self.begin), false),
        };
        let config = config(begin.unwrap_or_default(), host, data_dir, left)?;
        crate::run(config, &said).map_err(|error| Stopped::failed(format!("{error:#}")))?;
        Ok(Done::text(String::new()))
    }
}

/// The configuration that options make; `left` where it may have been begun with already.
fn config(begin: Begin, host: HostOptions, data_dir: PathBuf, left: bool) -> Result<Config, Stopped> {
    let Begin { init, trust_domain, deny_by_default, join, join_file, name } = begin;
    let join = match (join, join_file) {
        (Some(line), _) => Some(line),
        (None, Some(file)) => Some(read_line(&file)?),
        (None, None) => None,
    };
    let start = match join {
        _ if init => Start::Found { trust_domain, deny_by_default, unless_done: left },
        Some(line) => Start::Join { line: line.trim().to_owned() },
        None => Start::Resume,
    };
    Ok(Config {
        data_dir,
        start,
        name,
        host_name: values::node_name(&host_name()),
        gateways: host.gateways().cloned().collect(),
        advertise: host.advertise,
        listen: host.listen.unwrap_or_else(default_listen),
        zone: host.zone,
        proxy: host.proxy.map_or(Some(PROXY_ADDRESS), |Listening(address)| address),
        metrics: host.metrics.map_or(Some(METRICS_ADDRESS), |Listening(address)| address),
        dns: host.dns,
        loopback: host.loopback,
        binds: host.bind,
        gateway_ports: host.gateway_port.into_iter().collect(),
        transport: host.transport.into(),
        workers: host.workers.map_or_else(cores, usize::from),
        access_sample: host.access_sample,
        voters: host.voters,
        connections_max: crate::os::connections_max(),
        kinds: weft_proto::kinds::Kinds::ALL,
    })
}

fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use weft_proxy::plane::Transport;

    use super::*;
    use crate::cli::Command;
    use crate::cli::tests::parse;
    use crate::config::{Loopback, MESH_PORT};

    fn config(line: &str) -> Config {
        let Ok(Command::Up(up)) = parse(line) else { panic!("{line:?} is not up") };
        super::config(up.begin, up.host, PathBuf::from("/x"), false).expect(line)
    }

    #[test]
    fn options_become_a_configuration() {
        let config = config(
            "weft up --init --trust-domain t.example --deny-by-default --name a --advertise h --listen 127.0.0.1:1 --zone z \
             --proxy off --transport quic --metrics 127.0.0.1:2 --loopback off --bind 127.0.0.1:3=prod/web:80 --workers 2 \
             --access-sample 1 --voters 3",
        );
        let found = Start::Found {
            trust_domain: "t.example".parse().expect("valid"),
            deny_by_default: true,
            unless_done: false,
        };
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
