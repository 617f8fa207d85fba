//! A request as it is sent, and what comes back.

use std::net::SocketAddr;
use std::sync::Arc;

use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Response, Uri};
use http_body::Body as HttpBody;
use parking_lot::Mutex;

use super::answer::AnswerBody;
use super::bytes::End as Far;
use crate::call::Answerer;
use crate::connect::instance::Reuse;
use crate::host::Host;
use crate::inform::Informed;
use crate::request::Received;
use crate::upgrade::Upgrade;
use crate::upload::{Spare, Upload};
use crate::upstream::Outcome;

/// A request on its way. Its head has no `Host`, nothing of the hop it came over, and only a path as its URI.
#[derive(Debug)]
pub(crate) struct Outgoing {
    head: Option<Parts>,
    pub(crate) host: Arc<Host>,
    pub(crate) upload: Upload,
    /// What is kept of its body where a rule may ask for another try after an answer.
    pub(crate) spare: Option<Arc<Mutex<Spare>>>,
    pub(crate) informed: Informed,
    /// Whether an instance whose port does not say is spoken to in HTTP/2.
    pub(crate) http2: bool,
    /// Who calls.
    pub(crate) client: SocketAddr,
    /// Whether it may be sent twice.
    pub(super) idempotent: bool,
    /// The protocol that the connection is to be upgraded to.
    pub(crate) upgrade: Option<Upgrade>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response<AnswerBody>,
    /// What the connection has become.
    pub(crate) tunnel: Option<Taken>,
    /// Whose it is.
    pub(crate) by: Answerer,
    /// Whether it is the callee's node's, which says that the application broke off.
    pub(crate) broke: bool,
}

impl Answer {
    pub(crate) fn new(response: Response<AnswerBody>, tunnel: Option<Taken>) -> Self {
        Self { response, tunnel, by: Answerer::Application, broke: false }
    }

    /// What it says of the instance: of a gRPC answer that is nothing but a failure, what that is in HTTP
    /// (grpc/doc/http-grpc-status-mapping.md, backwards).
    pub(crate) fn outcome(&self) -> Outcome {
        if self.broke {
            return Outcome::NoAnswer;
        }
        let code = self.response.headers().get("grpc-status").map(HeaderValue::as_bytes);
        Outcome::Status(match code {
            Some(b"14") => 503,
            Some(b"4") => 504,
            Some(b"2" | b"13" | b"15") => 500,
            _ => self.response.status().as_u16(),
        })
    }

    /// One that this node made itself.
    pub(crate) fn made(response: Response<AnswerBody>) -> Self {
        Self { response, tunnel: None, by: Answerer::Node, broke: false }
    }
}

/// An upgrade that was taken.
#[derive(Debug)]
pub(crate) struct Taken {
    /// Which of those that were offered; none where there was but one.
    pub(crate) protocol: Option<HeaderValue>,
    /// The other end.
    pub(crate) far: Far,
}

impl Outgoing {
    pub(crate) fn new(received: Received, upload: Upload, informed: Informed) -> Self {
        let Received { head, host, http2, upgrade, client, .. } = received;
        let idempotent = head.method.is_idempotent() && upgrade.is_none();
        Self { head: Some(head), host, upload, spare: None, informed, http2, client, idempotent, upgrade }
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

    /// Makes it whole again after a try that may have taken its body; false if that is not possible.
    pub(crate) fn recover(&mut self) -> bool {
        if !self.upload.is_gone() {
            return true;
        }
        let Some(upload) = self.spare.as_ref().and_then(Upload::of) else { return false };
        self.upload = upload;
        self.head.is_some()
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
