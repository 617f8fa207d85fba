//! A gateway that speaks HTTP/3: the shipped binary, asked by a client of a library.

#![expect(clippy::disallowed_methods, unreachable_pub, reason = "tests of processes live in real time")]
#![allow(dead_code, reason = "each test file uses its own part")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderMap, Request, StatusCode};
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use support::{BOUND, Node, file, free_port, here, server};
use tokio::time::timeout;

const DOCUMENTS: &str = "
apiVersion: weft/v1
kind: Service
metadata: {name: ingress}
spec: {http3: true}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: shop}
spec:
  selector: {app: ingress}
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: [shop.example.com]
    tls: {mode: SIMPLE, credentialName: shop}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.example.com]
  gateways: [shop]
  http:
  - match: [{uri: {prefix: /web}}]
    route: [{destination: {host: web, port: {number: 8080}}}]
  - match: [{uri: {prefix: /made}}]
    directResponse: {status: 418, body: {string: made}}
";

type Sending = h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>;

/// A connection to a gateway by a name, whose certificate must be this one.
async fn dial(place: SocketAddr, name: &str, authority: &str) -> Result<quinn::Connection, String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).expect("PEM")).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let config = config.with_protocol_versions(&[&rustls::version::TLS13]).expect("TLS 1.3");
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h3".to_vec()];
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).expect("a suite")));
    // Where nobody listens nothing is answered.
    let mut transport = quinn::TransportConfig::default();
    transport.max_idle_timeout(Some(Duration::from_secs(3).try_into().expect("short")));
    config.transport_config(Arc::new(transport));
    let endpoint = quinn::Endpoint::client((here(), 0).into()).expect("a socket");
    let connecting = endpoint.connect_with(config, place, name).map_err(|error| error.to_string())?;
    connecting.await.map_err(|error| error.to_string())
}

/// The same, for requests.
async fn connect(place: SocketAddr, name: &str, authority: &str) -> Result<Sending, String> {
    let connection = dial(place, name, authority).await?;
    let (mut driver, sending) =
        h3::client::new(h3_quinn::Connection::new(connection)).await.map_err(|error| error.to_string())?;
    tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
    Ok(sending)
}

/// Sends a frame that says that it is a gigabyte long, until no more is taken; answers how much was, and why no more.
async fn flood(connection: &quinn::Connection, kind: u8) -> (usize, String) {
    let (mut stream, _answer) = connection.open_bi().await.expect("a stream");
    let mut sent = 0;
    let mut part = [&[kind, 0xc0, 0, 0, 0, 0x40, 0, 0, 0][..], &[b'x'; 16_384]].concat();
    while sent < 64 << 20 {
        match timeout(BOUND, stream.write_all(&part)).await.expect("taken or refused") {
            Ok(()) => sent += part.len(),
            Err(error) => return (sent, error.to_string()),
        }
        part.truncate(16_384);
    }
    (sent, "all was taken".into())
}

/// A request and its answer: status, fields, body.
async fn ask(
    sending: &mut Sending,
    request: Request<()>,
    body: &[u8],
) -> Result<(StatusCode, HeaderMap, Vec<u8>), String> {
    let failed = |error: h3::error::StreamError| error.to_string();
    let mut stream = sending.send_request(request).await.map_err(failed)?;
    for part in body.chunks(10_000) {
        stream.send_data(Bytes::copy_from_slice(part)).await.map_err(failed)?;
    }
    stream.finish().await.map_err(failed)?;
    let (head, ()) = stream.recv_response().await.map_err(failed)?.into_parts();
    let mut whole = Vec::new();
    while let Some(mut part) = stream.recv_data().await.map_err(failed)? {
        whole.extend_from_slice(&part.copy_to_bytes(part.remaining()));
    }
    Ok((head.status, head.headers, whole))
}

fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("https://shop.example.com{path}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_come_over_http_3() {
    let (mut node, port) = (Node::new("a"), free_port());
    node.up(&["--init", "--gateway", "ingress", "--gateway-port", &format!("443={port}")]);
    let web = server("web");
    node.ok(&["service", "add", "web", "--port", &format!("8080:{web}/http")]);
    let key = KeyPair::generate().expect("a key");
    let made = CertificateParams::new(vec!["shop.example.com".to_owned()]).expect("a name");
    let certificate = made.self_signed(&key).expect("signed").pem();
    let files = [("shop.crt", certificate.clone()), ("shop.key", key.serialize_pem())];
    let [cert, key] = files.map(|(name, text)| file(&node.data_dir(), name, &text));
    node.ok(&["cert", "add", "shop", "--cert", &cert, "--key", &key]);
    let documents = file(&node.data_dir(), "documents.yaml", DOCUMENTS);
    node.ok(&["apply", "-f", &documents, "--wait"]);
    let place: SocketAddr = (here(), port).into();

    let mut sending = connect(place, "shop.example.com", &certificate).await.expect("a connection");
    let (status, headers, body) =
        ask(&mut sending, request("GET", "/web/a").body(()).unwrap(), b"").await.expect("an answer");
    assert_eq!((status, &body[..4]), (StatusCode::OK, &b"web "[..]), "{body:?}");
    assert!(headers.contains_key("date"), "{headers:?}");
    let (status, _, body) = ask(&mut sending, request("GET", "/made").body(()).unwrap(), b"").await.expect("an answer");
    assert_eq!((status.as_u16(), &body[..]), (418, &b"made"[..]));
    // What no rule is for, and what is none of ours.
    let (status, ..) = ask(&mut sending, request("GET", "/other").body(()).unwrap(), b"").await.expect("an answer");
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(connect(place, "other.example.com", &certificate).await.is_err());

    // A body that is not as long as the head says is not passed on for what it is not.
    for (said, sent) in [(100, 10), (5, 20_000)] {
        let lying = request("POST", "/web/b").header("content-length", said).body(()).unwrap();
        let answer = ask(&mut sending, lying, &vec![b'x'; sent]).await;
        assert!(
            answer.as_ref().map_or(true, |answer| answer.0 == StatusCode::BAD_REQUEST),
            "{said} {sent}: {answer:?}"
        );
    }
    let good = request("POST", "/web/c").header("content-length", "30").body(()).unwrap();
    let (status, ..) = ask(&mut sending, good, &[b'x'; 30]).await.expect("an answer");
    assert_eq!(status, StatusCode::OK);

    // Nor one whose length is said in a way that servers read differently.
    for said in [&["5, 5"][..], &["abc"], &["+5"], &["0", "100"]] {
        let mut odd = request("GET", "/web/b");
        for one in said {
            odd = odd.header("content-length", *one);
        }
        let answer = ask(&mut sending, odd.body(()).unwrap(), b"").await;
        assert!(answer.as_ref().map_or(true, |answer| answer.0 == StatusCode::BAD_REQUEST), "{said:?}: {answer:?}");
    }

    // A body of the smallest frames comes through, and no more of it is read ahead than is taken.
    let mut stream = sending.send_request(request("POST", "/web/small").body(()).unwrap()).await.expect("sent");
    for _ in 0..20_000 {
        // The application answers at once, and wants no more of it.
        if stream.send_data(Bytes::from_static(b"x")).await.is_err() {
            break;
        }
    }
    let _ = stream.finish().await;
    assert_eq!(stream.recv_response().await.expect("an answer").status(), StatusCode::OK);

    // A head without end is not kept.
    let mut wide = request("GET", "/web/d");
    for n in 0..2000 {
        wide = wide.header(format!("x-{n}"), "y".repeat(60));
    }
    let answer = ask(&mut sending, wide.body(()).unwrap(), b"").await;
    assert!(answer.as_ref().map_or(true, |answer| answer.0.as_u16() == 431), "{answer:?}");

    // Nor is a frame of which more is said than is taken: no head, nor one that nobody knows.
    let connection = dial(place, "shop.example.com", &certificate).await.expect("a connection");
    for kind in [0x1, 0x21] {
        let (sent, why) = flood(&connection, kind).await;
        assert!(sent < 2 << 20 && why.contains("263"), "{kind}: {sent} bytes, {why}");
    }

    // Whoever opens streams and asks nothing on them is sent away.
    let lost = async {
        loop {
            let (mut stream, _answer) = connection.open_bi().await?;
            let _ = stream.finish();
        }
    };
    let why: Result<(), quinn::ConnectionError> = timeout(BOUND, lost).await.expect("not for ever");
    assert!(why.is_err());

    // Switched off it is off.
    let off =
        file(&node.data_dir(), "off.yaml", "apiVersion: weft/v1\nkind: Service\nmetadata: {name: ingress}\nspec: {}\n");
    node.ok(&["apply", "-f", &off, "--wait"]);
    assert!(connect(place, "shop.example.com", &certificate).await.is_err());
}
