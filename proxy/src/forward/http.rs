//! An HTTP exchange to where it goes: the request as it is sent, the answer as it comes.

use std::sync::Arc;

use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Response, Uri};
use http_body::Body as HttpBody;
use weft_proto::service::Protocol;

use super::bytes::End as Far;
use super::inform::Informed;
use super::upgrade::Upgrade;
use super::{headers, http1, multiplexed, upgrade};
use crate::accept;
use crate::accept::host::Host;
use crate::body::{Body, Upload};
use crate::connect::Upstream;
use crate::connect::instance::Reuse;
use crate::identify::Relation;
use crate::retry::Failure;
use crate::route::Route;

/// A request on its way. Its head has no `Host`, nothing of the hop it came over, and only a path as its URI.
#[derive(Debug)]
pub(crate) struct Outgoing {
    head: Option<Parts>,
    pub(crate) host: Arc<Host>,
    pub(crate) upload: Upload,
    pub(crate) informed: Informed,
    /// Whether an instance whose port does not say is spoken to in HTTP/2.
    pub(crate) http2: bool,
    /// Whether it may be sent twice.
    pub(super) idempotent: bool,
    /// The protocol that the connection is to be upgraded to.
    pub(crate) upgrade: Option<Upgrade>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response<Body>,
    /// What the connection has become.
    pub(crate) tunnel: Option<Taken>,
}

/// An upgrade that was taken.
#[derive(Debug)]
pub(crate) struct Taken {
    /// Which of those that were offered; none where there was but one.
    pub(crate) protocol: Option<HeaderValue>,
    /// The other end.
    pub(crate) far: Far,
}

/// Sends the request. The route is the proof that it may be sent. A failure that allows another try leaves the request
/// as it was; `keep` says that one may follow.
pub(crate) async fn send(
    route: &Route,
    upstream: Upstream,
    outgoing: &mut Outgoing,
    keep: bool,
) -> Result<Answer, Failure> {
    let relation = route.relation();
    match upstream {
        Upstream::Link(ticket) => {
            let mark = outgoing.http2 && relation.port.protocol == Protocol::Auto;
            let mut answer = multiplexed::send(ticket, outgoing, keep, |parts| {
                if mark {
                    parts.headers.insert(headers::HTTP_HEADER, HeaderValue::from_static("2"));
                }
            })
            .await?;
            multiplexed::refusal(&answer)?;
            clean(&mut answer.response);
            Ok(answer)
        }
        Upstream::InstanceHttp2(ticket) => {
            let mut answer = multiplexed::send(ticket, outgoing, keep, |parts| introduce(parts, relation)).await?;
            clean(&mut answer.response);
            Ok(answer)
        }
        Upstream::Instance(lease) => {
            let mut answer = http1::send(lease, outgoing, |parts| introduce(parts, relation)).await?;
            clean(&mut answer.response);
            Ok(answer)
        }
    }
}

/// Removes from an answer what belongs to the hop that it came over.
fn clean(response: &mut Response<Body>) {
    upgrade::keep_required(response);
    headers::clean_response(response.headers_mut());
}

/// Tells the instance who calls.
fn introduce(parts: &mut Parts, relation: &Relation) {
    if let Some(forwarded) = &relation.forwarded {
        parts.headers.insert(headers::FORWARDED_CLIENT, forwarded.clone());
    }
}

impl Outgoing {
    pub(crate) fn new(received: accept::request::Received, upload: Upload, informed: Informed) -> Self {
        let accept::request::Received { head, host, http2, upgrade, .. } = received;
        let idempotent = head.method.is_idempotent() && upgrade.is_none();
        Self { head: Some(head), host, upload, informed, http2, idempotent, upgrade }
    }

    /// Which connections that were used before it may be sent on.
    pub(crate) fn reuse(&self) -> Reuse {
        if self.idempotent && self.upload.is_end_stream() { Reuse::Any } else { Reuse::Young }
    }

    /// The head for a try; a copy if another may follow.
    pub(crate) fn head(&mut self, keep: bool) -> Parts {
        let head = if keep { self.head.clone() } else { self.head.take() };
        head.expect("a try that takes the head for good is the last one")
    }

    /// Gives the head back after a try that did not use it.
    pub(crate) fn restore(&mut self, head: Parts) {
        self.head = Some(head);
    }

    /// The URI for HTTP/2.
    pub(crate) fn full_uri(&self, path: Option<PathAndQuery>) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(self.host.authority.clone());
        parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        Uri::from_parts(parts).expect("scheme, authority and path are all there")
    }
}
