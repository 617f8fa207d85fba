//! What applications and their callers do at the edges of HTTP/1.1, and what must come of it.

mod support {
    pub(crate) mod application;
    pub(crate) mod mesh;
    pub(crate) mod raw;
}

use std::io::ErrorKind;
use std::time::Duration;

use http::{Request, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use weft_proto::service::Protocol;
use weft_proxy::plane::Transport;

use support::application;
use support::mesh::{Mesh, Setup, soon};
use support::raw::{answer, ask, ask_again, read_until, scripted};

const GET: &str = "GET / HTTP/1.1\r\nHost: web.mesh\r\n\r\n";
const KINDS: [Transport; 2] = [Transport::Tcp, Transport::Quic];

async fn over(transport: Transport, protocol: Protocol, target: std::net::SocketAddr) -> Mesh {
    Mesh::start(&Setup::over(transport), &[(8080, protocol, target)]).await
}

#[tokio::test]
async fn no_disguise_of_a_request_lets_a_field_through_that_only_weft_sets() {
    let (target, mut heard) = scripted("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let mesh = over(Transport::Tcp, Protocol::Auto, target).await;
    let long = format!("{} / HTTP/1.1", "A".repeat(200));
    for line in ["OPTIONS / RTSP/1.0", "SOURCE / ICE/1.0", " GET / HTTP/1.1", "GET\x0b/\x0bHTTP/1.1", "GET /", &long] {
        for name in ["X-Forwarded-Client-Cert", "x_forwarded_client_cert"] {
            let mut stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
            let request = format!("{line}\r\nHost: x\r\n{name}: EVIL\r\n\r\n");
            let _ = stream.write_all(request.as_bytes()).await;
            let told = answer(&mut stream, "GET").await;
            assert!(!told.contains(" 200 "), "{request:?}: {told}");
        }
        // Nor is what comes after a first answer, which would have to be HTTP.
        let mut stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
        let _ = stream.write_all(format!("{line}\r\nHost: x\r\n\r\n").as_bytes()).await;
        let told = answer(&mut stream, "GET").await;
        assert!(!told.contains(" 200 "), "{line:?}: {told}");
    }
    while let Ok(seen) = heard.try_recv() {
        assert!(!seen.contains("EVIL"), "{seen}");
    }
    let told = ask(mesh.ways_in[&8080], GET).await;
    assert!(told.starts_with("HTTP/1.1 200"), "{told}");
}

#[tokio::test]
async fn a_caller_that_is_gone_for_certain_is_gone_for_the_application_too() {
    for transport in KINDS {
        let mut application = application::http().await;
        let mesh = over(transport, Protocol::Http, application.address).await;
        for (path, version) in [("/waits", "1.1"), ("/waits", "1.0"), ("/endless", "1.1")] {
            let mut stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
            let head = format!("GET {path} HTTP/{version}\r\nHost: web.mesh\r\n\r\n");
            stream.write_all(head.as_bytes()).await.expect("written");
            if path == "/endless" {
                read_until(&mut stream, "tick").await;
            } else {
                let event = soon("the request", application.events.recv()).await;
                assert_eq!(event.as_deref(), Some("asked"), "{transport:?} {path} {version}");
            }
            #[expect(deprecated, reason = "a reset is what is wanted")]
            stream.set_linger(Some(Duration::ZERO)).expect("set");
            drop(stream);
            let event = soon("the application's end", application.events.recv()).await;
            assert_eq!(event.as_deref(), Some("gone"), "{transport:?} {path} {version}");
        }
    }
}

#[tokio::test]
async fn half_an_answer_does_not_look_whole_to_http_1_0() {
    let application = application::http().await;
    for transport in KINDS {
        let mesh = over(transport, Protocol::Http, application.address).await;
        let mut stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
        stream.write_all(b"GET /breaks HTTP/1.0\r\n\r\n").await.expect("written");
        let mut told = Vec::new();
        let ended = soon("the end", stream.read_to_end(&mut told)).await;
        assert!(ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), "{transport:?}: {told:?}");
    }
}

#[tokio::test]
async fn answers_that_nobody_can_use_are_502() {
    const OFFER: &str = "GET / HTTP/1.1\r\nHost: web.mesh\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    for (request, answer) in [
        (GET, "HTTP/1.1 101 SP\r\nUpgrade: foo\r\nConnection: Upgrade\r\n\r\nxx"),
        (OFFER, "HTTP/1.1 101 SP\r\nUpgrade: foo\r\nConnection: Upgrade\r\n\r\nxx"),
        (OFFER, "HTTP/1.1 101 SP\r\nConnection: Upgrade\r\n\r\nxx"),
        (GET, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\n\x1f\x1e\r\n0\r\n\r\n"),
        (GET, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok"),
        (GET, "HTTP/1.1 1000 X\r\nContent-Length: 2\r\n\r\nok"),
    ] {
        let (target, _heard) = scripted(answer).await;
        for transport in KINDS {
            let mesh = over(transport, Protocol::Http, target).await;
            let told = ask(mesh.ways_in[&8080], request).await;
            assert!(told.starts_with("HTTP/1.1 502"), "{transport:?} {answer:?}: {told}");
        }
    }
    // A handshake without a key is none, and the application says so.
    let (target, mut heard) = scripted("HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno").await;
    let mesh = over(Transport::Tcp, Protocol::Http, target).await;
    let told = ask(
        mesh.ways_in[&8080],
        "GET / HTTP/1.1\r\nHost: web.mesh\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    )
    .await;
    assert!(told.starts_with("HTTP/1.1 400"), "{told}");
    assert!(!heard.recv().await.expect("one").to_ascii_lowercase().contains("sec-websocket-key"));
}

/// An application that sends hints: one whenever it is told to, or without an end.
async fn hinting(mut more: Option<mpsc::Receiver<bool>>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let mut sent = 0;
            loop {
                let go_on = match &mut more {
                    Some(more) => more.recv().await.unwrap_or(false),
                    None => true,
                };
                let text = match go_on {
                    true => format!("HTTP/1.1 103 Early Hints\r\nLink: <{sent}>\r\n\r\n"),
                    false => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
                };
                sent += 1;
                if stream.write_all(text.as_bytes()).await.is_err() || !go_on {
                    break;
                }
            }
        }
    });
    address
}

#[tokio::test]
async fn hints_come_through_as_they_come_and_not_for_ever() {
    for transport in KINDS {
        let (tell, told) = mpsc::channel(1);
        let mesh = over(transport, Protocol::Http, hinting(Some(told)).await).await;
        let mut stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
        stream.write_all(GET.as_bytes()).await.expect("written");
        for n in 0..5 {
            tell.send(true).await.expect("taken");
            let hint = read_until(&mut stream, "\r\n\r\n").await;
            assert!(hint.starts_with("HTTP/1.1 103") && hint.contains(&format!("<{n}>")), "{transport:?}: {hint}");
        }
        tell.send(false).await.expect("taken");
        assert!(read_until(&mut stream, "ok").await.starts_with("HTTP/1.1 200"));
        let mesh = over(transport, Protocol::Http, hinting(None).await).await;
        let mut stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
        stream.write_all(GET.as_bytes()).await.expect("written");
        assert!(read_until(&mut stream, " 502 ").await.contains("HTTP/1.1 502"), "{transport:?}");
    }
}

#[tokio::test]
async fn whether_a_body_is_wanted_is_the_applications_word_beside_an_offer_too() {
    let (target, mut heard) = scripted("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno").await;
    let mesh = over(Transport::Tcp, Protocol::Http, target).await;
    let mut stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
    // What it is sent for is told by its length; the application answers to the head.
    let head = "POST / HTTP/1.1\r\nHost: web.mesh\r\nConnection: Upgrade\r\nUpgrade: foo\r\nContent-Length: 0\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("written");
    assert!(answer(&mut stream, "POST").await.starts_with("HTTP/1.1 417"));
    assert!(heard.recv().await.expect("one").to_ascii_lowercase().contains("upgrade: foo"));
    let (target, mut asked) = early("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno").await;
    let mesh = over(Transport::Tcp, Protocol::Http, target).await;
    let mut stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
    let head = "POST / HTTP/1.1\r\nHost: web.mesh\r\nConnection: Upgrade\r\nUpgrade: foo\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("written");
    let told = answer(&mut stream, "POST").await;
    assert!(told.starts_with("HTTP/1.1 417"), "{told}");
    assert!(asked.recv().await.expect("one").to_ascii_lowercase().contains("expect: 100-continue"));
}

/// An application that answers to the head, whatever may follow it.
async fn early(answer: &'static str) -> (std::net::SocketAddr, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (sender, heard) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let seen = read_until(&mut stream, "\r\n\r\n").await;
                let _ = sender.send(seen);
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    (address, heard)
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_body_says_that_the_connection_ends() {
    let (target, _asked) = early("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    for transport in KINDS {
        let mesh = over(transport, Protocol::Http, target).await;
        let head = "POST / HTTP/1.1\r\nHost: web.mesh\r\nContent-Length: 4\r\n\r\n";
        let (told, after) = ask_again(mesh.ways_in[&8080], head).await;
        assert!(told.starts_with("HTTP/1.1 200") && told.contains("connection: close"), "{transport:?}: {told}");
        assert_eq!(after, "", "{transport:?}");
    }
    let (target, _heard) = scripted("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let mesh = over(Transport::Tcp, Protocol::Http, target).await;
    let whole = "POST / HTTP/1.1\r\nHost: web.mesh\r\nContent-Length: 4\r\n\r\nbody";
    let (told, after) = ask_again(mesh.ways_in[&8080], whole).await;
    assert!(!told.contains("connection: close") && after.starts_with("HTTP/1.1 200"), "{told}{after}");
}

#[tokio::test]
async fn what_answers_must_say_they_say() {
    const REQUIRED: &str = "HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.2, HTTP/1.1\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nno";
    let (target, mut heard) = scripted(REQUIRED).await;
    for transport in KINDS {
        let mesh = over(transport, Protocol::Http, target).await;
        let told = ask(mesh.ways_in[&8080], GET).await;
        assert!(told.contains("upgrade: TLS/1.2, HTTP/1.1\r\n") && told.contains("connection: upgrade"), "{told}");
        assert!(told.contains("\r\ndate: ") && !told.contains("x-weft"), "{told}");
        let stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
        let (mut sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        let request = Request::get("http://web.mesh/").version(Version::HTTP_2).body(()).expect("valid");
        let (response, _) = sender.send_request(request, true).expect("sent");
        let response = soon("an answer", response).await.expect("one");
        assert!(response.status() == 426 && !response.headers().contains_key("upgrade"), "{response:?}");
        assert!(response.headers().contains_key("date"), "{response:?}");
    }
    while heard.try_recv().is_ok() {}
    let mesh = over(Transport::Tcp, Protocol::Http, target).await;
    let told = ask(mesh.ways_in[&8080], "TRACE / HTTP/1.1\r\nHost: web.mesh\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 405") && told.contains("allow: GET, HEAD") && told.contains("date: "), "{told}");
    let request = "GET / HTTP/1.1\r\nHost: web.mesh\r\nConnection: TE\r\nTE: trailers\r\n\r\n";
    ask(mesh.ways_in[&8080], request).await;
    let seen = heard.recv().await.expect("one").to_ascii_lowercase();
    assert!(seen.contains("te: trailers\r\n") && seen.contains("connection: te\r\n"), "{seen}");
}
