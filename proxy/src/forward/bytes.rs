//! Opaque bytes between two ends: both directions in one task, each closed on its own.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::poll_fn;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::disguise::Disguise;
use crate::call::Bounds;
use crate::connect::link::Ticket;
use crate::net::Stream;
use crate::stream::{GivenUp, Sink, Source};

/// One end of a stream of bytes.
pub(crate) enum End {
    /// A connection.
    Io(Box<dyn Stream>),
    /// A stream of a connection that carries many.
    Stream(Box<StreamEnd>),
}

/// A stream of a connection that carries many. Dropped before its end it is reset.
pub(crate) struct StreamEnd {
    source: Source,
    sink: Sink,
    closing: bool,
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

/// What was read of both ends before they were joined.
#[derive(Debug, Default)]
pub(crate) struct Begun {
    /// From the caller.
    pub(crate) there: Bytes,
    /// From the callee.
    pub(crate) back: Bytes,
    /// Set where the stream must not turn out to be HTTP.
    pub(crate) disguise: Option<Disguise>,
}

/// Copies until both directions have ended or a bound is reached. `passed` is kept up to date, so that it is right however
/// this ends. Ended otherwise, neither side can take what it got for the whole.
pub(crate) async fn copy((near, far): (End, End), begun: Begun, bounds: Bounds, passed: &mut Passed) -> io::Result<()> {
    let mut ends = Ends { near, far, whole: false };
    let Begun { mut disguise, .. } = begun;
    if let Some(disguise) = &mut disguise
        && (disguise.is_request(&begun.there) || (!begun.back.is_empty() && disguise.is_answer(&begun.back)))
    {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let (mut there, mut back) = (Way::new(begun.there), Way::new(begun.back));
    let mut idle = bounds.idle.map(Idle::new);
    let mut whole = bounds.whole.map(|whole| Box::pin(sleep(whole)));
    let copied = poll_fn(|cx| {
        let before = there.bytes + back.bytes;
        let mut request = |chunk: &[u8]| disguise.as_mut().is_some_and(|disguise| disguise.is_request(chunk));
        let first = there.poll(cx, &mut ends.near, &mut ends.far, &mut request);
        let mut answer = |chunk: &[u8]| disguise.as_mut().is_some_and(|disguise| disguise.is_answer(chunk));
        let second = back.poll(cx, &mut ends.far, &mut ends.near, &mut answer);
        *passed = Passed { there: there.bytes, back: back.bytes };
        match (first, second) {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => return Poll::Ready(Err(error)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ok(())),
            _ => {}
        }
        if whole.as_mut().is_some_and(|whole| whole.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        match &mut idle {
            Some(idle) => idle.poll(cx, there.bytes + back.bytes > before),
            None => Poll::Pending,
        }
    })
    .await;
    ends.whole = copied.is_ok();
    copied
}

/// Both ends, which are aborted unless all was copied.
struct Ends {
    near: End,
    far: End,
    whole: bool,
}

impl Drop for Ends {
    fn drop(&mut self) {
        if !self.whole {
            self.near.abort();
            self.far.abort();
        }
    }
}

impl Way {
    fn new(chunk: Bytes) -> Self {
        let bytes = chunk.len() as u64;
        Self { buffer: BytesMut::new(), chunk, read_all: false, closed: false, bytes }
    }

    /// Moves what there is, unless what is read is forbidden.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut End,
        to: &mut End,
        is_forbidden: &mut impl FnMut(&[u8]) -> bool,
    ) -> Poll<io::Result<()>> {
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
                    if is_forbidden(&self.chunk) {
                        return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                    }
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
    pub(crate) fn io(io: impl Stream) -> Self {
        Self::Io(Box::new(io))
    }

    pub(crate) fn stream(source: Source, sink: Sink) -> Self {
        Self::Stream(Box::new(StreamEnd { source, sink, closing: false, unreleased: 0, _ticket: None }))
    }

    /// Keeps the exchange's share of a link as long as the stream is open.
    pub(crate) fn with(mut self, ticket: Ticket) -> Self {
        if let Self::Stream(end) = &mut self {
            end._ticket = Some(ticket);
        }
        self
    }

    pub(crate) fn abort(&mut self) {
        match self {
            Self::Io(io) => io.abort(),
            Self::Stream(end) => end.sink.reset(GivenUp::Cancelled),
        }
    }

    /// Adds the first bytes to the buffer; false at the end.
    pub(crate) fn poll_first(&mut self, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<bool>> {
        match self {
            Self::Io(io) => {
                buffer.reserve(FIRST_LENGTH);
                Poll::Ready(Ok(ready!(pin!(io.read_buf(buffer)).poll(cx))? > 0))
            }
            Self::Stream(_) => {
                let chunk = ready!(self.poll_read(cx, &mut BytesMut::new()))?;
                buffer.extend_from_slice(chunk.as_deref().unwrap_or_default());
                Poll::Ready(Ok(chunk.is_some()))
            }
        }
    }

    /// The same end as a stream.
    pub(crate) fn into_stream(self) -> Box<dyn Stream> {
        match self {
            Self::Io(io) => io,
            Self::Stream(_) => Box::new(StreamIo { end: self, chunk: Bytes::new(), waiting: Bytes::new() }),
        }
    }

    /// The next bytes; none at the end. What was handed out before has been passed on by now.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<Option<Bytes>>> {
        match self {
            // A stream on which little comes at once takes no buffer: idle ones are many.
            Self::Io(io) if buffer.capacity() == 0 => {
                let mut few = [0; FEW_LENGTH];
                let mut read = ReadBuf::new(&mut few);
                ready!(Pin::new(&mut **io).poll_read(cx, &mut read))?;
                if read.remaining() == 0 {
                    buffer.reserve(BUFFER_LENGTH);
                }
                let filled = read.filled();
                Poll::Ready(Ok((!filled.is_empty()).then(|| Bytes::copy_from_slice(filled))))
            }
            Self::Io(io) => {
                if buffer.capacity() < BUFFER_MIN {
                    buffer.reserve(BUFFER_LENGTH);
                }
                let count = ready!(pin!(io.read_buf(buffer)).poll(cx))?;
                Poll::Ready(Ok((count > 0).then(|| buffer.split().freeze())))
            }
            Self::Stream(end) => {
                let passed_on = std::mem::take(&mut end.unreleased);
                let read = ready!(end.source.poll_bytes(cx, passed_on)).map_err(io::Error::other)?;
                end.unreleased = read.as_ref().map_or(0, Bytes::len);
                Poll::Ready(Ok(read))
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
            Self::Stream(end) => {
                let room = ready!(end.sink.poll_room(cx, chunk.len())).map_err(io::Error::other)?;
                let sent = chunk.split_to(room.min(chunk.len()));
                Poll::Ready(end.sink.bytes(sent).map_err(io::Error::other))
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Io(io) => Pin::new(&mut **io).poll_flush(cx),
            Self::Stream(end) => end.sink.poll_flush(cx).map_err(io::Error::other),
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Io(io) => Pin::new(&mut **io).poll_shutdown(cx),
            Self::Stream(end) => {
                if !std::mem::replace(&mut end.closing, true) {
                    end.sink.end().map_err(io::Error::other)?;
                }
                end.sink.poll_flush(cx).map_err(io::Error::other)
            }
        }
    }
}

/// A stream of a connection that carries many, as any other stream.
struct StreamIo {
    end: End,
    /// Read and not yet handed out.
    chunk: Bytes,
    /// Taken and not yet sent.
    waiting: Bytes,
}

impl StreamIo {
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            ready!(self.end.poll_write(cx, &mut self.waiting))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for StreamIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.chunk.is_empty() {
            this.chunk = ready!(this.end.poll_read(cx, &mut BytesMut::new()))?.unwrap_or_default();
        }
        let count = this.chunk.len().min(buffer.remaining());
        buffer.put_slice(&this.chunk.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_sent(cx))?;
        let length = data.len().min(BUFFER_LENGTH);
        self.waiting = Bytes::copy_from_slice(&data[..length]);
        // What finds no room now goes before what is written next.
        let _ = self.poll_sent(cx)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_sent(cx))?;
        self.end.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_sent(cx))?;
        self.end.poll_close(cx)
    }
}

impl Stream for StreamIo {
    fn abort(&mut self) {
        self.end.abort();
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
            Self::Stream(_) => "End::Stream",
        })
    }
}

/// Bytes read at once to tell what a connection speaks.
const FIRST_LENGTH: usize = 2 << 10;
/// Bytes read at once from a connection that has not brought as many yet.
const FEW_LENGTH: usize = 2 << 10;
/// Bytes read from a connection at once.
const BUFFER_LENGTH: usize = 64 << 10;
/// Room below which a new buffer is taken.
const BUFFER_MIN: usize = 16 << 10;
/// Chunks that one direction moves before others have their turn.
const CHUNKS_MAX: usize = 16;
