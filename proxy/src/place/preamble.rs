//! What is said on a connection before all that callers say: who calls, by the PROXY protocol (HAProxy's specification, 2.1 and 2.2);
//! where it is to go on to, by HTTP's CONNECT (RFC 9110, 9.3.6).

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use weft_proto::kinds::destination_rule::ProxyVersion;

/// Who calls, and where. Where the two are of different kinds both are told as IPv6.
pub(super) fn proxy(version: ProxyVersion, client: SocketAddr, place: SocketAddr) -> Vec<u8> {
    let (from, to) = match (client.ip().to_canonical(), place.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (IpAddr::V4(from), IpAddr::V4(to)),
        (from, to) => (IpAddr::V6(mapped(from)), IpAddr::V6(mapped(to))),
    };
    match version {
        ProxyVersion::V1 => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), place.port()).into_bytes()
        }
        ProxyVersion::V2 => {
            let (family, octets) = match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => (0x11, [from.octets(), to.octets()].concat()),
                (from, to) => (0x21, [mapped(from).octets(), mapped(to).octets()].concat()),
            };
            let ports = [client.port().to_be_bytes(), place.port().to_be_bytes()].concat();
            let length = u16::try_from(octets.len() + ports.len()).expect("at most 36").to_be_bytes();
            [&SIGNATURE[..], &[0x21, family], &length, &octets, &ports].concat()
        }
    }
}

fn mapped(ip: IpAddr) -> std::net::Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// Asks the proxy at the other end for a way on. Nothing of what follows its answer is taken.
pub(super) async fn connect(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), target: &str) -> io::Result<()> {
    stream.write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes()).await?;
    stream.flush().await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_MAX {
            return Err(io::Error::other("the proxy's answer has no end"));
        }
        head.push(stream.read_u8().await?);
    }
    let line = String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    match line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)) {
        Some(status) if status.starts_with('2') => Ok(()),
        Some(status) => Err(io::Error::other(format!("the proxy answers {status} to CONNECT {target}"))),
        None => Err(io::Error::other("the proxy does not speak HTTP/1.1")),
    }
}

/// Most bytes of the head of a proxy's answer.
const HEAD_MAX: usize = 16 << 10;
/// How version 2 of the PROXY protocol begins.
pub(crate) const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_told_in_both_versions() {
        let at = |text: &str| text.parse::<SocketAddr>().expect(text);
        let v1 = |from, to| String::from_utf8(proxy(ProxyVersion::V1, at(from), at(to))).expect("text");
        assert_eq!(v1("192.0.2.1:4000", "10.0.0.2:80"), "PROXY TCP4 192.0.2.1 10.0.0.2 4000 80\r\n");
        assert_eq!(v1("[::ffff:192.0.2.1]:1", "10.0.0.2:80"), "PROXY TCP4 192.0.2.1 10.0.0.2 1 80\r\n");
        assert_eq!(v1("[2001:db8::1]:1", "10.0.0.2:80"), "PROXY TCP6 2001:db8::1 ::ffff:10.0.0.2 1 80\r\n");
        let v2 = proxy(ProxyVersion::V2, at("192.0.2.1:258"), at("10.0.0.2:80"));
        assert_eq!(v2[12..], [0x21, 0x11, 0, 12, 192, 0, 2, 1, 10, 0, 0, 2, 1, 2, 0, 80]);
        let v2 = proxy(ProxyVersion::V2, at("[2001:db8::1]:1"), at("10.0.0.2:80"));
        assert_eq!((v2.len(), &v2[12..16]), (52, &[0x21, 0x21, 0, 36][..]));
    }

    #[tokio::test]
    async fn a_way_on_is_there_once_the_proxy_has_said_so() {
        for (answer, expected) in [
            ("HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nhello", Ok("hello")),
            ("HTTP/1.0 200\r\n\r\n", Ok("")),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", Err("the proxy answers 403 to CONNECT a.b:443")),
            ("SSH-2.0-x\r\n\r\n", Err("the proxy does not speak HTTP/1.1")),
        ] {
            let (mut near, mut far) = tokio::io::duplex(1024);
            far.write_all(answer.as_bytes()).await.expect("room");
            let asked = connect(&mut near, "a.b:443").await.map_err(|error| error.to_string());
            drop(far);
            let mut rest = String::new();
            near.read_to_string(&mut rest).await.expect("text");
            let asked = asked.as_ref().map(|()| rest.as_str()).map_err(String::as_str);
            assert_eq!(asked, expected);
        }
    }
}
