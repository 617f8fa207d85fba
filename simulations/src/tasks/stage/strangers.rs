//! Workloads without a node: they call in plain text, and are called so.

use std::process::Stdio;

use tokio::process::{Child, Command};

use super::super::form::Service;
use super::super::internet::address;
use super::Stage;
use crate::chaos::tool;

/// Workloads without a node.
#[derive(Default)]
pub(super) struct Strangers {
    services: Vec<Service>,
    processes: Vec<Child>,
}

impl Strangers {
    pub(super) fn of(services: &[Service]) -> Self {
        let without = services.iter().filter(|service| service.is_stranger()).cloned();
        Self { services: without.collect(), processes: Vec::new() }
    }

    pub(super) fn are_there(&self) -> bool {
        !self.services.is_empty()
    }

    /// Where they are, among the hosts.
    pub(super) fn places(&self) -> std::ops::Range<usize> {
        FIRST..FIRST + self.services.len()
    }

    /// Where one is, by `name.namespace`.
    pub(super) fn find(&self, from: &str) -> Option<usize> {
        let is = |service: &Service| format!("{}.{}", service.name, service.namespace) == from;
        self.services.iter().position(is).map(|at| FIRST + at)
    }

    /// The namespace of the one at a place.
    pub(super) fn namespace(&self, at: usize) -> Option<String> {
        self.services.get(at.checked_sub(FIRST)?).map(|service| service.namespace.clone())
    }

    /// Lines by which all find them by their names.
    pub(super) fn lines(&self) -> String {
        let called = self.services.iter().enumerate().filter(|(_, service)| service.port().is_some());
        called.map(|(at, service)| line(FIRST + at, service)).collect()
    }

    pub(super) fn end(&mut self) {
        self.processes.clear();
    }
}

impl Stage {
    /// Whether there are workloads without a node.
    pub(in crate::tasks) fn has_strangers(&self) -> bool {
        self.strangers.are_there()
    }

    /// Whether its caller knows nothing of the mesh, and goes through its node all the same.
    pub(in crate::tasks) fn is_intercepted(&self, at: usize) -> bool {
        self.hosts.get(at).is_some_and(|host| host.service.intercepted)
    }

    /// Whether it is the host of a workload without a node.
    pub(in crate::tasks) fn is_stranger(&self, at: usize) -> bool {
        self.strangers.places().contains(&at)
    }

    /// The same as another user.
    pub(super) fn inside_as(&self, at: usize, user: &str) -> Result<Command, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(at), "setpriv", "--reuid", user, "--clear-groups"]).arg(program);
        Ok(command)
    }

    /// Starts them, beside the hosts of the mesh that are there: they find those by their names, at the ports of their services.
    pub(super) async fn strangers(&mut self, services: &[Service]) -> Result<(), String> {
        let mesh = self::within(services);
        let within: Vec<&Service> = services.iter().filter(|service| service.runs()).collect();
        for (at, service) in self.strangers.places().zip(self.strangers.services.clone()) {
            let name = self.namespace(at);
            self.connect(at, &name).await?;
            self.internet.tell(&name, &format!("{}{mesh}", self.strangers.lines()), &self.certificates)?;
            self.forward(&name, &within).await?;
            let Some(port) = service.port() else { continue };
            let mut command = self.inside(at)?;
            command.args(["behave", "--service", &service.name, "--version", &service.version]);
            command.args(["--address", "0.0.0.0", "--port", &port.to_string(), "--seen"]).arg(self.seen_path(at));
            let process = command.stdin(Stdio::null()).kill_on_drop(true).spawn();
            self.strangers.processes.push(process.map_err(|error| format!("ip: {error}"))?);
        }
        Ok(())
    }

    /// What is called at a service's port goes to where its workload listens, as the addresses of services do on Kubernetes.
    async fn forward(&self, name: &str, within: &[&Service]) -> Result<(), String> {
        let run = async |words: String| tool(&format!("ip netns exec {name} nft {words}")).await;
        run("add table ip services".to_owned()).await?;
        run("add chain ip services out { type nat hook output priority -100 ; }".to_owned()).await?;
        for (at, service) in within.iter().enumerate() {
            let Some((port, workload)) = service.port().zip(service.workload_port) else { continue };
            let host = address(at);
            run(format!("add rule ip services out ip daddr {host} tcp dport {port} dnat to {host}:{workload}")).await?;
        }
        Ok(())
    }

    /// What workloads without a node call at a host of the mesh goes through its node; so does what is called from there by one
    /// that knows nothing of the mesh, and finds all by their names.
    pub(super) async fn intercept(&self, at: usize, service: &Service, services: &[Service]) -> Result<(), String> {
        let port = service.workload_port.or(service.port()).filter(|_| self.strangers.are_there());
        let inbound = port.map(|port| format!(" --inbound {port}"));
        let outbound = service.intercepted.then(|| format!(" --user {CALLER}"));
        if inbound.is_none() && outbound.is_none() {
            return Ok(());
        }
        if service.intercepted {
            let lines = format!("{}{}", self.strangers.lines(), self::within(services));
            self.internet.tell(&self.namespace(at), &lines, &self.certificates)?;
        }
        let (weft, data_dir) = (self.weft.display(), self.data_dir(at));
        let what = format!("{}{}", inbound.unwrap_or_default(), outbound.unwrap_or_default());
        let words = format!("--data-dir {} intercept on --now{what}", data_dir.display());
        tool(&format!("ip netns exec {} {weft} {words}", self.namespace(at))).await.map(drop)
    }
}

/// Lines by which workloads of the mesh are found.
fn within(services: &[Service]) -> String {
    let within = services.iter().filter(|service| service.runs()).enumerate();
    within.filter(|(_, service)| service.port().is_some()).map(|(at, service)| line(at, service)).collect()
}

fn line(at: usize, service: &Service) -> String {
    let (name, namespace) = (&service.name, &service.namespace);
    format!("{} {name}.{namespace} {name}.{namespace}.svc {name}.{namespace}.svc.cluster.local\n", address(at))
}

/// Whom callers run as that know nothing of the mesh: the nodes run as another user.
pub(super) const CALLER: &str = "nobody";
/// The first of them, among the hosts.
const FIRST: usize = 120;
