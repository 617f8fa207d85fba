//! Upgrades of a connection, WebSocket above all: `Connection: upgrade` of HTTP/1.1 and extended CONNECT of HTTP/2 are two
//! forms of one request (RFC 8441, RFC 9113 8.5).

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode, Version};

use crate::task::Random;

/// An upgrade that was offered. Whoever gets the offer may take it or answer as if there were none (RFC 9110, 7.8).
#[derive(Debug)]
pub(crate) struct Upgrade {
    /// What the connection may speak: one protocol, or several parted by commas.
    pub(crate) protocol: Box<str>,
    /// The method of the request that carries the offer.
    method: Method,
    /// The request's body, which goes before what is spoken then.
    body: Bytes,
    /// For the instance.
    key: HeaderValue,
    /// The caller's own, where it speaks HTTP/1.1.
    callers_key: Option<HeaderValue>,
}

/// What an instance must answer.
#[derive(Debug)]
pub(crate) struct Asked {
    accept: Option<HeaderValue>,
}

impl Upgrade {
    /// The upgrade that an HTTP/1.1 request offers. An offer of another version of HTTP is between neighbours, and is
    /// not taken.
    pub(crate) fn in_http1(parts: &mut Parts, random: &Random) -> Option<Self> {
        let headers = &parts.headers;
        let names_upgrade = |value: &HeaderValue| {
            value.to_str().is_ok_and(|text| text.split(',').any(|part| part.trim().eq_ignore_ascii_case("upgrade")))
        };
        let offered = headers.get_all(CONNECTION).iter().any(names_upgrade);
        let values: Vec<&str> = headers.get_all(UPGRADE).iter().filter_map(|value| value.to_str().ok()).collect();
        let all = values.iter().flat_map(|text| text.split(',')).map(str::trim);
        let protocols: Vec<&str> = all.filter(|one| !one.is_empty() && !is_http(one)).collect();
        if !offered || protocols.is_empty() || parts.version != Version::HTTP_11 {
            return None;
        }
        let mut protocol = protocols.join(", ");
        if protocol.eq_ignore_ascii_case(WEBSOCKET) {
            protocol.make_ascii_lowercase();
        }
        let callers_key = parts.headers.remove(SEC_WEBSOCKET_KEY);
        if protocol == WEBSOCKET && callers_key.is_none() {
            // Without a key it is no offer that could be taken (RFC 6455, 4.1).
            return None;
        }
        Some(Self {
            protocol: protocol.into(),
            method: parts.method.clone(),
            body: Bytes::new(),
            key: key(random),
            callers_key,
        })
    }

    /// The upgrade that an extended CONNECT asks for; what it was made of where a node has made it of something else.
    pub(crate) fn in_http2(parts: &mut Parts, random: &Random) -> Option<Self> {
        let protocol = parts.extensions.remove::<h2::ext::Protocol>()?;
        let (method, _) = carried(&parts.headers).unwrap_or((Method::GET, 0));
        parts.method = method.clone();
        let protocol = protocol.as_str().into();
        Some(Self { protocol, method, body: Bytes::new(), key: key(random), callers_key: None })
    }

    /// The body of the request that carries the offer, all of it.
    pub(crate) fn with(&mut self, body: Bytes) {
        self.body = body;
    }

    pub(crate) fn body(&self) -> &Bytes {
        &self.body
    }

    /// Whether it is the one that every version of HTTP has a form for.
    pub(crate) fn is_websocket(&self) -> bool {
        &*self.protocol == WEBSOCKET
    }

    /// Makes an extended CONNECT of the request, as another node or an instance takes it (RFC 8441, 4).
    pub(crate) fn connect(&self, parts: &mut Parts) {
        parts.method = Method::CONNECT;
        parts.headers.remove(CONTENT_LENGTH);
        parts.extensions.insert(h2::ext::Protocol::from(&*self.protocol));
    }

    /// Tells another node what the CONNECT was made of.
    pub(crate) fn carry(&self, parts: &mut Parts) {
        let text = format!("{} {}", self.method, self.body.len());
        if let Ok(value) = HeaderValue::from_str(&text) {
            parts.headers.insert(UPGRADE_HEADER, value);
        }
    }

    /// Asks an HTTP/1.1 instance for it.
    pub(crate) fn ask(&self, parts: &mut Parts) -> Asked {
        parts.method = self.method.clone();
        let headers = &mut parts.headers;
        headers.append(CONNECTION, HeaderValue::from_static("upgrade"));
        if let Ok(protocol) = HeaderValue::from_str(&self.protocol) {
            headers.insert(UPGRADE, protocol);
        }
        if !self.protocol.split(',').any(|one| one.trim().eq_ignore_ascii_case(WEBSOCKET)) {
            return Asked { accept: None };
        }
        headers.insert(SEC_WEBSOCKET_KEY, self.key.clone());
        Asked { accept: Some(accept(&self.key)) }
    }

    /// Turns the answer into what an HTTP/1.1 caller expects. `taken` is the protocol that was chosen of several.
    pub(crate) fn grant(&self, taken: Option<&HeaderValue>, status: &mut StatusCode, headers: &mut HeaderMap) {
        *status = StatusCode::SWITCHING_PROTOCOLS;
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        let protocol = taken.cloned().or_else(|| HeaderValue::from_str(&self.protocol).ok());
        if let Some(protocol) = protocol {
            headers.insert(UPGRADE, protocol);
        }
        if let Some(key) = &self.callers_key {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept(key));
        }
    }
}

/// What a node has made an extended CONNECT of: method, and length of the body that its stream begins with.
pub(crate) fn carried(headers: &HeaderMap) -> Option<(Method, usize)> {
    let (method, length) = headers.get(UPGRADE_HEADER)?.to_str().ok()?.split_once(' ')?;
    let length = length.parse().ok().filter(|length| *length <= UPGRADE_BODY_MAX)?;
    Some((method.parse().ok()?, length))
}

/// Tells the other node whether an offer was taken, and which where there were several: a success alone would read as if
/// it were.
pub(crate) fn tell(headers: &mut HeaderMap, taken: Option<Option<&HeaderValue>>) {
    match taken {
        None => drop(headers.insert(UPGRADE_HEADER, DECLINED)),
        Some(Some(protocol)) => drop(headers.insert(UPGRADE_HEADER, protocol.clone())),
        Some(None) => {}
    }
}

/// What the other node says of an offer: that it was not taken, or which protocol was.
pub(crate) fn told(headers: &HeaderMap) -> Result<Option<HeaderValue>, ()> {
    match headers.get(UPGRADE_HEADER) {
        Some(value) if *value == DECLINED => Err(()),
        taken => Ok(taken.cloned()),
    }
}

/// Whether the body of a request with this head is short enough to be kept before an offer: its length is known and at
/// most 64 KiB.
pub(crate) fn is_short(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    length.is_some_and(|length: usize| length <= UPGRADE_BODY_MAX)
}

fn is_http(protocol: &str) -> bool {
    let name = protocol.split('/').next().unwrap_or_default();
    ["http", "h2", "h2c", "h3"].iter().any(|one| name.eq_ignore_ascii_case(one))
}

impl Asked {
    /// Whether the instance takes what was offered (RFC 9110, 7.8), and has proved that it understood (RFC 6455, 4.1).
    pub(crate) fn granted(&self, offer: &Upgrade, headers: &HeaderMap) -> bool {
        let Some(taken) = headers.get(UPGRADE).and_then(|taken| taken.to_str().ok()) else { return false };
        let is_offered = |one: &str| offer.protocol.split(',').any(|offered| offered.trim().eq_ignore_ascii_case(one));
        if !taken.split(',').map(str::trim).all(is_offered) {
            return false;
        }
        let websocket = taken.eq_ignore_ascii_case(WEBSOCKET);
        !websocket || self.accept.as_ref().is_none_or(|accept| headers.get(SEC_WEBSOCKET_ACCEPT) == Some(accept))
    }
}

/// What an instance asks to be upgraded to with 426; in the answer's extensions, since each hop writes it in its own way.
#[derive(Debug, Clone)]
struct Required(HeaderValue);

/// Keeps what an answer with 426 asks for, before the hop's fields go (RFC 9110, 15.5.22).
pub(crate) fn keep_required<B>(response: &mut Response<B>) {
    if response.status() == StatusCode::UPGRADE_REQUIRED {
        let headers = response.headers_mut();
        let required = headers.remove(REQUIRED_HEADER).or_else(|| headers.remove(UPGRADE));
        if let Some(required) = required {
            response.extensions_mut().insert(Required(required));
        }
    }
}

/// Tells a caller of HTTP/1.1.
pub(crate) fn tell_caller<B>(response: &mut Response<B>) {
    if let Some(Required(required)) = response.extensions_mut().remove() {
        response.headers_mut().insert(UPGRADE, required);
        response.headers_mut().append(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// Tells another node, on whose connection the field has no meaning.
pub(crate) fn tell_node(parts: &mut http::response::Parts) {
    if let Some(Required(required)) = parts.extensions.remove() {
        parts.headers.insert(REQUIRED_HEADER, required);
    }
}

/// Takes back what [`Upgrade::ask`] added.
pub(crate) fn unask(parts: &mut Parts) {
    const ADDED: [HeaderName; 3] = [CONNECTION, UPGRADE, SEC_WEBSOCKET_KEY];
    for name in ADDED {
        parts.headers.remove(name);
    }
}

/// Removes what belongs to the upgrade between this node and the instance.
pub(crate) fn clean(headers: &mut HeaderMap) {
    const OWN: [HeaderName; 3] = [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT];
    for name in OWN {
        headers.remove(name);
    }
}

fn key(random: &Random) -> HeaderValue {
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(&random.next().to_be_bytes());
    nonce[8..].copy_from_slice(&random.next().to_be_bytes());
    HeaderValue::from_str(&BASE64_STANDARD.encode(nonce)).expect("base64 is a header value")
}

/// `Sec-WebSocket-Accept` for a key (RFC 6455, 4.2.2).
fn accept(key: &HeaderValue) -> HeaderValue {
    let text = [key.as_bytes(), WEBSOCKET_GUID].concat();
    let encoded = BASE64_STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &text));
    HeaderValue::from_str(&encoded).expect("base64 is a header value")
}

/// Between nodes: on an extended CONNECT the method and the length of the body of what it was made of; on its answer the
/// protocol that was taken, or `declined`.
pub(crate) const UPGRADE_HEADER: HeaderName = HeaderName::from_static("x-weft-upgrade");
/// Between nodes: the `Upgrade` of an answer with 426.
const REQUIRED_HEADER: HeaderName = HeaderName::from_static("x-weft-upgrade-required");
const DECLINED: HeaderValue = HeaderValue::from_static("declined");
/// Longest body of a request that offers an upgrade, in bytes; with a longer one the offer is not passed on.
const UPGRADE_BODY_MAX: usize = 64 << 10;
const WEBSOCKET: &str = "websocket";
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
