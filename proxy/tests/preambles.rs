//! What a `DestinationRule` has a node say on connections to a destination before all that callers say.

mod support {
    pub(crate) mod mesh;
    pub(crate) mod raw;
}

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;
use weft_proto::service::Protocol;
use weft_proxy::plane::Transport;

use support::mesh::{Mesh, Setup, soon};
use support::raw::{ask_over, read_until, scripted};

const HTTP: u16 = 8080;
const OPAQUE: u16 = 9000;

/// A mesh whose `web` answers always the same, and what it hears, with a block of its traffic policy in force.
async fn stage(transport: Transport, block: &str) -> (Mesh, UnboundedReceiver<String>) {
    let (application, heard) = scripted("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let setup = Setup::over(transport);
    let ports = [(HTTP, Protocol::Http, application), (OPAQUE, Protocol::Tcp, application)];
    let mut mesh = Mesh::start(&setup, &ports).await;
    let rule = format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web}}\n\
         spec: {{host: web, trafficPolicy: {{{block}}}}}"
    );
    mesh.enforce(&rule, &setup);
    (mesh, heard)
}

#[tokio::test]
async fn an_application_is_told_who_calls_by_the_proxy_protocol() {
    for transport in [Transport::Tcp, Transport::Quic] {
        let (mesh, mut heard) = stage(transport, "proxyProtocol: {version: V1}").await;
        let mut connection = TcpStream::connect(mesh.ways_in[&HTTP]).await.expect("connects");
        let get = "GET /who HTTP/1.1\r\nHost: web.mesh\r\nx-weft-client: 192.0.2.9:1\r\n\r\n";
        for first in [true, false] {
            let answer = ask_over(&mut connection, get).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            let said = soon("a request", heard.recv()).await.expect("the application runs");
            assert_eq!(said.starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 0 "), first, "once a connection: {said}");
            assert!(said.contains("GET /who HTTP/1.1\r\n") && !said.contains("192.0.2.9"), "{said}");
        }
        let mut stream = TcpStream::connect(mesh.ways_in[&OPAQUE]).await.expect("connects");
        let port = stream.local_addr().expect("bound").port();
        stream.write_all(b"hello\r\n\r\n").await.expect("takes it");
        read_until(&mut stream, "ok").await;
        let said = soon("a stream", heard.recv()).await.expect("the application runs");
        assert!(said.starts_with(&format!("PROXY TCP4 127.0.0.1 127.0.0.1 {port} ")), "{said}");
        assert!(said.ends_with("\r\nhello\r\n\r\n"), "{said}");
    }
}

#[tokio::test]
async fn streams_go_on_through_a_proxy_of_http() {
    for transport in [Transport::Tcp, Transport::Quic] {
        let (mesh, mut heard) = stage(transport, "tunnel: {targetHost: db.example, targetPort: 5432}").await;
        let mut stream = TcpStream::connect(mesh.ways_in[&OPAQUE]).await.expect("connects");
        // What this proxy says behind its answer is what is at its other end.
        assert!(read_until(&mut stream, "ok").await.starts_with("ok"));
        stream.write_all(b"hello\r\n\r\n").await.expect("takes it");
        // One connection, or two where that by which the mesh was waited for is under way still.
        let mut next = async || soon("a message", heard.recv()).await.expect("the application runs");
        let mut said = next().await;
        while said == "CONNECT db.example:5432 HTTP/1.1\r\nHost: db.example:5432\r\n\r\n" {
            said = next().await;
        }
        assert_eq!(said, "hello\r\n\r\n");
    }
}
