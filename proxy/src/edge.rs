//! What the edge of the mesh tells of callers from outside, and what it believes of what they say.

use std::fmt::Write;
use std::net::IpAddr;

use http::HeaderMap;
use http::header::{ALT_SVC, FORWARDED, HeaderName, HeaderValue};

use crate::task::Random;

/// The address of the caller that is meant: where so many proxies that are trusted stand before this node it is what the
/// first of them said, else the one that the connection comes from.
pub(crate) fn client(peer: IpAddr, headers: Option<&HeaderMap>, trusted: usize) -> IpAddr {
    let Some(headers) = headers.filter(|_| trusted > 0) else { return peer };
    let lines = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
    let all: Vec<&str> = lines.flat_map(|line| line.split(',')).map(str::trim).collect();
    let said = all.len().checked_sub(trusted).map(|at| all[at]);
    said.and_then(address).unwrap_or(peer)
}

/// An address, which some proxies write with a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.split(']').next()).unwrap_or(text);
    let plain = || bare.parse().ok();
    plain().or_else(|| bare.rsplit_once(':')?.0.parse().ok()).map(|ip: IpAddr| ip.to_canonical())
}

/// Tells the callee who has called, how, and by what name the request is found again.
pub(crate) fn tell(headers: &mut HeaderMap, (peer, scheme): (IpAddr, &'static str), trusted: usize, random: &Random) {
    append(headers, FORWARDED_FOR, peer.to_string());
    // Without a proxy that is trusted before it, this is the only one who knows.
    if trusted == 0 || !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    if trusted == 0 || !headers.contains_key(REQUEST_ID) {
        headers.insert(REQUEST_ID, request_id(random));
    }
    if headers.contains_key(FORWARDED) {
        let node = if peer.is_ipv6() { format!("\"[{peer}]\"") } else { peer.to_string() };
        append(headers, FORWARDED, format!("for={node};proto={scheme}"));
    }
}

/// Tells a caller that it may come over HTTP/3, at the port that the document says (RFC 7838, 3). What an application says of that goes
/// before it.
pub(crate) fn offer_http3(headers: &mut HeaderMap, port: u16) {
    if !headers.contains_key(ALT_SVC) {
        let value = HeaderValue::try_from(format!("h3=\":{port}\"; ma={ALT_SVC_SECONDS}")).expect("it is text");
        headers.insert(ALT_SVC, value);
    }
}

/// One field of all that were given, with what is new behind it.
fn append(headers: &mut HeaderMap, name: HeaderName, new: String) {
    let before: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    let joined = match before.is_empty() {
        true => new.into_bytes(),
        false => [&before.join(&b", "[..])[..], b", ", new.as_bytes()].concat(),
    };
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(name, value);
    }
}

/// A random UUID (RFC 9562, 5.4).
fn request_id(random: &Random) -> HeaderValue {
    let (high, low) = (random.next(), random.next());
    let high = (high & !0xf000) | 0x4000;
    let low = (low & !(0b11 << 62)) | (0b10 << 62);
    let mut text = String::with_capacity(36);
    let _ = write!(text, "{:08x}-{:04x}-{:04x}-", high >> 32, (high >> 16) & 0xffff, high & 0xffff);
    let _ = write!(text, "{:04x}-{:012x}", low >> 48, low & 0xffff_ffff_ffff);
    HeaderValue::try_from(text).expect("digits and dashes")
}

/// For how long a caller remembers that it may come over HTTP/3: a day, which is what is meant where nothing is said.
const ALT_SVC_SECONDS: u32 = 24 * 60 * 60;
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::tests::map;

    #[test]
    fn only_what_trusted_proxies_said_counts() {
        let peer: IpAddr = [192, 0, 2, 9].into();
        for (fields, trusted, expected) in [
            (&[("x-forwarded-for", "10.0.0.1")][..], 0, "192.0.2.9"),
            (&[("x-forwarded-for", "10.0.0.1")], 1, "10.0.0.1"),
            (&[("x-forwarded-for", "10.0.0.1, 10.0.0.2")], 1, "10.0.0.2"),
            (&[("x-forwarded-for", "10.0.0.1"), ("x-forwarded-for", "10.0.0.2")], 2, "10.0.0.1"),
            (&[("x-forwarded-for", "10.0.0.1")], 2, "192.0.2.9"),
            (&[("x-forwarded-for", "nonsense")], 1, "192.0.2.9"),
            (&[("x-forwarded-for", "[2001:db8::1]:80")], 1, "2001:db8::1"),
            (&[("x-forwarded-for", "10.0.0.1:80")], 1, "10.0.0.1"),
            (&[], 1, "192.0.2.9"),
        ] {
            assert_eq!(client(peer, Some(&map(fields)), trusted).to_string(), expected, "{fields:?} {trusted}");
        }
    }

    #[test]
    fn callees_are_told_who_called() {
        let random = Random::new(1);
        let mut headers = map(&[
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "gopher"),
            ("x-request-id", "mine"),
            ("forwarded", "for=10.0.0.1"),
        ]);
        tell(&mut headers, ([192, 0, 2, 9].into(), "https"), 0, &random);
        assert_eq!(headers["x-forwarded-for"], "10.0.0.1, 192.0.2.9");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["forwarded"], "for=10.0.0.1, for=192.0.2.9;proto=https");
        let id = headers["x-request-id"].to_str().expect("text").to_owned();
        assert!(id.len() == 36 && id.as_bytes()[14] == b'4' && id != "mine", "{id}");
        tell(&mut headers, ([192, 0, 2, 8].into(), "http"), 1, &random);
        assert_eq!(
            (headers["x-forwarded-proto"].as_bytes(), headers["x-request-id"].as_bytes()),
            (&b"https"[..], id.as_bytes())
        );
    }
}
