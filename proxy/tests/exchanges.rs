//! Exchanges between two nodes: every protocol over both kinds of link, both ends' authorization, and what breaks off.

mod support {
    pub(crate) mod application;
    pub(crate) mod mesh;
}

use std::io::ErrorKind;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_proto::service::Protocol;
use weft_proxy::plane::Transport;

use support::application::{self, Application};
use support::mesh::{Mesh, Setup, soon};

const HTTP: u16 = 8080;
const GRPC: u16 = 8081;
const OPAQUE: u16 = 8082;
const AUTO: u16 = 8083;

const DENY_ALL: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec: {action: DENY, rules: [{}]}
";

struct Stage {
    mesh: Mesh,
    setup: Setup,
    application: Application,
}

impl Stage {
    async fn over(transport: Transport) -> Self {
        Self::new(Setup::over(transport)).await
    }

    async fn new(setup: Setup) -> Self {
        let application = application::http().await;
        let mesh = Mesh::start(
            &setup,
            &[
                (HTTP, Protocol::Http, application.address),
                (GRPC, Protocol::Grpc, application.address),
                (OPAQUE, Protocol::Tcp, application::backwards().await),
                (AUTO, Protocol::Auto, application::greeter().await),
            ],
        )
        .await;
        Self { mesh, setup, application }
    }

    fn way_in(&self, port: u16) -> SocketAddr {
        self.mesh.ways_in[&port]
    }
}

/// What comes back for these bytes until the connection ends.
async fn raw(address: SocketAddr, request: &str) -> String {
    soon("an answer", async {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    })
    .await
}

async fn get(address: SocketAddr, path: &str) -> String {
    raw(address, &format!("GET {path} HTTP/1.1\r\nHost: web.mesh\r\nConnection: close\r\n\r\n")).await
}

async fn h2(address: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.expect("connects");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender.ready().await.expect("ready")
}

fn request(method: Method, path: &str) -> Request<()> {
    let uri = format!("http://web.mesh{path}");
    Request::builder().method(method).uri(uri).header("te", "trailers").body(()).expect("valid")
}

const KINDS: [Transport; 2] = [Transport::Tcp, Transport::Quic];

#[tokio::test]
async fn http_1_requests_and_their_bodies() {
    for kind in KINDS {
        let stage = Stage::over(kind).await;
        let address = stage.way_in(HTTP);
        let answer = get(address, "/who").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{kind:?}: {answer}");
        assert!(answer.contains("URI=spiffe://mesh.test/ns/default/sa/front"), "{kind:?}: {answer}");
        let head = "POST /echo HTTP/1.1\r\nHost: web.mesh\r\nConnection: close\r\n";
        let answer = raw(address, &format!("{head}Content-Length: 5\r\n\r\nhello")).await;
        assert!(answer.ends_with("hello") || answer.contains("5\r\nhello"), "{kind:?}: {answer}");
        let answer = raw(address, &format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")).await;
        assert!(answer.contains("hello"), "{kind:?}: {answer}");
        assert!(get(address, "/empty").await.starts_with("HTTP/1.1 204"), "{kind:?}");
        let answer = raw(address, "HEAD /who HTTP/1.1\r\nHost: web.mesh\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{kind:?}: {answer}");
        assert!(get(address, "/nothing").await.starts_with("HTTP/1.1 404"), "{kind:?}");
    }
}

#[tokio::test]
async fn a_large_body_arrives_whole_both_ways() {
    for kind in KINDS {
        let stage = Stage::over(kind).await;
        let mut client = h2(stage.way_in(HTTP)).await;
        let (response, mut upload) = client.send_request(request(Method::POST, "/echo"), false).expect("sent");
        let sent: Vec<u8> = (0..5_000_000u32).map(|at| (at % 251) as u8).collect();
        let body = Bytes::from(sent.clone());
        let sending = tokio::spawn(async move {
            let mut rest = body;
            while !rest.is_empty() {
                upload.reserve_capacity(rest.len());
                let room = std::future::poll_fn(|cx| upload.poll_capacity(cx)).await.expect("open").expect("open");
                upload.send_data(rest.split_to(room.min(rest.len())), false).expect("sent");
            }
            upload.send_data(Bytes::new(), true).expect("sent");
        });
        let response = soon("a head", response).await.expect("answered");
        let mut body = response.into_body();
        let mut received = Vec::new();
        soon("the body", async {
            while let Some(data) = body.data().await {
                let data = data.expect("whole");
                body.flow_control().release_capacity(data.len()).expect("released");
                received.extend_from_slice(&data);
            }
        })
        .await;
        sending.await.expect("sent");
        assert!(received == sent, "{kind:?}: {} bytes came back", received.len());
    }
}

#[tokio::test]
async fn grpc_streams_both_ways_and_ends_with_trailers() {
    for kind in KINDS {
        let stage = Stage::over(kind).await;
        let mut client = h2(stage.way_in(GRPC)).await;
        let (response, _) = client.send_request(request(Method::POST, "/trailers"), true).expect("sent");
        let mut body = soon("a head", response).await.expect("answered").into_body();
        assert_eq!(soon("data", body.data()).await.expect("some").expect("whole"), "data", "{kind:?}");
        let trailers = soon("trailers", body.trailers()).await.expect("whole").expect("some");
        assert_eq!(trailers["grpc-status"], "7", "{kind:?}");

        let (response, mut upload) = client.send_request(request(Method::POST, "/echo"), false).expect("sent");
        upload.send_data("one".into(), false).expect("sent");
        let mut body = soon("a head", response).await.expect("answered").into_body();
        assert_eq!(soon("the first", body.data()).await.expect("some").expect("whole"), "one", "{kind:?}");
        upload.send_data("two".into(), false).expect("sent");
        assert_eq!(soon("the second", body.data()).await.expect("some").expect("whole"), "two", "{kind:?}");
        upload.send_data(Bytes::new(), true).expect("sent");
        while let Some(data) = soon("the end", body.data()).await {
            assert_eq!(data.expect("whole"), "", "{kind:?}");
        }
    }
}

#[tokio::test]
async fn a_call_that_is_given_up_is_given_up_by_the_application_too() {
    for kind in KINDS {
        for path in ["/endless", "/silent"] {
            let mut stage = Stage::over(kind).await;
            let mut client = h2(stage.way_in(GRPC)).await;
            let (response, upload) = client.send_request(request(Method::POST, path), true).expect("sent");
            if path == "/endless" {
                let mut body = soon("a head", response).await.expect("answered").into_body();
                soon("data", body.data()).await.expect("some").expect("whole");
            } else {
                let waiting = tokio::time::timeout(std::time::Duration::from_millis(300), response).await;
                assert!(waiting.is_err(), "{kind:?}: nothing is answered");
            }
            drop(upload);
            let told = soon("the application is told", stage.application.events.recv()).await;
            assert_eq!(told.as_deref(), Some("gone"), "{kind:?} {path}");
        }
    }
}

#[tokio::test]
async fn half_a_body_never_looks_whole() {
    for kind in KINDS {
        let stage = Stage::over(kind).await;
        let answer = get(stage.way_in(HTTP), "/breaks").await;
        assert!(!answer.ends_with("0\r\n\r\n"), "{kind:?}: chunks must not be ended properly: {answer}");
        let mut client = h2(stage.way_in(GRPC)).await;
        let (response, _) = client.send_request(request(Method::GET, "/breaks"), true).expect("sent");
        let Ok(response) = soon("a head", response).await else { continue };
        assert_eq!(response.status(), StatusCode::OK);
        let mut body = response.into_body();
        let broken = soon("the end", async {
            loop {
                match body.data().await {
                    Some(Ok(_)) => {}
                    Some(Err(_)) => return true,
                    None => return false,
                }
            }
        });
        assert!(broken.await, "{kind:?}: the stream must be reset");
    }
}

#[tokio::test]
async fn websockets() {
    for kind in KINDS {
        let stage = Stage::over(kind).await;
        let mut stream = TcpStream::connect(stage.way_in(HTTP)).await.expect("connects");
        let head = "GET /socket HTTP/1.1\r\nHost: web.mesh\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        soon("an answer", async {
            while !answer.ends_with(b"\r\n\r\n") {
                answer.push(stream.read_u8().await.expect("open"));
            }
        })
        .await;
        let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 101"), "{kind:?}: {answer}");
        assert!(answer.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{kind:?}: {answer}");
        for text in ["ping", "another"] {
            stream.write_all(text.as_bytes()).await.expect("written");
            let mut back = vec![0; text.len()];
            soon("an echo", stream.read_exact(&mut back)).await.expect("echoed");
            assert_eq!(back, text.as_bytes(), "{kind:?}");
        }
        stream.shutdown().await.expect("shut");
        assert_eq!(soon("the end", stream.read(&mut [0; 8])).await.expect("ended"), 0, "{kind:?}");
    }
}

#[tokio::test]
async fn opaque_streams_keep_their_halves_apart() {
    for kind in KINDS {
        let stage = Stage::over(kind).await;
        let mut stream = TcpStream::connect(stage.way_in(OPAQUE)).await.expect("connects");
        let sent: Vec<u8> = (0..3_000_000u32).map(|at| (at % 253) as u8).collect();
        stream.write_all(&sent).await.expect("written");
        stream.shutdown().await.expect("half is closed");
        let mut back = Vec::new();
        soon("the answer", stream.read_to_end(&mut back)).await.expect("whole");
        back.reverse();
        assert!(back == sent, "{kind:?}: {} bytes came back", back.len());
    }
}

#[tokio::test]
async fn a_server_may_speak_first() {
    for kind in KINDS {
        let stage = Stage::over(kind).await;
        let mut stream = TcpStream::connect(stage.way_in(AUTO)).await.expect("connects");
        let mut greeting = [0; 5];
        soon("a greeting", stream.read_exact(&mut greeting)).await.expect("greeted");
        assert_eq!(&greeting, b"hello", "{kind:?}");
    }
}

#[tokio::test]
async fn what_is_denied_is_denied_by_either_end() {
    for kind in KINDS {
        for at_a in [true, false] {
            let mut stage = Stage::over(kind).await;
            let (setup, mesh) = (&stage.setup, &mut stage.mesh);
            mesh.enforce_at(&[at_a], DENY_ALL, setup);
            let answer = get(mesh.ways_in[&HTTP], "/who").await;
            assert!(answer.starts_with("HTTP/1.1 403"), "{kind:?} {at_a}: {answer}");
            let mut client = h2(mesh.ways_in[&GRPC]).await;
            let grpc = Request::post("http://web.mesh/a.B/C").header("content-type", "application/grpc");
            let (response, _) = client.send_request(grpc.body(()).expect("valid"), true).expect("sent");
            let response = soon("a head", response).await.expect("answered");
            assert_eq!(
                (response.status(), &response.headers()["grpc-status"]),
                (StatusCode::OK, &"7".parse().expect("valid"))
            );
            let mut stream = TcpStream::connect(mesh.ways_in[&OPAQUE]).await.expect("connects");
            let read = soon("a reset", stream.read(&mut [0; 8])).await;
            assert_eq!(read.expect_err("reset").kind(), ErrorKind::ConnectionReset, "{kind:?} {at_a}");
            let node = if at_a { &mut mesh.a } else { &mut mesh.b };
            assert_eq!(node.record(|record| record.code == 403).await.fault, "policy");
        }
    }
}

#[tokio::test]
async fn what_a_change_denies_ends() {
    for kind in KINDS {
        for at_a in [true, false] {
            let mut stage = Stage::over(kind).await;
            let mut opaque = TcpStream::connect(stage.way_in(AUTO)).await.expect("connects");
            soon("a greeting", opaque.read_exact(&mut [0; 5])).await.expect("greeted");
            let mut client = h2(stage.way_in(GRPC)).await;
            let (response, _) = client.send_request(request(Method::GET, "/endless"), true).expect("sent");
            let mut body = soon("a head", response).await.expect("answered").into_body();
            soon("data", body.data()).await.expect("some").expect("whole");
            stage.mesh.enforce_at(&[at_a], DENY_ALL, &stage.setup);
            let read = soon("the stream ends", opaque.read(&mut [0; 8])).await;
            assert_eq!(read.expect_err("reset").kind(), ErrorKind::ConnectionReset, "{kind:?} {at_a}");
            let cut = soon("the answer ends", async {
                loop {
                    match body.data().await {
                        Some(Ok(data)) => drop(body.flow_control().release_capacity(data.len())),
                        Some(Err(_)) => return true,
                        None => return false,
                    }
                }
            });
            assert!(cut.await, "{kind:?} {at_a}: it must not look whole");
            assert_eq!(soon("told", stage.application.events.recv()).await.as_deref(), Some("gone"));
        }
    }
}

#[tokio::test]
async fn auto_takes_quic_between_zones_and_tcp_where_it_is_blocked() {
    for (same_zone, datagrams_work, expected) in [(true, true, "h2"), (false, true, "quic"), (false, false, "h2")] {
        let setup = Setup { same_zone, datagrams_work, ..Setup::over(Transport::Auto) };
        let mut stage = Stage::new(setup).await;
        assert!(get(stage.way_in(HTTP), "/who").await.starts_with("HTTP/1.1 200"));
        let record = stage.mesh.b.record(|record| record.path == "/who").await;
        assert_eq!(record.protocol, expected, "same zone: {same_zone}, UDP works: {datagrams_work}");
    }
}

#[tokio::test]
async fn what_is_not_http_passes_a_port_that_does_not_say_and_a_server_that_waits() {
    for kind in KINDS {
        let ports = [(AUTO, Protocol::Auto, application::backwards().await)];
        let mesh = Mesh::start(&Setup::over(kind), &ports).await;
        for sent in [&b"\x00\x01 of no protocol"[..], b""] {
            let mut stream = TcpStream::connect(mesh.ways_in[&AUTO]).await.expect("connects");
            stream.write_all(sent).await.expect("written");
            stream.shutdown().await.expect("half is closed");
            let mut back = Vec::new();
            soon("the answer", stream.read_to_end(&mut back)).await.expect("whole");
            back.reverse();
            assert_eq!(back.escape_ascii().to_string(), sent.escape_ascii().to_string(), "{kind:?}");
        }
    }
}
