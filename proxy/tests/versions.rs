//! What one version of HTTP must become in the other: every rule of RFC 9113, section 8, and of RFC 9110, section 7.6,
//! that binds whoever passes messages on.

mod support {
    pub(crate) mod application;
    pub(crate) mod mesh;
    pub(crate) mod raw;
}

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_proto::service::Protocol;
use weft_proxy::plane::Transport;

use support::application;
use support::mesh::{Mesh, Setup, soon};
use support::raw::{ask, scripted};

/// Field lines as they are written, pseudo-fields too.
type Fields<'a> = &'a [(&'a str, &'a str)];

/// A caller that writes frames of HTTP/2 (RFC 9113, 4.1), right or wrong.
struct Frames(TcpStream);

/// How a stream ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Answered with one of the seven status codes that HPACK has a number for.
    Answer(u16),
    /// The stream was reset, or the connection closed, with this error.
    Error(u32),
    /// The connection ended without a word.
    Gone,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PROTOCOL_ERROR: u32 = 1;

impl Frames {
    async fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("written");
        Self(stream)
    }

    async fn send(&mut self, kind: u8, flags: u8, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let head = [length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        // Whoever has refused the stream may have closed the connection.
        let _ = self.0.write_all(&[&head, payload].concat()).await;
    }

    async fn headers(&mut self, fields: Fields<'_>, flags: u8) {
        self.send(HEADERS, END_HEADERS | flags, &block(fields)).await;
    }

    async fn end(&mut self) -> End {
        soon("the end of a stream", async {
            let mut head = [0; 9];
            while self.0.read_exact(&mut head).await.is_ok() {
                let length = usize::from(head[1]) << 8 | usize::from(head[2]);
                let mut payload = vec![0; length];
                if self.0.read_exact(&mut payload).await.is_err() {
                    break;
                }
                let error = |at: usize| End::Error(u32::from_be_bytes(payload[at..at + 4].try_into().expect("four")));
                match head[3] {
                    HEADERS => return End::Answer(status(&payload)),
                    RESET => return error(0),
                    GOAWAY if payload[4..8] != [0; 4] => return error(4),
                    _ => {}
                }
            }
            End::Gone
        })
        .await
    }
}

/// A field section of literals that are not indexed (RFC 7541, 6.2.2).
fn block(fields: Fields<'_>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("shorter than 127"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// The status with which a field section begins, where it is in the static table (RFC 7541, appendix A).
fn status(block: &[u8]) -> u16 {
    const KNOWN: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    let first = block.iter().find(|byte| **byte & 0xe0 != 0x20).copied().unwrap_or_default();
    KNOWN.get(usize::from(first.wrapping_sub(0x88))).copied().unwrap_or_default()
}

const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":authority", "web.mesh"), (":path", "/")];
const POST: [(&str, &str); 4] = [(":method", "POST"), (":scheme", "http"), (":authority", "web.mesh"), (":path", "/")];
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn get_with<'a>(more: Fields<'a>) -> Vec<(&'a str, &'a str)> {
    [&GET, more].concat()
}

fn get_without<'a>(name: &str) -> Vec<(&'a str, &'a str)> {
    GET.into_iter().filter(|(other, _)| *other != name).collect()
}

fn get_where<'a>(name: &str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    GET.into_iter().map(|(other, old)| (other, if other == name { value } else { old })).collect()
}

#[tokio::test]
async fn malformed_requests_of_http_2_never_reach_an_application() {
    let (target, mut heard) = scripted(OK).await;
    let mesh = Mesh::start(&Setup::over(Transport::Tcp), &[(8080, Protocol::Http, target)]).await;
    let address = mesh.ways_in[&8080];
    let heads: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("8.2: a name in capitals", get_with(&[("X-Name", "1")])),
        ("8.2.1: a blank in a name", get_with(&[("x name", "1")])),
        ("8.2.1: a control character in a name", get_with(&[("x\u{1}", "1")])),
        ("8.2.1: a character beyond ASCII in a name", get_with(&[("x\u{e9}", "1")])),
        ("8.2.1: a colon in a name", get_with(&[("x:y", "1")])),
        ("8.2.1: an empty name", get_with(&[("", "1")])),
        ("8.2.1: CR in a value", get_with(&[("x", "1\r2")])),
        ("8.2.1: LF in a value", get_with(&[("x", "1\ny: 2")])),
        ("8.2.1: NUL in a value", get_with(&[("x", "1\u{0}")])),
        ("8.2.2: Connection", get_with(&[("connection", "close")])),
        ("8.2.2: Connection that names a field", get_with(&[("connection", "x-a"), ("x-a", "1")])),
        ("8.2.2: Keep-Alive", get_with(&[("keep-alive", "timeout=5")])),
        ("8.2.2: Proxy-Connection", get_with(&[("proxy-connection", "keep-alive")])),
        ("8.2.2: Transfer-Encoding", get_with(&[("transfer-encoding", "chunked")])),
        ("8.2.2: Upgrade", get_with(&[("upgrade", "websocket")])),
        ("8.2.2: TE that is not trailers", get_with(&[("te", "gzip")])),
        ("8.3: a pseudo-field after a field", [&[("x", "1")], &GET[..]].concat()),
        ("8.3: an unknown pseudo-field", get_with(&[(":mesh", "1")])),
        ("8.3: a pseudo-field of answers", get_with(&[(":status", "200")])),
        ("8.3.1: :path twice", get_with(&[(":path", "/other")])),
        ("8.3.1: :method twice", get_with(&[(":method", "GET")])),
        ("8.3.1: :authority twice", get_with(&[(":authority", "db.mesh")])),
        ("8.3.1: no :method", get_without(":method")),
        ("8.3.1: no :scheme", get_without(":scheme")),
        ("8.3.1: no :path", get_without(":path")),
        ("8.3.1: no :authority and no Host", get_without(":authority")),
        ("8.3.1: an empty :path", get_where(":path", "")),
        ("8.3.1: a :path without a slash", get_where(":path", "admin")),
        ("8.3.1: * for another method than OPTIONS", get_where(":path", "*")),
        ("8.3.1: a user in :authority", get_where(":authority", "root@web.mesh")),
        ("8.3.1: Host and :authority differ", get_with(&[("host", "db.mesh")])),
        ("8.5: CONNECT with a path", vec![(":method", "CONNECT"), (":authority", "web.mesh:80"), (":path", "/")]),
        (
            "8.5: CONNECT with a scheme",
            vec![(":method", "CONNECT"), (":authority", "web.mesh:80"), (":scheme", "http")],
        ),
        ("8.5: CONNECT without an authority", vec![(":method", "CONNECT")]),
        ("9110, 5.1: a method that is no token", get_where(":method", "G ET")),
        ("9112, 3.2: a blank in the path", get_where(":path", "/a b")),
        ("9112, 3.2: line ends in the path", get_where(":path", "/ HTTP/1.1\r\nx: 1")),
        ("9110, 8.6: a length that is none", get_with(&[("content-length", "1x")])),
        ("9110, 8.6: two lengths", get_with(&[("content-length", "1"), ("content-length", "2")])),
    ];
    let mut wrong = Vec::new();
    for (rule, fields) in heads {
        let mut frames = Frames::connect(address).await;
        frames.headers(&fields, END_STREAM).await;
        let end = frames.end().await;
        // CONNECT is for the forward proxy, whatever it says: 405, which has no number.
        let refused = End::Answer(if rule.ends_with("an authority") { 0 } else { 400 });
        if end != refused && end != End::Error(PROTOCOL_ERROR) {
            wrong.push(format!("{rule}: {end:?}"));
        }
    }
    let bodies: [(&str, Fields<'_>, &[&[u8]], Fields<'_>); 4] = [
        ("8.1.1: less than the length says", &[("content-length", "5")], &[b"four"], &[]),
        ("8.1.1: more than the length says", &[("content-length", "3")], &[b"fo", b"ur"], &[]),
        ("8.2: capitals in trailers", &[], &[b"four"], &[("X-T", "1")]),
        ("8.2.2: Connection in trailers", &[], &[b"four"], &[("connection", "x")]),
    ];
    for (rule, fields, data, trailers) in bodies {
        let mut frames = Frames::connect(address).await;
        frames.headers(&[&POST, fields].concat(), 0).await;
        for (n, data) in data.iter().enumerate() {
            frames.send(DATA, if n == 1 && trailers.is_empty() { END_STREAM } else { 0 }, data).await;
        }
        match trailers {
            [] => frames.send(DATA, END_STREAM, b"").await,
            _ => frames.headers(trailers, END_STREAM).await,
        }
        let end = frames.end().await;
        if !matches!(end, End::Answer(400) | End::Error(PROTOCOL_ERROR)) {
            wrong.push(format!("{rule}: {end:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let mut frames = Frames::connect(address).await;
    frames.headers(&get_where(":path", "/good"), END_STREAM).await;
    assert_eq!(frames.end().await, End::Answer(200));
    // Of all of them it alone has arrived whole.
    let seen = soon("a request", heard.recv()).await.expect("one");
    assert!(seen.starts_with("GET /good "), "{seen}");
}

async fn h2(address: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.expect("connects");
    let (sender, connection) = h2::client::handshake(stream).await.expect("speaks HTTP/2");
    tokio::spawn(connection);
    sender.ready().await.expect("ready")
}

async fn ask2(address: SocketAddr, head: Request<()>) -> Response<h2::RecvStream> {
    let (response, _) = h2(address).await.send_request(head, true).expect("sent");
    soon("an answer", response).await.expect("answered")
}

#[tokio::test]
async fn requests_of_http_2_become_requests_of_http_1() {
    let (target, mut heard) = scripted(OK).await;
    for transport in [Transport::Tcp, Transport::Quic] {
        let mesh = Mesh::start(&Setup::over(transport), &[(8080, Protocol::Http, target)]).await;
        let address = mesh.ways_in[&8080];
        for (rule, fields, expected, not) in [
            ("8.3.1: Host is :authority", &GET[..], "\r\nhost: web.mesh\r\n", ":authority"),
            ("8.3.1: Host that is the same goes once", &get_with(&[("host", "web.mesh")]), "host: web.mesh", "x"),
            (
                "8.3.1: Host without :authority",
                &[&get_without(":authority")[..], &[("host", "web.mesh")]].concat(),
                "\r\nhost: web.mesh\r\n",
                ":authority",
            ),
            ("8.2.2: TE: trailers stays", &get_with(&[("te", "trailers")]), "te: trailers", "gzip"),
            (
                "8.2.3: crumbs are joined",
                &get_with(&[("cookie", "a=1"), ("cookie", "b=2")]),
                "cookie: a=1; b=2\r\n",
                "x",
            ),
            (
                "8.3.1: OPTIONS *",
                &[(":method", "OPTIONS"), (":scheme", "http"), (":authority", "web.mesh"), (":path", "*")],
                "OPTIONS * HTTP/1.1\r\n",
                "x",
            ),
            ("8.3.1: the scheme is not told", &get_where(":scheme", "https"), "GET / HTTP/1.1\r\n", "https:"),
        ] {
            let mut frames = Frames::connect(address).await;
            frames.headers(fields, END_STREAM).await;
            assert_eq!(frames.end().await, End::Answer(200), "{rule}");
            let seen = soon("a request", heard.recv()).await.expect("one");
            let plain = seen.replace("x-forwarded", "forwarded");
            assert!(seen.contains(expected) && (not == "x" || !plain.contains(not)), "{rule}: {seen}");
            assert_eq!(seen.to_ascii_lowercase().matches("host: ").count(), 1, "{rule}: {seen}");
        }
        // A body without a length is chunked, with one it is not (RFC 9112, 6.1).
        for (fields, framed) in
            [(&[][..], "transfer-encoding: chunked"), (&[("content-length", "4")], "content-length: 4")]
        {
            let mut frames = Frames::connect(address).await;
            frames.headers(&[&POST, fields].concat(), 0).await;
            frames.send(DATA, 0, b"fo").await;
            frames.send(DATA, END_STREAM, b"ur").await;
            assert_eq!(frames.end().await, End::Answer(200));
            let seen = soon("a request", heard.recv()).await.expect("one");
            assert!(seen.contains(framed) && seen.contains("fo"), "{seen}");
            assert!(!(seen.contains("transfer-encoding") && seen.contains("content-length")), "{seen}");
        }
    }
}

#[tokio::test]
async fn answers_of_http_1_become_answers_of_http_2() {
    const HOP: &str = "HTTP/1.1 200 OK\r\nConnection: x-hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
        Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nX-Kept: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: 1\r\nConnection: x\r\n\r\n";
    const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
    const OLD: &str = "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const SHORT: &str = "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n";
    for transport in [Transport::Tcp, Transport::Quic] {
        for answer in [HOP, OLD, SHORT, SWITCHED] {
            let (target, _heard) = scripted(answer).await;
            let mesh = Mesh::start(&Setup::over(transport), &[(8080, Protocol::Http, target)]).await;
            let head = Request::get("http://web.mesh/").version(Version::HTTP_2).body(()).expect("valid");
            let mut response = ask2(mesh.ways_in[&8080], head).await;
            let told = format!("{transport:?} {answer:?}: {response:?}");
            for name in ["connection", "x-hop", "keep-alive", "proxy-connection", "upgrade", "transfer-encoding"] {
                assert!(!response.headers().contains_key(name), "8.2.2, 7.6.1: {name}: {told}");
            }
            match answer {
                // 8.6: HTTP/2 has no 101, and nobody has offered anything.
                SWITCHED => assert_eq!(response.status(), 502, "{told}"),
                SHORT => assert_eq!(response.status(), 204, "{told}"),
                _ => {
                    assert_eq!(response.status(), 200, "{told}");
                    assert!(answer == OLD || response.headers().contains_key("x-kept"), "{told}");
                    let body = soon("a body", response.body_mut().data()).await.expect("some").expect("whole");
                    assert_eq!(body, "ok");
                    let trailers = soon("trailers", response.body_mut().trailers()).await.expect("whole");
                    let trailers = trailers.unwrap_or_default();
                    assert_eq!(trailers.contains_key("x-t"), answer == HOP, "8.1: {trailers:?}");
                    assert!(!trailers.contains_key("connection"), "{trailers:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn http_1_and_http_2_meet_at_an_application_that_speaks_http_2() {
    let application = application::http().await;
    for transport in [Transport::Tcp, Transport::Quic] {
        let mesh = Mesh::start(&Setup::over(transport), &[(8080, Protocol::Http2, application.address)]).await;
        let address = mesh.ways_in[&8080];
        // What belongs to the hop of HTTP/1.1 would be an error in HTTP/2 (8.2.2).
        let told = ask(
            address,
            "POST /echo HTTP/1.1\r\nHost: web.mesh\r\nConnection: keep-alive, x-hop, TE\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: gzip, trailers\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: 1\r\n\r\n",
        )
        .await;
        assert!(told.starts_with("HTTP/1.1 200") && told.contains("\r\nok\r\n"), "{told}");
        let told = ask(address, "GET /no HTTP/1.1\r\nHost: web.mesh\r\n\r\n").await;
        assert!(told.starts_with("HTTP/1.1 404 Not Found\r\n") && told.ends_with("no /no"), "{told}");
        let told = ask(address, "GET /empty HTTP/1.1\r\nHost: web.mesh\r\n\r\n").await.to_ascii_lowercase();
        assert!(told.starts_with("http/1.1 204") && !told.contains("transfer-encoding"), "{told}");
        let head = Request::get("http://web.mesh/trailers").version(Version::HTTP_2).body(()).expect("valid");
        let mut response = ask2(address, head).await;
        while let Some(data) = soon("a body", response.body_mut().data()).await {
            assert_eq!(data.expect("whole"), "data");
        }
        let trailers = soon("trailers", response.body_mut().trailers()).await.expect("whole");
        assert!(trailers.is_some_and(|trailers| trailers["grpc-status"] == "7"));
    }
}

#[tokio::test]
async fn what_belongs_to_a_hop_of_http_1_stays_on_it() {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\nConnection: x-hop\r\nConnection: X-Other\r\nX-Hop: 1\r\nX-Other: 1\r\nX-Kept: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nContent-Length: 2\r\n\r\nok";
    let (target, mut heard) = scripted(ANSWER).await;
    let mesh = Mesh::start(&Setup::over(Transport::Tcp), &[(8080, Protocol::Http, target)]).await;
    let told = ask(
        mesh.ways_in[&8080],
        "GET / HTTP/1.1\r\nHost: web.mesh\r\nConnection: X-Hop\r\nConnection: ,keep-alive, x-OTHER,\r\nX-Hop: 1\r\nX-Other: 1\r\nX-Kept: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nTE: gzip\r\nMax-Forwards: 3\r\n\r\n",
    )
    .await;
    let seen = soon("a request", heard.recv()).await.expect("one");
    for text in [told, seen].map(|text| text.to_ascii_lowercase()) {
        for name in ["x-hop", "x-other", "keep-alive:", "proxy-", "te: gzip"] {
            assert!(!text.contains(name), "7.6.1: {name}: {text}");
        }
        assert!(text.contains("x-kept: 1\r\n"), "{text}");
        // Counted for OPTIONS and TRACE only.
        assert!(!text.starts_with("get") || text.contains("max-forwards: 3"), "7.6.2: {text}");
    }
}
