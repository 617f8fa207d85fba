//! The steps of the demo, in the order in which they are told.

mod canary;
mod edge;
mod renewal;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use http::{Method, StatusCode, Uri};
use tokio::time::{Instant, sleep};
use weft_proto::Index;
use weft_proto::service::{DEFAULT_NAMESPACE, Protocol};

use super::applications::Applications;
use super::stage::{NODES, Stage, local};
use super::traffic::{Load, call};
use super::words::{instance, is_voter, measured, milliseconds, roles, say, seconds, step, text};
use crate::api::schema::{ApplyRequest, ExplainRequest, PortSpec, ServiceSpec, Text, TokenRequest};
use crate::client::Client;

/// The mesh's name.
const TRUST_DOMAIN: &str = "demo.local";
/// The services, the port that callers use where it is free, and their nodes.
const SERVICES: [(&str, u16, &[&str]); 3] = [("web", 8080, &["a"]), ("api", 8081, &["b", "c"]), ("db", 8082, &["b"])];
/// Bound on waiting for any one condition.
const STEP_TIMEOUT: Duration = Duration::from_secs(25);
/// Pause before a condition is looked at again.
const LOOK_AGAIN_PAUSE: Duration = Duration::from_millis(20);
/// Calls that make a latency worth telling.
const CALLS: usize = 100;
/// Served calls in a row after which traffic counts as steady.
const STEADY_CALLS: u64 = 300;
/// Denies web's calls of db, all but `GET /public`.
const POLICY: &str = r"apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: db}
spec:
  targetRefs: [{kind: Service, name: db}]
  action: DENY
  rules:
  - from: [{source: {principals: [demo.local/ns/default/sa/web]}}]
    to: [{operation: {notMethods: [GET]}}, {operation: {notPaths: [/public]}}]
";

type Told<T> = Result<T, String>;

/// Tells the whole story.
pub(super) async fn tell(stage: &mut Stage) -> Told<()> {
    let start = Instant::now();
    say("weft demo: three nodes as processes of this machine; nothing is installed, all is removed at the end\n");
    gather(stage).await?;
    let mut applications = Applications::default();
    let ports = register(stage, &mut applications).await?;
    let mesh = Mesh { proxy: stage.nodes[0].proxy, ports };
    mesh.first_calls(stage).await?;
    mesh.restrict(&stage.nodes[0].client).await?;
    mesh.canary(&stage.nodes[0].client).await?;
    mesh.open_a_gateway(stage).await?;
    mesh.lose_a_node(stage).await?;
    mesh.bring_it_back(stage).await?;
    mesh.renew(stage).await?;
    say(&format!("\nAll of it took {}. Next: `weft up --init` on a host of yours.", seconds(start)));
    Ok(())
}

/// 1: a mesh of three nodes.
async fn gather(stage: &Stage) -> Told<()> {
    step(1, "Node a makes a mesh; b and c join it with a token.");
    let start = Instant::now();
    let [a, b, c] = &stage.nodes;
    a.start(&["--init", "--trust-domain", TRUST_DOMAIN])?;
    let request = TokenRequest { lifetime_s: 600, uses: 2, services: vec!["*".to_owned()] };
    let client = &a.client;
    let token = until("node a makes a join token", async || client.create_token(&request).await.map_err(text)).await?;
    let alone = seconds(start);
    let file = stage.directory.join("join");
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
    written
        .and_then(|mut file| file.write_all(token.line.as_bytes()))
        .map_err(|error| format!("the join line: {error}"))?;
    let file = file.display().to_string();
    for node in [b, c] {
        node.start(&["--join-file", &file])?;
    }
    until("three nodes are live and vote", async || {
        let members = client.members().await.map_err(text)?;
        let voting = members.iter().filter(|member| member.live && is_voter(member)).count();
        if voting == NODES.len() { Ok(()) } else { Err(roles(&members)) }
    })
    .await?;
    measured(&format!("a was ready after {alone}; 3 of 3 nodes are live and vote after {}", seconds(start)));
    Ok(())
}

/// 2: services with health checks. Gives the port of each.
async fn register(stage: &mut Stage, applications: &mut Applications) -> Told<[u16; 3]> {
    step(2, "Services register: web on a, api on b and c, db on b, each with a health check.");
    let start = Instant::now();
    let mut ports = [0; 3];
    for (i, (service, port, nodes)) in SERVICES.iter().enumerate() {
        ports[i] = stage.ports.take_preferred(*port)?;
        for name in *nodes {
            let target = local(stage.ports.take()?);
            applications.serve(target, instance(service, name)).await?;
            let port = PortSpec { port: ports[i], target: Some(target.to_string()), protocol: Protocol::Http };
            let spec = ServiceSpec {
                instance: None,
                labels: version(name),
                service_account: None,
                name: (*service).to_owned(),
                ports: vec![port],
                check: Some("http:/healthz".to_owned()),
                unit: None,
                user: None,
                caller: (*service == "web").then(|| "any".to_owned()),
                weight: None,
                gateway: false,
                egress: false,
            };
            let node = stage.nodes.iter().find(|node| node.name == *name).ok_or("there is no such node")?;
            node.client.add_service(&spec).await.map_err(|error| format!("{service} on {name}: {}", text(error)))?;
        }
    }
    let wanted: usize = SERVICES.iter().map(|(_, _, nodes)| nodes.len()).sum();
    for node in &stage.nodes {
        until(&format!("node {} sees every instance healthy", node.name), async || {
            let healthy = healthy_instances(&node.client).await?;
            if healthy == wanted { Ok(()) } else { Err(format!("{healthy} of {wanted} are")) }
        })
        .await?;
    }
    measured(&format!("all {wanted} instances are healthy in the eyes of every node after {}", seconds(start)));
    Ok(ports)
}

/// What is on c is a new version.
fn version(node: &str) -> BTreeMap<String, String> {
    let version = if node == "c" { "v2" } else { "v1" };
    [("version".to_owned(), version.to_owned())].into()
}

/// What callers need to know.
struct Mesh {
    proxy: SocketAddr,
    ports: [u16; 3],
}

impl Mesh {
    /// 3: calls by name through the proxy, and by loopback address without it; a stranger's call is not answered.
    async fn first_calls(&self, stage: &Stage) -> Told<()> {
        step(3, "web calls api and db by name.");
        let [a, b, _] = &stage.nodes;
        let api = self.uri("api", "/")?;
        until("web's calls of api are answered", async || self.expect(Method::GET, &api, StatusCode::OK).await).await?;
        let mut times = Vec::with_capacity(CALLS);
        for _ in 0..CALLS {
            let start = Instant::now();
            self.expect(Method::GET, &api, StatusCode::OK).await?;
            times.push(start.elapsed());
        }
        times.sort();
        let median = times[CALLS / 2];
        self.expect(Method::GET, &self.uri("db", "/secret")?, StatusCode::OK).await?;
        let services = a.client.services().await.map_err(text)?.services;
        let address =
            services.iter().find(|service| service.name == "default/db").map(|service| service.address.clone());
        let address = format!("{}:{}", address.unwrap_or_default(), self.ports[2]);
        let to: SocketAddr = address.parse().map_err(|_| format!("db's loopback address {address:?} is not one"))?;
        let plain = Uri::from_static("/secret");
        until("db answers at its loopback address", async || {
            let answer = call(to, Method::GET, &plain).await?;
            if answer.status == StatusCode::OK {
                Ok(())
            } else {
                Err(format!("it answered {}", answer.status.as_u16()))
            }
        })
        .await?;
        if let Ok(answer) = call(b.listen, Method::GET, &plain).await {
            return Err(format!("node b answered a call without TLS with {}", answer.status.as_u16()));
        }
        measured(&format!(
            "{CALLS} of {CALLS} calls served, median {:.1} ms; and db at http://{to} without a proxy",
            milliseconds(median)
        ));
        measured("a call to node b without TLS is not answered");
        Ok(())
    }

    /// 4: a policy, in force everywhere when `apply --wait` returns.
    async fn restrict(&self, client: &Client) -> Told<()> {
        step(4, "A policy denies web's calls of db, all but GET /public; applied with --wait.");
        let start = Instant::now();
        let texts = vec![Text { source: "policy".to_owned(), text: POLICY.to_owned() }];
        let applied = client.apply(&ApplyRequest { texts }, false).await.map_err(text)?;
        let nodes = enforced_by_all(client, applied.index, NODES.len()).await?;
        let took = milliseconds(start.elapsed());
        for (method, path, status) in [
            (Method::GET, "/secret", StatusCode::FORBIDDEN),
            (Method::POST, "/public", StatusCode::FORBIDDEN),
            (Method::GET, "/public", StatusCode::OK),
        ] {
            self.expect(method, &self.uri("db", path)?, status).await?;
        }
        let request = ExplainRequest {
            gateway: None,
            from: "web".to_owned(),
            to: "db".to_owned(),
            port: None,
            method: Some("GET".to_owned()),
            path: Some("/secret".to_owned()),
            headers: Vec::new(),
            sni: None,
        };
        let explanation = client.explain(&request).await.map_err(text)?.to_string();
        if !explanation.contains("default/db") {
            return Err(format!("the explanation does not name the policy: {explanation}"));
        }
        measured(&format!("{nodes} of {nodes} nodes enforce index {} after {took:.0} ms", applied.index));
        measured("GET /secret 403, POST /public 403, GET /public 200; `weft explain` names the policy default/db");
        Ok(())
    }

    /// 7: a node dies under load.
    async fn lose_a_node(&self, stage: &Stage) -> Told<()> {
        step(7, "Node c, with one of api's two instances, is killed (kill -9) under load.");
        let [a, _, c] = &stage.nodes;
        let load = Load::start(self.proxy, &self.uri("api", "/")?);
        until("both instances of api serve", async || {
            let tally = load.tally();
            let both = tally.by_instance.len() == 2 && tally.served_in_a_row >= STEADY_CALLS;
            if both { Ok(()) } else { Err(format!("served by {:?}; {}", tally.by_instance, tally.failures_text())) }
        })
        .await?;
        let before = load.tally();
        let killed = Instant::now();
        c.kill();
        until_live(&a.client, c.name, false).await?;
        let noticed = seconds(killed);
        let steady_from = load.tally().served;
        until("traffic is steady again", async || {
            let tally = load.tally();
            let steady = tally.served_in_a_row >= STEADY_CALLS && tally.served >= steady_from + STEADY_CALLS;
            if steady { Ok(()) } else { Err(format!("{} served, {}", tally.served, tally.failures_text())) }
        })
        .await?;
        let after = load.stop().await;
        let (served, failed) = (after.served - before.served, after.failed - before.failed);
        if failed * 100 > served {
            return Err(format!(
                "{failed} of {} calls failed after the kill: {}",
                served + failed,
                after.failures_text()
            ));
        }
        let last = after.failed_last.filter(|_| failed > 0);
        let last = last.map(|at| {
            format!(", the last {:.0} ms after the kill", milliseconds(at.saturating_duration_since(killed)))
        });
        measured(&format!("{served} calls served and {failed} failed{}", last.unwrap_or_default()));
        measured(&format!("the others took it for dead after {noticed}"));
        Ok(())
    }

    /// 8: the node comes back and enforces what was decided while it was away, before it serves.
    async fn bring_it_back(&self, stage: &Stage) -> Told<()> {
        step(8, "The policy is deleted while c is away; then c starts again from its disk.");
        let [a, _, c] = &stage.nodes;
        let applied =
            a.client.delete_resource("AuthorizationPolicy", DEFAULT_NAMESPACE, "db", None).await.map_err(text)?;
        enforced_by_all(&a.client, applied.index, NODES.len() - 1).await?;
        let start = Instant::now();
        c.start(&[])?;
        until_live(&a.client, c.name, true).await?;
        enforced_by_all(&a.client, applied.index, NODES.len()).await?;
        let enforcing = seconds(start);
        let returned = instance("api", c.name);
        let api = self.uri("api", "/")?;
        until("the instance on c serves again", async || {
            let answer = self.call(Method::GET, &api).await?;
            if answer == returned { Ok(()) } else { Err(format!("{answer} answered")) }
        })
        .await?;
        self.expect(Method::GET, &self.uri("db", "/secret")?, StatusCode::OK).await?;
        measured(&format!(
            "3 of 3 nodes enforce index {} after {enforcing}; api on c serves after {}",
            applied.index,
            seconds(start)
        ));
        Ok(())
    }

    fn uri(&self, service: &str, path: &str) -> Told<Uri> {
        let position = SERVICES.iter().position(|(name, _, _)| *name == service).ok_or("there is no such service")?;
        format!("http://{service}.mesh:{}{path}", self.ports[position]).parse().map_err(text)
    }

    /// A call that must be answered with 200; gives who answered.
    async fn call(&self, method: Method, uri: &Uri) -> Told<String> {
        self.expect(method, uri, StatusCode::OK).await
    }

    async fn expect(&self, method: Method, uri: &Uri, status: StatusCode) -> Told<String> {
        let answer = call(self.proxy, method.clone(), uri).await.map_err(|error| format!("{method} {uri}: {error}"))?;
        match answer.status == status {
            true => Ok(answer.text),
            false => Err(format!("{method} {uri} answered {} and not {}: {}", answer.status, status, answer.text)),
        }
    }
}

/// Looks until the condition holds, within a bound; what it said last is told when it does not.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Told<T>) -> Told<T> {
    let deadline = Instant::now() + STEP_TIMEOUT;
    loop {
        match look().await {
            Ok(seen) => return Ok(seen),
            Err(_) if Instant::now() < deadline => sleep(LOOK_AGAIN_PAUSE).await,
            Err(last) => return Err(format!("not within {} s: {what} ({last})", STEP_TIMEOUT.as_secs())),
        }
    }
}

async fn until_live(client: &Client, name: &str, live: bool) -> Told<()> {
    let what = if live { "live" } else { "not live any more" };
    until(&format!("node {name} is {what}"), async || {
        let members = client.members().await.map_err(text)?;
        let reached = members.iter().any(|member| member.name == name && member.live == live);
        if reached { Ok(()) } else { Err(roles(&members)) }
    })
    .await
}

/// Waits until so many live nodes are all that there are, and enforce the index.
async fn enforced_by_all(client: &Client, index: Index, nodes: usize) -> Told<usize> {
    until(&format!("{nodes} nodes enforce index {index}"), async || {
        let enforced = client.enforced(index, Duration::from_secs(5)).await.map_err(text)?;
        match enforced.nodes == nodes && enforced.lagging.is_empty() {
            true => Ok(enforced.enforced),
            false => Err(format!("{} of {} live nodes do: {:?}", enforced.enforced, enforced.nodes, enforced.lagging)),
        }
    })
    .await
}

async fn healthy_instances(client: &Client) -> Told<usize> {
    let services = client.services().await.map_err(text)?.services;
    Ok(services.iter().flat_map(|service| &service.instances).filter(|instance| instance.healthy).count())
}
