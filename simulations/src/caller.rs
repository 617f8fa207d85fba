//! Callers: local processes that reach services through their node's forward proxy.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_proxy::net::{Net, Stream};

use crate::application::{LONG_PARTS, LONG_PAUSE};
use crate::call::Call;
use crate::mesh::assertion::Caller;
use crate::mesh::{Protocol, Role, Service};
use crate::world::network::SimNet;

/// Where local callers reach the mesh.
pub const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15_001);
/// Where gateways take strangers.
const GATEWAY_PORT: u16 = 80;
/// Bound on a call that may be made again.
const TIMEOUT: Duration = Duration::from_secs(4);
/// Bound on a call whose caller waits longer than a link takes to be given up.
const PATIENT_TIMEOUT: Duration = Duration::from_secs(15);

/// Makes a call; its status, or none where there was no answer. An opaque stream that is answered has status 200.
pub fn make<N: Net>(
    net: N,
    number: u64,
    call: Call,
    to: &Service,
) -> impl Future<Output = Option<u16>> + Send + 'static + use<N> {
    let bound = match (call.long, call.acts()) {
        (true, _) => LONG_PAUSE * 2 * LONG_PARTS,
        (false, true) => PATIENT_TIMEOUT,
        (false, false) => TIMEOUT,
    };
    let name = match (call.from, to.role) {
        (Caller::Stranger, _) => format!("{}.example", to.name),
        (_, Role::External) => format!("{}.example:{}", to.name, to.port),
        _ => format!("{}.mesh:{}", to.name, to.port),
    };
    let protocol = to.protocol;
    let way = call.via.map_or(PROXY, |host| SocketAddr::new(SimNet::address(host), GATEWAY_PORT));
    async move {
        let exchange = async {
            let stream = net.dial(way).await.ok()?;
            match protocol {
                Protocol::Http => http(stream, number, &call, &name).await,
                Protocol::Tcp => opaque(stream, number, &name).await,
            }
        };
        tokio::time::timeout(bound, exchange).await.ok().flatten()
    }
}

/// Sends something to an address; the first byte of what comes back.
pub async fn intrude<N: Net>(net: N, address: SocketAddr, what: &[u8]) -> Option<u8> {
    let exchange = async {
        let mut stream = net.dial(address).await.ok()?;
        stream.write_all(what).await.ok()?;
        stream.read_u8().await.ok()
    };
    tokio::time::timeout(PATIENT_TIMEOUT, exchange).await.ok().flatten()
}

async fn http<S: Stream>(mut stream: S, number: u64, call: &Call, name: &str) -> Option<u16> {
    let Call { method, path, .. } = call;
    let long = if call.long { "&long" } else { "" };
    let place = if call.via.is_some() { String::new() } else { format!("http://{name}") };
    let head = format!(
        "{method} {place}{path}?{number}{long} HTTP/1.1\r\nHost: {name}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    // The status counts even where the rest broke off.
    let _ = stream.read_to_end(&mut answer).await;
    status(&answer)
}

/// A tunnel to the port, and a line through it.
async fn opaque<S: Stream>(mut stream: S, number: u64, name: &str) -> Option<u16> {
    let head = format!("CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.ok()?);
    }
    let tunnel = status(&answer)?;
    if tunnel != 200 {
        return Some(tunnel);
    }
    stream.write_all(format!("{number}\n").as_bytes()).await.ok()?;
    let mut line = Vec::new();
    let _ = stream.read_to_end(&mut line).await;
    (line == b"ok\n").then_some(200)
}

fn status(answer: &[u8]) -> Option<u16> {
    String::from_utf8_lossy(answer).get(9..12)?.parse().ok()
}
