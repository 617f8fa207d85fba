//! Several instances of a service on one node: who picks, where it goes, and whose policies judge.

mod support {
    pub(crate) mod application;
    pub(crate) mod mesh;
}

use std::collections::BTreeMap;
use std::net::SocketAddr;

use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use weft_proto::service::Protocol;
use weft_proxy::plane::Transport;

use support::application;
use support::mesh::{Mesh, Setup, TestInstance, identity, soon};

const HTTP: u16 = 8080;
const OPAQUE: u16 = 7000;

const ONLY_V1_FOR_FRONT: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: v2}
spec:
  selector: {matchLabels: {version: v2}}
  action: DENY
  rules: [{from: [{source: {principals: [mesh.test/ns/default/sa/front]}}]}]
";

struct Stage {
    mesh: Mesh,
    setup: Setup,
    v1: SocketAddr,
    v2: SocketAddr,
}

impl Stage {
    async fn over(transport: Transport) -> Self {
        let (v1, v2) = (application::named("v1").await, application::named("v2").await);
        let setup = Setup::over(transport);
        let mut mesh = Mesh::start(&setup, &[(HTTP, Protocol::Auto, v1)]).await;
        mesh.instances = both("b", v1, v2);
        mesh.enforce("", &setup);
        Self { mesh, setup, v1, v2 }
    }

    /// What comes of so many calls: how many by body, and by status where that is not 200.
    async fn calls(&self, count: usize) -> BTreeMap<String, usize> {
        let mut seen = BTreeMap::new();
        for _ in 0..count {
            *seen.entry(call(self.mesh.ways_in[&HTTP]).await).or_default() += 1;
        }
        seen
    }
}

fn both(node: &'static str, v1: SocketAddr, v2: SocketAddr) -> Vec<TestInstance> {
    vec![
        TestInstance { name: "default", labels: &[("version", "v1")], node, target: Some(v1) },
        TestInstance { name: "v2", labels: &[("version", "v2")], node, target: Some(v2) },
    ]
}

async fn call(address: SocketAddr) -> String {
    let stream = TcpStream::connect(address).await.expect("connects");
    ask(TokioIo::new(stream), ("/", "web.mesh")).await
}

async fn ask<S>(stream: S, (target, host): (&str, &str)) -> String
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    soon("an answer", async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.expect("HTTP");
        tokio::spawn(connection);
        let request = http::Request::get(target).header("host", host).body(Full::<bytes::Bytes>::default());
        let response = sender.send_request(request.expect("valid")).await.expect("an answer");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        if status == 200 { String::from_utf8_lossy(&body).into_owned() } else { status.as_u16().to_string() }
    })
    .await
}

#[tokio::test]
async fn the_callers_node_picks_among_the_instances_of_a_node() {
    for transport in [Transport::Tcp, Transport::Quic] {
        let mut stage = Stage::over(transport).await;
        let seen = stage.calls(60).await;
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["v1", "v2"], "{seen:?}");
        // Of one that goes away nothing is asked any more, and of the other all is.
        stage.mesh.instances.remove(0);
        stage.mesh.enforce("", &stage.setup);
        assert_eq!(stage.calls(20).await, [("v2".to_owned(), 20)].into());
    }
}

#[tokio::test]
async fn one_instance_is_called_by_its_own_name() {
    for transport in [Transport::Tcp, Transport::Quic] {
        let stage = Stage::over(transport).await;
        // One that was given no name goes by that of its node.
        for (name, expected) in
            [("v2.web", "v2"), ("b.web", "v1"), ("v2.web.default", "v2"), ("v1.web", "502"), ("v2.db", "502")]
        {
            let host = format!("{name}.mesh:{HTTP}");
            for _ in 0..5 {
                let stream = TcpStream::connect(stage.mesh.proxy).await.expect("connects");
                let said = ask(TokioIo::new(stream), (&format!("http://{host}/"), &host)).await;
                assert_eq!(said, expected, "{name}");
            }
        }
    }
}

#[tokio::test]
async fn the_callees_node_sends_to_what_was_picked_and_nowhere_else() {
    for transport in [Transport::Tcp, Transport::Quic] {
        let mut stage = Stage::over(transport).await;
        // The callers' node knows only of one that the other node has no more.
        stage.mesh.instances.remove(0);
        stage.mesh.enforce_at(&[true], "", &stage.setup);
        stage.mesh.instances = both("b", stage.v1, stage.v2);
        stage.mesh.instances.remove(1);
        stage.mesh.enforce_at(&[false], "", &stage.setup);
        assert_eq!(stage.calls(3).await, [("503".to_owned(), 3)].into());
    }
}

#[tokio::test]
async fn a_client_without_weft_gets_any_or_the_one_that_it_names() {
    let stage = Stage::over(Transport::Tcp).await;
    let identities = stage.mesh.authority.identities("c", &["front"]);
    for (name, expected) in [
        ("8080.web.default.mesh", vec!["v1", "v2"]),
        ("default.8080.web.default.mesh", vec!["v1"]),
        ("v2.8080.web.default.mesh", vec!["v2"]),
        ("v3.8080.web.default.mesh", vec!["503"]),
    ] {
        let mut seen = BTreeMap::new();
        for _ in 0..30 {
            let config = identities.client_config(&identity("front"), &identity("web"), &[b"http/1.1"]).expect("held");
            let stream = TcpStream::connect(stage.mesh.mesh_port).await.expect("connects");
            let name = ServerName::try_from(name).expect("a name");
            let stream = TlsConnector::from(config).connect(name, stream).await.expect("a handshake");
            *seen.entry(ask(TokioIo::new(stream), ("/", "web.mesh")).await).or_insert(0) += 1;
        }
        assert_eq!(seen.keys().collect::<Vec<_>>(), expected, "{name}: {seen:?}");
    }
}

#[tokio::test]
async fn a_policy_selects_instances_by_their_labels() {
    for (transport, node) in [(Transport::Tcp, "b"), (Transport::Quic, "b"), (Transport::Tcp, "a")] {
        let mut stage = Stage::over(transport).await;
        stage.mesh.instances = both(node, stage.v1, stage.v2);
        stage.mesh.enforce(ONLY_V1_FOR_FRONT, &stage.setup);
        let seen = stage.calls(60).await;
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["403", "v1"], "on {node}: {seen:?}");
        // With nothing but what it denies, it is denied where the call begins.
        stage.mesh.instances.remove(0);
        stage.mesh.enforce(ONLY_V1_FOR_FRONT, &stage.setup);
        assert_eq!(stage.calls(3).await, [("403".to_owned(), 3)].into(), "on {node}");
    }
}

#[tokio::test]
async fn what_is_open_is_judged_by_the_policies_of_the_instance_that_serves_it() {
    const NOBODY_CALLS_V2: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: v2}
spec: {selector: {matchLabels: {version: v2}}, action: DENY, rules: [{}]}
";
    for (transport, node) in [(Transport::Tcp, "a"), (Transport::Tcp, "b"), (Transport::Quic, "b")] {
        let (v1, v2) = (application::says("v1").await, application::says("v2").await);
        let setup = Setup::over(transport);
        let mut mesh = Mesh::start(&setup, &[(OPAQUE, Protocol::Tcp, v1)]).await;
        mesh.instances = both(node, v1, v2);
        // Nothing tells the instances apart when the streams are opened.
        mesh.enforce("", &setup);
        let mut streams = Vec::new();
        soon("streams to both", async {
            while !["v1", "v2"].iter().all(|name| streams.iter().any(|(known, _)| known == name)) {
                let mut stream = TcpStream::connect(mesh.ways_in[&OPAQUE]).await.expect("connects");
                let mut name = [0; 2];
                stream.read_exact(&mut name).await.expect("its name");
                streams.push((String::from_utf8_lossy(&name).into_owned(), stream));
            }
        })
        .await;
        mesh.enforce(NOBODY_CALLS_V2, &setup);
        for (name, mut stream) in streams {
            let mut byte = [0];
            if name == "v2" {
                let ended = soon("its end", stream.read(&mut byte)).await;
                assert!(!matches!(ended, Ok(1)), "{transport:?} {node}");
            } else {
                stream.write_all(b"x").await.expect("it goes on");
                soon("an echo", stream.read_exact(&mut byte)).await.expect("it goes on");
            }
        }
    }
}

#[tokio::test]
async fn an_instance_is_who_its_service_account_says() {
    for transport in [Transport::Tcp, Transport::Quic] {
        let mut stage = Stage::over(transport).await;
        stage.mesh.account = "clerk";
        stage.mesh.enforce("", &stage.setup);
        // What was on its way while the account changed may have failed.
        let mut seen = BTreeMap::new();
        soon("calls of both", async {
            while seen.len() < 2 {
                seen.extend(stage.calls(5).await);
            }
        })
        .await;
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["v1", "v2"]);
        // No certificate is held of this one.
        stage.mesh.account = "nobody";
        stage.mesh.enforce("", &stage.setup);
        assert_eq!(stage.calls(2).await, [("503".to_owned(), 2)].into());
    }
}
