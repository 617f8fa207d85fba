//! An HTTP exchange with an instance over HTTP/1.1.

use http::header::{CONNECTION, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body::Body as HttpBody;
use hyper::body::Incoming;

use super::answer::AnswerBody;
use super::bytes::End;
use super::outgoing::{Answer, Outgoing, Taken};
use crate::connect::instance::{Lease, RACE};
use crate::fields;
use crate::headers::FORWARDED_CLIENT;
use crate::reject::Reject;
use crate::retry::{Again, Failure};
use crate::upgrade::{self, Asked, Upgrade};
use crate::upload::Upload;

/// Sends the request to the instance and waits for the head of its answer.
pub(crate) async fn send(
    mut lease: Lease,
    outgoing: &mut Outgoing,
    keep: bool,
    finish: impl FnOnce(&mut Parts),
) -> Result<Answer, Failure> {
    if !outgoing.upload.rewind() {
        return Err(Failure::broken("the request was longer than what is kept for another try".into()));
    }
    let stale = lease.idle().is_some_and(|idle| idle >= RACE);
    let repeatable = stale && outgoing.upload.is_end_stream();
    let mut parts = outgoing.head(repeatable || keep);
    let repeatable = repeatable && parts.method.is_idempotent();
    finish(&mut parts);
    parts.version = Version::HTTP_11;
    if let Some(path) = parts.uri.path_and_query().filter(|_| parts.uri.authority().is_some()) {
        parts.uri = Uri::from(path.clone());
    }
    parts.headers.insert(HOST, outgoing.host.value.clone());
    if parts.headers.contains_key(TE) {
        // It belongs to the hop (RFC 9110, 10.1.4).
        parts.headers.append(CONNECTION, HeaderValue::from_static("te"));
    }
    let expected = outgoing.upgrade.as_ref().map(|upgrade| upgrade.ask(&mut parts));
    let request = Request::from_parts(parts, std::mem::take(&mut outgoing.upload));
    lease.heads.expect(&outgoing.informed);
    match lease.sender().try_send_request(request).await {
        Ok(mut response) => {
            if let Some(surplus) = lease.heads.answered() {
                fields::append(response.headers_mut(), surplus);
            }
            if let Some(gate) = outgoing.informed.answered(response.status()) {
                lease.keep_gate(gate);
            }
            if response.headers().get_all(TRANSFER_ENCODING).iter().any(|coding| !is_chunked(coding)) {
                // What it is coded in would be lost (RFC 9112, 6.1).
                let text = "the answer has a Transfer-Encoding that is not passed on; chunked is".to_owned();
                return Err(Failure::never(Reject::Broken(text)));
            }
            match expected.zip(outgoing.upgrade.as_ref()) {
                Some((expected, offer)) => Box::pin(upgraded(response, lease, (&expected, offer))).await,
                None if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    Err(Failure::never(Reject::NotUpgraded))
                }
                None => Ok(Answer::new(response.map(|body| AnswerBody::instance(body, lease)), None)),
            }
        }
        Err(mut error) => Err(match error.take_message() {
            Some(request) => {
                give_back(outgoing, request);
                Failure { reject: Reject::Unreachable(error.error().to_string()), again: Again::Fresh }
            }
            // The instance closed an idle connection just when it was used again. Asking twice does no harm here.
            None if repeatable => Failure { reject: Reject::Broken(error.error().to_string()), again: Again::Fresh },
            None if error.error().is_parse_too_large() => Failure::never(Reject::AnswerTooLong),
            None => Failure::broken(error.error().to_string()),
        }),
    }
}

fn is_chunked(coding: &HeaderValue) -> bool {
    coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked")
}

fn give_back(outgoing: &mut Outgoing, request: Request<Upload>) {
    let (mut parts, upload) = request.into_parts();
    parts.headers.remove(HOST);
    parts.headers.remove(FORWARDED_CLIENT);
    upgrade::unask(&mut parts);
    outgoing.restore(parts);
    outgoing.upload = upload;
}

async fn upgraded(
    mut response: Response<Incoming>,
    lease: Lease,
    (expected, offer): (&Asked, &Upgrade),
) -> Result<Answer, Failure> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Answer::new(response.map(|body| AnswerBody::instance(body, lease)), None));
    }
    if !expected.granted(offer, response.headers()) {
        return Err(Failure::never(Reject::NotUpgraded));
    }
    let upgraded = hyper::upgrade::on(&mut response).await.map_err(|error| Failure::broken(error.to_string()))?;
    let (mut parts, _) = response.into_parts();
    parts.status = StatusCode::OK;
    let protocol = parts.headers.get(UPGRADE).cloned();
    upgrade::clean(&mut parts.headers);
    let response = Response::from_parts(parts, AnswerBody::default());
    let far = End::Io(lease.unwrap(upgraded).map_err(Failure::broken)?);
    Ok(Answer::new(response, Some(Taken { protocol, far })))
}
