//! The answer that an exchange gets which ended without one of the application.

use http::header::{ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, Version};

use super::answer::AnswerBody;
use crate::reject::{REASON_HEADER, Reject};

/// The answer. `grpc` calls get a gRPC status; an answer to another node tells its reason.
pub(crate) fn response(reject: &Reject, version: Version, grpc: bool, to_node: bool) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::default());
    *response.version_mut() = version;
    let headers = response.headers_mut();
    if to_node {
        headers.insert(REASON_HEADER, HeaderValue::from_static(reject.reason()));
    }
    if *reject == Reject::Overflow {
        // By what clients of Envoy know it.
        headers.insert("x-envoy-overloaded", HeaderValue::from_static("true"));
    }
    if *reject == Reject::Overloaded {
        headers.insert(RETRY_AFTER, HeaderValue::from_static(LATER));
    }
    if grpc {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(reject.grpc_status()));
        if let Ok(message) = HeaderValue::from_str(&reject.text()) {
            headers.insert("grpc-message", message);
        }
        return response;
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let malformed = matches!(reject, Reject::BadRequest(_) | Reject::UriTooLong | Reject::HeadTooLong);
    if malformed && version <= Version::HTTP_11 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if *reject == Reject::Method {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    }
    let text = format!("{}\n", reject.text());
    headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    *response.status_mut() = reject.status();
    *response.body_mut() = AnswerBody::full(text);
    response
}

/// After how many seconds a call may do that there was no room for.
const LATER: &str = "1";
