//! `weft service`: what this host runs, and what the mesh knows.

use clap::{Args, Subcommand};
use weft_proto::service::{Protocol, ServiceName};

use super::table::table;
use super::{Context, Ended, values};
use crate::api::schema::{self, PortSpec, ServiceSpec, Services};

#[derive(Debug, Subcommand)]
pub(super) enum Service {
    /// Register a service that runs on this host; a registration of the same name is replaced
    Add(Box<Add>),
    /// List the services of the mesh and their instances
    List,
    /// Take a service off this host
    Remove {
        /// NAME or NAMESPACE/NAME
        name: ServiceName,
    },
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// NAME or NAMESPACE/NAME
    name: ServiceName,
    /// The port callers use; where the application listens unless it is the same port of 127.0.0.1: a port of this host,
    /// [::1]:8081, 10.0.0.7:8081 or NAME:8081; and what it speaks; may be repeated
    #[arg(long, required = true, value_name = "PORT[:TARGET][/PROTOCOL]", value_parser = values::port)]
    port: Vec<(PortSpec, bool)>,
    /// What ports speak that do not say: auto, http, http2, grpc or tcp
    #[arg(long, default_value = "auto")]
    protocol: Protocol,
    /// How its health is told: tcp, or http:[//HOST]/PATH[=CODES] on its first port, such as http:/healthz=200-299
    #[arg(long, value_parser = values::check)]
    check: Option<String>,
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
            Self::Add(add) => {
                let service = context.client.add_service(&add.spec()).await?;
                context.render(&service, added)
            }
            Self::List => {
                let services = context.client.services().await?;
                context.render(&services, list)
            }
            Self::Remove { name } => {
                let answer = context.client.remove_service(&name).await?;
                context.render(&answer, |_| format!("{name} is taken off this host\n"))
            }
        }
    }
}

impl Add {
    fn spec(self) -> ServiceSpec {
        let protocol = |(port, named)| if named { port } else { PortSpec { protocol: self.protocol, ..port } };
        ServiceSpec {
            name: self.name.to_string(),
            ports: self.port.into_iter().map(protocol).collect(),
            check: self.check,
            user: self.user,
            caller: self.caller,
            weight: self.weight,
        }
    }
}

fn added(service: &schema::Service) -> String {
    let ports = service.ports.join(", ");
    let address = if service.address.is_empty() { String::new() } else { format!(" at {}", service.address) };
    format!("{} is registered: {}{address}, ports {ports}\n", service.name, service.host)
}

fn list(services: &Services) -> String {
    let rows: Vec<[String; 5]> = services.services.iter().flat_map(rows).collect();
    let mut text = match rows.is_empty() {
        true => "there are no services: register one with `weft service add`\n".to_owned(),
        false => table(["SERVICE", "ADDRESS", "PORTS", "INSTANCE ON", "HEALTH"], &rows),
    };
    for fault in &services.faults {
        text.push_str(&format!("! {fault}\n"));
    }
    text
}

/// A row an instance; the service is named on the first only.
fn rows(service: &schema::Service) -> Vec<[String; 5]> {
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
        rows.push([name, address, ports, instance.node.clone(), health(instance)]);
    }
    if rows.is_empty() {
        let [name, address, ports] = head;
        rows.push([name, address, ports, String::new(), "no instance".to_owned()]);
    }
    rows
}

#[cfg(test)]
mod tests {
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
    }

    #[test]
    fn every_instance_has_a_row_and_its_problem() {
        let instance = |node: &str, problem: &str| schema::ServiceInstance {
            node: node.into(),
            healthy: problem.is_empty(),
            unchecked: false,
            problem: problem.into(),
        };
        let web = schema::Service {
            name: "default/web".into(),
            address: "127.71.0.1".into(),
            host: "web.default.mesh".into(),
            ports: vec!["80/http".into()],
            instances: vec![instance("a", ""), instance("b", "it is down")],
        };
        let text = list(&Services { services: vec![web], faults: vec!["x.yaml: bad".into()] });
        assert_eq!(text.lines().nth(1), Some("default/web  127.71.0.1  80/http  a            healthy"));
        assert_eq!(text.lines().nth(2), Some("                                  b            unhealthy: it is down"));
        assert_eq!(text.lines().nth(3), Some("! x.yaml: bad"));
    }
}
