//! A body into a stream, at the pace of the other end.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Body as HttpBody;

use crate::body::BodyError;
use crate::stream::{Fault, Sink};

/// A body on its way into a stream.
#[derive(Debug)]
pub(crate) struct Pipe<B> {
    pub(crate) body: B,
    sink: Sink,
    /// Read from the body; waits for room.
    waiting: Option<Bytes>,
    ended: bool,
}

/// Why a body did not arrive in full.
#[derive(Debug)]
pub(crate) enum PipeError {
    /// The body broke off.
    Source(BodyError),
    /// The other end wants no more of it.
    #[expect(dead_code, reason = "shown in logs by Debug")]
    Sink(Fault),
}

impl<B> Pipe<B>
where
    B: HttpBody<Data = Bytes, Error = BodyError> + Unpin,
{
    /// The body into the stream, whose head has been sent and said that a body follows.
    pub(crate) fn new(body: B, sink: Sink) -> Self {
        Self { body, sink, waiting: None, ended: false }
    }

    /// A stream whose head has said that nothing follows.
    pub(crate) fn ended(body: B, sink: Sink) -> Self {
        Self { body, sink, waiting: None, ended: true }
    }

    /// Moves what can be moved; ready when the body has ended. On an error of the source the stream has been reset.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PipeError>> {
        loop {
            if let Some(data) = &self.waiting {
                // Goes on when there is room for any of it: the stream keeps the rest, which is at most one frame.
                ready!(self.sink.poll_room(cx, data.len())).map_err(PipeError::Sink)?;
                let last = self.body.is_end_stream();
                self.sink.data(self.waiting.take().unwrap_or_default(), last).map_err(PipeError::Sink)?;
                self.ended = last;
            }
            if self.ended {
                return self.sink.poll_flush(cx).map_err(PipeError::Sink);
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    ready!(self.sink.poll_flush(cx)).map_err(PipeError::Sink)?;
                    return self.sink.poll_stopped(cx).map(|fault| Err(PipeError::Sink(fault)));
                }
            };
            match frame {
                None => {
                    self.sink.data(Bytes::new(), true).map_err(PipeError::Sink)?;
                    self.ended = true;
                }
                Some(Err(error)) => {
                    self.sink.reset(error.given_up());
                    return Poll::Ready(Err(PipeError::Source(error)));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => self.waiting = Some(data),
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.sink.trailers(trailers).map_err(PipeError::Sink)?;
                            self.ended = true;
                        }
                    }
                },
            }
        }
    }
}
