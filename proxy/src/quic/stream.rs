//! One exchange on one QUIC stream: a head, the body in frames, trailers. Frames are laid out as HTTP/3 lays them out
//! (RFC 9114, 7.1): type and length as variable-length integers. The head of a CONNECT is followed by plain bytes.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use quinn::{ReadError, RecvStream, SendStream, StoppedError, VarInt, WriteError};

/// Part of a body.
const DATA: u64 = 0x0;
/// A head, or trailers.
const HEADERS: u64 = 0x1;
/// The last part of a body: nothing follows.
const LAST_DATA: u64 = 0x2;
/// Longest head, in bytes. One of 64 KiB in HTTP/1.1 may have thousands of fields, each with its lengths.
const HEAD_LENGTH_MAX: u64 = 256 << 10;
/// Bytes taken from the connection at once.
const CHUNK_LENGTH_MAX: usize = 64 << 10;

/// Why a stream was given up, as HTTP/3 numbers it (RFC 9114, 8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// Nothing is wrong; the rest is not needed.
    None,
    /// This end cannot go on.
    Internal,
    /// The other end is no longer interested.
    Cancelled,
    /// The other end broke the rules.
    Malformed,
}

/// Why a stream ended before its time.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StreamError {
    /// The other end gave up what it sends.
    #[error("the other end gave up the stream (code {0:#x})")]
    Reset(u64),
    /// The other end wants no more of what is sent to it.
    #[error("the other end takes no more of the stream (code {0:#x})")]
    Stopped(u64),
    /// The connection ended.
    #[error("{0}")]
    Lost(quinn::ConnectionError),
    /// The connection ended before anything was sent.
    #[error("{0}")]
    NotOpened(quinn::ConnectionError),
    /// It ended within a frame, or was not understood.
    #[error("the other end broke the framing: {0}")]
    Malformed(&'static str),
}

impl StreamError {
    /// Whether the other end has read nothing of the stream: it was not opened, or the other end has closed the connection before it had
    /// finished the handshake, which an application's close says in a way of its own (RFC 9000, 10.2.3).
    pub(crate) fn is_untouched(&self) -> bool {
        match self {
            Self::NotOpened(_) => true,
            Self::Lost(quinn::ConnectionError::ConnectionClosed(close)) => {
                close.error_code == quinn::TransportErrorCode::APPLICATION_ERROR
            }
            _ => false,
        }
    }
}

/// What is sent. Given up before its end it is reset, so that half a body never looks whole.
pub(crate) struct Sender {
    stream: SendStream,
    waiting: VecDeque<Bytes>,
    ending: bool,
    ended: bool,
    stopped: Option<Pin<Box<dyn Future<Output = Option<u64>> + Send + Sync>>>,
}

/// What is received.
pub(crate) struct Receiver {
    stream: RecvStream,
    buffer: Bytes,
    /// Of the frame that is being read.
    data_left: u64,
    last: bool,
    ended: bool,
}

/// A part of an exchange.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A head, or trailers.
    Head(Bytes),
    /// Bytes of the body.
    Data(Bytes),
}

impl Code {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::None => 0x100,
            Self::Internal => 0x102,
            Self::Cancelled => 0x10c,
            Self::Malformed => 0x10e,
        }
    }
}

impl Sender {
    pub(crate) fn new(stream: SendStream) -> Self {
        Self { stream, waiting: VecDeque::new(), ending: false, ended: false, stopped: None }
    }

    /// Queues a head or trailers.
    pub(crate) fn head(&mut self, message: &impl Message) {
        let length = message.encoded_len();
        let mut frame = BytesMut::with_capacity(length + 2 * VARINT_LENGTH_MAX);
        put_varint(&mut frame, HEADERS);
        put_varint(&mut frame, length as u64);
        message.encode(&mut frame).expect("the buffer grows");
        self.waiting.push_back(frame.freeze());
    }

    /// Queues a part of the body; nothing follows the `last`.
    pub(crate) fn data(&mut self, data: Bytes, last: bool) {
        let mut head = BytesMut::with_capacity(2 * VARINT_LENGTH_MAX);
        put_varint(&mut head, if last { LAST_DATA } else { DATA });
        put_varint(&mut head, data.len() as u64);
        self.waiting.push_back(head.freeze());
        self.bytes(data);
        self.ending |= last;
    }

    /// Queues bytes as they are.
    pub(crate) fn bytes(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.waiting.push_back(data);
        }
    }

    /// Nothing more is queued.
    pub(crate) fn end(&mut self) {
        self.ending = true;
    }

    /// Ready when all that was queued is the connection's to send.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        while !self.waiting.is_empty() {
            let written = ready!(pin!(self.stream.write_chunks(self.waiting.make_contiguous())).poll(cx))?;
            self.waiting.drain(..written.chunks);
        }
        if self.ending && !self.ended {
            self.ended = true;
            // It fails only on a stream that the other end has stopped, which the next step finds.
            let _ = self.stream.finish();
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the other end takes no more.
    pub(crate) fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let stopped = self.stopped.get_or_insert_with(|| {
            let stopped = self.stream.stopped();
            Box::pin(async move {
                match stopped.await {
                    Ok(code) => code.map(VarInt::into_inner),
                    Err(StoppedError::ConnectionLost(_) | StoppedError::ZeroRttRejected) => None,
                }
            })
        });
        let code = ready!(stopped.as_mut().poll(cx));
        self.stopped = None;
        Poll::Ready(StreamError::Stopped(code.unwrap_or(u64::from(Code::None.number()))))
    }

    /// Gives up; the other end sees that it is not whole.
    pub(crate) fn reset(&mut self, code: Code) {
        self.ended = true;
        self.waiting.clear();
        let _ = self.stream.reset(code.number().into());
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.ended {
            self.reset(Code::Cancelled);
        }
    }
}

impl Receiver {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self { stream, buffer: Bytes::new(), data_left: 0, last: false, ended: false }
    }

    /// A head; none where the stream ends without one.
    pub(crate) fn poll_head<M: Message + Default>(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<M>, StreamError>> {
        match ready!(self.poll_part(cx))? {
            None => Poll::Ready(Ok(None)),
            Some(Part::Data(_)) => Poll::Ready(Err(StreamError::Malformed("a body without a head"))),
            Some(Part::Head(bytes)) => {
                let head = M::decode(bytes).map_err(|_| StreamError::Malformed("a head that is none"))?;
                Poll::Ready(Ok(Some(head)))
            }
        }
    }

    /// The head said that nothing follows it.
    pub(crate) fn end(&mut self) {
        self.last = true;
        self.settle();
    }

    /// Whether all has been handed out.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended || (self.last && self.data_left == 0)
    }

    /// The next part; none at the end.
    pub(crate) fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Part>, StreamError>> {
        loop {
            if self.data_left > 0 {
                if self.buffer.is_empty() && !ready!(self.poll_fill(cx))? {
                    return Poll::Ready(Err(StreamError::Malformed("it ends within a body's part")));
                }
                let length = self.buffer.len().min(usize::try_from(self.data_left).unwrap_or(usize::MAX));
                self.data_left -= length as u64;
                let data = self.buffer.split_to(length);
                if self.is_ended() {
                    self.settle();
                }
                return Poll::Ready(Ok(Some(Part::Data(data))));
            }
            if self.is_ended() {
                return Poll::Ready(Ok(None));
            }
            match self.header() {
                Some((kind @ (DATA | LAST_DATA), head_length, length)) => {
                    self.buffer.advance(head_length);
                    self.data_left = length;
                    self.last = kind == LAST_DATA;
                    if self.is_ended() {
                        self.settle();
                    }
                }
                Some((HEADERS, _, length)) if length > HEAD_LENGTH_MAX => {
                    return Poll::Ready(Err(StreamError::Malformed("a head longer than 256 KiB")));
                }
                Some((HEADERS, head_length, length)) if self.buffer.len() as u64 >= head_length as u64 + length => {
                    self.buffer.advance(head_length);
                    let length = usize::try_from(length).unwrap_or(usize::MAX);
                    return Poll::Ready(Ok(Some(Part::Head(self.buffer.split_to(length)))));
                }
                Some((HEADERS, ..)) | None => {
                    let begun = !self.buffer.is_empty();
                    if !ready!(self.poll_fill(cx))? {
                        let whole = if begun { Err(StreamError::Malformed("it ends within a head")) } else { Ok(None) };
                        return Poll::Ready(whole);
                    }
                }
                Some(_) => return Poll::Ready(Err(StreamError::Malformed("a frame of an unknown kind"))),
            }
        }
    }

    /// Bytes as they are; none at the end.
    pub(crate) fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        if self.buffer.is_empty() && !ready!(self.poll_fill(cx))? {
            return Poll::Ready(Ok(None));
        }
        Poll::Ready(Ok(Some(std::mem::take(&mut self.buffer))))
    }

    /// Takes no more of it.
    pub(crate) fn stop(&mut self, code: Code) {
        let _ = self.stream.stop(code.number().into());
    }

    /// The frame that begins the buffer: its kind, the length of its header, that of what it carries.
    fn header(&self) -> Option<(u64, usize, u64)> {
        let (kind, kind_length) = varint(&self.buffer)?;
        let (length, length_length) = varint(&self.buffer[kind_length..])?;
        Some((kind, kind_length + length_length, length))
    }

    /// Takes the end of the stream off the connection where it has come with the last bytes, so that it is not refused.
    fn settle(&mut self) {
        if !self.ended {
            let _ = self.poll_fill(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// Adds to the buffer; false at the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        if self.ended {
            return Poll::Ready(Ok(false));
        }
        let chunk = ready!(pin!(self.stream.read_chunk(CHUNK_LENGTH_MAX, true)).poll(cx))?;
        let Some(chunk) = chunk else {
            self.ended = true;
            return Poll::Ready(Ok(false));
        };
        if self.buffer.is_empty() {
            self.buffer = chunk.bytes;
        } else {
            let mut joined = BytesMut::with_capacity(self.buffer.len() + chunk.bytes.len());
            joined.put_slice(&self.buffer);
            joined.put_slice(&chunk.bytes);
            self.buffer = joined.freeze();
        }
        Poll::Ready(Ok(true))
    }
}

impl From<WriteError> for StreamError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::Stopped(code.into_inner()),
            WriteError::ConnectionLost(error) => Self::Lost(error),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::Stopped(u64::from(Code::None.number())),
        }
    }
}

impl From<ReadError> for StreamError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Reset(code.into_inner()),
            ReadError::ConnectionLost(error) => Self::Lost(error),
            ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
                Self::Reset(u64::from(Code::None.number()))
            }
        }
    }
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender")
            .field("waiting", &self.waiting.len())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver")
            .field("buffer", &self.buffer.len())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// Appends a variable-length integer, at most 62 bits long (RFC 9000, 16).
fn put_varint(into: &mut BytesMut, value: u64) {
    match value {
        0..0x40 => into.put_uint(value, 1),
        0x40..0x4000 => into.put_uint(0x4000 | value, 2),
        0x4000..0x4000_0000 => into.put_uint(0x8000_0000 | value, 4),
        _ => into.put_uint(0xc000_0000_0000_0000 | value, 8),
    }
}

/// A variable-length integer at the start of the bytes, and how many of them it takes (RFC 9000, 16).
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let length = 1 << (first >> 6);
    let rest = bytes.get(1..length)?;
    let value = rest.iter().fold(u64::from(first & 0x3f), |value, byte| (value << 8) | u64::from(*byte));
    Some((value, length))
}

/// Longest variable-length integer, in bytes.
const VARINT_LENGTH_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_those_of_the_rfc() {
        for (value, bytes) in [
            (37u64, &[0x25u8][..]),
            (15_293, &[0x7b, 0xbd]),
            (494_878_333, &[0x9d, 0x7f, 0x3e, 0x7d]),
            (151_288_809_941_952_652, &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c]),
        ] {
            let mut written = BytesMut::new();
            put_varint(&mut written, value);
            assert_eq!(written, bytes);
            assert_eq!(varint(bytes), Some((value, bytes.len())));
            assert_eq!(varint(&bytes[..bytes.len() - 1]), None, "cut short");
        }
    }

    #[test]
    fn what_ends_within_the_handshake_has_not_been_read() {
        use quinn::{ConnectionClose, ConnectionError, TransportErrorCode};
        let closed = |error_code| {
            let close = ConnectionClose { error_code, frame_type: None, reason: Bytes::new() };
            StreamError::Lost(ConnectionError::ConnectionClosed(close)).is_untouched()
        };
        assert!(closed(TransportErrorCode::APPLICATION_ERROR));
        assert!(!closed(TransportErrorCode::INTERNAL_ERROR));
        assert!(StreamError::NotOpened(ConnectionError::Reset).is_untouched());
        assert!(!StreamError::Lost(ConnectionError::TimedOut).is_untouched());
    }
}
