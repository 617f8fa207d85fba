//! The head of a request: refused where servers could read it in different ways, cleaned of what belongs to one hop.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, EXPECT, HOST, MAX_FORWARDS};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use weft_proto::kinds::service::{EscapedSlashes, UnderscoreHeaders};

use crate::call::Asked;
use crate::framing::Mark;
use crate::headers::{self, TRACEPARENT};
use crate::host::{Host, in_target};
use crate::path;
use crate::reject::Reject;
use crate::task::Random;
use crate::upgrade::Upgrade;

/// A request that may be judged.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) head: Parts,
    pub(crate) host: Arc<Host>,
    /// Whether the application spoke HTTP/2.
    pub(crate) http2: bool,
    pub(crate) upgrade: Option<Upgrade>,
    /// Who calls.
    pub(crate) client: SocketAddr,
    /// Whether the caller waits to be told to send the body.
    pub(crate) expects: bool,
    /// Whether the name of a field holds `_`.
    underscores: bool,
    /// Whether the target is a host without a path.
    bare: bool,
}

/// What a listener or link knows about a request before it is read.
#[derive(Debug)]
pub(crate) struct Origin<'a> {
    /// Whether another node of the mesh has sent it.
    pub(crate) from_node: bool,
    /// The host that is meant by HTTP/1.0, which need not name one; none where each exchange has to.
    pub(crate) host: Option<&'a str>,
    /// Who calls, unless another node says that it is somebody else.
    pub(crate) client: SocketAddr,
}

/// Reads a head.
pub(crate) fn read(
    mut head: Parts,
    last_host: &mut Option<Arc<Host>>,
    origin: &Origin<'_>,
    random: &Random,
) -> Result<Received, Reject> {
    let bare = match head.extensions.remove() {
        Some(Mark::Refused(reject)) => return Err(reject),
        Some(Mark::BareOptions) => true,
        Some(Mark::More(_)) | None => false,
    };
    let http2 = head.version >= Version::HTTP_2;
    if head.method == Method::TRACE {
        return Err(Reject::Method);
    }
    if head.method.as_str().bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Err(Reject::BadRequest("methods are written in capitals"));
    }
    if head.uri.path_and_query().is_some_and(|path| path.as_str().len() > TARGET_LENGTH_MAX) {
        return Err(Reject::UriTooLong);
    }
    let seen = headers::look(&head.headers);
    if seen.hosts > 1 {
        return Err(Reject::BadRequest("there is more than one Host"));
    }
    if seen.encodings > 1 || (seen.encodings == 1 && http2) {
        return Err(Reject::BadRequest("Transfer-Encoding is given in a way that servers read differently"));
    }
    if seen.encodings == 1 && !head.headers[http::header::TRANSFER_ENCODING].as_bytes().eq_ignore_ascii_case(b"chunked")
    {
        return Err(Reject::BadRequest("the only Transfer-Encoding that is passed on is chunked"));
    }
    if http2 && (seen.lengths > 1 || (seen.lengths == 1 && !is_length(&head.headers[CONTENT_LENGTH]))) {
        return Err(Reject::BadRequest("Content-Length is given in a way that servers read differently"));
    }
    let host = host(&head, origin.host, last_host)?;
    let upgrade = match http2 {
        true => Upgrade::in_http2(&mut head, random),
        false if seen.upgrade => Upgrade::in_http1(&mut head, random),
        false => None,
    };
    let told = if origin.from_node && seen.ours { headers::client(&head.headers) } else { None };
    headers::clean_request(&mut head.headers, &seen);
    if head.method == Method::OPTIONS && !origin.from_node {
        count_down(&mut head.headers)?;
    }
    headers::trace(&mut head.headers, seen.trace, random);
    let expects = seen.expects && head.version >= Version::HTTP_11;
    if seen.expects && !expects {
        // It means nothing from HTTP/1.0 (RFC 9110, 10.1.1).
        head.headers.remove(EXPECT);
    }
    let http2 = if origin.from_node { seen.http2 } else { http2 };
    let client = told.unwrap_or(origin.client);
    Ok(Received { head, host, http2, upgrade, client, expects, underscores: seen.underscores, bare })
}

/// Whether it is a length (RFC 9110, 8.6): others would go on to servers that read them in their own ways.
fn is_length(value: &HeaderValue) -> bool {
    let digits = value.as_bytes().iter().all(u8::is_ascii_digit);
    digits && value.to_str().is_ok_and(|text| text.parse::<u64>().is_ok())
}

/// Counts this hop of an OPTIONS that says how many it may take (RFC 9110, 7.6.2). What is no number says nothing.
fn count_down(headers: &mut HeaderMap) -> Result<(), Reject> {
    let left = headers.get(MAX_FORWARDS).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match left {
        None => {}
        Some(0) => return Err(Reject::LastHop),
        Some(left) => drop(headers.insert(MAX_FORWARDS, HeaderValue::from(left - 1))),
    }
    Ok(())
}

/// The host: of the target where it has one, which must be that of `Host`, else of `Host` (RFC 9112, 3.2).
fn host(head: &Parts, default: Option<&str>, last: &mut Option<Arc<Host>>) -> Result<Arc<Host>, Reject> {
    const NOT_A_HOST: Reject = Reject::BadRequest("the Host is not one");
    let in_field = head.headers.get(HOST).map(HeaderValue::as_bytes);
    let text = match (in_target(&head.uri), in_field) {
        (Some(target), None) => target.as_bytes(),
        (Some(target), Some(field)) => {
            let same = |text: &[u8]| std::str::from_utf8(text).is_ok_and(|text| path::host(text) == path::host(target));
            if !same(field) {
                return Err(Reject::BadRequest("Host and request target name different hosts"));
            }
            target.as_bytes()
        }
        (None, Some(field)) => field,
        (None, None) if head.version < Version::HTTP_11 => {
            default.ok_or(Reject::BadRequest("the request names no host"))?.as_bytes()
        }
        (None, None) => return Err(Reject::BadRequest("there is no Host")),
    };
    Host::of(text, last).ok_or(NOT_A_HOST)
}

impl Received {
    /// The same, without what only one can have.
    pub(crate) fn copy(&self) -> Self {
        Self { head: self.head.clone(), host: self.host.clone(), upgrade: None, expects: false, ..*self }
    }

    /// What is asked, once it is in its normal form.
    pub(crate) fn asked(&self) -> Option<Asked> {
        let (method, path) = (self.head.method.clone(), self.head.uri.path_and_query()?.clone());
        let trace = self.head.headers.get(TRACEPARENT).cloned();
        Some(Asked { method, path, host: self.host.clone(), trace, headers: None })
    }

    /// Refuses names that servers fold into others, unless the service takes them.
    pub(crate) fn check_names(&self, underscores: UnderscoreHeaders) -> Result<(), Reject> {
        match underscores {
            UnderscoreHeaders::Refuse if self.underscores => Err(Reject::BadRequest(
                "the name of a header field holds '_', which servers read as '-'; underscoreHeaders: allow takes it",
            )),
            _ => Ok(()),
        }
    }

    /// The request target in origin form, or `*`. In absolute form an empty path is `/`, and `*` where the method is
    /// OPTIONS and there is no query either (RFC 9112, 3.2.1 and 3.2.4).
    fn target(&self) -> Result<PathAndQuery, Reject> {
        let root = PathAndQuery::from_static("/");
        let given = self.head.uri.path_and_query();
        let given = given.ok_or(Reject::BadRequest("only CONNECT names a host and a port alone"))?;
        let options = self.head.method == Method::OPTIONS;
        match given.as_str() {
            "*" if options => Ok(given.clone()),
            "*" => Err(Reject::BadRequest("the request target '*' is for OPTIONS only")),
            "/" if options && self.bare => Ok(PathAndQuery::from_static("*")),
            "/" => Ok(root),
            text if text.starts_with('?') => PathAndQuery::try_from(format!("/{text}")).map_err(|_| NO_TARGET),
            _ => Ok(given.clone()),
        }
    }

    /// Brings the path into its normal form, which is what is judged and what is forwarded.
    pub(crate) fn normalise(&mut self, slashes: EscapedSlashes) -> Result<Asked, Reject> {
        let target = self.target()?;
        let path = match path::normalise(target.as_str(), slashes).map_err(Reject::Path)? {
            std::borrow::Cow::Borrowed(_) => target,
            std::borrow::Cow::Owned(normal) => PathAndQuery::try_from(normal).map_err(|_| NO_TARGET)?,
        };
        self.head.uri = Uri::from(path.clone());
        Ok(Asked {
            method: self.head.method.clone(),
            path,
            host: self.host.clone(),
            trace: self.head.headers.get(TRACEPARENT).cloned(),
            headers: None,
        })
    }
}

const NO_TARGET: Reject = Reject::BadRequest("the request target is not one");
/// Longest request target, in bytes.
const TARGET_LENGTH_MAX: usize = 16 << 10;
