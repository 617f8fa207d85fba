//! What a listener does with requests that servers read in different ways (RFC 9112; semantics of request smuggling).

mod support {
    pub(crate) mod application;
    pub(crate) mod mesh;
    pub(crate) mod raw;
}

use weft_proto::service::Protocol;
use weft_proxy::plane::Transport;

use support::application;
use support::mesh::{Mesh, Setup};
use support::raw::ask_again;

#[tokio::test]
async fn ambiguous_requests_are_refused_and_their_connection_closed() {
    let application = application::http().await;
    let mesh = Mesh::start(&Setup::over(Transport::Tcp), &[(8080, Protocol::Http, application.address)]).await;
    let address = mesh.ways_in[&8080];
    let long = "a".repeat(17 << 10);
    let wide = format!("x-a: {}\r\n", "a".repeat(70 << 10));
    let cases: Vec<(&str, String, &str)> = vec![
        ("two Hosts", "GET /who HTTP/1.1\r\nHost: web.mesh\r\nHost: db.mesh\r\n\r\n".into(), "400"),
        ("two equal Hosts", "GET /who HTTP/1.1\r\nHost: web.mesh\r\nHost: web.mesh\r\n\r\n".into(), "400"),
        ("no Host", "GET /who HTTP/1.1\r\n\r\n".into(), "400"),
        ("an empty Host", "GET /who HTTP/1.1\r\nHost:\r\n\r\n".into(), "400"),
        ("bare CR", "GET /who HTTP/1.1\r\nHost: web.mesh\r\nx-a: 1\rx-b: 2\r\n\r\n".into(), "400"),
        ("NUL", "GET /who HTTP/1.1\r\nHost: web.mesh\r\nx-a: 1\0\r\n\r\n".into(), "400"),
        ("obs-fold", "GET /who HTTP/1.1\r\nHost: web.mesh\r\nx-a: 1\r\n 2\r\n\r\n".into(), "400"),
        ("a blank before the colon", "GET /who HTTP/1.1\r\nHost: web.mesh\r\nx-a : 1\r\n\r\n".into(), "400"),
        ("a name that is none", "GET /who HTTP/1.1\r\nHost: web.mesh\r\nx a: 1\r\n\r\n".into(), "400"),
        ("two lengths", "POST /echo HTTP/1.1\r\nHost: web.mesh\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".into(), "400"),
        ("a length and a coding", "POST /echo HTTP/1.1\r\nHost: web.mesh\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), "400"),
        ("a coding and a length", "POST /echo HTTP/1.1\r\nHost: web.mesh\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n".into(), "400"),
        ("a bare LF after the request line", "GET /who HTTP/1.1\nHost: web.mesh\r\n\r\n".into(), "400"),
        ("a bare LF after a field", "GET /who HTTP/1.1\r\nHost: web.mesh\n\r\n".into(), "400"),
        ("a bare LF at the end", "GET /who HTTP/1.1\r\nHost: web.mesh\r\n\n".into(), "400"),
        ("bare LFs only", "GET /who HTTP/1.1\nHost: web.mesh\n\n".into(), "400"),
        ("a signed length", "POST /echo HTTP/1.1\r\nHost: web.mesh\r\nContent-Length: +1\r\n\r\na".into(), "400"),
        ("a list of lengths", "POST /echo HTTP/1.1\r\nHost: web.mesh\r\nContent-Length: 1, 1\r\n\r\na".into(), "400"),
        ("an unknown coding", "POST /echo HTTP/1.1\r\nHost: web.mesh\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n".into(), "400"),
        ("identity and chunked", "POST /echo HTTP/1.1\r\nHost: web.mesh\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n".into(), "400"),
        ("chunked twice", "POST /echo HTTP/1.1\r\nHost: web.mesh\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n".into(), "400"),
        ("two codings", "POST /echo HTTP/1.1\r\nHost: web.mesh\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), "400"),
        ("a coding in HTTP/1.0", "POST /echo HTTP/1.0\r\nHost: web.mesh\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), "400"),
        ("another host in the target", "GET http://db.mesh/who HTTP/1.1\r\nHost: web.mesh\r\n\r\n".into(), "400"),
        ("a method in small letters", "get /who HTTP/1.1\r\nHost: web.mesh\r\n\r\n".into(), "400"),
        ("TRACE", "TRACE /who HTTP/1.1\r\nHost: web.mesh\r\n\r\n".into(), "405"),
        ("a long target", format!("GET /{long} HTTP/1.1\r\nHost: web.mesh\r\n\r\n"), "414"),
        ("wide fields", format!("GET /who HTTP/1.1\r\nHost: web.mesh\r\n{wide}\r\n"), "431"),
        ("not HTTP", "hello\r\n\r\n".into(), "400"),
        ("a version that is none", "GET /who HTTP/3.7\r\nHost: web.mesh\r\n\r\n".into(), "400"),
        ("a NUL in the path", "GET /who%00 HTTP/1.1\r\nHost: web.mesh\r\n\r\n".into(), "400"),
    ];
    let mut wrong = Vec::new();
    for (what, request, expected) in cases {
        let (answer, after) = ask_again(address, &request).await;
        let status = answer.get(9..12).unwrap_or("none");
        let closes = expected == "400" && !what.ends_with("path");
        if status != expected || (closes && !after.is_empty()) || !(after.is_empty() || after.ends_with("no /again")) {
            wrong.push(format!("{what}: expected {expected} and a close, got {status}\n{answer}\n{after}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn chunks_that_servers_read_differently_never_reach_the_application_whole() {
    let application = application::http().await;
    let mesh = Mesh::start(&Setup::over(Transport::Tcp), &[(8080, Protocol::Http, application.address)]).await;
    let head = "POST /echo HTTP/1.1\r\nHost: web.mesh\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (good, _) = ask_again(mesh.ways_in[&8080], &format!("{head}5\r\nhello\r\n0\r\n\r\n")).await;
    assert!(good.starts_with("HTTP/1.1 200") && good.ends_with("0\r\n\r\n"), "{good}");
    for (what, body) in [
        ("a bare LF after the size", "5\nhello\r\n0\r\n\r\n"),
        ("a bare LF after the data", "5\r\nhello\n0\r\n\r\n"),
        ("a LF in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        ("a blank after the size", "5 \r\nhello\r\n0\r\n\r\n"),
        ("a bare LF in a trailer", "5\r\nhello\r\n0\r\nt: 1\n\r\n"),
        ("a size with a sign", "+5\r\nhello\r\n0\r\n\r\n"),
        ("a size with 0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("a size that is too large", "fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        ("a size that is none", "g\r\nhello\r\n0\r\n\r\n"),
        ("more data than said", "3\r\nhello\r\n0\r\n\r\n"),
    ] {
        let (answer, after) = ask_again(mesh.ways_in[&8080], &format!("{head}{body}")).await;
        let whole = answer.starts_with("HTTP/1.1 200") && answer.ends_with("0\r\n\r\n");
        assert!(!whole && after.is_empty(), "{what}: {answer}{after}");
    }
}
