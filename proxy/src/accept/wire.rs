//! Below HTTP/1.1 on a caller's connection: what arrives is looked at before it is read as messages, and informational
//! answers go out between those.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use http::Response;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::fields::{self, NotAField};
use crate::framing::{Behind, Framing, Mark, stand_in};
use crate::net::Stream;
use crate::net::rejoined::rejoin;
use crate::reject::Reject;

/// A caller's connection.
pub(crate) struct Wire<S> {
    stream: S,
    framing: Framing,
    /// Read, and not passed on yet.
    held: BytesMut,
    /// How much of it may pass.
    ready: usize,
    /// Whether what is behind that has not been looked at.
    unseen: bool,
    end: End,
    notes: Arc<Notes>,
}

/// Whether anything follows what is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// What the caller sends.
    Open,
    /// Nothing: the head was the last one.
    Refused,
    /// A body that broke off.
    Broken,
}

/// What those who serve the messages and the connection below tell each other.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    marked: AtomicBool,
    marks: Mutex<VecDeque<(u64, Mark)>>,
    /// Whether all that was to be written before has been.
    clear: AtomicBool,
    waits: AtomicBool,
    interim: Mutex<BytesMut>,
    /// Number of the head, counted from 1, whose body has not been read to its end; 0 where there is none.
    unread: AtomicU64,
    /// Whether an answer has broken off that ends with the connection.
    broken: AtomicBool,
}

impl Notes {
    /// Whether the body of the request with this head, counted from 0, is still to come.
    pub(crate) fn is_unread(&self, head: u64) -> bool {
        self.unread.load(Ordering::Relaxed) == head + 1
    }

    /// An answer has broken off that would look whole.
    pub(crate) fn broke(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// Whether one has.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// What is known of the head with this number; all before it have been asked for.
    pub(crate) fn marks(&self, head: u64) -> Vec<Mark> {
        let mut found = Vec::new();
        if self.marked.load(Ordering::Relaxed) {
            let mut marks = self.marks.lock();
            while marks.front().is_some_and(|(at, _)| *at <= head) {
                found.extend(marks.pop_front().map(|(_, mark)| mark));
            }
        }
        found
    }

    /// Writes an informational answer when the connection is flushed next. It is left out where earlier answers are still
    /// on their way: it would end up within them.
    pub(crate) fn inform(&self, response: &Response<()>) {
        if !self.clear.load(Ordering::Relaxed) {
            return;
        }
        let status = response.status();
        let mut text = BytesMut::new();
        let _ = write!(text, "HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default());
        for (name, value) in response.headers() {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"\r\n");
        self.interim.lock().unsplit(text);
        self.waits.store(true, Ordering::Relaxed);
    }
}

impl<S> Wire<S> {
    pub(crate) fn new(stream: S) -> (Self, Arc<Notes>) {
        let notes = Arc::new(Notes { clear: AtomicBool::new(true), ..Notes::default() });
        let framing = Framing::new();
        (
            Self {
                stream,
                framing,
                held: BytesMut::new(),
                ready: 0,
                unseen: false,
                end: End::Open,
                notes: notes.clone(),
            },
            notes,
        )
    }
}

/// The stream below an upgraded connection, with what was read from it in front.
pub(crate) fn under<S: Stream>(upgraded: Upgraded) -> Option<Box<dyn Stream>> {
    let parts = upgraded.downcast::<TokioIo<Wire<S>>>().ok()?;
    let wire = parts.io.into_inner();
    Some(rejoin(parts.read_buf, &wire.held, wire.stream))
}

impl<S: AsyncRead + Unpin> Wire<S> {
    /// Looks at what is held.
    fn look(&mut self) {
        self.unseen = false;
        let (passes, behind) = self.framing.look(&self.held);
        self.settle(passes, behind);
    }

    /// `passes` of what is held may pass.
    fn settle(&mut self, passes: usize, behind: Behind) {
        self.ready = passes;
        match behind {
            Behind::Rest => {}
            Behind::Broken => self.end = End::Broken,
            Behind::Refused => self.refuse(passes),
            Behind::Wide(length) => match fields::narrow(&self.held[passes..passes + length]) {
                Ok((narrow, more)) => {
                    let rest = self.held.split_off(passes + length);
                    self.held.truncate(passes);
                    self.held.extend_from_slice(&narrow);
                    self.ready = self.held.len();
                    self.held.extend_from_slice(&rest);
                    self.unseen = true;
                    self.framing.mark(Mark::More(more));
                }
                Err(NotAField) => {
                    self.framing.mark(Mark::Refused(Reject::BadRequest("a line of the request's head is no field")));
                    self.refuse(passes);
                }
            },
        }
        self.notes.unread.store(self.framing.unread(), Ordering::Relaxed);
        let marks = self.framing.marks();
        if !marks.is_empty() {
            self.notes.marks.lock().extend(marks);
            self.notes.marked.store(true, Ordering::Relaxed);
        }
    }

    /// The head behind what may pass is refused, and nothing comes after it.
    fn refuse(&mut self, passes: usize) {
        self.end = End::Refused;
        let instead = stand_in(&self.held[passes..]);
        self.held.truncate(passes);
        self.held.extend_from_slice(&instead);
        self.ready = self.held.len();
    }

    /// Reads where nothing is held: what may pass is not moved.
    fn poll_through(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let start = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let new = &buffer.filled()[start..];
        let (passes, behind) = self.framing.look(new);
        if passes < new.len() {
            self.held.extend_from_slice(&new[passes..]);
            buffer.set_filled(start + passes);
        }
        self.settle(0, behind);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.ready > 0 {
                let count = this.ready.min(buffer.remaining());
                buffer.put_slice(&this.held[..count]);
                this.held.advance(count);
                this.ready -= count;
                if this.held.is_empty() {
                    this.held = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            match this.end {
                End::Open => {}
                End::Refused => return Poll::Ready(Ok(())),
                End::Broken => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            }
            if this.held.is_empty() {
                let before = buffer.filled().len();
                ready!(this.poll_through(cx, buffer))?;
                if buffer.filled().len() > before || (this.held.is_empty() && this.end == End::Open) {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            if !this.unseen {
                this.held.reserve(READ_LENGTH);
                if ready!(pin!(this.stream.read_buf(&mut this.held)).poll(cx))? == 0 {
                    return Poll::Ready(Ok(()));
                }
            }
            this.look();
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Writes informational answers that wait.
    fn poll_inform(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.notes.waits.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let mut interim = self.notes.interim.lock();
        while !interim.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &interim))?;
            interim.advance(count);
        }
        self.notes.waits.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    /// Takes what a refused caller has sent after all: closed with bytes that nobody read, the connection would be reset in
    /// front of the answer.
    fn discard(&mut self, cx: &mut Context<'_>) {
        let mut buffer = [0; READ_LENGTH];
        for _ in 0..DISCARDS_MAX {
            let mut read = ReadBuf::new(&mut buffer);
            match Pin::new(&mut self.stream).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {}
                _ => return,
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_inform(cx))?;
        self.notes.clear.store(false, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    /// Called when all that was to be written has been.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_inform(cx))?;
        self.notes.clear.store(true, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.end != End::Open {
            self.discard(cx);
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_inform(cx))?;
        self.notes.clear.store(false, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Bytes read at once behind what is held.
const READ_LENGTH: usize = 4 << 10;
/// Most reads of what a refused caller has sent after all.
const DISCARDS_MAX: usize = 256;
