//! Traffic as applications and their clients really make it.

mod support {
    pub(crate) mod application;
    pub(crate) mod mesh;
    pub(crate) mod raw;
}

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use weft_proto::service::Protocol;
use weft_proxy::plane::Transport;

use support::application;
use support::mesh::{Mesh, Setup, free, soon};
use support::raw::{answer, ask, read_until, scripted};

async fn mesh(protocol: Protocol, target: SocketAddr) -> Mesh {
    Mesh::start(&Setup::over(Transport::Tcp), &[(8080, protocol, target)]).await
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn an_offer_that_the_application_does_not_take_is_answered_as_it_answers() {
    let (target, mut heard) = scripted(OK).await;
    let mesh = mesh(Protocol::Http, target).await;
    let at = mesh.ways_in[&8080];
    for request in [
        "GET / HTTP/1.1\r\nHost: web.mesh\r\nConnection: Upgrade\r\nUpgrade: TLS/1.2\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: web.mesh\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: web.mesh\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 4\r\n\r\nbody",
        "PUT / HTTP/1.1\r\nHost: web.mesh\r\nConnection: Upgrade\r\nUpgrade: a, b\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: web.mesh\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    ] {
        let told = ask(at, request).await;
        assert!(told.starts_with("HTTP/1.1 200") && told.ends_with("ok"), "{request}\n{told}");
        let seen = soon("the request", heard.recv()).await.expect("one").to_ascii_lowercase();
        assert!(seen.starts_with(&request[..5].to_ascii_lowercase()), "{seen}");
        assert!(!seen.contains("http2-settings"), "{seen}");
        assert_eq!(seen.ends_with("body"), request.ends_with("body"), "{seen}");
    }
}

#[tokio::test]
async fn an_offer_is_taken_whatever_the_method_and_the_body() {
    let (target, mut heard) =
        scripted("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nhello").await;
    for transport in [Transport::Tcp, Transport::Quic] {
        let mesh = Mesh::start(&Setup::over(transport), &[(8080, Protocol::Http, target)]).await;
        for (offer, body) in [("tcp", "body"), ("b, tcp", ""), ("tcp", &"x".repeat(60_000))] {
            let length = body.len();
            let mut stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
            let head = format!(
                "POST /attach HTTP/1.1\r\nHost: web.mesh\r\nConnection: upgrade\r\nUpgrade: {offer}\r\nContent-Length: {length}\r\n\r\n"
            );
            stream.write_all(format!("{head}{body}").as_bytes()).await.expect("written");
            let told = read_until(&mut stream, "hello").await;
            assert!(told.starts_with("HTTP/1.1 101"), "{told}");
            assert!(told.contains("upgrade: tcp\r\n") && told.ends_with("\r\n\r\nhello"), "{told}");
            let seen = soon("the request", heard.recv()).await.expect("one");
            assert!(seen.starts_with("POST /attach") && seen.ends_with(body), "{seen}");
        }
    }
    let application = application::http().await;
    let mesh = self::mesh(Protocol::Http, application.address).await;
    let told = ask(mesh.ways_in[&8080], "GET /socket HTTP/1.1\r\nHost: web.mesh\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 101") && told.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{told}");
}

#[tokio::test]
async fn a_half_closed_request_and_one_of_http_1_0_without_a_host_are_answered() {
    let (target, mut heard) = scripted(OK).await;
    for protocol in [Protocol::Http, Protocol::Auto] {
        let mesh = mesh(protocol, target).await;
        let mut stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web.mesh\r\n\r\n").await.expect("written");
        stream.shutdown().await.expect("half closed");
        assert!(answer(&mut stream, "GET").await.starts_with("HTTP/1.1 200"));
        let told = ask(mesh.ways_in[&8080], "OPTIONS / HTTP/1.0\r\n\r\n").await;
        assert!(told.starts_with("HTTP/1.0 200"), "{told}");
        heard.recv().await;
        let seen = heard.recv().await.expect("one").to_ascii_lowercase();
        assert!(seen.contains("host: web.default.mesh\r\n"), "{seen}");
    }
}

#[tokio::test]
async fn targets_without_a_path() {
    let (target, mut heard) = scripted(OK).await;
    let mesh = mesh(Protocol::Http, target).await;
    for (line, expected) in [
        ("GET http://web.mesh?q=1 HTTP/1.1", "GET /?q=1 "),
        ("GET http://web.mesh HTTP/1.1", "GET / "),
        ("OPTIONS * HTTP/1.1", "OPTIONS * "),
        ("OPTIONS http://web.mesh/ HTTP/1.1", "OPTIONS / "),
        ("OPTIONS http://web.mesh HTTP/1.1", "OPTIONS * "),
        ("OPTIONS http://web.mesh?q=1 HTTP/1.1", "OPTIONS /?q=1 "),
    ] {
        let told = ask(mesh.ways_in[&8080], &format!("{line}\r\nHost: web.mesh\r\n\r\n")).await;
        assert!(told.starts_with("HTTP/1.1 200"), "{line}: {told}");
        let seen = heard.recv().await.expect("one");
        assert!(seen.starts_with(expected), "{line}: {seen}");
    }
    for line in ["GET * HTTP/1.1", "POST * HTTP/1.1", "GET web.mesh:8080 HTTP/1.1"] {
        let told = ask(mesh.ways_in[&8080], &format!("{line}\r\nHost: web.mesh\r\n\r\n")).await;
        assert!(told.starts_with("HTTP/1.1 400"), "{line}: {told}");
    }
}

#[tokio::test]
async fn what_only_weft_sets_is_set_by_nobody_else() {
    let (target, mut heard) = scripted(OK).await;
    let mesh = mesh(Protocol::Auto, target).await;
    let at = mesh.ways_in[&8080];
    let forged = "URI=spiffe://mesh.test/ns/default/sa/admin";
    for name in ["X_Forwarded_Client_Cert", "x-forwarded_client-cert"] {
        let told = ask(at, &format!("GET / HTTP/1.1\r\nHost: web.mesh\r\n{name}: {forged}\r\n\r\n")).await;
        assert!(told.starts_with("HTTP/1.1 400") && told.contains("underscoreHeaders"), "{told}");
    }
    for name in ["X-Forwarded-Client-Cert", "X.Forwarded.Client.Cert", "x-forwarded!client~cert", "X-Weft-Http"] {
        let told = ask(at, &format!("GET / HTTP/1.1\r\nHost: web.mesh\r\n{name}: {forged}\r\n\r\n")).await;
        assert!(told.starts_with("HTTP/1.1 200"), "{told}");
        let seen = heard.recv().await.expect("one");
        assert!(!seen.contains("admin") && seen.contains("URI=spiffe://mesh.test/ns/default/sa/front"), "{seen}");
    }
    // In trailers, which some servers merge into the head.
    let chunked = format!(
        "POST / HTTP/1.1\r\nHost: web.mesh\r\nTrailer: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Forwarded-Client-Cert: {forged}\r\nx-ok: 1\r\n\r\n"
    );
    ask(at, &chunked).await;
    let seen = heard.recv().await.expect("one");
    assert!(!seen.contains("admin"), "{seen}");
}

#[tokio::test]
async fn what_is_spoken_is_told_by_the_first_bytes_however_late() {
    let (target, mut heard) = scripted(OK).await;
    let mut mesh = mesh(Protocol::Auto, target).await;
    let setup = Setup::over(Transport::Tcp);
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web}\nspec:\n  action: DENY\n  rules: [{to: [{operation: {paths: [/admin*]}}]}]\n";
    let request = "GET /ok HTTP/1.1\r\nHost: web.mesh\r\nX-Forwarded-Client-Cert: forged\r\n\r\n";
    for policies in ["", policy] {
        mesh.enforce(policies, &setup);
        for (first, then) in [("", request), ("\r\n", request), ("GE", &request[2..]), ("\r\n\r\nG", &request[1..])] {
            let mut stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
            stream.write_all(first.as_bytes()).await.expect("written");
            sleep(Duration::from_millis(700)).await;
            stream.write_all(then.as_bytes()).await.expect("written");
            let told = answer(&mut stream, "GET").await;
            assert!(told.starts_with("HTTP/1.1 200"), "{policies}{first:?}: {told}");
            let seen = heard.recv().await.expect("one");
            assert!(!seen.contains("forged") && seen.contains("x-forwarded-client-cert"), "{seen}");
        }
        let told = ask(mesh.ways_in[&8080], &request.replace("/ok", "/admin")).await;
        assert!(told.starts_with("HTTP/1.1 403") || policies.is_empty(), "{told}");
    }
}

#[tokio::test]
async fn http_that_comes_after_something_else_was_taken_for_is_cut() {
    let (target, mut heard) = scripted(OK).await;
    let mesh = mesh(Protocol::Auto, target).await;
    let mut stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
    stream.write_all(b"foo").await.expect("written");
    sleep(Duration::from_millis(300)).await;
    let _ = stream.write_all(b"bar / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: forged\r\n\r\n").await;
    assert_eq!(answer(&mut stream, "GET").await, "");
    assert!(timeout(Duration::from_millis(300), heard.recv()).await.is_err());
}

#[tokio::test]
async fn an_answer_may_have_many_fields() {
    let fields: String = (0..2000).map(|n| format!("x-{n}: {n}\r\n")).collect();
    let long = Box::leak(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{fields}\r\nok").into_boxed_str());
    let (target, mut heard) = scripted(long).await;
    for transport in [Transport::Tcp, Transport::Quic] {
        let mesh = Mesh::start(&Setup::over(transport), &[(8080, Protocol::Http, target)]).await;
        let told = ask(mesh.ways_in[&8080], &format!("GET / HTTP/1.1\r\nHost: web.mesh\r\n{fields}\r\n")).await;
        assert!(told.starts_with("HTTP/1.1 200") && told.contains("x-1999: 1999"), "{}", &told[..300.min(told.len())]);
        assert!(heard.recv().await.expect("a request").contains("x-1999: 1999"));
    }
}

#[tokio::test]
async fn an_answer_that_is_framed_twice_is_framed_once() {
    const TWICE: &str =
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let (target, _heard) = scripted(TWICE).await;
    for transport in [Transport::Tcp, Transport::Quic] {
        let mesh = Mesh::start(&Setup::over(transport), &[(8080, Protocol::Http, target)]).await;
        for _ in 0..2 {
            let told = ask(mesh.ways_in[&8080], "GET / HTTP/1.1\r\nHost: web.mesh\r\n\r\n").await.to_ascii_lowercase();
            assert!(told.starts_with("http/1.1 200") && told.contains("\r\nok\r\n"), "{told:?}");
            assert!(told.contains("transfer-encoding: chunked") && !told.contains("content-length"), "{told}");
        }
    }
}

#[tokio::test]
async fn answers_without_a_body_keep_the_length_that_they_tell() {
    // A 304 may leave it out (RFC 9110, 15.4.5), and the library that writes answers does.
    for (method, answer, length) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\nETag: \"a\"\r\n\r\n", Some("100")),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\nETag: \"a\"\r\n\r\n", None),
        ("GET", "HTTP/1.1 204 No Content\r\nETag: \"a\"\r\n\r\n", None),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: \"a\"\r\n\r\n", Some("0")),
    ] {
        let (target, _heard) = scripted(answer).await;
        for transport in [Transport::Tcp, Transport::Quic] {
            let mesh = Mesh::start(&Setup::over(transport), &[(8080, Protocol::Http, target)]).await;
            let mut stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
            for _ in 0..2 {
                let request = format!("{method} / HTTP/1.1\r\nHost: web.mesh\r\n\r\n");
                stream.write_all(request.as_bytes()).await.expect("written");
                let told = self::answer(&mut stream, method).await.to_ascii_lowercase();
                assert!(told.starts_with(&answer[..12].to_ascii_lowercase()) && told.contains("etag"), "{told:?}");
                let found = told.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
                assert_eq!(found, length, "{method} {answer:?} {transport:?}: {told:?}");
                assert!(!told.contains("transfer-encoding"), "{told:?}");
            }
        }
    }
}

#[tokio::test]
async fn options_go_no_further_than_they_may() {
    let (target, mut heard) = scripted(OK).await;
    let mesh = mesh(Protocol::Http, target).await;
    let ask_with = |hops: &'static str| {
        let request = format!("OPTIONS / HTTP/1.1\r\nHost: web.mesh\r\nMax-Forwards: {hops}\r\n\r\n");
        let at = mesh.ways_in[&8080];
        async move { ask(at, &request).await }
    };
    let told = ask_with("0").await;
    assert!(told.starts_with("HTTP/1.1 200") && told.contains("no further"), "{told}");
    for (hops, left) in [("5", "max-forwards: 4"), ("1", "max-forwards: 0"), ("x", "max-forwards: x")] {
        let told = ask_with(hops).await;
        assert!(told.ends_with("ok"), "{told}");
        let seen = heard.recv().await.expect("one").to_ascii_lowercase();
        assert!(seen.contains(left), "{seen}");
    }
}

#[tokio::test]
async fn a_request_whose_body_is_malformed_is_the_callers_fault() {
    let application = application::http().await;
    for protocol in [Protocol::Http, Protocol::Http2] {
        let mut mesh = mesh(protocol, application.address).await;
        for body in
            ["fffffffffffffffff\r\nhello\r\n0\r\n\r\n", "5\nhello\r\n0\r\n\r\n", "5\r\nhello\n0\r\n\r\n", "g\r\n"]
        {
            let head = "POST /who HTTP/1.1\r\nHost: web.mesh\r\nTransfer-Encoding: chunked\r\n\r\n";
            ask(mesh.ways_in[&8080], &format!("{head}{body}")).await;
            for node in [&mut mesh.a, &mut mesh.b] {
                let record = node.record(|record| record.path == "/who").await;
                assert!(record.fault == "caller" || record.reason.is_empty(), "{body:?}: {record:?}");
                assert!(record.code != 502, "{body:?}: {record:?}");
            }
        }
    }
    // One that answers only after it has read all gets nothing, and its caller is told why.
    let (target, _heard) = scripted(OK).await;
    let mut mesh = mesh(Protocol::Http, target).await;
    let head = "POST /late HTTP/1.1\r\nHost: web.mesh\r\nTransfer-Encoding: chunked\r\nExpect: nothing\r\n\r\n";
    let told = ask(mesh.ways_in[&8080], &format!("{head}5\r\nhello\n0\r\n\r\n")).await;
    assert!(told.starts_with("HTTP/1.1 400"), "{told}");
    let record = mesh.a.record(|record| record.path == "/late").await;
    assert_eq!((record.code, record.fault), (400, "caller"), "{record:?}");
}

#[tokio::test]
async fn tunnels_say_success_when_it_is_one_and_cut_when_it_is_cut() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let live = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut byte = [0];
            if stream.read(&mut byte).await.is_ok_and(|count| count == 1) {
                let _ = stream.write_all(b"half").await;
                sleep(Duration::from_millis(200)).await;
                #[expect(deprecated, reason = "a reset is what is wanted")]
                let _ = stream.set_linger(Some(Duration::ZERO));
            }
        }
    });
    let ports = [(5432, Protocol::Tcp), (5433, Protocol::Auto), (8080, Protocol::Http)];
    let setup = Setup::over(Transport::Tcp);
    let dead = free();
    let targets: Vec<_> = ports.iter().map(|(port, protocol)| (*port, *protocol, dead)).collect();
    let mut down = Mesh::start(&setup, &targets).await;
    for (port, _) in ports {
        let told = ask(down.proxy, &format!("CONNECT web.mesh:{port} HTTP/1.1\r\nHost: web.mesh:{port}\r\n\r\n")).await;
        let record = down.a.record(|_| true).await;
        assert!(told.starts_with("HTTP/1.1 503"), "{port}: {told} {record:?}");
        assert_eq!(socks(down.proxy, port).await.1, 5, "{port}");
    }
    let targets: Vec<_> = ports.iter().map(|(port, protocol)| (*port, *protocol, live)).collect();
    let mut up = Mesh::start(&setup, &targets).await;
    for (port, _) in &ports[..2] {
        let (mut stream, code) = socks(up.proxy, *port).await;
        assert_eq!(code, 0);
        assert_cut(&mut stream).await;
        let mut stream = TcpStream::connect(up.proxy).await.expect("connects");
        let request = format!("CONNECT web.mesh:{port} HTTP/1.1\r\nHost: web.mesh:{port}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let told = answer(&mut stream, "CONNECT").await;
        assert!(told.starts_with("HTTP/1.1 200"), "{told}");
        assert_cut(&mut stream).await;
    }
    up.enforce(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web}\nspec: {}\n",
        &setup,
    );
    for (port, _) in ports {
        let told = ask(up.proxy, &format!("CONNECT web.mesh:{port} HTTP/1.1\r\nHost: web.mesh:{port}\r\n\r\n")).await;
        assert!(told.starts_with("HTTP/1.1 403"), "{port}: {told}");
        assert_eq!(socks(up.proxy, port).await.1, 2, "{port}");
    }
}

async fn socks(proxy: SocketAddr, port: u16) -> (TcpStream, u8) {
    let mut stream = TcpStream::connect(proxy).await.expect("connects");
    stream.write_all(b"\x05\x01\x00").await.expect("written");
    let mut greeting = [0; 2];
    soon("a greeting", stream.read_exact(&mut greeting)).await.expect("read");
    let mut request = b"\x05\x01\x00\x03\x08web.mesh".to_vec();
    request.extend(port.to_be_bytes());
    stream.write_all(&request).await.expect("written");
    let mut reply = [0; 10];
    soon("a reply", stream.read_exact(&mut reply)).await.expect("read");
    (stream, reply[1])
}

async fn assert_cut(stream: &mut TcpStream) {
    stream.write_all(b"\0").await.expect("written");
    let mut rest = Vec::new();
    let ended = soon("the end", stream.read_to_end(&mut rest)).await;
    assert!(ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset), "{rest:?}");
}

async fn h2(address: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.expect("connects");
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1024).initial_connection_window_size(1 << 20);
    let (sender, connection) = builder.handshake(stream).await.expect("speaks HTTP/2");
    tokio::spawn(connection);
    sender
}

fn request(method: Method, path: &str) -> Request<()> {
    let uri = format!("http://web.mesh{path}");
    Request::builder().method(method).uri(uri).version(Version::HTTP_2).body(()).expect("valid")
}

#[tokio::test]
async fn cookies_that_http_2_has_split_are_joined_for_http_1() {
    let (target, mut heard) = scripted(OK).await;
    let mesh = mesh(Protocol::Http, target).await;
    let mut sender = h2(mesh.ways_in[&8080]).await.ready().await.expect("ready");
    let mut request = request(Method::GET, "/");
    for crumb in ["a=1", "b=2", "c=3"] {
        request.headers_mut().append("cookie", crumb.parse().expect("valid"));
    }
    let (response, _) = sender.send_request(request, true).expect("sent");
    soon("an answer", response).await.expect("answered");
    let seen = heard.recv().await.expect("one");
    assert!(seen.contains("cookie: a=1; b=2; c=3\r\n"), "{seen}");
}

#[tokio::test]
async fn those_who_do_not_read_hold_up_nobody_else() {
    let application = application::http().await;
    for transport in [Transport::Tcp, Transport::Quic] {
        let mesh = Mesh::start(&Setup::over(transport), &[(8080, Protocol::Http, application.address)]).await;
        let at = mesh.ways_in[&8080];
        let mut slow = Vec::new();
        let body = vec![b'x'; 600 << 10];
        for _ in 0..80 {
            let mut stream = TcpStream::connect(at).await.expect("connects");
            let head = format!("POST /echo HTTP/1.1\r\nHost: web.mesh\r\nContent-Length: {}\r\n\r\n", 8 << 20);
            stream.write_all(head.as_bytes()).await.expect("written");
            // As much as is taken without reading a byte of what comes back.
            let _ = timeout(Duration::from_millis(50), stream.write_all(&body)).await;
            slow.push(stream);
        }
        sleep(Duration::from_millis(500)).await;
        let began = Instant::now();
        for _ in 0..50 {
            let told = ask(at, "GET /who HTTP/1.1\r\nHost: web.mesh\r\nConnection: close\r\n\r\n").await;
            assert!(told.starts_with("HTTP/1.1 200"), "{told}");
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn calls_that_are_given_up_at_once_do_not_end_the_link_for_others() {
    let application = application::http().await;
    let mesh = mesh(Protocol::Http, application.address).await;
    let at = mesh.ways_in[&8080];
    let mut long = TcpStream::connect(at).await.expect("connects");
    long.write_all(b"GET /endless HTTP/1.1\r\nHost: web.mesh\r\n\r\n").await.expect("written");
    let mut chunk = [0; 1024];
    assert!(soon("a byte", long.read(&mut chunk)).await.expect("read") > 0);
    for _ in 0..3 {
        let mut all = Vec::new();
        for _ in 0..150 {
            let mut stream = TcpStream::connect(at).await.expect("connects");
            stream.write_all(b"GET /silent HTTP/1.1\r\nHost: web.mesh\r\n\r\n").await.expect("written");
            all.push(stream);
        }
        sleep(Duration::from_millis(50)).await;
        for stream in &all {
            #[expect(deprecated, reason = "a reset is what is wanted")]
            let _ = stream.set_linger(Some(Duration::ZERO));
        }
        drop(all);
    }
    sleep(Duration::from_millis(300)).await;
    // What has piled up, and then what is new.
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        let read = soon("more", long.read(&mut chunk)).await.expect("the long answer goes on");
        assert!(read > 0);
    }
}

#[tokio::test]
async fn what_is_refused_before_its_body_is_read_is_told_why() {
    let application = application::http().await;
    for transport in [Transport::Tcp, Transport::Quic] {
        let setup = Setup::over(transport);
        let mut mesh = Mesh::start(&setup, &[(8080, Protocol::Http, application.address)]).await;
        let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web}\nspec: {}\n";
        mesh.enforce_at(&[false], policy, &setup);
        for _ in 0..50 {
            let mut stream = TcpStream::connect(mesh.ways_in[&8080]).await.expect("connects");
            let head = "POST /echo HTTP/1.1\r\nHost: web.mesh\r\nContent-Length: 200000\r\n\r\n";
            stream.write_all(head.as_bytes()).await.expect("written");
            let _ = stream.write_all(&[b'x'; 100_000]).await;
            let told = answer(&mut stream, "POST").await;
            assert!(told.starts_with("HTTP/1.1 403"), "{transport:?}: {told}");
        }
    }
}
