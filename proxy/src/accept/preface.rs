//! The PROXY protocol, as HAProxy's specification has it (versions 1 and 2): what stands before a gateway says who calls, in front of
//! all else that comes on a connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::place::SIGNATURE;

/// Reads what is said: the address of who calls; none where the connection is that of the other end itself, or of no kind that is
/// known here. An error where nothing is said, or it cannot be understood.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    let mut first = [0; SIGNATURE.len()];
    stream.read_exact(&mut first).await?;
    if first == SIGNATURE {
        return binary(stream).await;
    }
    if !first.starts_with(b"PROXY ") {
        return Err(bad());
    }
    let mut line = first.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() >= LINE_MAX {
            return Err(bad());
        }
        line.push(stream.read_u8().await?);
    }
    text(&line).ok_or_else(bad)
}

/// Version 1: `PROXY TCP4 192.0.2.1 198.51.100.1 40000 443`; none outside where it is no such line.
fn text(line: &[u8]) -> Option<Option<IpAddr>> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix("\r\n")?;
    let words: Vec<&str> = line.split(' ').collect();
    let port = |text: &str| text.parse::<u16>().is_ok();
    match words[..] {
        ["PROXY", "UNKNOWN", ..] => Some(None),
        ["PROXY", "TCP4", from, to, a, b] if port(a) && port(b) => {
            to.parse::<Ipv4Addr>().ok()?;
            Some(Some(IpAddr::V4(from.parse().ok()?)))
        }
        ["PROXY", "TCP6", from, to, a, b] if port(a) && port(b) => {
            to.parse::<Ipv6Addr>().ok()?;
            Some(Some(IpAddr::V6(from.parse().ok()?).to_canonical()))
        }
        _ => None,
    }
}

/// Version 2, behind its signature. What it says beyond addresses is passed over.
async fn binary(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    let (what, family) = (stream.read_u8().await?, stream.read_u8().await?);
    let length = usize::from(stream.read_u16().await?);
    if length > BINARY_MAX {
        return Err(bad());
    }
    let mut said = vec![0; length];
    stream.read_exact(&mut said).await?;
    let part = |count: usize| said.get(..count).ok_or_else(bad);
    match (what, family) {
        (LOCAL, _) => Ok(None),
        (PROXY, TCP4) => {
            let from: [u8; 4] = part(12)?[..4].try_into().map_err(|_| bad())?;
            Ok(Some(IpAddr::from(from)))
        }
        (PROXY, TCP6) => {
            let from: [u8; 16] = part(36)?[..16].try_into().map_err(|_| bad())?;
            Ok(Some(IpAddr::from(from).to_canonical()))
        }
        (PROXY, _) => Ok(None),
        _ => Err(bad()),
    }
}

fn bad() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "nothing is said by the PROXY protocol")
}

/// Longest line, its end included (the specification's 2.1).
const LINE_MAX: usize = 107;
/// Most bytes of addresses and what else is said.
const BINARY_MAX: usize = 4096;
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

#[cfg(test)]
mod tests {
    use super::*;

    async fn said(bytes: &[u8]) -> Option<(Option<IpAddr>, Vec<u8>)> {
        let mut rest = bytes;
        let who = read(&mut rest).await.ok()?;
        Some((who, rest.to_vec()))
    }

    #[tokio::test]
    async fn callers_are_told_and_nothing_of_what_follows_is_taken() {
        let v2 = |what: u8, family: u8, said: &[u8]| {
            let length = u16::try_from(said.len()).expect("short").to_be_bytes();
            [&SIGNATURE[..], &[what, family], &length, said, b"GET"].concat()
        };
        let four = [192, 0, 2, 1, 198, 51, 100, 1, 0, 80, 1, 187];
        let mut six = [0; 40];
        six[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
        for (bytes, who) in [
            (b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 443\r\nGET".to_vec(), Some("192.0.2.1")),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\nGET".to_vec(), Some("2001:db8::1")),
            (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\nGET".to_vec(), Some("192.0.2.1")),
            (b"PROXY UNKNOWN\r\nGET".to_vec(), None),
            (b"PROXY UNKNOWN and what else\r\nGET".to_vec(), None),
            (v2(PROXY, TCP4, &four), Some("192.0.2.1")),
            (v2(PROXY, TCP4, &[&four[..], &[4, 0, 1, 7]].concat()), Some("192.0.2.1")),
            (v2(PROXY, TCP6, &six), Some("2001:db8::")),
            (v2(LOCAL, TCP4, &four), None),
            (v2(PROXY, 0, &[]), None),
        ] {
            let who = who.map(|who| who.parse().expect("an address"));
            assert_eq!(said(&bytes).await, Some((who, b"GET".to_vec())), "{}", bytes.escape_ascii());
        }
    }

    #[tokio::test]
    async fn whoever_says_nothing_or_nonsense_is_not_served() {
        let long = [&b"PROXY UNKNOWN "[..], &[b'x'; 120], b"\r\n"].concat();
        let v2 = |rest: &[u8]| [&SIGNATURE[..], rest].concat();
        for bytes in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.1 40000\r\nGET".to_vec(),
            b"PROXY TCP4 2001:db8::1 198.51.100.1 1 2\r\nGET".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.1 40000 99999\r\nGET".to_vec(),
            b"PROXY TCP4 192.0.2.1".to_vec(),
            long,
            v2(&[0x31, TCP4, 0, 0]),
            v2(&[PROXY, TCP4, 0, 4, 1, 2, 3, 4]),
            v2(&[PROXY, TCP4, 0xff, 0xff]),
            Vec::new(),
        ] {
            assert_eq!(said(&bytes).await, None, "{}", bytes.escape_ascii());
        }
    }
}
