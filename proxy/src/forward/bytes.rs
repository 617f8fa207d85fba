//! Opaque bytes between two ends: both directions in one task, each closed on its own.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::poll_fn;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep};

use crate::connect::link::Ticket;

/// One end of a stream of bytes.
pub(crate) enum End {
    /// A connection.
    Io(Box<dyn Io>),
    /// A stream of an HTTP/2 connection.
    Http2(Box<Http2End>),
}

/// A connection.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A stream of an HTTP/2 connection. Dropped before its end it is reset.
pub(crate) struct Http2End {
    received: RecvStream,
    stream: SendStream<Bytes>,
    /// Handed out and not yet passed on; the other end may send as much again when it is.
    unreleased: usize,
    _ticket: Option<Ticket>,
}

/// One direction.
struct Way {
    buffer: BytesMut,
    chunk: Bytes,
    read_all: bool,
    closed: bool,
    bytes: u64,
}

/// Bytes that have passed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Passed {
    /// From the caller to the callee.
    pub(crate) there: u64,
    /// Back.
    pub(crate) back: u64,
}

/// Copies until both directions have ended. `passed` is kept up to date, so that it is right however this ends.
pub(crate) async fn copy(near: End, far: End, idle_timeout: Option<Duration>, passed: &mut Passed) -> io::Result<()> {
    let (mut near, mut far) = (near, far);
    let (mut there, mut back) = (Way::new(), Way::new());
    let mut idle = idle_timeout.map(Idle::new);
    poll_fn(|cx| {
        let before = there.bytes + back.bytes;
        let first = there.poll(cx, &mut near, &mut far);
        let second = back.poll(cx, &mut far, &mut near);
        *passed = Passed { there: there.bytes, back: back.bytes };
        match (first, second) {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => return Poll::Ready(Err(error)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ok(())),
            _ => {}
        }
        match &mut idle {
            Some(idle) => idle.poll(cx, there.bytes + back.bytes > before),
            None => Poll::Pending,
        }
    })
    .await
}

impl Way {
    fn new() -> Self {
        Self { buffer: BytesMut::new(), chunk: Bytes::new(), read_all: false, closed: false, bytes: 0 }
    }

    fn poll(&mut self, cx: &mut Context<'_>, from: &mut End, to: &mut End) -> Poll<io::Result<()>> {
        for _ in 0..CHUNKS_MAX {
            while !self.chunk.is_empty() {
                ready!(to.poll_write(cx, &mut self.chunk))?;
            }
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            if self.read_all {
                ready!(to.poll_close(cx))?;
                self.closed = true;
                continue;
            }
            let read = match from.poll_read(cx, &mut self.buffer) {
                Poll::Ready(read) => read?,
                Poll::Pending => {
                    ready!(to.poll_flush(cx))?;
                    return Poll::Pending;
                }
            };
            match read {
                Some(chunk) => {
                    self.bytes += chunk.len() as u64;
                    self.chunk = chunk;
                }
                None => self.read_all = true,
            }
        }
        // Others of this worker have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl End {
    pub(crate) fn io(io: impl Io + 'static) -> Self {
        Self::Io(Box::new(io))
    }

    pub(crate) fn http2(received: RecvStream, stream: SendStream<Bytes>) -> Self {
        Self::Http2(Box::new(Http2End { received, stream, unreleased: 0, _ticket: None }))
    }

    /// Keeps the exchange's share of a link as long as the stream is open.
    pub(crate) fn with(mut self, ticket: Ticket) -> Self {
        if let Self::Http2(end) = &mut self {
            end._ticket = Some(ticket);
        }
        self
    }

    /// The next bytes; none at the end. What was handed out before has been passed on by now.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<Option<Bytes>>> {
        match self {
            Self::Io(io) => {
                if buffer.capacity() < BUFFER_MIN {
                    buffer.reserve(BUFFER_LENGTH);
                }
                let count = ready!(pin!(io.read_buf(buffer)).poll(cx))?;
                Poll::Ready(Ok((count > 0).then(|| buffer.split().freeze())))
            }
            Self::Http2(end) => {
                let unreleased = std::mem::take(&mut end.unreleased);
                if unreleased > 0 {
                    end.received.flow_control().release_capacity(unreleased).map_err(io::Error::other)?;
                }
                match ready!(end.received.poll_data(cx)) {
                    Some(Ok(data)) => {
                        end.unreleased = data.len();
                        Poll::Ready(Ok(Some(data)))
                    }
                    Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => Poll::Ready(Ok(None)),
                    Some(Err(error)) => Poll::Ready(Err(io::Error::other(error))),
                    None => Poll::Ready(Ok(None)),
                }
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<io::Result<()>> {
        match self {
            Self::Io(io) => {
                let count = ready!(Pin::new(&mut **io).poll_write(cx, chunk))?;
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                drop(chunk.split_to(count));
                Poll::Ready(Ok(()))
            }
            Self::Http2(end) => {
                end.stream.reserve_capacity(chunk.len());
                while end.stream.capacity() == 0 {
                    match ready!(end.stream.poll_capacity(cx)) {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                        None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                    }
                }
                let room = end.stream.capacity().min(chunk.len());
                end.stream.send_data(chunk.split_to(room), false).map_err(io::Error::other)?;
                Poll::Ready(Ok(()))
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Io(io) => Pin::new(&mut **io).poll_flush(cx),
            Self::Http2(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Io(io) => Pin::new(&mut **io).poll_shutdown(cx),
            Self::Http2(end) => Poll::Ready(end.stream.send_data(Bytes::new(), true).map_err(io::Error::other)),
        }
    }
}

/// Ends a stream on which nothing has moved for a while: at least the limit, at most twice that.
struct Idle {
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    moved: bool,
}

impl Idle {
    fn new(limit: Duration) -> Self {
        Self { limit, timer: Box::pin(sleep(limit)), moved: false }
    }

    fn poll(&mut self, cx: &mut Context<'_>, moved: bool) -> Poll<io::Result<()>> {
        self.moved |= moved;
        while self.timer.as_mut().poll(cx).is_ready() {
            if !std::mem::take(&mut self.moved) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.timer.as_mut().reset(Instant::now() + self.limit);
        }
        Poll::Pending
    }
}

impl std::fmt::Debug for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Io(_) => "End::Io",
            Self::Http2(_) => "End::Http2",
        })
    }
}

/// Bytes read from a connection at once.
const BUFFER_LENGTH: usize = 64 << 10;
/// Room below which a new buffer is taken.
const BUFFER_MIN: usize = 16 << 10;
/// Chunks that one direction moves before others have their turn.
const CHUNKS_MAX: usize = 16;
