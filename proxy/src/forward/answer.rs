//! The body of an answer, with what it keeps until its end.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use crate::body::{Body, BodyError};
use crate::connect::instance::Lease;
use crate::connect::link::Ticket;
use crate::stream::Source;
use crate::task::Aborting;

/// The body of an answer.
#[derive(Debug, Default)]
pub(crate) struct AnswerBody {
    body: Body,
    keeps: Keeps,
}

/// What is let go at the end of the answer.
#[derive(Debug, Default)]
enum Keeps {
    #[default]
    Nothing,
    /// A connection to an instance, which goes back to its pool.
    Lease(Lease),
    /// The exchange's share of a link, and its request body, which ends with the answer.
    Ticket(
        #[expect(dead_code, reason = "it is kept")] Ticket,
        #[expect(dead_code, reason = "it is kept")] Option<Aborting>,
    ),
}

impl AnswerBody {
    /// A short text of Weft's own.
    pub(crate) fn full(text: impl Into<Bytes>) -> Self {
        Self { body: Body::full(text), keeps: Keeps::Nothing }
    }

    /// What came on a stream.
    pub(crate) fn stream(source: Source, ticket: Ticket, upload: Option<Aborting>) -> Self {
        match Body::stream(source) {
            Body::Empty => Self::default(),
            body => Self { body, keeps: Keeps::Ticket(ticket, upload) },
        }
    }

    /// What came from an instance over HTTP/1.1.
    pub(crate) fn instance(incoming: Incoming, mut lease: Lease) -> Self {
        if incoming.is_end_stream() {
            lease.end();
            return Self::default();
        }
        Self { body: Body::Http1(incoming), keeps: Keeps::Lease(lease) }
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Keeps::Lease(lease) = &mut this.keeps
            && (frame.is_none() || this.body.is_end_stream())
        {
            lease.end();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
