//! A stream of a connection that carries many exchanges: one of HTTP/2, or one of QUIC. Both keep the same promises, so
//! everything above this is written once.

mod answering;

use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use weft_proto::wire::exchange::{RequestHead, Trailers};

use crate::quic::QuicLink;
use crate::quic::head;
use crate::quic::http3::{Http3Error, Http3Receiver};
use crate::quic::stream::{Code, Part, Receiver, Sender, StreamError};

pub(crate) use answering::{Answering, Heard};

/// Why a stream ended before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// On HTTP/2.
    #[error(transparent)]
    Http2(#[from] h2::Error),
    /// On QUIC.
    #[error(transparent)]
    Quic(#[from] StreamError),
    /// On HTTP/3.
    #[error(transparent)]
    Http3(#[from] Http3Error),
    /// Of one informational answer after the other.
    #[error("too many informational answers, and no other")]
    Endless,
}

/// Why this end gives a stream up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GivenUp {
    /// It is no longer wanted, or no longer allowed.
    Cancelled,
    /// What it carries broke off.
    Broken,
}

/// What a stream brings.
#[derive(Debug)]
pub(crate) enum Source {
    Http2(RecvStream),
    Quic(Receiver),
    Http3(Box<Http3Receiver>),
}

/// Where a stream leads.
#[derive(Debug)]
pub(crate) enum Sink {
    Http2(SendStream<Bytes>),
    Quic(Sender),
}

/// Opens streams.
#[derive(Debug, Clone)]
pub(crate) enum Opener {
    Http2(SendRequest<Bytes>),
    Quic(QuicLink),
}

/// The place of an answer that is yet to be given.
#[derive(Debug)]
pub(crate) enum Responder {
    Http2(SendResponse<Bytes>),
    Quic(Option<Sender>),
}

impl Fault {
    /// Whether the other end has not looked at the request: a refused stream, one beyond those that a goodbye covers
    /// (RFC 9113, 6.8 and 8.7), and one that was never opened.
    pub(crate) fn untouched(&self) -> bool {
        match self {
            Self::Http2(error) => {
                let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
                error.is_remote() && (refused || error.is_go_away())
            }
            Self::Quic(error) => error.is_untouched(),
            Self::Http3(_) | Self::Endless => false,
        }
    }
}

impl Opener {
    /// Sends the head of a request. Without a body, nothing else is sent on the stream.
    pub(crate) async fn send(&mut self, request: Request<()>, ends: bool) -> Result<(Answering, Sink), Fault> {
        match self {
            Self::Http2(sender) => {
                // A fresh clone has nothing pending, so there is nothing to get ready for.
                let (response, stream) = sender.send_request(request, ends)?;
                Ok((Answering::Http2(response), Sink::Http2(stream)))
            }
            Self::Quic(link) => {
                let (mut sender, receiver) = link.open().await?;
                let (parts, ()) = request.into_parts();
                sender.head(&head::of_request(&parts, ends));
                if ends {
                    sender.end();
                }
                std::future::poll_fn(|cx| sender.poll_flush(cx)).await?;
                Ok((Answering::Quic(Some(receiver)), Sink::Quic(sender)))
            }
        }
    }
}

/// The request that a stream of a QUIC link begins with.
pub(crate) async fn request(sender: Sender, receiver: Receiver) -> Result<(Request<Source>, Responder), StreamError> {
    let (mut sender, mut receiver) = (sender, receiver);
    let read = std::future::poll_fn(|cx| receiver.poll_head::<RequestHead>(cx)).await.and_then(|head| {
        let head = head.ok_or(StreamError::Malformed("a stream without a request"))?;
        if head.ends {
            receiver.end();
        }
        head::to_request(head)
    });
    match read {
        Ok(request) => Ok((request.map(|()| Source::Quic(receiver)), Responder::Quic(Some(sender)))),
        Err(error) => {
            sender.reset(Code::Malformed);
            Err(error)
        }
    }
}

impl Responder {
    /// Sends the head of the answer.
    pub(crate) fn send(&mut self, response: Response<()>, ends: bool) -> Result<Sink, Fault> {
        match self {
            Self::Http2(respond) => Ok(Sink::Http2(respond.send_response(response, ends)?)),
            Self::Quic(sender) => {
                let gone = StreamError::Stopped(Code::None.number().into());
                let mut sender = sender.take().ok_or(gone)?;
                sender.head(&head::of_response(&response, ends));
                if ends {
                    sender.end();
                }
                Ok(Sink::Quic(sender))
            }
        }
    }

    /// Queues an informational answer, which goes out while the end of the exchange is waited for.
    pub(crate) fn inform(&mut self, interim: Response<()>) {
        match self {
            // What can't be sent any more is not missed.
            Self::Http2(respond) => drop(respond.send_informational(interim)),
            Self::Quic(Some(sender)) => sender.head(&head::of_response(&interim, false)),
            Self::Quic(None) => {}
        }
    }

    /// Ready when nobody waits for the answer any more.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Http2(respond) => respond.poll_reset(cx).map(drop),
            Self::Quic(Some(sender)) => match sender.poll_flush(cx) {
                Poll::Ready(Err(_)) => Poll::Ready(()),
                _ => sender.poll_stopped(cx).map(drop),
            },
            Self::Quic(None) => Poll::Pending,
        }
    }
}

impl Source {
    /// Whether all has been handed out.
    pub(crate) fn is_ended(&self) -> bool {
        match self {
            Self::Http2(stream) => stream.is_end_stream(),
            Self::Quic(receiver) => receiver.is_ended(),
            Self::Http3(receiver) => receiver.is_ended(),
        }
    }

    /// The next part of a body, or its trailers. What was handed out is taken as passed on.
    pub(crate) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, Fault>>> {
        match self {
            Self::Http2(stream) => poll_http2_body(stream, cx),
            Self::Quic(receiver) => Poll::Ready(match ready!(receiver.poll_part(cx)) {
                Ok(None) => None,
                Ok(Some(Part::Data(data))) => Some(Ok(http_body::Frame::data(data))),
                Ok(Some(Part::Head(bytes))) => {
                    Some(trailers(bytes).map(http_body::Frame::trailers).map_err(Fault::from))
                }
                Err(error) => Some(Err(error.into())),
            }),
            Self::Http3(receiver) => receiver.poll_part(cx).map_err(Fault::from),
        }
    }

    /// The next bytes of an opaque stream; none at its end. `passed_on` of those that were handed out may come again.
    pub(crate) fn poll_bytes(&mut self, cx: &mut Context<'_>, passed_on: usize) -> Poll<Result<Option<Bytes>, Fault>> {
        match self {
            Self::Http2(stream) => {
                if passed_on > 0 {
                    stream.flow_control().release_capacity(passed_on)?;
                }
                match ready!(stream.poll_data(cx)) {
                    Some(Ok(data)) => Poll::Ready(Ok(Some(data))),
                    Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => Poll::Ready(Ok(None)),
                    Some(Err(error)) => Poll::Ready(Err(error.into())),
                    None => Poll::Ready(Ok(None)),
                }
            }
            Self::Quic(receiver) => receiver.poll_bytes(cx).map_err(Fault::from),
            // No opaque stream comes over it.
            Self::Http3(_) => Poll::Ready(Ok(None)),
        }
    }
}

impl Source {
    /// The first bytes of an opaque stream, exactly so many; none where it brings fewer, or more at once.
    pub(crate) async fn take(&mut self, length: usize) -> Option<Bytes> {
        let (mut taken, mut passed_on) = (BytesMut::with_capacity(length), 0);
        while taken.len() < length {
            let bytes = std::future::poll_fn(|cx| self.poll_bytes(cx, passed_on)).await.ok()??;
            passed_on = bytes.len();
            taken.extend_from_slice(&bytes);
        }
        if let Self::Http2(stream) = self
            && passed_on > 0
        {
            stream.flow_control().release_capacity(passed_on).ok()?;
        }
        (taken.len() == length).then(|| taken.freeze())
    }
}

fn trailers(bytes: Bytes) -> Result<HeaderMap, StreamError> {
    let trailers: Trailers =
        prost::Message::decode(bytes).map_err(|_| StreamError::Malformed("trailers that are none"))?;
    head::to_trailers(trailers)
}

fn poll_http2_body(
    stream: &mut RecvStream,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<http_body::Frame<Bytes>, Fault>>> {
    match ready!(stream.poll_data(cx)) {
        Some(Ok(data)) => {
            // The other end may send as much again: what is handed on is bounded by the frame.
            stream.flow_control().release_capacity(data.len())?;
            return Poll::Ready(Some(Ok(http_body::Frame::data(data))));
        }
        // A peer that has answered in full may reset the rest of the stream without blame (RFC 9113, 8.1).
        Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => return Poll::Ready(None),
        Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
        None => {}
    }
    match ready!(stream.poll_trailers(cx)) {
        Ok(trailers) => Poll::Ready(trailers.map(|trailers: HeaderMap| Ok(http_body::Frame::trailers(trailers)))),
        Err(error) if error.reason() == Some(Reason::NO_ERROR) => Poll::Ready(None),
        Err(error) => Poll::Ready(Some(Err(error.into()))),
    }
}

impl Sink {
    /// Ready when the other end takes more: how much, at least 1. `wanted` is what there is to send.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, Fault>> {
        match self {
            Self::Http2(stream) => {
                stream.reserve_capacity(wanted);
                while stream.capacity() == 0 {
                    match ready!(stream.poll_capacity(cx)) {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => return Poll::Ready(Err(error.into())),
                        None => return Poll::Ready(Err(h2::Error::from(Reason::CANCEL).into())),
                    }
                }
                Poll::Ready(Ok(stream.capacity()))
            }
            Self::Quic(sender) => {
                ready!(sender.poll_flush(cx))?;
                Poll::Ready(Ok(usize::MAX))
            }
        }
    }

    /// Sends a part of a body; nothing follows the `last`.
    pub(crate) fn data(&mut self, data: Bytes, last: bool) -> Result<(), Fault> {
        match self {
            Self::Http2(stream) => Ok(stream.send_data(data, last)?),
            Self::Quic(sender) => {
                sender.data(data, last);
                Ok(())
            }
        }
    }

    /// Sends trailers; nothing follows them.
    pub(crate) fn trailers(&mut self, trailers: HeaderMap) -> Result<(), Fault> {
        match self {
            Self::Http2(stream) => Ok(stream.send_trailers(trailers)?),
            Self::Quic(sender) => {
                sender.head(&head::of_trailers(&trailers));
                sender.end();
                Ok(())
            }
        }
    }

    /// Sends bytes of an opaque stream.
    pub(crate) fn bytes(&mut self, data: Bytes) -> Result<(), Fault> {
        match self {
            Self::Http2(stream) => Ok(stream.send_data(data, false)?),
            Self::Quic(sender) => {
                sender.bytes(data);
                Ok(())
            }
        }
    }

    /// Nothing follows on an opaque stream.
    pub(crate) fn end(&mut self) -> Result<(), Fault> {
        match self {
            Self::Http2(stream) => Ok(stream.send_data(Bytes::new(), true)?),
            Self::Quic(sender) => {
                sender.end();
                Ok(())
            }
        }
    }

    /// Ready when all that was sent is the connection's.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        match self {
            Self::Http2(_) => Poll::Ready(Ok(())),
            Self::Quic(sender) => sender.poll_flush(cx).map_err(Fault::from),
        }
    }

    /// Gives up.
    pub(crate) fn reset(&mut self, why: GivenUp) {
        match (self, why) {
            (Self::Http2(stream), GivenUp::Cancelled) => stream.send_reset(Reason::CANCEL),
            (Self::Http2(stream), GivenUp::Broken) => stream.send_reset(Reason::INTERNAL_ERROR),
            (Self::Quic(sender), GivenUp::Cancelled) => sender.reset(Code::Cancelled),
            (Self::Quic(sender), GivenUp::Broken) => sender.reset(Code::Internal),
        }
    }

    /// Ready when the other end takes no more.
    pub(crate) fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        match self {
            Self::Http2(stream) => stream.poll_reset(cx).map(|reset| match reset {
                Ok(reason) => h2::Error::from(reason).into(),
                Err(error) => error.into(),
            }),
            Self::Quic(sender) => sender.poll_stopped(cx).map(Fault::from),
        }
    }
}
