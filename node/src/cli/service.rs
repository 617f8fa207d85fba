//! `weft service`: what this host runs, and what the mesh knows.

mod unit;

use std::time::Duration;

use clap::{Args, Subcommand};
use weft_proto::service::{InstanceName, Protocol, ServiceName};

use super::table::table;
use super::{Context, Done, Ended, FAILURE, Stopped, values};
use crate::api::schema::{self, PortSpec, ServiceSpec, Services};

#[derive(Debug, Subcommand)]
pub(super) enum Service {
    /// Register an instance of a service that runs on this host; a registration of the same names is replaced
    Add(Box<Add>),
    /// List the services of the mesh and their instances
    List,
    /// Give an instance of this host no more calls, and wait until it has answered those that it has: exit code 1 where it has not in
    /// time. It is given calls again once its unit starts again, or it is added again
    Drain {
        /// NAME or NAMESPACE/NAME
        name: ServiceName,
        /// Only the instance of that name; all of this host unless set
        #[arg(long, value_name = "NAME")]
        instance: Option<InstanceName>,
        /// How long it is waited for
        #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = clap::value_parser!(u64).range(0..=300))]
        timeout: u64,
    },
    /// Take a service off this host, or one instance of it
    Remove {
        /// NAME or NAMESPACE/NAME
        name: ServiceName,
        /// Only the instance of that name; all of this host unless set
        #[arg(long, value_name = "NAME")]
        instance: Option<InstanceName>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// NAME or NAMESPACE/NAME
    name: ServiceName,
    /// The instance's name, where this host runs several of the service [default: default]
    #[arg(long, value_name = "NAME")]
    instance: Option<InstanceName>,
    /// A label by which routes and policies choose among instances, such as version=v2; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label)]
    label: Vec<(String, String)>,
    /// Who its instances are to others: the service account in their SPIFFE ID [default: the service's name]
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,
    /// The port callers use; where the application listens unless it is the same port of 127.0.0.1: a port of this host,
    /// [::1]:8081, 10.0.0.7:8081 or NAME:8081; and what it speaks; may be repeated
    #[arg(long, required_unless_present_any = ["gateway", "egress_gateway"], value_name = "PORT[:TARGET][/PROTOCOL]", value_parser = values::port)]
    port: Vec<(PortSpec, bool)>,
    /// It is a gateway: this node serves the Gateway documents that its name or labels select
    #[arg(long, conflicts_with_all = ["check", "weight", "port"])]
    gateway: bool,
    /// It is a gateway that takes only callers of the mesh, such as one through which calls leave it: no port of this host is
    /// listened on
    #[arg(long, conflicts_with_all = ["check", "weight", "port", "gateway"])]
    egress_gateway: bool,
    /// What ports speak that do not say: auto, http, http2, grpc or tcp
    #[arg(long, default_value = "auto")]
    protocol: Protocol,
    /// How its health is told: tcp, or http:[//HOST]/PATH[=CODES] on its first port, such as http:/healthz=200-299
    #[arg(long, value_parser = values::check)]
    check: Option<String>,
    /// The unit of systemd that it is, such as web.service or web@1.service: its processes call as this service, it is healthy while
    /// that is active, and it answers its calls before it stops
    #[arg(long, value_name = "UNIT", conflicts_with_all = ["gateway", "egress_gateway"])]
    unit: Option<String>,
    /// Processes of this user call as this service
    #[arg(long, conflicts_with = "caller")]
    user: Option<String>,
    /// any: processes that no other service claims call as this service
    #[arg(long, value_parser = ["any"])]
    caller: Option<String>,
    /// Share of calls relative to other instances, 100 unless set
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    weight: Option<u16>,
}

impl Service {
    pub(super) async fn execute(self, context: &Context) -> Ended {
        match self {
            Self::Add(mut add) => {
                let unit = add.unit.clone();
                add.instance = add.instance.or_else(|| unit.as_deref().and_then(unit::instance_of));
                if let Some(key) = add.twice() {
                    return Err(Stopped::usage(format!("--label {key} is given twice")));
                }
                let (name, instance) = (add.name.clone(), add.instance.clone().unwrap_or_default());
                let service = context.client.add_service(&add.spec()).await?;
                let told = match unit {
                    Some(unit) => unit::tell(&unit, &name, &instance)?,
                    None => None,
                };
                context.render(&service, |service| added(service) + told.as_deref().unwrap_or_default())
            }
            Self::List => {
                let services = context.client.services().await?;
                context.render(&services, list)
            }
            Self::Drain { name, instance, timeout } => {
                let bound = Duration::from_secs(timeout);
                let drained = context.client.drain_service(&name, instance.as_ref(), bound).await?;
                let code = if drained.open > 0 { FAILURE } else { 0 };
                context.render(&drained, drained_text).map(|done| Done { code, ..done })
            }
            Self::Remove { name, instance } => {
                let removed = context.client.remove_service(&name, instance.as_ref()).await?;
                unit::forget(&name, instance.as_ref())?;
                context.render(&removed, |removed| gone(&name, removed))
            }
        }
    }
}

impl Add {
    /// A label that is given twice.
    fn twice(&self) -> Option<&str> {
        let keys = || self.label.iter().map(|(key, _)| key.as_str());
        keys().enumerate().find(|(at, key)| keys().take(*at).any(|other| other == *key)).map(|(_, key)| key)
    }

    fn spec(self) -> ServiceSpec {
        let protocol = |(port, named)| if named { port } else { PortSpec { protocol: self.protocol, ..port } };
        ServiceSpec {
            name: self.name.to_string(),
            instance: self.instance.map(|name| name.to_string()),
            labels: self.label.into_iter().collect(),
            service_account: self.service_account,
            ports: self.port.into_iter().map(protocol).collect(),
            check: self.check,
            unit: self.unit,
            user: self.user,
            caller: self.caller,
            weight: self.weight,
            gateway: self.gateway,
            egress: self.egress_gateway,
        }
    }
}

fn added(service: &schema::Service) -> String {
    let ports = if service.ports.is_empty() { String::new() } else { format!(", ports {}", service.ports.join(", ")) };
    let address = if service.address.is_empty() { String::new() } else { format!(" at {}", service.address) };
    format!("{} is registered: {}{address}{ports}\n", service.name, service.host)
}

fn drained_text(drained: &schema::Drained) -> String {
    let names = drained.instances.join(", ");
    match drained.open {
        0 => format!("{names}: given no more calls, and all are answered\n"),
        1 => format!("{names}: given no more calls; 1 is not answered yet\n"),
        open => format!("{names}: given no more calls; {open} are not answered yet\n"),
    }
}

fn gone(name: &ServiceName, removed: &schema::Removed) -> String {
    let instances = removed.instances.join(", ");
    match removed.forgotten_in_s {
        None => format!("{instances}: taken off this host\n"),
        Some(seconds) => format!(
            "{instances}: taken off this host\n{name} has no other host: the mesh forgets it in {seconds} s, and gives its address to no \
             other service for an hour\n"
        ),
    }
}

fn list(services: &Services) -> String {
    let rows: Vec<[String; 6]> = services.services.iter().flat_map(rows).collect();
    let mut text = match rows.is_empty() {
        true => "there are no services: register one with `weft service add`\n".to_owned(),
        false => table(["SERVICE", "ADDRESS", "PORTS", "INSTANCE ON", "LABELS", "HEALTH"], &rows),
    };
    for fault in &services.faults {
        text.push_str(&format!("! {fault}\n"));
    }
    text
}

/// A row an instance; the service is named on the first only.
fn rows(service: &schema::Service) -> Vec<[String; 6]> {
    let head = [service.name.clone(), service.address.clone(), service.ports.join(",")];
    let health = |instance: &schema::ServiceInstance| match (instance.healthy, instance.problem.as_str()) {
        (true, _) if instance.unchecked => "unchecked".to_owned(),
        (true, _) => "healthy".to_owned(),
        (false, "") => "unhealthy".to_owned(),
        (false, problem) => format!("unhealthy: {problem}"),
    };
    let mut rows = Vec::new();
    for (position, instance) in service.instances.iter().enumerate() {
        let [name, address, ports] =
            if position == 0 { head.clone() } else { [const { String::new() }; 3].map(|_| " ".into()) };
        let labels = instance.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
        let place = match instance.name.as_str() {
            InstanceName::DEFAULT => instance.node.clone(),
            name => format!("{}, {name}", instance.node),
        };
        rows.push([name, address, ports, place, labels, health(instance)]);
    }
    if rows.is_empty() {
        let [name, address, ports] = head;
        rows.push([name, address, ports, String::new(), String::new(), "no instance".to_owned()]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use weft_proto::service::Labels;

    use super::*;
    use crate::cli::Command;
    use crate::cli::tests::parse;

    #[test]
    fn options_become_a_specification() {
        let line = "weft service add prod/web --port 80:8080 --port 443/tcp --protocol http --check http:/healthz --caller any --weight 7";
        let Ok(Command::Service(Service::Add(add))) = parse(line) else { panic!("{line:?} is not service add") };
        let spec = add.spec();
        assert_eq!((spec.name.as_str(), spec.weight, spec.caller.as_deref()), ("prod/web", Some(7), Some("any")));
        assert_eq!(spec.ports[0].protocol, Protocol::Http);
        assert_eq!(spec.ports[1].protocol, Protocol::Tcp);
        assert_eq!(spec.check.as_deref(), Some("http:/healthz"));
        let line = "weft service add reviews --port 9080:9082 --instance v2 --label version=v2 --label a/b= --service-account shop";
        let Ok(Command::Service(Service::Add(add))) = parse(line) else { panic!("{line:?} is not service add") };
        let spec = add.spec();
        assert_eq!((spec.instance.as_deref(), spec.service_account.as_deref()), (Some("v2"), Some("shop")));
        assert_eq!(
            spec.labels.into_iter().collect::<Vec<_>>(),
            [("a/b".into(), String::new()), ("version".into(), "v2".into())]
        );
        for label in ["version", "=v", "-x=y", "a=b c"] {
            assert!(parse(&format!("weft service add web --port 80 --label '{label}'")).is_err(), "{label}");
        }
    }

    #[test]
    fn every_instance_has_a_row_and_its_problem() {
        let instance = |node: &str, name: &str, problem: &str| schema::ServiceInstance {
            node: node.into(),
            name: name.into(),
            labels: if name == "v2" { [("version".to_owned(), "v2".to_owned())].into() } else { Labels::new() },
            weight: 100,
            healthy: problem.is_empty(),
            unchecked: false,
            problem: problem.into(),
        };
        let web = schema::Service {
            name: "default/web".into(),
            address: "127.71.0.1".into(),
            host: "web.default.mesh".into(),
            identity: "spiffe://mesh.local/ns/default/sa/web".into(),
            ports: vec!["80/http".into()],
            instances: vec![instance("a", "default", ""), instance("b", "v2", "it is down")],
        };
        let text = list(&Services { services: vec![web], faults: vec!["x.yaml: bad".into()] });
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(lines[0], "default/web  127.71.0.1  80/http  a            -           healthy");
        assert_eq!(lines[1], "                                  b, v2        version=v2  unhealthy: it is down");
        assert_eq!(lines[2], "! x.yaml: bad");
    }
}
