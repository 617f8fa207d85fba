//! The beginning: hosts join, register what runs on them, and what the mesh is to have is applied.

use std::time::Duration;

use tokio::time::Instant;
use weft::api::schema::{ApplyRequest, PortSpec, ServiceSpec, Text, TokenRequest};
use weft_proto::service;

use super::{CYCLE, Chaos, Stop};
use crate::host::{target, user};
use crate::invariants::Breach;
use crate::mesh::Protocol;
use crate::trace::Kind;

/// How long hosts have to join.
const FORMING: Duration = Duration::from_secs(60);
/// How long what is applied in the beginning may take until it is in force.
const FURNISHING: Duration = Duration::from_secs(30);

impl Chaos {
    /// The first node makes the mesh, the others join, and what runs on them is registered.
    pub(super) async fn form(&mut self) -> Result<(), Stop> {
        let deny = self.setup.mesh.deny_by_default;
        let mut how = vec!["--init", "--trust-domain", "mesh.test"];
        how.extend(deny.then_some("--deny-by-default"));
        self.stage.start(0, &how)?;
        let deadline = Instant::now() + FORMING;
        for host in 0..self.setup.nodes {
            if host > 0 {
                let services = self.setup.mesh.admission(host).map_or_else(|| vec!["*".to_owned()], <[String]>::to_vec);
                let request = TokenRequest { lifetime_s: 86_400, uses: 100, services };
                let token = self.client(0).create_token(&request).await;
                let line = token.map_err(|error| format!("no token: {error}"))?.line;
                self.stage.start(host, &["--join", &line])?;
                self.line = line;
            }
            while self.client(host).status().await.is_err() {
                if Instant::now() >= deadline || self.stage.has_ended(host).is_some() {
                    let log = std::fs::read_to_string(self.stage.directory(host).join("weft.log")).unwrap_or_default();
                    let last: Vec<&str> = log.lines().rev().take(3).collect();
                    let text = format!("n{host} is not up: {}", last.join(" / "));
                    return Err(Breach { invariant: "a mesh forms", text }.into());
                }
                tokio::time::sleep(CYCLE).await;
            }
            self.started[host] = self.now();
            self.register(host).await?;
            self.trace.add(self.now(), Some(host), Kind::Node, "is up");
        }
        Ok(())
    }

    async fn register(&self, host: usize) -> Result<(), Stop> {
        let mesh = &self.setup.mesh;
        for (at, service) in mesh.services.iter().enumerate() {
            if !mesh.runs_on(at, host, self.setup.nodes) {
                continue;
            }
            let protocol = match service.protocol {
                Protocol::Http => service::Protocol::Http,
                Protocol::Tcp => service::Protocol::Tcp,
            };
            let spec = ServiceSpec {
                instance: None,
                labels: std::collections::BTreeMap::new(),
                service_account: None,
                name: service.name.clone(),
                ports: vec![PortSpec { port: service.port, target: Some(target(at).to_string()), protocol }],
                check: Some("tcp".into()),
                unit: None,
                user: Some(user(at).to_string()),
                caller: None,
                weight: None,
                gateway: false,
                egress: false,
            };
            let added = self.client(host).add_service(&spec).await;
            added.map_err(|error| format!("n{host}: {} cannot be registered: {error}", service.name))?;
        }
        Ok(())
    }

    /// What is to be kept is applied, and in force everywhere.
    pub(super) async fn furnish(&mut self) -> Result<(), Stop> {
        let mesh = self.setup.mesh.clone();
        let text = |text: &String| Text { source: mesh.name.clone(), text: text.clone() };
        let texts: Vec<Text> = mesh.fixed.iter().map(|document| text(&document.text)).collect();
        if !texts.is_empty() {
            let applied = self.client(0).apply(&ApplyRequest { texts }, false).await;
            applied.map_err(|error| format!("the mesh does not take the resources: {error}"))?;
        }
        let deadline = Instant::now() + FURNISHING;
        loop {
            self.cycle().await?;
            if self.claims.settled(false, self.looked) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let text = "what was applied is not in force".into();
                return Err(Breach { invariant: "a mesh forms", text }.into());
            }
        }
    }
}
