//! Bodies, as they stream through: no box, no copy.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use crate::connect::instance::Lease;
use crate::connect::link::Ticket;
use crate::forward::headers;
use crate::interim::{Abandoned, AtGate, Gate};
use crate::reject::Reject;
use crate::revoke::Hold;
use crate::stream::{Fault, GivenUp, Source};
use crate::task::Aborting;

/// The body of a request or a response.
#[derive(Debug, Default)]
pub(crate) enum Body {
    /// Nothing.
    #[default]
    Empty,
    /// A short text of Weft's own.
    Full(Bytes),
    /// From an HTTP/1.1 caller.
    Http1(Incoming),
    /// From an HTTP/1.1 instance, with its place in the pool.
    Instance(Incoming, Lease),
    /// From a stream of a connection that carries many.
    Stream(StreamBody),
}

/// What a stream brings.
#[derive(Debug)]
pub(crate) struct StreamBody {
    source: Source,
    /// Of a response: the exchange's share of the link, and its request body, which ends with the response.
    _ticket: Option<Ticket>,
    _upload: Option<Aborting>,
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
}

impl BodyError {
    /// What the exchange ends with whose request body it was: the caller is to blame.
    pub(crate) fn reject(&self) -> Reject {
        match self {
            Self::Http1(error) if is_malformed(error) => {
                Reject::BadRequest("the request's body is not framed as its head says")
            }
            Self::Http1(_) | Self::Stream(_) | Self::Unwanted => Reject::Gone,
            Self::Deadline => Reject::Timeout,
            Self::Revoked => Reject::Revoked,
        }
    }

    /// What the other end of the exchange is told.
    pub(crate) fn given_up(&self) -> GivenUp {
        match self {
            Self::Http1(_) | Self::Stream(_) => GivenUp::Broken,
            Self::Deadline | Self::Revoked | Self::Unwanted => GivenUp::Cancelled,
        }
    }
}

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

    /// The body of a request that came on a stream.
    pub(crate) fn request(source: Source) -> Self {
        if source.is_ended() {
            return Self::Empty;
        }
        Self::Stream(StreamBody { source, _ticket: None, _upload: None })
    }

    /// The body of a response that came on a stream.
    pub(crate) fn response(source: Source, ticket: Ticket, upload: Option<Aborting>) -> Self {
        if source.is_ended() {
            return Self::Empty;
        }
        Self::Stream(StreamBody { source, _ticket: Some(ticket), _upload: upload })
    }

    /// The body of a response that came from an instance over HTTP/1.1.
    pub(crate) fn instance(incoming: Incoming, mut lease: Lease) -> Self {
        if incoming.is_end_stream() {
            lease.end();
            return Self::Empty;
        }
        Self::Instance(incoming, lease)
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
            Self::Http1(incoming) | Self::Instance(incoming, _) => incoming.is_end_stream(),
            Self::Stream(body) => body.source.is_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(text) => SizeHint::with_exact(text.len() as u64),
            Self::Http1(incoming) | Self::Instance(incoming, _) => incoming.size_hint(),
            Self::Stream(_) => SizeHint::default(),
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
            Self::Http1(incoming) => Pin::new(incoming).poll_frame(cx).map_err(BodyError::from),
            Self::Instance(incoming, lease) => {
                let polled = ready!(Pin::new(&mut *incoming).poll_frame(cx));
                if polled.is_none() || incoming.is_end_stream() {
                    lease.end();
                }
                Poll::Ready(polled.map(|frame| frame.map_err(BodyError::from)))
            }
            Self::Stream(body) => body.source.poll_body(cx).map_err(BodyError::from),
        }
    }
}

/// A request body on its way. It keeps what it has given out, up to a bound, so that it can be given out again.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    body: Body,
    /// What it waits at, where the caller waits to be told to send it.
    at_gate: Option<AtGate>,
    /// Told how many bytes passed; none for an empty body.
    hold: Option<Arc<Hold>>,
    kept: Vec<Bytes>,
    kept_length: usize,
    /// How many of `kept` have been given out in this try.
    given: usize,
    /// Whether to keep what is given out.
    replay: bool,
    /// Whether something that was given out is no longer there.
    lost: bool,
}

impl Upload {
    /// `replay` keeps what was given out.
    pub(crate) fn new(body: Body, hold: &Arc<Hold>, replay: bool) -> Self {
        let hold = (!body.is_end_stream()).then(|| hold.clone());
        Self { body, hold, replay, ..Self::default() }
    }

    /// Waits until it is wanted.
    pub(crate) fn wait(&mut self) -> Arc<Gate> {
        self.at_gate.insert(AtGate::new()).gate().clone()
    }

    /// Starts again from the first byte; false if that is no longer possible.
    pub(crate) fn rewind(&mut self) -> bool {
        self.given = 0;
        !self.lost
    }

    /// Gives up what was kept, since no other try will follow.
    fn forget(&mut self) {
        self.replay = false;
        self.lost = true;
        self.kept = Vec::new();
        self.given = 0;
    }

    fn keep(&mut self, data: &Bytes) {
        if let Some(hold) = &self.hold {
            hold.request_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        self.kept_length += data.len();
        if !self.replay || self.kept_length > REPLAY_MAX {
            return self.forget();
        }
        self.kept.push(data.clone());
        self.given = self.kept.len();
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(at_gate) = &mut this.at_gate {
            match ready!(at_gate.poll(cx)) {
                Ok(()) => this.at_gate = None,
                Err(Abandoned) => return Poll::Ready(Some(Err(BodyError::Unwanted))),
            }
        }
        if let Some(data) = this.kept.get(this.given) {
            this.given += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => match frame.data_ref() {
                Some(data) => this.keep(data),
                // Trailers are not kept.
                None => this.forget(),
            },
            Some(Err(error)) => {
                this.lost = true;
                if let Some(hold) = &this.hold {
                    hold.request_broke(error.reject());
                }
            }
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.given >= self.kept.len() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.kept.is_empty() { self.body.size_hint() } else { SizeHint::default() }
    }
}

/// Most bytes of a request body that are kept for another try.
const REPLAY_MAX: usize = 64 << 10;
