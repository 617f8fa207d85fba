//! What an exchange costs through both nodes, counted and not timed: `exchange WORKLOAD COUNT` makes so many exchanges
//! and prints how often they asked for memory. Run under `valgrind --tool=callgrind` it tells the instructions;
//! `.ci/cost` does both and compares with the bounds in `budget.txt`.

mod support {
    pub(crate) mod memory;
    #[path = "../../tests/support/mesh.rs"]
    pub(crate) mod mesh;
}

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::future::{join_all, poll_fn};
use h2::client::SendRequest;
use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use weft_proto::service::Protocol;
use weft_proxy::net::{Listener, Net};
use weft_proxy::plane::Transport;

use support::memory::MemoryNet;
use support::mesh::{Mesh, Setup, localhost};

/// Counts what it hands out.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static ALLOCATED: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is left to the system's allocator.
#[expect(unsafe_code, reason = "an allocator is unsafe to be one")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        ALLOCATED.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        ALLOCATED.fetch_add(size.saturating_sub(layout.size()) as u64, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const HTTP: u16 = 8080;
const HTTP2: u16 = 8082;
const OPAQUE: u16 = 8081;

/// Connections of the caller, each with one exchange at a time; streams at once on the one connection of HTTP/2.
const WIDTH: usize = 32;
/// Rounds before counting begins, so that pools, links and tables are there.
const WARM_UP: usize = 4;
const SMALL: usize = 100;
const LARGE: usize = 100 << 10;
/// What is passed on an opaque stream at a time.
const PIECE: usize = 64 << 10;

const POLICY: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  rules:
  - from: [{source: {principals: ["mesh.test/ns/default/sa/front"]}}]
    to: [{operation: {methods: [GET], paths: ["/*"]}}]
  - from: [{source: {principals: ["mesh.test/ns/default/sa/front"]}}]
    to: [{operation: {ports: ["8081"]}}]
"#;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [workload, count] = arguments.as_slice() else {
        println!("exchange h1|h1-large|h2|tcp|connect|routes-10|routes-1000 COUNT");
        return ExitCode::SUCCESS;
    };
    let Ok(count) = count.parse::<usize>() else {
        eprintln!("COUNT is a number: {count:?} is not");
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let rules = workload.strip_prefix("routes-").and_then(|rules| rules.parse().ok()).unwrap_or(0);
    let stage = runtime.block_on(Stage::new(rules));
    let Some(mut load) = runtime.block_on(stage.load(workload)) else {
        eprintln!("no workload {workload:?}");
        return ExitCode::from(2);
    };
    runtime.block_on(rounds(&mut load, WARM_UP));
    let count = count.div_ceil(WIDTH);
    let before = allocated();
    measured(&runtime, &mut load, count);
    let after = allocated();
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let each = |total: u64| total as f64 / (count * WIDTH) as f64;
    println!(
        "exchanges {} allocations {:.2} bytes {:.0}",
        count * WIDTH,
        each(after.0 - before.0),
        each(after.1 - before.1)
    );
    ExitCode::SUCCESS
}

/// What is counted: by its name `.ci/cost` finds it.
#[inline(never)]
fn measured(runtime: &tokio::runtime::Runtime, load: &mut Load, count: usize) {
    runtime.block_on(rounds(load, count));
}

async fn rounds(load: &mut Load, count: usize) {
    for _ in 0..count {
        load.round().await;
    }
}

fn allocated() -> (u64, u64) {
    (ALLOCATIONS.load(Ordering::Relaxed), ALLOCATED.load(Ordering::Relaxed))
}

struct Stage {
    net: MemoryNet,
    mesh: Mesh<MemoryNet>,
}

/// Callers; a round is [`WIDTH`] exchanges.
enum Load {
    /// As many connections in step.
    Http1 { connections: Vec<(DuplexStream, Vec<u8>)>, request: String, size: usize },
    /// As many streams of one connection in step.
    Http2(SendRequest<Bytes>),
    /// Pieces of [`PIECE`] bytes on one stream, each for a byte of the caller.
    Opaque(DuplexStream, Vec<u8>),
    /// A new connection of the caller for each exchange, one after the other.
    Connect(MemoryNet, SocketAddr),
}

impl Stage {
    /// With so many rules for calls of `web`, the last of which matches.
    async fn new(rules: usize) -> Self {
        let net = MemoryNet::default();
        tokio::spawn(http1_application(net.listen(localhost(1)).expect("listens")));
        tokio::spawn(http2_application(net.listen(localhost(2)).expect("listens")));
        tokio::spawn(opaque_application(net.listen(localhost(3)).expect("listens")));
        let setup = Setup { access_sample: 0.01, ..Setup::over(Transport::Tcp) };
        let ports = [
            (HTTP, Protocol::Http, localhost(1)),
            (HTTP2, Protocol::Http2, localhost(2)),
            (OPAQUE, Protocol::Tcp, localhost(3)),
        ];
        let mut mesh = Mesh::on(&net, &setup, &ports).await;
        mesh.enforce(&format!("{POLICY}{}", routes(rules)), &setup);
        Self { net, mesh }
    }

    async fn load(&self, workload: &str) -> Option<Load> {
        Some(match workload {
            "h1" | "routes-10" | "routes-1000" => self.http1(SMALL).await,
            "h1-large" => self.http1(LARGE).await,
            "h2" => {
                let handshake = h2::client::handshake(self.way_in(HTTP2).await).await;
                let (sender, connection) = handshake.expect("HTTP/2");
                tokio::spawn(connection);
                Load::Http2(sender)
            }
            "tcp" => Load::Opaque(self.way_in(OPAQUE).await, vec![0; PIECE]),
            "connect" => Load::Connect(self.net.clone(), self.mesh.ways_in[&HTTP]),
            _ => return None,
        })
    }

    async fn http1(&self, size: usize) -> Load {
        let request = format!("GET /{size} HTTP/1.1\r\nHost: web.mesh\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n");
        let mut connections = Vec::new();
        for _ in 0..WIDTH {
            connections.push((self.way_in(HTTP).await, vec![0; 256 << 10]));
        }
        Load::Http1 { connections, request, size }
    }

    async fn way_in(&self, port: u16) -> DuplexStream {
        self.net.dial(self.mesh.ways_in[&port]).await.expect("connects")
    }
}

/// Rules with paths of their own, by ways that an index has to tell apart, and one for everything else.
fn routes(count: usize) -> String {
    if count == 0 {
        return String::new();
    }
    let path = |at: usize| match at % 2 {
        0 => format!("{{exact: /exact/{at}}}"),
        _ => format!("{{prefix: /some/prefix/{at}/}}"),
    };
    let rule = |at: usize| format!("  - {{match: [{{uri: {}}}], directResponse: {{status: 404}}}}\n", path(at));
    let rules: String = (1..count).map(rule).collect();
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: web}}
spec:
  hosts: [web]
  http:
{rules}  - {{route: [{{destination: {{host: web}}}}]}}
"
    )
}

impl Load {
    async fn round(&mut self) {
        match self {
            Self::Http1 { connections, request, size } => {
                let exchanges = connections.iter_mut().map(async |(stream, buffer)| {
                    stream.write_all(request.as_bytes()).await.expect("written");
                    read_answer(stream, buffer, *size).await;
                });
                join_all(exchanges).await;
            }
            Self::Http2(sender) => {
                join_all((0..WIDTH).map(|_| call(sender.clone()))).await;
            }
            Self::Opaque(stream, buffer) => {
                for _ in 0..WIDTH {
                    stream.write_all(b"!").await.expect("written");
                    stream.read_exact(buffer).await.expect("read");
                }
            }
            Self::Connect(net, address) => {
                for _ in 0..WIDTH {
                    let mut stream = net.dial(*address).await.expect("connects");
                    let request = b"GET /100 HTTP/1.1\r\nHost: web.mesh\r\nConnection: close\r\n\r\n";
                    stream.write_all(request).await.expect("written");
                    let mut answer = Vec::new();
                    stream.read_to_end(&mut answer).await.expect("read");
                    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", answer.escape_ascii());
                }
            }
        }
    }
}

async fn call(mut sender: SendRequest<Bytes>) {
    poll_fn(|cx| sender.poll_ready(cx)).await.expect("ready");
    let request = Request::get("http://web.mesh/").body(()).expect("valid");
    let (response, _) = sender.send_request(request, true).expect("sent");
    let mut body = response.await.expect("answered").into_body();
    let data = body.data().await.expect("a body").expect("whole");
    body.flow_control().release_capacity(data.len()).expect("released");
    assert!(body.data().await.is_none());
}

async fn read_answer(stream: &mut DuplexStream, buffer: &mut [u8], size: usize) {
    let mut read = 0;
    loop {
        read += stream.read(&mut buffer[read..]).await.expect("read");
        let head = buffer[..read].windows(4).position(|window| window == b"\r\n\r\n");
        if head.is_some_and(|end| read >= end + 4 + size) {
            assert!(buffer.starts_with(b"HTTP/1.1 200"), "{}", buffer[..read.min(300)].escape_ascii());
            return;
        }
        assert!(read > 0, "the answer broke off");
    }
}

/// Answers a request whose path is a number with so many bytes.
async fn http1_application(mut listener: impl Listener<Stream = DuplexStream>) {
    loop {
        let mut stream = listener.accept().await.expect("accepts").stream;
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            let mut read = 0;
            loop {
                match stream.read(&mut buffer[read..]).await {
                    Ok(0) | Err(_) => return,
                    Ok(more) => read += more,
                }
                if !buffer[..read].ends_with(b"\r\n\r\n") {
                    continue;
                }
                let large = buffer[..read].starts_with(b"GET /102400 ");
                read = 0;
                let size = if large { LARGE } else { SMALL };
                let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n").into_bytes();
                answer.resize(answer.len() + size, b'.');
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn http2_application(mut listener: impl Listener<Stream = DuplexStream>) {
    loop {
        let stream = listener.accept().await.expect("accepts").stream;
        tokio::spawn(async move {
            let Ok(mut serving) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((_, mut respond))) = serving.accept().await {
                let response = Response::new(());
                if let Ok(mut sink) = respond.send_response(response, false) {
                    let _ = sink.send_data(Bytes::from_static(&[b'.'; SMALL]), true);
                }
            }
        });
    }
}

async fn opaque_application(mut listener: impl Listener<Stream = DuplexStream>) {
    let piece = vec![b'.'; PIECE];
    loop {
        let mut stream = listener.accept().await.expect("accepts").stream;
        let piece = piece.clone();
        tokio::spawn(async move {
            while stream.read_u8().await.is_ok() {
                if stream.write_all(&piece).await.is_err() {
                    return;
                }
            }
        });
    }
}
