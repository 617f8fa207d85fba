//! The body of an answer, with whose end its exchange ends.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::body::BodyError;
use crate::forward::answer::AnswerBody;
use crate::record::Open;
use crate::reject::Reject;

/// A response body that ends the exchange's record when it ends itself.
pub(crate) struct Tracked {
    body: AnswerBody,
    open: Option<Open>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Tracked {
    pub(super) fn new(body: AnswerBody, mut open: Open, deadline: Option<Instant>) -> Self {
        if body.is_end_stream() {
            open.whole();
            return Self::untracked(body);
        }
        Self { body, open: Some(open), deadline: deadline.map(|at| Box::pin(sleep_until(at))) }
    }

    pub(crate) fn untracked(body: AnswerBody) -> Self {
        Self { body, open: None, deadline: None }
    }
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.open.as_ref().is_some_and(|open| open.hold().poll_ended(cx)) {
            this.open = None;
            return Poll::Ready(Some(Err(BodyError::Revoked)));
        }
        if this.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
            if let Some(mut open) = this.open.take() {
                open.rejected(&Reject::Timeout);
            }
            return Poll::Ready(Some(Err(BodyError::Deadline)));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(open), Some(data)) = (&mut this.open, frame.data_ref()) {
                    open.passed(data.len());
                }
                if this.body.is_end_stream() {
                    this.end();
                }
            }
            Some(Err(_)) => this.open = None,
            None => this.end(),
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

impl Tracked {
    fn end(&mut self) {
        if let Some(mut open) = self.open.take() {
            open.whole();
        }
    }
}
