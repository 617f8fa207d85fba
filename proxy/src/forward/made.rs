//! Answers that a rule makes.

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use http::uri::PathAndQuery;
use http::{HeaderMap, Response, StatusCode};

use super::answer::AnswerBody;
use crate::host::Host;
use crate::table::routes::{Abort, Redirect};

/// An answer of a fixed text.
pub(crate) fn text(status: StatusCode, body: &str) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::default());
    *response.status_mut() = status;
    // A 204 has no length (RFC 9110, 8.6).
    if !body.is_empty() {
        *response.body_mut() = AnswerBody::full(body.to_owned());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    response
}

/// An answer that is nothing but these fields.
pub(crate) fn fields(fields: HeaderMap) -> Response<AnswerBody> {
    let mut response = text(StatusCode::OK, "");
    *response.headers_mut() = fields;
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(0));
    response
}

/// Another place; `scheme` is the one that was called.
pub(crate) fn redirect(
    (to, scheme): (&Redirect, &str),
    host: &Host,
    path: &PathAndQuery,
    prefix: Option<&str>,
) -> Response<AnswerBody> {
    let mut response = text(to.status, "");
    if let Ok(location) = HeaderValue::from_str(&to.location((scheme, &host.authority), path, prefix)) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// A failure.
pub(crate) fn abort(abort: Abort) -> Response<AnswerBody> {
    match abort {
        Abort::Http(status) => text(status, ABORTED),
        Abort::Grpc(code) => {
            let mut response = text(StatusCode::OK, "");
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from(code));
            headers.insert("grpc-message", HeaderValue::from_static(ABORTED));
            response
        }
    }
}

/// The body of an abort, as Envoy has it.
const ABORTED: &str = "fault filter abort";
