//! Whether a node is reached before this host has joined: nobody here is known there yet, and nothing is told.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket, lookup_host};
use tokio::time::timeout;

use super::Finding;

/// Bound on an answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Times that a datagram is sent: one may be lost.
const TIMES: usize = 3;
/// The least length of what begins a connection over QUIC (RFC 9000, 14.1).
const LENGTH: usize = 1200;

/// The way to a node.
pub(super) async fn to(address: &str) -> Vec<Finding> {
    let found = timeout(ANSWER, lookup_host(address)).await.map_err(|_| io::ErrorKind::TimedOut.into());
    let place = match found.and_then(|found| found).map(|mut all| all.next()) {
        Ok(Some(place)) => place,
        Ok(None) => return vec![Finding::bad(address, "its name has no address")],
        Err(error) => return vec![Finding::bad(address, format!("its name is not found: {error}"))],
    };
    let (tcp, udp) = tokio::join!(over_tcp(place), over_udp(place));
    let told = |transport: &str, way: io::Result<()>| {
        let what = format!("{address} {}", transport.to_ascii_lowercase());
        match way {
            Ok(()) => Finding::good(&what, "reached"),
            Err(error) => Finding::bad(
                &what,
                format!(
                    "{error}; does a node run there, and does a firewall between pass {transport} to port {}?",
                    place.port()
                ),
            ),
        }
    };
    vec![told("TCP", tcp), told("UDP", udp)]
}

async fn over_tcp(place: SocketAddr) -> io::Result<()> {
    timeout(ANSWER, TcpStream::connect(place)).await.map_err(|_| late())?.map(drop)
}

/// Asks in a version of QUIC that nobody speaks: whoever speaks another answers which (RFC 9000, 6).
async fn over_udp(place: SocketAddr) -> io::Result<()> {
    let any: SocketAddr = if place.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }.parse().map_err(io::Error::other)?;
    let socket = UdpSocket::bind(any).await?;
    socket.connect(place).await?;
    let mut datagram = vec![0; LENGTH];
    // A long header, the version, and two identifiers of 8 bytes each (RFC 8999, 5.1).
    datagram[..6].copy_from_slice(&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8]);
    datagram[14] = 8;
    let mut answer = [0; 64];
    for _ in 0..TIMES {
        socket.send(&datagram).await?;
        match timeout(ANSWER / 2, socket.recv(&mut answer)).await {
            // That of an answer which negotiates is 0.
            Ok(Ok(length)) if length > 5 && answer[1..5] == [0; 4] => return Ok(()),
            Ok(Ok(_)) => return Err(io::Error::other("what answers is no node")),
            Ok(Err(error)) => return Err(error),
            Err(_) => {}
        }
    }
    Err(late())
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_there_is_told() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let place = free.local_addr().expect("bound");
        drop(free);
        let findings = to(&place.to_string()).await;
        assert_eq!(findings.len(), 2);
        assert!(findings.iter().all(|one| one.text.contains("does a node run there")), "{findings:?}");
    }
}
