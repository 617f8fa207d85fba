//! Bodies as they come: no box, no copy.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use crate::copied::{Copied, Incomplete};
use crate::headers;
use crate::quic::http3::Http3Error;
use crate::reject::Reject;
use crate::stream::{Fault, GivenUp, Source};

/// The body of a request or a response.
#[derive(Debug, Default)]
pub(crate) enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// A short text of Weft's own.
    Full(Bytes),
    /// A copy of another one.
    Copied(Copied),
    /// Over HTTP/1.1.
    Http1(Incoming),
    /// On a stream of a connection that carries many.
    Stream(Source),
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// On HTTP/1.1.
    #[error(transparent)]
    Http1(#[from] hyper::Error),
    /// On a stream.
    #[error(transparent)]
    Stream(#[from] Fault),
    /// The application has answered without it.
    #[error("the application did not want the request's body")]
    Unwanted,
    /// The exchange's deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// A policy changed, and now the exchange is denied.
    #[error("denied by a change of policy")]
    Revoked,
    /// What it is a copy of broke off, or the copy fell behind.
    #[error("the copy of the body is not whole")]
    Incomplete,
}

impl BodyError {
    /// What the exchange ends with whose request body it was: the caller is to blame.
    pub(crate) fn reject(&self) -> Reject {
        match self {
            Self::Http1(error) if is_malformed(error) => MALFORMED,
            Self::Stream(Fault::Http3(Http3Error::Length)) => MALFORMED,
            Self::Http1(_) | Self::Stream(_) | Self::Unwanted | Self::Incomplete => Reject::Gone,
            Self::Deadline => Reject::Timeout,
            Self::Revoked => Reject::Revoked,
        }
    }

    /// What the other end of the exchange is told.
    pub(crate) fn given_up(&self) -> GivenUp {
        match self {
            Self::Http1(_) | Self::Stream(_) => GivenUp::Broken,
            Self::Deadline | Self::Revoked | Self::Unwanted | Self::Incomplete => GivenUp::Cancelled,
        }
    }
}

const MALFORMED: Reject = Reject::BadRequest("the request's body is not framed as its head says");

/// Whether what arrived breaks the rules of framing, rather than not arriving.
fn is_malformed(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| matches!(cause.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData))
}

impl Body {
    pub(crate) fn full(text: impl Into<Bytes>) -> Self {
        Self::Full(text.into())
    }

    pub(crate) fn http1(incoming: Incoming) -> Self {
        if incoming.is_end_stream() { Self::Empty } else { Self::Http1(incoming) }
    }

    /// All of it, whose length is known to be small.
    pub(crate) async fn whole(&mut self) -> Result<Bytes, BodyError> {
        let mut whole = BytesMut::new();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut *self).poll_frame(cx)).await {
            if let Ok(data) = frame?.into_data() {
                whole.extend_from_slice(&data);
            }
        }
        Ok(whole.freeze())
    }

    /// What comes on a stream.
    pub(crate) fn stream(source: Source) -> Self {
        if source.is_ended() { Self::Empty } else { Self::Stream(source) }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut frame = ready!(self.poll_next(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            headers::clean_trailers(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(text) => text.is_empty(),
            Self::Copied(copied) => copied.is_ended(),
            Self::Http1(incoming) => incoming.is_end_stream(),
            Self::Stream(source) => source.is_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(text) => SizeHint::with_exact(text.len() as u64),
            Self::Http1(incoming) => incoming.size_hint(),
            Self::Stream(_) | Self::Copied(_) => SizeHint::default(),
        }
    }
}

impl Body {
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(text) => {
                let text = std::mem::take(text);
                *self = Self::Empty;
                Poll::Ready(Some(Ok(Frame::data(text))))
            }
            Self::Copied(copied) => copied.poll(cx).map_ok(Frame::data).map_err(|Incomplete| BodyError::Incomplete),
            Self::Http1(incoming) => Pin::new(incoming).poll_frame(cx).map_err(BodyError::from),
            Self::Stream(source) => source.poll_body(cx).map_err(BodyError::from),
        }
    }
}
