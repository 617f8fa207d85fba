//! Below HTTP/1.1 on a connection to an instance: the heads of its answers are looked at before they are read.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use http::{HeaderMap, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::fields::{self, FIELDS_MAX, HEAD_LENGTH_MAX};
use crate::inform::{Endless, Informed};
use crate::net::Stream;
use crate::net::rejoined::{rejoin, write_through};

/// A connection to an instance.
pub(crate) struct Answers<S> {
    stream: S,
    /// Read, and not passed on yet.
    held: BytesMut,
    /// Whether all that is held may pass.
    ready: bool,
    heads: Arc<Heads>,
}

/// What the connection and the exchange on it tell each other.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    /// Whether the next bytes are a head.
    awaited: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    informed: Option<Informed>,
    surplus: Option<HeaderMap>,
}

impl Heads {
    /// A request goes out, whose caller is told of informational answers.
    pub(crate) fn expect(&self, informed: &Informed) {
        self.known.lock().informed = Some(informed.clone());
        self.awaited.store(true, Ordering::Release);
    }

    /// The answer has been read: what there was of its fields beside those.
    pub(crate) fn answered(&self) -> Option<HeaderMap> {
        let mut known = self.known.lock();
        known.informed = None;
        known.surplus.take()
    }
}

impl<S> Answers<S> {
    pub(crate) fn new(stream: S) -> (Self, Arc<Heads>) {
        let heads = Arc::<Heads>::default();
        (Self { stream, held: BytesMut::new(), ready: false, heads: heads.clone() }, heads)
    }

    /// Looks at the head that is held; false where it is not whole.
    fn look(&mut self) -> io::Result<bool> {
        while let Some(head) = head(&self.held) {
            if head.length > HEAD_LENGTH_MAX {
                break;
            }
            if !head.is_interim() {
                if head.fields > FIELDS_MAX
                    && let Ok((kept, surplus)) = fields::narrow(&self.held[..head.length])
                {
                    let rest = self.held.split_off(head.length);
                    self.held = kept;
                    self.held.extend_from_slice(&rest);
                    self.heads.known.lock().surplus = Some(surplus);
                }
                return Ok(self.pass());
            }
            let interim = self.held.split_to(head.length);
            let informed = self.heads.known.lock().informed.clone();
            if let (Some(informed), Some(status)) = (informed, head.status)
                && !informed.heard(status, &read(&interim))
            {
                return Err(io::Error::other(Endless));
            }
        }
        // What is too long is refused by what reads the messages.
        Ok(self.held.len() > HEAD_LENGTH_MAX && self.pass())
    }

    fn pass(&mut self) -> bool {
        self.heads.awaited.store(false, Ordering::Release);
        self.ready = true;
        true
    }
}

/// The stream below an upgraded connection, with what was read from it in front.
pub(crate) fn under<S: Stream>(upgraded: Upgraded) -> Option<Box<dyn Stream>> {
    let parts = upgraded.downcast::<TokioIo<Answers<S>>>().ok()?;
    let Answers { stream, held, .. } = parts.io.into_inner();
    Some(rejoin(parts.read_buf, &held, stream))
}

/// A whole head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    length: usize,
    fields: usize,
    status: Option<StatusCode>,
}

impl Head {
    /// Whether another head follows it.
    fn is_interim(&self) -> bool {
        self.status.is_some_and(|status| status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS)
    }
}

/// The head that begins the bytes; none where it is not whole. Lines end as lenient readers take them.
fn head(bytes: &[u8]) -> Option<Head> {
    let (mut length, mut lines) = (0, 0usize);
    loop {
        let end = bytes[length..].iter().position(|byte| *byte == b'\n')?;
        let line = &bytes[length..length + end];
        length += end + 1;
        if lines > 0 && matches!(line, [] | [b'\r']) {
            // Three digits and no more (RFC 9112, 4).
            let ends = bytes.get(12).is_some_and(|byte| matches!(byte, b' ' | b'\r' | b'\n'));
            let digits = bytes.get(9..12).filter(|_| ends);
            let status = digits.and_then(|digits| StatusCode::from_bytes(digits).ok());
            return Some(Head { length, fields: lines - 1, status });
        }
        lines += 1;
    }
}

/// The fields of an informational answer, without those that are none.
fn read(head: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in head.split(|byte| *byte == b'\n').skip(1).flat_map(fields::field) {
        headers.append(name, value);
    }
    headers
}

impl<S: AsyncRead + Unpin> AsyncRead for Answers<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.held.is_empty() {
            let start = buffer.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
            let new = &buffer.filled()[start..];
            if new.is_empty() || !this.heads.awaited.load(Ordering::Acquire) {
                return Poll::Ready(Ok(()));
            }
            if head(new).is_some_and(|head| !head.is_interim() && head.fields <= FIELDS_MAX) {
                this.heads.awaited.store(false, Ordering::Release);
                return Poll::Ready(Ok(()));
            }
            this.held.extend_from_slice(new);
            buffer.set_filled(start);
            this.ready = false;
            this.look()?;
        }
        while !this.ready {
            this.held.reserve(READ_LENGTH);
            let read = ready!(pin!(this.stream.read_buf(&mut this.held)).poll(cx))?;
            if read == 0 {
                // What has come of a head is none.
                this.ready = true;
                break;
            }
            this.look()?;
        }
        let count = this.held.len().min(buffer.remaining());
        buffer.put_slice(&this.held[..count]);
        this.held.advance(count);
        if this.held.is_empty() {
            this.held = BytesMut::new();
            this.ready = false;
        }
        Poll::Ready(Ok(()))
    }
}

write_through!(Answers);

/// Bytes read at once behind what is held.
const READ_LENGTH: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_told_from_what_follows() {
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\nA: 1\r\n\r\nbody", Some((25, 1, 200))),
            ("HTTP/1.1 103 Early Hints\nA: 1\n\n", Some((31, 1, 103))),
            ("HTTP/1.1 200 OK\r\n\r\n", Some((19, 0, 200))),
            ("HTTP/1.1 200 OK\r\nA: 1\r\n", None),
            ("", None),
            ("HTTP/1.1 1000 X\r\n\r\n", Some((19, 0, 0))),
        ] {
            let found =
                head(text.as_bytes()).map(|head| (head.length, head.fields, head.status.map_or(0, |s| s.as_u16())));
            assert_eq!(found, expected, "{text:?}");
        }
        let read = read(b"HTTP/1.1 103 Early Hints\r\nLink: a\r\nlink:b\r\nnone\r\n\r\n");
        assert_eq!(read.get_all("link").iter().collect::<Vec<_>>(), ["a", "b"]);
    }
}
