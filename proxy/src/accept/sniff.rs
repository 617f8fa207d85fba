//! What a connection speaks, told from its first bytes within a bound, and the stream with those bytes in front again.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};

use crate::net::Stream;

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speech {
    /// HTTP/1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// SOCKS5.
    Socks5,
    /// Something else, or nothing yet.
    Opaque,
}

/// A stream whose first bytes have been looked at.
pub(crate) struct Sniffed<S> {
    stream: S,
    first: BytesMut,
}

/// Looks at the first bytes until they tell, or until the bound has passed.
pub(crate) async fn sniff<S: AsyncRead + Unpin>(mut stream: S, bound: Duration) -> io::Result<(Sniffed<S>, Speech)> {
    let deadline = Instant::now() + bound;
    let mut first = BytesMut::with_capacity(FIRST_LENGTH);
    loop {
        if let Some(speech) = told(&first) {
            return Ok((Sniffed { stream, first }, speech));
        }
        match timeout_at(deadline, pin!(stream.read_buf(&mut first))).await {
            Err(_) => return Ok((Sniffed { stream, first }, Speech::Opaque)),
            Ok(Ok(0)) => return Ok((Sniffed { stream, first }, Speech::Opaque)),
            Ok(read) => drop(read?),
        }
    }
}

/// What these bytes say; none while more could change it.
fn told(first: &[u8]) -> Option<Speech> {
    if first.is_empty() {
        return None;
    }
    if first[0] == SOCKS5 {
        return Some(Speech::Socks5);
    }
    if first.starts_with(PREFACE) {
        return Some(Speech::Http2);
    }
    if PREFACE.starts_with(first) {
        return None;
    }
    let method = first.iter().position(|byte| !byte.is_ascii_uppercase());
    match method {
        None if first.len() <= METHOD_LENGTH_MAX => None,
        Some(end) if end >= METHOD_LENGTH_MIN && first[end] == b' ' => Some(Speech::Http1),
        _ => Some(Speech::Opaque),
    }
}

impl<S: Stream> Stream for Sniffed<S> {
    fn abort(&mut self) {
        self.stream.abort();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Sniffed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let count = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first[..count]);
        self.first.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Sniffed<S> {
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
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Bytes that are read to tell.
const FIRST_LENGTH: usize = 4096;
/// How every HTTP/2 connection begins (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How every SOCKS5 connection begins (RFC 1928, 3).
const SOCKS5: u8 = 5;
/// Shortest and longest method that is taken for one.
const METHOD_LENGTH_MIN: usize = 3;
const METHOD_LENGTH_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell() {
        for (bytes, speech) in [
            (&b"GET / HTTP/1.1"[..], Some(Speech::Http1)),
            (b"OPTIONS * HTTP/1.1", Some(Speech::Http1)),
            (b"GE", None),
            (b"PRI * HT", None),
            (PREFACE, Some(Speech::Http2)),
            (b"\x05\x01\x00", Some(Speech::Socks5)),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Some(Speech::Opaque)),
            (b"get / http", Some(Speech::Opaque)),
            (b"ABCDEFGHIJKLMNOPQRSTUV", Some(Speech::Opaque)),
            (b"", None),
        ] {
            assert_eq!(told(bytes), speech, "{}", bytes.escape_ascii());
        }
    }
}
