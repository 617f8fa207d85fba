//! QUIC below HTTP/3, with a bound on what is read and not yet understood: the library reads a frame whole before it looks at it, however
//! long it says that it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h3::error::Code;
use h3::quic::{
    BidiStream, Connection, ConnectionErrorIncoming, OpenStreams, RecvStream, SendStream, StreamErrorIncoming,
    StreamId, WriteBuf,
};

/// A connection whose streams are bounded.
pub(super) struct BoundedConnection {
    inner: h3_quinn::Connection,
    /// Of the stream that was taken last.
    newest: Option<Budget>,
    /// Of all streams that carry no requests, together.
    control: Budget,
    opener: Opener,
}

/// Opens streams.
#[derive(Clone)]
pub(super) struct Opener {
    inner: h3_quinn::OpenStreams,
    /// Bytes of requests' streams, together.
    read: Arc<AtomicUsize>,
}

impl Opener {
    /// That of a request's stream.
    fn budget(&self) -> Budget {
        Budget::new(AHEAD_MAX, &self.read, ALL_AHEAD_MAX)
    }
}

/// A stream.
pub(super) struct Bounded<S> {
    inner: S,
    budget: Budget,
}

/// Bytes of a stream that were read, and not yet handed out.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<Read>);

#[derive(Debug)]
struct Read {
    /// Whether nothing more is to be read for now: the library reads before it looks at what it has.
    paused: AtomicBool,
    own: AtomicUsize,
    own_max: usize,
    /// Those of all streams that it is counted with.
    all: Arc<AtomicUsize>,
    all_max: usize,
}

impl Budget {
    fn new(own_max: usize, all: &Arc<AtomicUsize>, all_max: usize) -> Self {
        Self(Arc::new(Read {
            paused: AtomicBool::new(false),
            own: AtomicUsize::new(0),
            own_max,
            all: all.clone(),
            all_max,
        }))
    }

    /// Something was handed out, so all before it was understood.
    pub(super) fn renew(&self) {
        self.0.forget();
    }

    /// Lets the library look at what it has, without reading more, or read on.
    pub(super) fn pause(&self, paused: bool) {
        self.0.paused.store(paused, Ordering::Relaxed);
    }

    fn takes(&self, length: usize) -> bool {
        let read = &*self.0;
        let own = read.own.fetch_add(length, Ordering::Relaxed) + length;
        let all = read.all.fetch_add(length, Ordering::Relaxed) + length;
        own <= read.own_max && all <= read.all_max
    }
}

impl Read {
    fn forget(&self) {
        self.all.fetch_sub(self.own.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        self.forget();
    }
}

impl BoundedConnection {
    pub(super) fn new(connection: quinn::Connection) -> Self {
        let inner = h3_quinn::Connection::new(connection);
        let opener = Opener { inner: Connection::<Bytes>::opener(&inner), read: Arc::default() };
        let control = Budget::new(CONTROL_MAX, &Arc::default(), CONTROL_MAX);
        Self { inner, newest: None, control, opener }
    }

    /// The budget of the stream that was taken last.
    pub(super) fn take_budget(&mut self) -> Option<Budget> {
        self.newest.take()
    }
}

impl Connection<Bytes> for BoundedConnection {
    type RecvStream = Bounded<h3_quinn::RecvStream>;
    type OpenStreams = Opener;

    fn poll_accept_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Self::RecvStream, ConnectionErrorIncoming>> {
        let inner = ready!(Connection::<Bytes>::poll_accept_recv(&mut self.inner, cx))?;
        Poll::Ready(Ok(Bounded { inner, budget: self.control.clone() }))
    }

    fn poll_accept_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Self::BidiStream, ConnectionErrorIncoming>> {
        let inner = ready!(self.inner.poll_accept_bidi(cx))?;
        let budget = self.opener.budget();
        self.newest = Some(budget.clone());
        Poll::Ready(Ok(Bounded { inner, budget }))
    }

    fn opener(&self) -> Self::OpenStreams {
        self.opener.clone()
    }
}

impl OpenStreams<Bytes> for BoundedConnection {
    type BidiStream = Bounded<h3_quinn::BidiStream<Bytes>>;
    type SendStream = h3_quinn::SendStream<Bytes>;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Self::BidiStream, StreamErrorIncoming>> {
        self.opener.poll_open_bidi(cx)
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<Self::SendStream, StreamErrorIncoming>> {
        self.opener.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.opener.close(code, reason);
    }
}

impl OpenStreams<Bytes> for Opener {
    type BidiStream = Bounded<h3_quinn::BidiStream<Bytes>>;
    type SendStream = h3_quinn::SendStream<Bytes>;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<Self::BidiStream, StreamErrorIncoming>> {
        let inner = ready!(self.inner.poll_open_bidi(cx))?;
        Poll::Ready(Ok(Bounded { inner, budget: self.budget() }))
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<Self::SendStream, StreamErrorIncoming>> {
        self.inner.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        OpenStreams::<Bytes>::close(&mut self.inner, code, reason);
    }
}

impl<S: RecvStream<Buf = Bytes>> RecvStream for Bounded<S> {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        if self.budget.0.paused.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let data = ready!(self.inner.poll_data(cx))?;
        let length = data.as_ref().map_or(0, Bytes::len);
        match self.budget.takes(length) {
            true => Poll::Ready(Ok(data)),
            false => {
                self.inner.stop_sending(Code::H3_EXCESSIVE_LOAD.value());
                Poll::Ready(Err(StreamErrorIncoming::Unknown("a frame is longer than is taken".into())))
            }
        }
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.inner.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.inner.recv_id()
    }
}

impl<S: SendStream<Bytes>> SendStream<Bytes> for Bounded<S> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.inner.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.inner.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.inner.poll_finish(cx)
    }

    fn reset(&mut self, reset_code: u64) {
        self.inner.reset(reset_code);
    }

    fn send_id(&self) -> StreamId {
        self.inner.send_id()
    }
}

impl BidiStream<Bytes> for Bounded<h3_quinn::BidiStream<Bytes>> {
    type SendStream = h3_quinn::SendStream<Bytes>;
    type RecvStream = Bounded<h3_quinn::RecvStream>;

    fn split(self) -> (Self::SendStream, Self::RecvStream) {
        let (sender, receiver) = self.inner.split();
        (sender, Bounded { inner: receiver, budget: self.budget })
    }
}

/// Bytes of a request's stream that are read ahead of what was understood: a head of 64 KiB, and what came with it; the same of all requests
/// of a connection.
const AHEAD_MAX: usize = 128 << 10;
const ALL_AHEAD_MAX: usize = 1 << 20;
/// Bytes of all streams of a connection that carry no requests, for as long as it lasts.
const CONTROL_MAX: usize = 1 << 20;
