//! A request's body on its way to where it is sent, perhaps more than once.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::body::{Body, BodyError};
use crate::hold::Hold;
use crate::interim::{Abandoned, AtGate, Gate};

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
