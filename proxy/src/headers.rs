//! Header fields that belong to one hop, and those that only Weft may set.

use std::net::SocketAddr;

use http::HeaderMap;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};

use crate::task::Random;

/// What the caller's node tells of the HTTP version that the application spoke, for a port that does not say.
pub(crate) const HTTP_HEADER: HeaderName = HeaderName::from_static("x-weft-http");
/// On a CONNECT between nodes: it only asks whether the callee is there.
pub(crate) const PROBE_HEADER: HeaderName = HeaderName::from_static("x-weft-probe");
/// The address of who calls, for a callee that is told of it by the PROXY protocol.
pub(crate) const CLIENT_HEADER: HeaderName = HeaderName::from_static("x-weft-client");
/// Both ends of a call, as Envoy tells them to the callee.
pub(crate) const FORWARDED_CLIENT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// W3C Trace Context.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// What is said of who calls.
pub(crate) fn client_value(client: SocketAddr) -> HeaderValue {
    HeaderValue::try_from(client.to_string()).expect("an address is text")
}

/// What the other node says of who calls.
pub(crate) fn client(headers: &HeaderMap) -> Option<SocketAddr> {
    headers.get(CLIENT_HEADER)?.to_str().ok()?.parse().ok()
}

/// What one pass over a header section saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) hosts: u8,
    pub(crate) encodings: u8,
    pub(crate) lengths: u8,
    pub(crate) upgrade: bool,
    pub(crate) trace: bool,
    /// The other node's word that the application spoke HTTP/2.
    pub(crate) http2: bool,
    /// A field whose name holds `_`.
    pub(crate) underscores: bool,
    /// More than one `Cookie`, which only HTTP/2 splits.
    cookies: u8,
    connection: bool,
    hop: bool,
    te: bool,
    /// The caller waits to be told before it sends the body.
    pub(crate) expects: bool,
    /// One of those that only Weft may set.
    pub(crate) ours: bool,
}

/// Looks at every field once.
pub(crate) fn look(headers: &HeaderMap) -> Seen {
    let mut seen = Seen::default();
    for (name, value) in headers {
        match name.as_str() {
            "host" => seen.hosts = seen.hosts.saturating_add(1),
            "connection" => seen.connection = true,
            "upgrade" => seen.upgrade = true,
            "te" => seen.te = true,
            "expect" => seen.expects |= value.as_bytes().eq_ignore_ascii_case(b"100-continue"),
            "transfer-encoding" => seen.encodings = seen.encodings.saturating_add(1),
            "content-length" => seen.lengths = seen.lengths.saturating_add(1),
            "keep-alive" | "proxy-connection" | "proxy-authorization" | "proxy-authenticate" | "http2-settings" => {
                seen.hop = true;
            }
            "traceparent" => seen.trace = true,
            "cookie" => seen.cookies = seen.cookies.saturating_add(1),
            other => {
                seen.underscores |= other.as_bytes().contains(&b'_');
                if is_own(other) {
                    seen.ours = true;
                    seen.http2 |= name == HTTP_HEADER && value == "2";
                }
            }
        }
    }
    seen
}

/// Removes from a request what belongs to the hop that it came over and what only Weft may set. `Host` goes too: it has
/// been read.
pub(crate) fn clean_request(headers: &mut HeaderMap, seen: &Seen) {
    if seen.hosts > 0 {
        headers.remove(HOST);
    }
    clean_hop(headers, seen);
    if seen.te {
        clean_te(headers);
    }
    if seen.cookies > 1 {
        join_cookies(headers);
    }
}

/// Removes from trailers what belongs to the hop, frames the message or routes it (RFC 9110, 6.5.1), and what only Weft
/// may set: servers that merge trailers into the head would take it from there.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    let seen = look(trailers);
    clean_hop(trailers, &seen);
    for name in [HOST, TE, CONTENT_LENGTH] {
        trailers.remove(name);
    }
}

/// Removes from a response what belongs to the hop that it came over and what only Weft may set.
pub(crate) fn clean_response(headers: &mut HeaderMap) {
    let seen = look(headers);
    clean_hop(headers, &seen);
}

fn clean_hop(headers: &mut HeaderMap, seen: &Seen) {
    if seen.connection {
        clean_connection(headers);
    }
    if seen.hop {
        for name in [KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHORIZATION, PROXY_AUTHENTICATE, HTTP2_SETTINGS] {
            headers.remove(name);
        }
    }
    if seen.upgrade {
        headers.remove(UPGRADE);
    }
    if seen.encodings > 0 {
        // Of an answer that has both the coding frames it, and the length is a lie (RFC 9112, 6.3).
        headers.remove(CONTENT_LENGTH);
        headers.remove(TRANSFER_ENCODING);
    }
    if seen.ours {
        let names: Vec<HeaderName> = headers.keys().filter(|name| is_own(name.as_str())).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
}

/// Removes `Connection` and the fields that it names (RFC 9110, 7.6.1).
fn clean_connection(headers: &mut HeaderMap) {
    let mut named: Vec<HeaderName> = Vec::new();
    for value in headers.get_all(CONNECTION) {
        let tokens = value.to_str().unwrap_or_default().split(',').map(str::trim);
        let other = |token: &&str| !token.is_empty() && !["close", "keep-alive"].contains(token);
        named.extend(tokens.filter(other).filter_map(|token| token.parse().ok()));
    }
    headers.remove(CONNECTION);
    for name in named {
        // Trailers go through, so what says that they are wanted does too.
        if name != TE {
            headers.remove(name);
        }
    }
}

/// Whether only Weft may set the field, in every spelling that some server takes for it: CGI, WSGI and Rack read any
/// character that is no letter or digit as the same one (RFC 3875, 4.1.18).
fn is_own(name: &str) -> bool {
    name.starts_with('x')
        && (folds_to(name.as_bytes(), OWN_PREFIX)
            || (folds_to(name.as_bytes(), FORWARDED) && name.len() == FORWARDED.len()))
}

/// Whether `name` begins with `own`, a dash being as good as any other sign.
pub(crate) fn folds_to(name: &[u8], own: &str) -> bool {
    let same = |(given, own): (u8, u8)| given == own || (own == b'-' && !given.is_ascii_alphanumeric());
    name.len() >= own.len() && name.iter().copied().zip(own.bytes()).all(same)
}

/// One `Cookie` where HTTP/2 has cut it into several (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Leaves `trailers` of `TE`, which is all that HTTP/2 takes (RFC 9113, 8.2.2).
fn clean_te(headers: &mut HeaderMap) {
    let wants = |value: &HeaderValue| {
        value.to_str().is_ok_and(|text| text.split(',').any(|part| part.trim().eq_ignore_ascii_case("trailers")))
    };
    if headers.get_all(TE).iter().any(wants) {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(TE);
    }
}

/// Passes a valid trace context on, and makes one where there is none (W3C Trace Context, 3.2 and 4.3).
pub(crate) fn trace(headers: &mut HeaderMap, present: bool, random: &Random) {
    if present {
        let mut all = headers.get_all(TRACEPARENT).iter();
        if let (Some(one), None) = (all.next(), all.next())
            && is_traceparent(one.as_bytes())
        {
            return;
        }
        headers.remove(TRACESTATE);
    }
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    hex(random.next(), &mut text[3..19]);
    hex(random.next() | 1, &mut text[19..35]);
    hex(random.next() | 1, &mut text[36..52]);
    let mut value = HeaderValue::from_bytes(&text).expect("hexadecimal digits and dashes");
    // It never comes again: kept out of the tables of HPACK it displaces nothing there.
    value.set_sensitive(true);
    headers.insert(TRACEPARENT, value);
}

fn hex(number: u64, out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(number.to_be_bytes()) {
        *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
}

fn is_traceparent(text: &[u8]) -> bool {
    let dashes = |at: &usize| text[*at] == b'-';
    let lower_hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let nonzero = |part: &[u8]| part.iter().any(|byte| *byte != b'0');
    if text.len() < TRACEPARENT_LENGTH || ![2, 35, 52].iter().all(dashes) {
        return false;
    }
    let (version, trace, parent) = (&text[..2], &text[3..35], &text[36..52]);
    let length_fits = match version {
        b"00" => text.len() == TRACEPARENT_LENGTH,
        _ => text.len() == TRACEPARENT_LENGTH || text[TRACEPARENT_LENGTH] == b'-',
    };
    let parts = [version, trace, parent, &text[53..55]];
    length_fits && version != b"ff" && parts.iter().all(|part| lower_hex(part)) && nonzero(trace) && nonzero(parent)
}

fn is_grpc(content_type: &HeaderValue) -> bool {
    content_type.as_bytes().strip_prefix(GRPC).is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Whether the request is a gRPC call, which is refused in gRPC's way.
pub(crate) fn is_grpc_call(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(is_grpc)
}

const GRPC: &[u8] = b"application/grpc";
/// How the names of fields start that only Weft sets.
const OWN_PREFIX: &str = "x-weft-";
/// The name of [`FORWARDED_CLIENT`].
pub(crate) const FORWARDED: &str = "x-forwarded-client-cert";
const TRACEPARENT_LENGTH: usize = 55;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let mut headers = HeaderMap::new();
        for (name, value) in fields.iter().map(pair) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn what_belongs_to_the_hop_goes() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Hop, te"),
            ("keep-alive", "timeout=5"),
            ("x-hop", "1"),
            ("te", "gzip, trailers"),
            ("x-weft-http", "2"),
            ("x-weft-anything", "1"),
            ("x-forwarded-client-cert", "URI=spiffe://evil"),
            ("x-kept", "1"),
        ]);
        let seen = look(&headers);
        assert!(seen.http2);
        clean_request(&mut headers, &seen);
        assert_eq!(headers, map(&[("te", "trailers"), ("x-kept", "1")]));
    }

    #[test]
    fn trace_contexts_are_kept_if_valid_and_made_if_not() {
        let random = Random::new(1);
        let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        for (text, kept) in [
            (valid, true),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later", true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra", false),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", false),
            ("", false),
        ] {
            let mut headers = map(&[("traceparent", text), ("tracestate", "a=b")]);
            trace(&mut headers, true, &random);
            assert_eq!(headers[TRACEPARENT] == text, kept, "{text}");
            assert_eq!(headers.contains_key("tracestate"), kept, "{text}");
            assert!(is_traceparent(headers[TRACEPARENT].as_bytes()));
        }
    }
}
