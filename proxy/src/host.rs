//! Hosts as callers write them, in the forms that the steps need, made once for a run of requests to the same one.

use std::sync::Arc;

use http::uri::Authority;
use http::{HeaderValue, Uri};

use crate::path;

/// What a request says it is for.
#[derive(Debug)]
pub(crate) struct Host {
    /// For `Host`.
    pub(crate) value: HeaderValue,
    /// For `:authority`.
    pub(crate) authority: Authority,
    /// For policies: lower case, without port.
    pub(crate) compare: Box<str>,
}

impl Host {
    fn new(text: &[u8]) -> Option<Self> {
        let authority = Authority::try_from(text).ok()?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return None;
        }
        let value = HeaderValue::from_bytes(text).ok()?;
        let compare = path::host(authority.as_str()).into();
        Some(Self { value, authority, compare })
    }

    /// The host of that text, taken from `last` where it is the same; none where it is not a host.
    pub(crate) fn of(text: &[u8], last: &mut Option<Arc<Self>>) -> Option<Arc<Self>> {
        if let Some(host) = last.as_ref().filter(|host| host.value.as_bytes() == text) {
            return Some(host.clone());
        }
        let host = Arc::new(Self::new(text)?);
        *last = Some(host.clone());
        Some(host)
    }

    /// The port that it names.
    pub(crate) fn port(&self) -> Option<u16> {
        self.authority.port_u16()
    }
}

/// The host in a request target of absolute form.
pub(crate) fn in_target(uri: &Uri) -> Option<&str> {
    uri.authority().map(Authority::as_str)
}
