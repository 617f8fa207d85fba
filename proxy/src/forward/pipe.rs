//! A body into an HTTP/2 stream, at the pace of the other end.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as HttpBody;

use crate::body::BodyError;

/// A body on its way into a stream.
#[derive(Debug)]
pub(crate) struct Pipe<B> {
    pub(crate) body: B,
    pub(crate) stream: SendStream<Bytes>,
    /// Read from the body; waits for room.
    waiting: Option<Bytes>,
}

/// Why a body did not arrive in full.
#[derive(Debug)]
pub(crate) enum PipeError {
    /// The body broke off.
    Source(BodyError),
    /// The other end wants no more of it.
    #[expect(dead_code, reason = "shown in logs by Debug")]
    Sink(h2::Error),
}

impl<B> Pipe<B>
where
    B: HttpBody<Data = Bytes, Error = BodyError> + Unpin,
{
    pub(crate) fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, waiting: None }
    }

    /// Moves what can be moved; ready when the body has ended. On an error of the source the stream has been reset.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PipeError>> {
        loop {
            if let Some(data) = self.waiting.take_if(|_| self.stream.capacity() > 0) {
                let last = self.body.is_end_stream();
                self.stream.send_data(data, last).map_err(PipeError::Sink)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            if self.waiting.is_some() {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(_)) => continue,
                    Some(Err(error)) => return Poll::Ready(Err(PipeError::Sink(error))),
                    None => return Poll::Ready(Err(PipeError::Sink(Reason::CANCEL.into()))),
                }
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => return self.poll_reset(cx),
            };
            match frame {
                None => return Poll::Ready(self.stream.send_data(Bytes::new(), true).map_err(PipeError::Sink)),
                Some(Err(error)) => {
                    self.stream.send_reset(error.http2_reason());
                    return Poll::Ready(Err(PipeError::Source(error)));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => {
                        // Asks for the whole, and goes on when there is room for any of it: the stream keeps the rest,
                        // which is at most one frame.
                        self.stream.reserve_capacity(data.len());
                        self.waiting = Some(data);
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            return Poll::Ready(self.stream.send_trailers(trailers).map_err(PipeError::Sink));
                        }
                    }
                },
            }
        }
    }

    /// While the body has nothing: whether the other end has reset the stream.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PipeError>> {
        match ready!(self.stream.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(Err(PipeError::Sink(reason.into()))),
            Err(error) => Poll::Ready(Err(PipeError::Sink(error))),
        }
    }
}
