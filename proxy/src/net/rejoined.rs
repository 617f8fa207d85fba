//! A stream with bytes that were read from it put in front again.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Handle, Stream};

/// A stream whose first bytes have been looked at.
pub(crate) struct Rejoined<S> {
    stream: S,
    first: Bytes,
}

impl<S> Rejoined<S> {
    pub(crate) fn new(first: Bytes, stream: S) -> Self {
        Self { stream, first }
    }
}

/// The stream with what was read from it, in two places one after the other, in front.
pub(crate) fn rejoin<S: Stream>(read: Bytes, then: &[u8], stream: S) -> Box<dyn Stream> {
    let first = match (read.is_empty(), then.is_empty()) {
        (true, true) => return Box::new(stream),
        (false, true) => read,
        _ => Bytes::from([&read, then].concat()),
    };
    Box::new(Rejoined::new(first, stream))
}

impl<S: Stream> Stream for Rejoined<S> {
    fn abort(&mut self) {
        self.stream.abort();
    }

    fn handle(&self) -> Option<Handle> {
        self.stream.handle()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rejoined<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let count = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first[..count]);
        self.first.advance(count);
        if self.first.is_empty() {
            self.first = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// Writes go through to the stream as they are.
macro_rules! write_through {
    ($wrapper:ident) => {
        impl<S: AsyncWrite + Unpin> AsyncWrite for $wrapper<S> {
            fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.stream).poll_write(cx, data)
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.stream).poll_flush(cx)
            }

            fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.stream).poll_shutdown(cx)
            }

            fn poll_write_vectored(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                data: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.stream).poll_write_vectored(cx, data)
            }

            fn is_write_vectored(&self) -> bool {
                self.stream.is_write_vectored()
            }
        }
    };
}
pub(crate) use write_through;

write_through!(Rejoined);
