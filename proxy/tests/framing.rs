//! Whatever a caller writes, the application gets messages in the one form that all servers read alike, and as many of
//! them as were decided on (RFC 9112; semantics of request smuggling).
//!
//! Callers write streams of requests that were changed at random: bytes and lines are taken out, put in, doubled, swapped.
//! `WEFT_FRAMING_CASES` says how many streams (2,000 else), `WEFT_FRAMING_SEED` which.

mod support {
    pub(crate) mod mesh;
}

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::{Strategy, any, prop};
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_proto::service::Protocol;
use weft_proxy::plane::Transport;
use weft_proxy::record::Record;

use support::mesh::{Mesh, Setup, soon};

/// What is written before it is changed. Bodies are requests that the policy denies.
const STREAMS: [&str; 7] = [
    "GET /a?x=1 HTTP/1.1\r\nHost: web.mesh\r\nX-A: 1\r\n\r\nGET /b HTTP/1.1\r\nHost: web.mesh\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: web.mesh\r\nContent-Length: 43\r\n\r\nGET /secret HTTP/1.1\r\nHost: web.mesh\r\n\r\n\r\n\r\n\
     GET /b HTTP/1.1\r\nHost: web.mesh\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: web.mesh\r\nTransfer-Encoding: chunked\r\n\r\n27\r\n\
     GET /secret HTTP/1.1\r\nHost: web.mesh\r\n\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: web.mesh\r\n\r\n",
    "PUT /a HTTP/1.1\r\nHost: web.mesh\r\nTransfer-Encoding: chunked\r\nTrailer: t\r\n\r\n5;ext=1\r\nhello\r\n0\r\nt: 1\r\n\r\n\
     GET /secret HTTP/1.1\r\nHost: web.mesh\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: web.mesh\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
     GET /secret HTTP/1.1\r\nHost: web.mesh\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: web.mesh\r\nContent-Length: 4\r\nContent-Length: 44\r\n\r\n27\r\n\
     GET /secret HTTP/1.1\r\nHost: web.mesh\r\n\r\n0\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: web.mesh\r\nConnection: X-A, close\r\nX-A: 1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n\
     hiGET http://web.mesh/b HTTP/1.1\r\nHost: web.mesh\r\nTE: trailers\r\n\r\n",
];

/// What servers are known to stumble over.
const BITS: [&[u8]; 40] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b"\0",
    b"\x0b",
    b"\xa0",
    b"\xff",
    b":",
    b",",
    b";",
    b"0",
    b"1",
    b"+",
    b"-",
    b"0x",
    b"00",
    b"ffffffffffffffff",
    b"chunked",
    b"identity, ",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b"Transfer_Encoding: chunked\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 1e1\r\n",
    b"Host: db.mesh\r\n",
    b"Host:\r\n",
    b"Connection: Content-Length\r\n",
    b"Connection: Transfer-Encoding, Host\r\n",
    b"Expect: 100-continue\r\n",
    b"GET /secret HTTP/1.1\r\nHost: web.mesh\r\n\r\n",
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"/secret",
    b"%2fsecret",
    b"#/../secret",
];

/// One change of a stream.
#[derive(Debug, Clone)]
enum Edit {
    Put(Index, Index),
    PutByte(Index, u8),
    TakeOut(Index, u8),
    Double(Index, u8),
    SwapLines(Index, Index),
    Case(Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop::strategy::Union::new_weighted(vec![
        (6, (any::<Index>(), any::<Index>()).prop_map(|(at, bit)| Edit::Put(at, bit)).boxed()),
        (2, (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Edit::PutByte(at, byte)).boxed()),
        (3, (any::<Index>(), 1..6u8).prop_map(|(at, count)| Edit::TakeOut(at, count)).boxed()),
        (1, (any::<Index>(), 1..40u8).prop_map(|(at, count)| Edit::Double(at, count)).boxed()),
        (2, (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Edit::SwapLines(a, b)).boxed()),
        (1, any::<Index>().prop_map(Edit::Case).boxed()),
    ])
}

fn change(stream: &mut Vec<u8>, edit: &Edit) {
    // Half of what is put somewhere is put at the beginning of a line, where it matters.
    let place = |stream: &[u8], at: &Index| {
        let starts: Vec<_> =
            stream.windows(2).enumerate().filter(|(_, two)| *two == b"\r\n").map(|(at, _)| at + 2).collect();
        let at = at.index(stream.len() + 1 + starts.len());
        starts.get(at).copied().unwrap_or_else(|| at - starts.len())
    };
    let part = |stream: &[u8], at: &Index, count: u8| {
        let at = at.index(stream.len().max(1));
        at..stream.len().min(at + usize::from(count))
    };
    match edit {
        Edit::Put(at, bit) => {
            let at = place(stream, at);
            stream.splice(at..at, bit.get(&BITS).iter().copied());
        }
        Edit::PutByte(at, byte) => {
            let at = place(stream, at);
            stream.insert(at, *byte);
        }
        Edit::TakeOut(at, count) => {
            stream.drain(part(stream, at, *count));
        }
        Edit::Double(at, count) => {
            let part = part(stream, at, *count);
            let copy = stream[part.clone()].to_vec();
            stream.splice(part.end..part.end, copy);
        }
        Edit::SwapLines(a, b) => {
            let mut lines: Vec<_> = stream.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            if !lines.is_empty() {
                let (a, b) = (a.index(lines.len()), b.index(lines.len()));
                lines.swap(a, b);
                *stream = lines.concat();
            }
        }
        Edit::Case(at) => {
            let at = part(stream, at, 1).start;
            if let Some(byte) = stream.get_mut(at) {
                *byte ^= 0x20;
            }
        }
    }
}

/// What an application has read that takes one form of everything and nothing else.
#[derive(Debug, Default)]
struct Seen {
    /// Requests, by method and path.
    requests: BTreeMap<(String, String), u64>,
    /// What was in no such form, with what was read of the connection.
    wrong: Vec<String>,
}

/// An application that answers requests in the one form that all servers read alike, and tells of all else.
async fn strict() -> (SocketAddr, Arc<Mutex<Seen>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let seen = Arc::new(Mutex::new(Seen::default()));
    let told = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, told.clone()));
        }
    });
    (address, seen)
}

async fn serve(mut stream: TcpStream, seen: Arc<Mutex<Seen>>) {
    let (mut read, mut chunk, mut told) = (Vec::new(), [0; 4096], false);
    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
        read.extend_from_slice(&chunk[..count]);
        loop {
            let next = request(&read);
            if let Ok(Some((method, path, _))) = &next
                && !std::mem::replace(&mut told, true)
            {
                *seen.lock().requests.entry((method.clone(), path.clone())).or_default() += 1;
                let waits = String::from_utf8_lossy(&read).to_ascii_lowercase().contains("100-continue");
                let _ = if waits { stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await } else { Ok(()) };
            }
            match next {
                Ok(Some((_, _, Some(end)))) => {
                    read.drain(..end);
                    told = false;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                }
                Ok(_) => break,
                Err(why) => {
                    seen.lock().wrong.push(format!("{why}: {:?}", String::from_utf8_lossy(&read)));
                    return;
                }
            }
        }
    }
}

/// The request in front, once its head is whole: its method, its path, and where its body ends, once that is whole.
fn request(read: &[u8]) -> Result<Option<(String, String, Option<usize>)>, String> {
    let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if read.contains(&0) { Err("a NUL".into()) } else { Ok(None) };
    };
    let mut lines = read[..end].split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let bare = read[..end + 2].windows(2).any(|two| (two[0] == b'\r') != (two[1] == b'\n'));
    if bare || read[0] == b'\n' {
        return Err("a line that does not end with CR LF".into());
    }
    let line = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let [method, target, "HTTP/1.1"] = line.split(' ').collect::<Vec<_>>()[..] else {
        return Err("a request line".into());
    };
    if method.is_empty() || !method.bytes().all(is_token) || method.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err("a method".into());
    }
    if !(target == "*" || target.starts_with('/'))
        || !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
    {
        return Err("a target".into());
    }
    let body = body(lines)?;
    let end = match body {
        Body::Length(length) => (read.len() >= end + 4 + length).then_some(end + 4 + length),
        Body::Chunked => chunks(read, end + 4)?,
    };
    let path = target.split('?').next().unwrap_or_default();
    Ok(Some((method.to_owned(), path.to_owned(), end)))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

enum Body {
    Length(usize),
    Chunked,
}

/// What fields say of the body.
fn body<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Result<Body, String> {
    let (mut hosts, mut lengths, mut codings) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines {
        let (name, value) = field(line)?;
        match name.replace('_', "-").as_str() {
            "host" => hosts.push(value),
            "content-length" => lengths.push(value),
            "transfer-encoding" => codings.push(value),
            _ => {}
        }
    }
    match (&hosts[..], &lengths[..], &codings[..]) {
        ([host], _, _) if !host.is_ascii() || host.is_empty() => Err("a host".into()),
        ([_], [], []) => Ok(Body::Length(0)),
        ([_], [length], []) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            length.parse().map(Body::Length).map_err(|_| "a length".into())
        }
        ([_], [], [coding]) if coding == "chunked" => Ok(Body::Chunked),
        _ => Err(format!("hosts {hosts:?}, lengths {lengths:?}, codings {codings:?}")),
    }
}

/// A field's name in small letters and its value, which has nothing at its ends and no control characters.
fn field(line: &[u8]) -> Result<(String, String), String> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or("a field without a colon")?;
    let (name, value) = (&line[..colon], line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..]));
    let controls = value.iter().any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f);
    if name.is_empty() || !name.iter().copied().all(is_token) || controls || value.trim_ascii() != value {
        return Err(format!("the field {:?}", String::from_utf8_lossy(line)));
    }
    Ok((String::from_utf8_lossy(name).to_lowercase(), String::from_utf8_lossy(value).into_owned()))
}

/// Where the chunks that begin there end.
fn chunks(read: &[u8], from: usize) -> Result<Option<usize>, String> {
    let mut at = from;
    let line = |at: usize| read[at..].windows(2).position(|two| two == b"\r\n").map(|length| &read[at..at + length]);
    loop {
        let Some(size) = line(at) else { return Ok(None) };
        let digits = std::str::from_utf8(size).ok().filter(|size| size.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let length = digits.and_then(|size| usize::from_str_radix(size, 16).ok()).ok_or("the size of a chunk")?;
        at += size.len() + 2;
        if length == 0 {
            break;
        }
        if read.len() < at + length + 2 {
            return Ok(None);
        }
        if &read[at + length..at + length + 2] != b"\r\n" {
            return Err("the end of a chunk".into());
        }
        at += length + 2;
    }
    while let Some(trailer) = line(at) {
        at += trailer.len() + 2;
        if trailer.is_empty() {
            return Ok(Some(at));
        }
        let (name, _) = field(trailer)?;
        if ["host", "content-length", "transfer-encoding"].contains(&name.as_str()) {
            return Err(format!("the trailer {name}"));
        }
    }
    Ok(None)
}

/// Writes a stream, ends that half, and reads until the other side ends too.
async fn write(address: SocketAddr, stream: &[u8]) -> Vec<u8> {
    let mut connection = TcpStream::connect(address).await.expect("connects");
    let _ = connection.write_all(stream).await;
    let _ = connection.shutdown().await;
    let mut answers = Vec::new();
    let _ = connection.read_to_end(&mut answers).await;
    answers
}

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().expect("a number"))
}

async fn run(transport: Transport) {
    let (application, seen) = strict().await;
    let setup = Setup::over(transport);
    let mut mesh = Mesh::start(&setup, &[(8080, Protocol::Http, application)]).await;
    let policy = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secret}
spec: {action: DENY, rules: [{to: [{operation: {paths: ['/secret*']}}]}]}";
    mesh.enforce(policy, &setup);
    let address = mesh.ways_in[&8080];
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&setting("WEFT_FRAMING_SEED", 1).to_le_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let streams = (any::<Index>(), prop::collection::vec(edit(), 0..5));
    let (mut served, mut decided) = (0, BTreeMap::<(String, String), u64>::new());
    for _ in 0..setting("WEFT_FRAMING_CASES", 2_000) {
        let (base, edits) = streams.new_tree(&mut runner).expect("makes one").current();
        let mut stream = base.get(&STREAMS).as_bytes().to_vec();
        edits.iter().for_each(|edit| change(&mut stream, edit));
        let answers = soon(&format!("{:?}", String::from_utf8_lossy(&stream)), write(address, &stream)).await;
        served += u64::from(answers.windows(4).any(|four| four == b" 200"));
        while let Ok(record) = mesh.b.records.try_recv() {
            count(&mut decided, &record);
        }
        while mesh.a.records.try_recv().is_ok() {}
        let wrong = &seen.lock().wrong;
        assert!(wrong.is_empty(), "{}\nof what was written: {:?}", wrong.join("\n"), String::from_utf8_lossy(&stream));
    }
    soon("the record of each request", async {
        while seen.lock().requests.iter().any(|(request, times)| decided.get(request).is_none_or(|found| found < times))
        {
            count(&mut decided, &mesh.b.records.recv().await.expect("the plane runs"));
        }
    })
    .await;
    let seen = &seen.lock().requests;
    let total: u64 = seen.values().sum();
    println!("{transport:?}: {total} requests reached the application, {served} streams were answered");
    assert!(!seen.keys().any(|(_, path)| path.starts_with("/secret")), "{seen:?}");
    assert!(total > 100 && served > 100, "{total} {served}");
}

/// Counts a request that was let through at the application's node.
fn count(decided: &mut BTreeMap<(String, String), u64>, record: &Record) {
    if record.direction == "inbound" && record.fault != "policy" {
        *decided.entry((record.method.clone(), record.path.clone())).or_default() += 1;
    }
}

#[tokio::test]
async fn what_reaches_the_application_is_in_one_form_and_decided_over_tcp() {
    run(Transport::Tcp).await;
}

#[tokio::test]
async fn what_reaches_the_application_is_in_one_form_and_decided_over_quic() {
    run(Transport::Quic).await;
}
