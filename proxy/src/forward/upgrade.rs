//! Upgrades of a connection, WebSocket above all: `Connection: upgrade` of HTTP/1.1 and extended CONNECT of HTTP/2 are two
//! forms of one request (RFC 8441, RFC 9113 8.5).

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, TRANSFER_ENCODING,
    UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, Version};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use crate::net::Stream;
use crate::task::Random;

/// An upgrade that was asked for.
#[derive(Debug)]
pub(crate) struct Upgrade {
    /// What the connection is to speak.
    pub(crate) protocol: Box<str>,
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
    /// The upgrade that an HTTP/1.1 request asks for. One that is not a GET without a body, or that asks for another
    /// version of HTTP, is served as if it had not asked.
    pub(crate) fn in_http1(parts: &mut Parts, random: &Random) -> Option<Self> {
        let headers = &parts.headers;
        let mut all = headers.get_all(UPGRADE).iter();
        let (Some(one), None) = (all.next(), all.next()) else { return None };
        let protocol = one.to_str().ok()?.trim().to_ascii_lowercase();
        let names_upgrade = |value: &HeaderValue| {
            value.to_str().is_ok_and(|text| text.split(',').any(|part| part.trim().eq_ignore_ascii_case("upgrade")))
        };
        let single = !protocol.is_empty() && !protocol.contains([',', ' ']) && !protocol.starts_with("h2");
        let bodiless = !headers.contains_key(CONTENT_LENGTH) && !headers.contains_key(TRANSFER_ENCODING);
        let asked = headers.get_all(CONNECTION).iter().any(names_upgrade);
        if !(asked && single && bodiless && parts.method == Method::GET && parts.version == Version::HTTP_11) {
            return None;
        }
        let callers_key = parts.headers.remove(SEC_WEBSOCKET_KEY);
        Some(Self { protocol: protocol.into(), key: key(random), callers_key })
    }

    /// The upgrade that an extended CONNECT asks for.
    pub(crate) fn in_http2(parts: &mut Parts, random: &Random) -> Option<Self> {
        let protocol = parts.extensions.remove::<h2::ext::Protocol>()?;
        parts.method = Method::GET;
        Some(Self { protocol: protocol.as_str().into(), key: key(random), callers_key: None })
    }

    /// Asks an HTTP/1.1 instance for it.
    pub(crate) fn ask(&self, parts: &mut Parts) -> Asked {
        parts.method = Method::GET;
        let headers = &mut parts.headers;
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        if let Ok(protocol) = HeaderValue::from_str(&self.protocol) {
            headers.insert(UPGRADE, protocol);
        }
        if &*self.protocol != WEBSOCKET {
            return Asked { accept: None };
        }
        headers.insert(SEC_WEBSOCKET_KEY, self.key.clone());
        Asked { accept: Some(accept(&self.key)) }
    }

    /// Turns the answer into what an HTTP/1.1 caller expects.
    pub(crate) fn grant(&self, status: &mut StatusCode, headers: &mut HeaderMap) {
        *status = StatusCode::SWITCHING_PROTOCOLS;
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        if let Ok(protocol) = HeaderValue::from_str(&self.protocol) {
            headers.insert(UPGRADE, protocol);
        }
        if let Some(key) = &self.callers_key {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept(key));
        }
    }
}

impl Asked {
    /// Whether the instance has proved that it understood (RFC 6455, 4.1).
    pub(crate) fn granted(&self, headers: &HeaderMap) -> bool {
        self.accept.as_ref().is_none_or(|accept| headers.get(SEC_WEBSOCKET_ACCEPT) == Some(accept))
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

impl Stream for TokioIo<Upgraded> {
    /// What is below is not within reach: such a connection is closed.
    fn abort(&mut self) {}
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
