//! An HTTP exchange over HTTP/2: a link, or an instance that speaks it.

use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use futures_util::future::poll_fn;
use h2::client::{ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::request::Parts;
use http::{Method, Request, Response, Uri, Version};
use http_body::Body as HttpBody;

use super::bytes::End;
use super::headers;
use super::http::{Answer, Outgoing};
use super::pipe::{Pipe, PipeError};
use crate::body::{Body, Upload};
use crate::connect::link::{Link, Ticket};
use crate::reject::{Reject, untouched};
use crate::retry::{Again, Failure};
use crate::task::Aborting;

/// Sends the request on the connection and waits for the head of the answer.
pub(crate) async fn send(
    mut ticket: Ticket,
    outgoing: &mut Outgoing,
    keep: bool,
    finish: impl FnOnce(&mut Parts),
) -> Result<Answer, Failure> {
    if outgoing.upgrade.is_some() && !ticket.takes_upgrades().await {
        return Err(Failure::never(Reject::NotUpgraded));
    }
    if !outgoing.upload.rewind() {
        return Err(Failure::broken("the request was longer than what is kept for another try".into()));
    }
    let Link::Http2(sender) = ticket.link();
    let ready = poll_fn(|cx| sender.poll_ready(cx)).await;
    ready.map_err(|error| failure(&error))?;
    let mut parts = outgoing.head(keep);
    finish(&mut parts);
    parts.version = Version::HTTP_2;
    parts.uri = outgoing.full_uri(parts.uri.into_parts().path_and_query);
    if let Some(upgrade) = &outgoing.upgrade {
        parts.method = Method::CONNECT;
        parts.extensions.insert(Protocol::from(&*upgrade.protocol));
    }
    let upgrade = outgoing.upgrade.is_some();
    let empty = !upgrade && outgoing.upload.is_end_stream();
    let sent = sender.send_request(Request::from_parts(parts, ()), empty);
    let (response, stream) = sent.map_err(|error| failure(&error))?;
    if upgrade {
        let response = response.await.map_err(|error| failure(&error))?;
        return Ok(tunnelled(response, stream, ticket));
    }
    if empty {
        let response = response.await.map_err(|error| failure(&error))?;
        return Ok(answer(response, ticket, None));
    }
    with_body(response, stream, ticket, outgoing).await
}

/// Opens an opaque stream to what the authority names (RFC 9113, 8.5).
pub(crate) async fn connect(ticket: &mut Ticket, authority: &http::uri::Authority) -> Result<End, Failure> {
    let Link::Http2(sender) = ticket.link();
    let (response, stream) = open(sender, authority).await.map_err(|error| failure(&error))?;
    let response = response.await.map_err(|error| failure(&error))?;
    if response.status().is_success() {
        return Ok(End::http2(response.into_body(), stream));
    }
    if let Some(failure) = refused(&response) {
        return Err(failure);
    }
    Err(Failure::never(if response.status() == http::StatusCode::FORBIDDEN {
        Reject::Denied
    } else {
        Reject::Broken(format!("the other node answered {}", response.status()))
    }))
}

async fn open(
    sender: &mut SendRequest<Bytes>,
    authority: &http::uri::Authority,
) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
    poll_fn(|cx| sender.poll_ready(cx)).await?;
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    let mut parts = http::uri::Parts::default();
    parts.authority = Some(authority.clone());
    *request.uri_mut() = Uri::from_parts(parts).expect("an authority alone is a URI");
    sender.send_request(request, false)
}

/// The other node's own answer, where it says that its application has seen nothing of the request.
pub(crate) fn refusal(answer: &Answer) -> Result<(), Failure> {
    refused(&answer.response).map_or(Ok(()), Err)
}

fn refused<B>(response: &Response<B>) -> Option<Failure> {
    let reason = headers::refused(response.status(), response.headers())?;
    untouched(reason).then_some(Failure { reject: Reject::NoInstance, again: Again::Later })
}

async fn with_body(
    response: ResponseFuture,
    stream: SendStream<Bytes>,
    ticket: Ticket,
    outgoing: &mut Outgoing,
) -> Result<Answer, Failure> {
    let mut pipe = Pipe::new(std::mem::take(&mut outgoing.upload), stream);
    let mut response = pin!(response);
    let mut sending = true;
    let result = poll_fn(|cx| {
        if sending {
            match pipe.poll(cx) {
                Poll::Pending => {}
                // The other end may answer without having read it all.
                Poll::Ready(Ok(()) | Err(PipeError::Sink(_))) => sending = false,
                Poll::Ready(Err(PipeError::Source(error))) => {
                    tracing::debug!(%error, "a request body broke off");
                    return Poll::Ready(Err(Failure::never(Reject::Gone)));
                }
            }
        }
        response.as_mut().poll(cx).map_err(|error| failure(&error))
    })
    .await;
    match result {
        Ok(response) => {
            let rest = sending.then(|| upload(pipe));
            Ok(answer(response, ticket, rest))
        }
        Err(failure) => {
            outgoing.upload = pipe.body;
            Err(failure)
        }
    }
}

/// Goes on sending while the answer streams back, and no longer.
fn upload(mut pipe: Pipe<Upload>) -> Aborting {
    let task = tokio::spawn(async move {
        if let Err(error) = poll_fn(|cx| pipe.poll(cx)).await {
            tracing::debug!(?error, "a request body was not sent in full");
        }
    });
    Aborting(task.abort_handle())
}

fn answer(response: Response<RecvStream>, ticket: Ticket, rest: Option<Aborting>) -> Answer {
    Answer { response: response.map(|stream| Body::http2_response(stream, ticket, rest)), tunnel: None }
}

fn tunnelled(response: Response<RecvStream>, stream: SendStream<Bytes>, ticket: Ticket) -> Answer {
    if !response.status().is_success() {
        return answer(response, ticket, None);
    }
    let (parts, received) = response.into_parts();
    let response = Response::from_parts(parts, Body::Empty);
    Answer { response, tunnel: Some(End::http2(received, stream).with(ticket)) }
}

/// What an error before the head of the answer means: a refused stream, and one beyond those that a goodbye covers, were
/// not looked at (RFC 9113, 6.8 and 8.7).
fn failure(error: &h2::Error) -> Failure {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    let beyond = error.is_go_away();
    if error.is_remote() && (refused || beyond) {
        return Failure { reject: Reject::Unreachable(error.to_string()), again: Again::Later };
    }
    Failure::broken(error.to_string())
}
