//! An exchange over a connection that carries many: a link, or an instance that speaks HTTP/2.

use std::net::SocketAddr;
use std::pin::pin;
use std::task::Poll;

use futures_util::future::poll_fn;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, Uri, Version};
use http_body::Body as HttpBody;

use super::answer::AnswerBody;
use super::bytes::End;
use super::outgoing::{Answer, Outgoing, Taken};
use super::pipe::{Pipe, PipeError};
use crate::connect::link::Ticket;
use crate::reject::{REASON_HEADER, Reject, untouched};
use crate::retry::{Again, Failure};
use crate::stream::{Answering, Fault, Opener, Sink, Source};
use crate::task::Aborting;
use crate::upload::Upload;
use crate::{headers, upgrade};

/// Sends the request on the connection and waits for the head of the answer.
pub(crate) async fn send(
    mut ticket: Ticket,
    outgoing: &mut Outgoing,
    keep: bool,
    finish: impl FnOnce(&mut Parts),
) -> Result<Answer, Failure> {
    if let Some(upgrade) = &outgoing.upgrade
        && !((upgrade.is_websocket() || ticket.is_link()) && ticket.takes_upgrades().await)
    {
        // An offer may be left lying.
        outgoing.upgrade = None;
    }
    if !outgoing.upload.rewind() {
        return Err(Failure::broken("the request was longer than what is kept for another try".into()));
    }
    let mut parts = outgoing.head(keep);
    finish(&mut parts);
    parts.version = Version::HTTP_2;
    parts.uri = outgoing.full_uri(parts.uri.into_parts().path_and_query);
    if let Some(upgrade) = &outgoing.upgrade {
        upgrade.connect(&mut parts);
        if ticket.is_link() {
            upgrade.carry(&mut parts);
        }
    }
    let upgrade = outgoing.upgrade.is_some();
    let empty = !upgrade && outgoing.upload.is_end_stream();
    let sent = ticket.opener().send(Request::from_parts(parts, ()), empty).await;
    let (response, mut sink) = sent.map_err(|fault| failure(&fault))?;
    if let Some(upgrade) = &outgoing.upgrade {
        if !upgrade.body().is_empty() {
            sink.bytes(upgrade.body().clone()).map_err(|fault| failure(&fault))?;
            poll_fn(|cx| sink.poll_flush(cx)).await.map_err(|fault| failure(&fault))?;
        }
        let response = outgoing.informed.listen(response).await.map_err(|fault| outgoing.lost(&ticket, &fault))?;
        ticket.answered();
        return Ok(tunnelled(response, sink, ticket));
    }
    if empty {
        let response = outgoing.informed.listen(response).await.map_err(|fault| outgoing.lost(&ticket, &fault))?;
        ticket.answered();
        return Ok(answer(response, ticket, None));
    }
    with_body(response, sink, ticket, outgoing).await
}

/// What a stream is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be used.
    Stream,
    /// To see whether the callee is there.
    Probe,
}

/// Opens an opaque stream to what the authority names (RFC 9113, 8.5), for a client whom the callee is told of. Nothing of the caller's has been sent before the
/// answer, so that another try does no harm where the link was lost under this one.
pub(crate) async fn connect(
    ticket: &mut Ticket,
    authority: &http::uri::Authority,
    (purpose, client): (Purpose, Option<SocketAddr>),
) -> Result<End, Failure> {
    let (response, sink) =
        open(ticket.opener(), authority, (purpose, client)).await.map_err(|fault| failure(&fault))?;
    let response = response.await.map_err(|fault| match ticket.is_lost() {
        true => Failure::lost(fault.to_string()),
        false => failure(&fault),
    })?;
    ticket.answered();
    if response.status().is_success() {
        return Ok(End::stream(response.into_body(), sink));
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
    opener: &mut Opener,
    authority: &http::uri::Authority,
    (purpose, client): (Purpose, Option<SocketAddr>),
) -> Result<(Answering, Sink), Fault> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    let mut parts = http::uri::Parts::default();
    parts.authority = Some(authority.clone());
    *request.uri_mut() = Uri::from_parts(parts).expect("an authority alone is a URI");
    if purpose == Purpose::Probe {
        request.headers_mut().insert(headers::PROBE_HEADER, HeaderValue::from_static("1"));
    }
    if let Some(client) = client {
        request.headers_mut().insert(headers::CLIENT_HEADER, headers::client_value(client));
    }
    opener.send(request, false).await
}

/// The other node's own answer, where it says that its application has seen nothing of the request.
pub(crate) fn refusal(answer: &Answer) -> Result<(), Failure> {
    refused(&answer.response).map_or(Ok(()), Err)
}

fn refused<B>(response: &Response<B>) -> Option<Failure> {
    let reject = untouched(response.headers().get(REASON_HEADER)?)?;
    Some(Failure { reject, again: Again::Later })
}

async fn with_body(
    response: Answering,
    sink: Sink,
    mut ticket: Ticket,
    outgoing: &mut Outgoing,
) -> Result<Answer, Failure> {
    let mut pipe = Pipe::new(std::mem::take(&mut outgoing.upload), sink);
    let informed = outgoing.informed.clone();
    let mut response = pin!(informed.listen(response));
    let mut sending = true;
    let result = poll_fn(|cx| {
        if sending {
            match pipe.poll(cx) {
                Poll::Pending => {}
                // The other end may answer without having read it all.
                Poll::Ready(Ok(()) | Err(PipeError::Sink(_))) => sending = false,
                Poll::Ready(Err(PipeError::Source(error))) => {
                    tracing::debug!(%error, "a request body broke off");
                    return Poll::Ready(Err(Failure::never(error.reject())));
                }
            }
        }
        response.as_mut().poll(cx).map_err(|fault| outgoing.lost(&ticket, &fault))
    })
    .await;
    match result {
        Ok(response) => {
            ticket.answered();
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

fn answer(response: Response<Source>, ticket: Ticket, rest: Option<Aborting>) -> Answer {
    Answer::new(response.map(|source| AnswerBody::stream(source, ticket, rest)), None)
}

fn tunnelled(response: Response<Source>, sink: Sink, ticket: Ticket) -> Answer {
    let told = upgrade::told(response.headers());
    let (Ok(taken), true) = (told, response.status().is_success()) else {
        return answer(response, ticket, None);
    };
    let (parts, source) = response.into_parts();
    let response = Response::from_parts(parts, AnswerBody::default());
    Answer::new(response, Some(Taken { protocol: taken, far: End::stream(source, sink).with(ticket) }))
}

impl Outgoing {
    /// What a fault before the head of the answer means for this request. With a link that is lost it goes elsewhere if
    /// asking twice does no harm.
    fn lost(&self, ticket: &Ticket, fault: &Fault) -> Failure {
        if ticket.is_lost() && self.idempotent {
            return Failure::lost(fault.to_string());
        }
        failure(fault)
    }
}

/// What a fault before the head of the answer means.
fn failure(fault: &Fault) -> Failure {
    if fault.untouched() {
        return Failure { reject: Reject::Unreachable(fault.to_string()), again: Again::Later };
    }
    Failure::broken(fault.to_string())
}
