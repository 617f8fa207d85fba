//! The configuration file of a host, `weft.yaml`: options of `weft up` by their names, which the command line goes before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::ValueEnum;
use serde::Deserialize;
use serde_json::Value;

use super::Stopped;
use super::kept::Said;
use crate::telemetry::LogFormat;

/// Where it is, unless another one is named: for the node that is the host's.
pub(super) const FILE: &str = "/etc/weft/weft.yaml";

/// What it says. A key that is not listed is refused with its line.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    advertise: Option<String>,
    listen: Option<String>,
    zone: Option<String>,
    proxy: Option<String>,
    metrics: Option<String>,
    dns: Option<String>,
    loopback: Option<String>,
    #[serde(default)]
    bind: Vec<String>,
    #[serde(default)]
    gateway: Vec<String>,
    #[serde(default)]
    egress_gateway: Vec<String>,
    #[serde(default)]
    gateway_port: BTreeMap<u16, u16>,
    transport: Option<String>,
    workers: Option<u16>,
    access_sample: Option<f64>,
    voters: Option<u8>,
    pub(super) log: Option<String>,
    log_format: Option<String>,
}

impl File {
    /// Reads one; where none is named that of the host, if it is there.
    pub(super) fn read(named: Option<&PathBuf>, data_dir: &Path) -> Result<Self, Stopped> {
        let own = || (data_dir == Path::new("/var/lib/weft")).then(|| PathBuf::from(FILE));
        let Some(path) = named.cloned().or_else(own) else { return Ok(Self::default()) };
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).map_err(|error| Stopped::usage(format!("{}: {error}", path.display()))),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Stopped::failed(format!("{}: {error}", path.display()))),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let parsed: Option<Self> = serde_saphyr::from_str(text).map_err(|error| error.without_snippet().to_string())?;
        Ok(parsed.unwrap_or_default())
    }

    /// How the log is written, where it says so.
    pub(super) fn log_format(&self) -> Result<Option<LogFormat>, Stopped> {
        let read =
            |text: &String| LogFormat::from_str(text, true).map_err(|error| format!("logFormat: {text:?}: {error}"));
        self.log_format.as_ref().map(read).transpose().map_err(Stopped::usage)
    }

    /// What it says of the host, as the command line would.
    pub(super) fn said(&self) -> Vec<Said> {
        let one = |name: &str, value: Option<String>| value.map(|value| (name.to_owned(), value));
        let all = |name: &'static str, values: &[String]| {
            values.iter().map(|value| (name.to_owned(), value.clone())).collect::<Vec<_>>()
        };
        let number = |value: Option<f64>| value.map(|value| Value::from(value).to_string());
        let single = [
            one("--advertise", self.advertise.clone()),
            one("--listen", self.listen.clone()),
            one("--zone", self.zone.clone()),
            one("--proxy", self.proxy.clone()),
            one("--metrics", self.metrics.clone()),
            one("--dns", self.dns.clone()),
            one("--loopback", self.loopback.clone()),
            one("--transport", self.transport.clone()),
            one("--workers", self.workers.map(|workers| workers.to_string())),
            one("--access-sample", number(self.access_sample)),
            one("--voters", self.voters.map(|voters| voters.to_string())),
        ];
        let ports = self.gateway_port.iter().map(|(port, own)| ("--gateway-port".to_owned(), format!("{port}={own}")));
        let lists =
            [all("--bind", &self.bind), all("--gateway", &self.gateway), all("--egress-gateway", &self.egress_gateway)];
        single.into_iter().flatten().chain(lists.into_iter().flatten()).chain(ports).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::host::HostOptions;

    #[test]
    fn every_key_of_the_file_that_is_installed_is_one_with_its_default() {
        let shipped = include_str!("../../../deploy/weft.yaml");
        assert!(File::parse(shipped).expect("it reads").said().is_empty(), "it says what is so anyway");
        let keys: String = shipped
            .lines()
            .filter_map(|line| line.strip_prefix('#'))
            .filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase()) && line.contains(':'))
            .map(|line| format!("{line}\n"))
            .collect();
        let file = File::parse(&keys).expect("the defaults are good");
        let Ok(host) = HostOptions::of(&file.said()) else { panic!("{keys}") };
        assert_eq!(host.zone, "default");
        assert_eq!((host.voters, host.access_sample), (5, 0.01));
        assert_eq!(host.gateways().count(), 0);
        assert_eq!(keys.lines().count(), 17, "{keys}");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let error = File::parse("zone: eu\nzzone: x\n").expect_err("no such key");
        assert!(error.contains("zzone") && error.contains("line 2"), "{error}");
        let said =
            File::parse("zone: eu/a\ngatewayPort: {443: 8443}\nbind: ['127.0.0.1:1=a:1']\n").expect("reads").said();
        let text: Vec<String> = said.iter().map(|(name, value)| format!("{name} {value}")).collect();
        assert_eq!(text, ["--zone eu/a", "--bind 127.0.0.1:1=a:1", "--gateway-port 443=8443"]);
    }
}
