//! Informational answers, and bodies that wait for one (RFC 9110, 10.1.1 and 15.2).

mod support {
    pub(crate) mod application;
    pub(crate) mod mesh;
    pub(crate) mod raw;
}

use std::future::poll_fn;
use std::net::SocketAddr;
use std::time::Duration;

use http::{Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, timeout};
use weft_proto::service::Protocol;
use weft_proxy::plane::Transport;

use support::mesh::{Mesh, Setup, soon};
use support::raw::read_until;

/// What an application waits for, and what it says then.
type Steps = &'static [(&'static str, &'static str)];

/// An application that goes through its steps on every connection, again and again, and tells what it has heard whenever
/// it hears more.
async fn stepped(steps: Steps) -> (SocketAddr, UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (sender, heard) = unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let (mut text, mut left) = (String::new(), steps.iter().cycle().peekable());
                let mut chunk = [0; 4096];
                loop {
                    while let Some((awaited, said)) = left.next_if(|(awaited, _)| text.contains(awaited)) {
                        text.drain(..text.find(awaited).unwrap_or(0) + awaited.len());
                        let _ = stream.write_all(said.as_bytes()).await;
                    }
                    let Ok(count @ 1..) = stream.read(&mut chunk).await else { return };
                    let more = String::from_utf8_lossy(&chunk[..count]).into_owned();
                    text.push_str(&more);
                    let _ = sender.send(more);
                }
            });
        }
    });
    (address, heard)
}

async fn mesh(transport: Transport, target: SocketAddr) -> Mesh {
    Mesh::start(&Setup::over(transport), &[(8080, Protocol::Http, target)]).await
}

const EXPECTING: &str = "POST /up HTTP/1.1\r\nHost: web.mesh\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone";
const HINTED: &str = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\nConnection: x-hop\r\nx-hop: 1\r\n\r\n\
    HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone";

#[tokio::test]
async fn early_hints_come_through_in_front_of_the_answer() {
    let (target, _heard) = stepped(&[("\r\n\r\n", HINTED)]).await;
    for transport in [Transport::Tcp, Transport::Quic] {
        let mesh = mesh(transport, target).await;
        for at in [mesh.ways_in[&8080], mesh.proxy] {
            let mut stream = TcpStream::connect(at).await.expect("connects");
            for _ in 0..3 {
                let request = "GET http://web.mesh:8080/ HTTP/1.1\r\nHost: web.mesh:8080\r\n\r\n";
                stream.write_all(request.as_bytes()).await.expect("written");
                let told = read_until(&mut stream, "done").await;
                let (hints, answer) = told.split_once("\r\n\r\n").expect("two heads");
                assert!(hints.starts_with("HTTP/1.1 103 ") && hints.contains("rel=preload"), "{told}");
                assert!(!hints.contains("x-hop") && answer.starts_with("HTTP/1.1 200 OK"), "{told}");
            }
        }
        let mut old = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
        old.write_all(b"GET / HTTP/1.0\r\nHost: web.mesh\r\n\r\n").await.expect("written");
        let told = read_until(&mut old, "done").await;
        assert!(told.starts_with("HTTP/1.0 200") || told.starts_with("HTTP/1.1 200"), "HTTP/1.0 knows none: {told}");
        let stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
        let (mut sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        let request = Request::get("http://web.mesh:8080/").body(()).expect("valid");
        let (mut response, _) = sender.send_request(request, true).expect("sent");
        let interim = soon("hints", poll_fn(|cx| response.poll_informational(cx))).await.expect("some").expect("sound");
        assert_eq!(
            (interim.status(), &interim.headers()["link"]),
            (StatusCode::EARLY_HINTS, &"</style.css>; rel=preload".parse().expect("valid"))
        );
        assert_eq!(soon("an answer", response).await.expect("one").status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn the_application_says_whether_it_wants_the_body() {
    let go_on: Steps = &[("\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n"), ("hello", OK)];
    let refuse: Steps =
        &[("\r\n\r\n", "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno"), ("hello", OK)];
    for transport in [Transport::Tcp, Transport::Quic] {
        let (target, mut heard) = stepped(go_on).await;
        let willing = mesh(transport, target).await;
        for _ in 0..2 {
            let mut stream = TcpStream::connect(willing.ways_in[&8080]).await.expect("connects");
            stream.write_all(EXPECTING.as_bytes()).await.expect("written");
            assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
            let head = heard.recv().await.expect("a head").to_ascii_lowercase();
            assert!(head.contains("expect: 100-continue") && !head.contains("hello"), "{head}");
            stream.write_all(b"hello").await.expect("written");
            assert!(read_until(&mut stream, "done").await.starts_with("HTTP/1.1 200"));
            assert_eq!(heard.recv().await.as_deref(), Some("hello"));
        }
        let (target, mut heard) = stepped(refuse).await;
        let mut unwilling = mesh(transport, target).await;
        for _ in 0..3 {
            let mut stream = TcpStream::connect(unwilling.ways_in[&8080]).await.expect("connects");
            stream.write_all(EXPECTING.as_bytes()).await.expect("written");
            let told = read_until(&mut stream, "no").await;
            assert!(told.starts_with("HTTP/1.1 417") && told.contains("connection: close"), "{told}");
            heard.recv().await.expect("a head");
            let record = unwilling.b.record(|record| record.path == "/up").await;
            assert_eq!((record.code, record.fault), (417, ""), "{record:?}");
        }
        assert!(timeout(Duration::from_millis(1500), heard.recv()).await.is_err(), "nobody asked for the body");
    }
}

#[tokio::test]
async fn a_body_that_nobody_speaks_of_goes_after_a_while() {
    let (target, _heard) = stepped(&[("hello", OK)]).await;
    let mesh = mesh(Transport::Tcp, target).await;
    let mut stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
    let began = Instant::now();
    stream.write_all(format!("{EXPECTING}hello").as_bytes()).await.expect("written");
    assert!(read_until(&mut stream, "done").await.contains("HTTP/1.1 200"));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_refused_head_is_named_in_answer_and_record() {
    let (target, _heard) = stepped(&[("\r\n\r\n", OK)]).await;
    let mut mesh = mesh(Transport::Tcp, target).await;
    let many = "x: 1\r\n".repeat(11_000);
    for (request, code, named, reason) in [
        (format!("GET /many HTTP/1.1\r\nHost: web.mesh\r\n{many}\r\n"), 431, "64 KiB", "head-too-long"),
        ("GET /many HTTP/1.1\r\nHost: web.mesh\n\r\n".to_owned(), 400, "without CR", "bad-request"),
    ] {
        let mut stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
        // An earlier request of the same connection is served.
        stream
            .write_all(format!("GET /one HTTP/1.1\r\nHost: web.mesh\r\n\r\n{request}").as_bytes())
            .await
            .expect("written");
        let told = read_until(&mut stream, "\n\n").await;
        assert!(
            told.starts_with("HTTP/1.1 200") && told.contains(&format!("HTTP/1.1 {code}")) && told.contains(named),
            "{told}"
        );
        let record = mesh.a.record(|record| record.code == code).await;
        assert_eq!((record.reason, record.fault), (reason, "caller"), "{record:?}");
    }
}

#[tokio::test]
async fn an_answer_with_a_head_that_is_too_long_is_named() {
    let fields: String = (0..6000).map(|n| format!("x-{n}: {n}\r\n")).collect();
    let long = Box::leak(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{fields}\r\nok").into_boxed_str());
    let (target, _heard) = stepped(Box::leak(Box::new([("\r\n\r\n", &*long)]))).await;
    let mesh = mesh(Transport::Tcp, target).await;
    let mut stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web.mesh\r\n\r\n").await.expect("written");
    let told = read_until(&mut stream, "KiB").await;
    assert!(told.starts_with("HTTP/1.1 502") && told.contains("64 KiB"), "{told}");
}
