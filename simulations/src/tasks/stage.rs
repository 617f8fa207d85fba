//! Hosts for a task: a network namespace, a node and an application for each workload.

mod seen;
mod strangers;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use weft::api::schema::{PortSpec, ServiceSpec, TokenRequest};
use weft::client::Client;
use weft_proto::service::Protocol;

use super::ask::{Asking, Came};
use super::certificates::Certificates;
use super::form::Service;
use super::internet::{self, Internet, address};
use crate::chaos::{tool, tool_now};
use strangers::Strangers;

/// The hosts of a task. All of it is taken away when it is dropped.
pub(super) struct Stage {
    prefix: String,
    directory: PathBuf,
    weft: PathBuf,
    hosts: Vec<Host>,
    /// The host of all gateways, where there are any.
    gateway: Option<usize>,
    /// Hosts that stand for those of the Internet.
    internet: Internet,
    strangers: Strangers,
    /// Certificates of the task.
    pub(super) certificates: Certificates,
    /// How long the access records of each host were when what was seen was forgotten.
    logged: Mutex<BTreeMap<usize, usize>>,
}

struct Host {
    service: Service,
    /// The names of what runs on it.
    names: Vec<String>,
    /// What runs on it; ended with it.
    _processes: Vec<Child>,
}

impl Stage {
    /// Starts a host for each workload, the first of which makes the mesh, and one for all gateways.
    pub(super) async fn make(weft: &Path, services: &[Service], gateways: &[Service]) -> Result<Self, String> {
        let prefix = format!("weft-task-{}", std::process::id());
        let directory = std::env::temp_dir().join(&prefix);
        let failed = |error: std::io::Error| format!("{}: {error}", directory.display());
        // What a former task of this process has left is of no use.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).map_err(failed)?;
        let certificates = Certificates::in_directory(directory.join("certificates"));
        let mut stage = Self {
            prefix,
            directory,
            weft: weft.to_owned(),
            hosts: Vec::new(),
            gateway: None,
            certificates,
            internet: Internet::default(),
            strangers: Strangers::of(services),
            logged: Mutex::default(),
        };
        let hub = stage.hub();
        for words in [
            format!("ip netns add {hub}"),
            format!("ip -n {hub} link add br0 type bridge"),
            format!("ip -n {hub} link set br0 up"),
        ] {
            tool(&words).await.map_err(|error| format!("{error}; tasks are for root"))?;
        }
        stage.internet = Internet::of(services);
        stage.stand_ins(services).await?;
        for service in services.iter().filter(|service| service.runs()) {
            stage.host(service, services).await?;
        }
        stage.strangers(services).await?;
        stage.gateways(gateways).await?;
        stage.outside().await?;
        let client = stage.client(0);
        let count = stage.hosts.len();
        let whole = async || client.members().await.is_ok_and(|all| all.iter().filter(|one| one.live).count() == count);
        match until(whole, FORMING).await {
            true => Ok(stage),
            false => Err("the nodes do not find each other".into()),
        }
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    fn namespace(&self, host: usize) -> String {
        format!("{}-n{host}", self.prefix)
    }

    fn data_dir(&self, host: usize) -> PathBuf {
        self.directory.join(format!("n{host}"))
    }

    /// A node's interface.
    pub(super) fn client(&self, host: usize) -> Client {
        Client::new(&self.data_dir(host))
    }

    /// A network namespace on the bridge, with its first address.
    async fn connect(&self, at: usize, name: &str) -> Result<String, String> {
        let (hub, address) = (self.hub(), address(at));
        self.internet.tell(name, &self.strangers.lines(), &self.certificates)?;
        for words in [
            format!("ip netns add {name}"),
            format!("ip link add eth0 netns {name} type veth peer name n{at} netns {hub}"),
            format!("ip -n {hub} link set n{at} master br0 up"),
            format!("ip -n {name} addr add {address}/24 dev eth0"),
            format!("ip -n {name} link set eth0 up"),
            format!("ip -n {name} link set lo up"),
        ] {
            tool(&words).await?;
        }
        Ok(address)
    }

    /// A place beyond the mesh, with two addresses.
    async fn outside(&self) -> Result<(), String> {
        let name = self.namespace(OUTSIDE);
        self.connect(OUTSIDE, &name).await?;
        tool(&format!("ip -n {name} addr add {}/24 dev eth0", address(OUTSIDE + 1))).await
    }

    /// The host of all gateways.
    async fn gateways(&mut self, gateways: &[Service]) -> Result<(), String> {
        let Some(first) = gateways.first() else { return Ok(()) };
        let at = self.hosts.len();
        let names = gateways.iter().map(|one| format!("{}/*", one.namespace)).collect();
        let node = self.node(at, first, names).await?;
        for gateway in gateways {
            let mut spec = Self::spec(gateway);
            // Those through which calls leave the mesh take none from outside.
            let egress = gateway.name.contains("egress");
            (spec.ports, spec.check, spec.caller) = (Vec::new(), None, None);
            (spec.gateway, spec.egress) = (!egress, egress);
            let added = self.client(at).add_service(&spec).await;
            added.map_err(|error| format!("{}: {error}", gateway.name))?;
        }
        let names = gateways.iter().flat_map(|one| {
            let short = one.name.strip_suffix("-istio").map(str::to_owned);
            std::iter::once(one.name.clone()).chain(short)
        });
        self.hosts.push(Host { service: first.clone(), names: names.collect(), _processes: vec![node] });
        self.gateway = Some(at);
        Ok(())
    }

    /// Where gateways are reached from outside.
    pub(super) fn gateway_address(&self) -> Option<String> {
        self.gateway.map(address)
    }

    async fn host(&mut self, service: &Service, services: &[Service]) -> Result<(), String> {
        let at = self.hosts.len();
        let own = |name: &str| format!("{}/{name}", service.namespace);
        let names = [Some(service.name.as_str()), service.account()].into_iter().flatten().map(own).collect();
        let mut processes = vec![self.node(at, service, names).await?];
        if service.port().is_some() {
            processes.push(self.application(at, service)?);
        }
        let added = self.client(at).add_service(&Self::spec(service)).await;
        added.map_err(|error| format!("{}: {error}", service.name))?;
        self.intercept(at, service, services).await?;
        let names = vec![service.name.clone()];
        self.hosts.push(Host { service: service.clone(), names, _processes: processes });
        Ok(())
    }

    /// A node that may run services of these names.
    async fn node(&self, at: usize, service: &Service, services: Vec<String>) -> Result<Child, String> {
        let name = self.namespace(at);
        let address = self.connect(at, &name).await?;
        let line = match at {
            0 => None,
            _ => {
                let request = TokenRequest { lifetime_s: 3600, uses: 1, services };
                let created = self.client(0).create_token(&request).await;
                Some(created.map_err(|error| format!("no token: {error}"))?.line)
            }
        };
        let data_dir = self.data_dir(at);
        fs::create_dir_all(&data_dir).map_err(|error| error.to_string())?;
        let log = fs::File::create(data_dir.with_extension("log")).map_err(|error| error.to_string())?;
        let mut node = Command::new("ip");
        node.args(["netns", "exec", &name]).arg(&self.weft).arg("--data-dir").arg(&data_dir);
        node.args(["up", "--name", &format!("n{at}"), "--advertise", &address, "--access-sample", "1"]);
        match &line {
            None => node.args(["--init", "--trust-domain", "cluster.local"]),
            Some(line) => node.args(["--join", line]),
        };
        if !service.locality.is_empty() {
            node.args(["--zone", &service.locality]);
        }
        node.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        let process = node.spawn().map_err(|error| format!("ip: {error}"))?;
        let client = self.client(at);
        if !until(async || client.status().await.is_ok(), FORMING).await {
            return Err(format!(
                "the node of {} is not up: see {}",
                service.name,
                data_dir.with_extension("log").display()
            ));
        }
        Ok(process)
    }

    /// A host for each service that stands for one of the Internet.
    async fn stand_ins(&mut self, services: &[Service]) -> Result<(), String> {
        for (at, name, service) in self.internet.hosts(services) {
            self.connect(at, &self.namespace(at)).await?;
            for port in [80, 443] {
                let mut command = self.inside(at)?;
                command.args(["behave", "--service", &name, "--version", "", "--address", "0.0.0.0"]);
                command.args(["--port", &port.to_string(), "--seen"]).arg(self.seen_path(at));
                command.stdin(Stdio::null()).kill_on_drop(true);
                if port == 443 {
                    let file = |ending| self.certificates.file(&service.certificate(ending));
                    command.arg("--certificate").arg(file("crt")?).arg("--key").arg(file("key")?);
                    if service.behaviour.contains("demands client certificates") {
                        command.arg("--callers").arg(self.certificates.file("example.com.crt")?);
                    }
                    if let Some(page) = service.page() {
                        command.args(["--page", &page]);
                    }
                } else if service.behaviour.contains("301") {
                    command.arg("--moved");
                }
                let process = command.spawn().map_err(|error| format!("ip: {error}"))?;
                self.internet.run(process);
            }
        }
        Ok(())
    }

    fn application(&self, at: usize, service: &Service) -> Result<Child, String> {
        let port = service.workload_port.or(service.port()).unwrap_or_default().to_string();
        let seen = self.seen_path(at);
        let mut command = self.inside(at)?;
        command.args(["behave", "--service", &service.name, "--version", &service.version, "--port", &port, "--seen"]);
        command.arg(seen).stdin(Stdio::null()).kill_on_drop(true);
        if service.protocol == "tls" {
            let name = service.speaks_as();
            command.arg("--certificate").arg(self.certificates.file(&format!("example_certs/{name}.crt"))?);
            command.arg("--key").arg(self.certificates.file(&format!("example_certs/{name}.key"))?);
        }
        command.spawn().map_err(|error| format!("ip: {error}"))
    }

    fn inside(&self, at: usize) -> Result<Command, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(at)]).arg(program);
        Ok(command)
    }

    fn seen_path(&self, at: usize) -> PathBuf {
        self.directory.join(format!("seen-n{at}"))
    }

    fn spec(service: &Service) -> ServiceSpec {
        // A client has no port that anybody calls; its name is what counts.
        let first = service.port().unwrap_or(1);
        let target = format!("127.0.0.1:{}", service.workload_port.unwrap_or(first));
        let port = |port: u16, protocol: &str| {
            let protocol = match protocol {
                "tcp" | "tls" => Protocol::Tcp,
                "grpc" => Protocol::Grpc,
                _ => Protocol::Http,
            };
            PortSpec { port, target: Some(target.clone()), protocol }
        };
        let others = service.also.iter().map(|also| port(also.port, &also.protocol));
        let ports = std::iter::once(port(first, &service.protocol)).chain(others).collect();
        let own = service.labels.iter().filter(|(name, _)| *name != "app");
        ServiceSpec {
            name: format!("{}/{}", service.namespace, service.name),
            instance: None,
            labels: own.map(|(a, b)| (a.clone(), b.clone())).collect(),
            service_account: service.account().map(str::to_owned),
            ports,
            check: service.port().map(|_| "tcp".to_owned()),
            unit: None,
            user: None,
            caller: Some("any".to_owned()),
            weight: None,
            gateway: false,
            egress: false,
        }
    }

    /// The host of a workload, by `name` or `name.namespace`, and by where it is.
    pub(super) fn find(&self, from: &str, locality: Option<&str>) -> Option<usize> {
        if let Some(stranger) = self.strangers.find(from) {
            return Some(stranger);
        }
        let (name, namespace) = from.split_once('.').map_or((from, None), |(name, space)| (name, Some(space)));
        self.hosts.iter().position(|host| {
            host.service.name == name
                && namespace.is_none_or(|space| host.service.namespace == space)
                && locality.is_none_or(|locality| host.service.locality == locality)
        })
    }

    /// A file that is of use for a moment.
    pub(super) fn scratch(&self) -> PathBuf {
        self.directory.join("scratch")
    }

    /// The place beyond the mesh.
    pub(super) fn beyond(&self) -> usize {
        OUTSIDE
    }

    /// The name of a host's network namespace.
    pub(super) fn place(&self, at: usize) -> String {
        self.namespace(at)
    }

    /// Makes calls from a host.
    pub(super) async fn ask(&self, at: usize, asking: &Asking) -> Result<Vec<Came>, String> {
        let mut command = match self.is_intercepted(at) {
            true => self.inside_as(at, strangers::CALLER)?,
            false => self.inside(at)?,
        };
        command.arg("ask").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| format!("ip: {error}"))?;
        let text = serde_json::to_string(asking).map_err(|error| error.to_string())?;
        let mut input = child.stdin.take().ok_or("no pipe")?;
        input.write_all(text.as_bytes()).await.map_err(|error| error.to_string())?;
        drop(input);
        let output =
            timeout(ASKING, child.wait_with_output()).await.map_err(|_| "the caller does not end".to_owned())?;
        let output = output.map_err(|error| error.to_string())?;
        serde_json::from_slice(&output.stdout).map_err(|error| format!("the caller: {error}"))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let count = self.hosts.len() + 1;
        self.hosts.clear();
        self.internet.end();
        self.strangers.end();
        for at in (0..count).chain(self.internet.places()).chain(self.strangers.places()).chain([OUTSIDE]) {
            tool_now(&format!("ip netns del {}", self.namespace(at)));
            internet::forget(&self.namespace(at));
        }
        tool_now(&format!("ip netns del {}", self.hub()));
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Waits until something holds; whether it does within the bound.
async fn until(mut holds: impl AsyncFnMut() -> bool, bound: Duration) -> bool {
    let deadline = Instant::now() + bound;
    while !holds().await {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(LOOK).await;
    }
    true
}

/// The address of the second client beyond the mesh.
pub(super) fn second() -> String {
    address(OUTSIDE + 1)
}

/// The address of the first one.
pub(super) fn first() -> String {
    address(OUTSIDE)
}

/// The place beyond the mesh, among the hosts.
const OUTSIDE: usize = 199;
/// How long hosts have to come up and find each other.
const FORMING: Duration = Duration::from_secs(60);
/// Bound on all calls of a check.
const ASKING: Duration = Duration::from_secs(300);
/// From one look to the next.
const LOOK: Duration = Duration::from_millis(100);
