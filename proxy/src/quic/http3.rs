//! HTTP/3 with callers from outside (RFC 9114).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h3::error::Code;
use h3::server::{RequestResolver, RequestStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Request, Response};
use quinn::crypto::rustls::HandshakeData;
use tokio::time::timeout;

use super::bounded::{Bounded, BoundedConnection, Budget};
use super::{HANDSHAKE_TIMEOUT, QuicLink};

/// What is spoken.
pub(crate) const ALPN_H3: &[u8] = b"h3";

/// A caller that has arrived, before its handshake.
pub(crate) struct Arriving(quinn::Incoming);

/// A connection whose handshake is done.
pub(crate) struct Shaken {
    connection: quinn::Connection,
    /// What it asks for by SNI, in small letters.
    pub(crate) server_name: Box<str>,
}

/// A connection that carries requests.
pub(crate) struct Http3 {
    inner: h3::server::Connection<BoundedConnection, Bytes>,
}

/// A request whose head has not been read yet.
pub(crate) struct Unread {
    resolver: RequestResolver<BoundedConnection, Bytes>,
    budget: Budget,
}

/// What a request brings.
pub(crate) struct Http3Receiver {
    stream: RequestStream<Bounded<h3_quinn::RecvStream>, Bytes>,
    budget: Budget,
    /// Read, and not handed out yet.
    held: Option<Bytes>,
    /// How many bytes are to come still, where that is said.
    left: Option<u64>,
    /// Whether nothing follows but trailers.
    data_over: bool,
    ended: bool,
}

/// Where the answer goes. Given up before its end it is reset, so that half an answer never looks whole.
pub(crate) struct Http3Sender {
    stream: RequestStream<h3_quinn::SendStream<Bytes>, Bytes>,
    done: bool,
}

/// Why a stream broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Http3Error {
    /// As the library says.
    #[error(transparent)]
    Stream(#[from] h3::error::StreamError),
    /// The body is not as long as the head says (RFC 9114, 4.1.2).
    #[error("the body is not as long as the head says")]
    Length,
}

impl Arriving {
    pub(crate) fn new(incoming: quinn::Incoming) -> Self {
        Self(incoming)
    }

    /// Who calls.
    pub(crate) fn from(&self) -> SocketAddr {
        self.0.remote_address()
    }

    /// Completes the handshake within a bound; none where it fails.
    pub(crate) async fn shake(self) -> Option<Shaken> {
        let connection = timeout(HANDSHAKE_TIMEOUT, self.0).await.ok()?.ok()?;
        let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
        let server_name = data.and_then(|data| data.server_name).unwrap_or_default().to_ascii_lowercase().into();
        Some(Shaken { connection, server_name })
    }
}

impl Shaken {
    /// The address that was called, where that can be told.
    pub(crate) fn called(&self) -> Option<IpAddr> {
        self.connection.local_ip()
    }

    /// The connection, to look at from aside.
    pub(crate) fn aside(&self) -> QuicLink {
        QuicLink::new(self.connection.clone())
    }

    /// Tells the caller to go.
    pub(crate) fn refuse(self) {
        self.connection.close(quinn::VarInt::from_u32(EXCESSIVE_LOAD), b"");
    }

    /// Begins to take requests.
    pub(crate) async fn begin(self) -> Option<Http3> {
        let mut builder = h3::server::builder();
        builder.max_field_section_size(FIELD_SECTION_MAX).send_grease(false);
        let built = timeout(HANDSHAKE_TIMEOUT, builder.build(BoundedConnection::new(self.connection))).await;
        Some(Http3 { inner: built.ok()?.ok()? })
    }
}

impl Http3 {
    /// The next request; none at the end.
    pub(crate) async fn accept(&mut self) -> Option<Unread> {
        let resolver = self.inner.accept().await.ok()??;
        let budget = self.inner.inner.conn.take_budget()?;
        Some(Unread { resolver, budget })
    }

    /// Takes no more requests; those that are under way go on.
    pub(crate) async fn leave(&mut self) {
        // Who has gone needs not to be told.
        let _ = self.inner.shutdown(0).await;
    }
}

impl Unread {
    /// Reads the head, and whether anything follows it.
    pub(crate) async fn read(self) -> Result<(Request<()>, Http3Receiver, Http3Sender), Http3Error> {
        let (request, stream) = self.resolver.resolve_request().await?;
        self.budget.renew();
        let (sender, stream) = stream.split();
        let left = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let budget = self.budget;
        let mut receiver = Http3Receiver { stream, budget, held: None, left, data_over: false, ended: false };
        let sender = Http3Sender { stream: sender, done: false };
        // Whoever sends no body ends with the head, but says so apart.
        if request.method().is_safe() || left == Some(0) {
            std::future::poll_fn(|cx| receiver.poll_ahead(cx)).await?;
        }
        Ok((request, receiver, sender))
    }
}

impl Http3Receiver {
    /// Whether all has been handed out.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Reads until it is known whether anything follows.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Http3Error>> {
        if self.held.is_none() && !self.ended {
            self.held = ready!(self.poll_data(cx))?;
            if self.held.is_none() {
                // Trailers without a body say nothing that anybody waits for.
                self.ended = true;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The next bytes, of what has been read before anything else is.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, h3::error::StreamError>> {
        let whole = |data: Option<_>| data.map(|mut data| copied(&mut data));
        self.budget.pause(true);
        let held = self.stream.poll_recv_data(cx).map_ok(whole);
        self.budget.pause(false);
        match held {
            Poll::Ready(held) => Poll::Ready(held),
            Poll::Pending => self.stream.poll_recv_data(cx).map_ok(whole),
        }
    }

    /// The next bytes; none at their end.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Http3Error>> {
        let data = ready!(self.poll_held(cx))?;
        self.budget.renew();
        match (&mut self.left, &data) {
            (Some(left), Some(data)) => {
                *left = left.checked_sub(data.len() as u64).ok_or(Http3Error::Length)?;
            }
            (Some(left), None) if *left > 0 => return Poll::Ready(Err(Http3Error::Length)),
            _ => {}
        }
        self.data_over = data.is_none();
        Poll::Ready(Ok(data))
    }

    /// The next part of the body: bytes, or trailers.
    pub(crate) fn poll_part(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Http3Error>>> {
        if let Some(held) = self.held.take() {
            return Poll::Ready(Some(Ok(http_body::Frame::data(held))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        if !self.data_over {
            match ready!(self.poll_data(cx)) {
                Ok(Some(data)) => return Poll::Ready(Some(Ok(http_body::Frame::data(data)))),
                Ok(None) => {}
                Err(error) => {
                    self.ended = true;
                    self.stream.stop_sending(Code::H3_MESSAGE_ERROR);
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        let trailers = ready!(self.stream.poll_recv_trailers(cx));
        self.ended = true;
        match trailers {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(http_body::Frame::trailers(trailers)))),
            Err(error) => Poll::Ready(Some(Err(error.into()))),
        }
    }
}

impl Http3Sender {
    /// Sends a head: that of the answer, or one before it.
    pub(crate) async fn head(&mut self, response: Response<()>) -> Result<(), Http3Error> {
        Ok(self.stream.send_response(response).await?)
    }

    /// Sends a part of the body.
    pub(crate) async fn data(&mut self, data: Bytes) -> Result<(), Http3Error> {
        Ok(self.stream.send_data(data).await?)
    }

    /// Sends trailers; nothing follows.
    pub(crate) async fn trailers(&mut self, trailers: HeaderMap) -> Result<(), Http3Error> {
        Ok(self.stream.send_trailers(trailers).await?)
    }

    /// Ends the answer.
    pub(crate) async fn end(mut self) -> Result<(), Http3Error> {
        let ended = self.stream.finish().await;
        self.done = ended.is_ok();
        Ok(ended?)
    }
}

impl Drop for Http3Sender {
    fn drop(&mut self) {
        if !self.done {
            self.stream.stop_stream(Code::H3_INTERNAL_ERROR);
        }
    }
}

impl fmt::Debug for Http3Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http3Receiver").field("ended", &self.ended).finish_non_exhaustive()
    }
}

fn copied(data: &mut impl Buf) -> Bytes {
    data.copy_to_bytes(data.remaining())
}

/// What ends TLS for callers of HTTP/3: certificates are found as each asks.
pub(super) fn server_config(
    certificates: Arc<dyn rustls::server::ResolvesServerCert>,
) -> Result<Arc<rustls::ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(certificates);
    config.alpn_protocols = vec![ALPN_H3.to_vec()];
    Ok(Arc::new(config))
}

/// What streams of strangers may have under way.
pub(super) fn transport() -> quinn::TransportConfig {
    let mut config = quinn::TransportConfig::default();
    config
        .max_idle_timeout(Some(IDLE_TIMEOUT.try_into().expect("less than 2^62 ms")))
        .max_concurrent_bidi_streams(quinn::VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(quinn::VarInt::from_u32(CONTROL_STREAMS_MAX))
        .stream_receive_window(quinn::VarInt::from_u32(STREAM_WINDOW))
        .receive_window(quinn::VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None);
    config
}

/// H3_EXCESSIVE_LOAD (RFC 9114, 8.1).
const EXCESSIVE_LOAD: u32 = 0x107;
/// Longest header section, in bytes as HTTP/3 counts them; longer ones are answered with 431.
const FIELD_SECTION_MAX: u64 = 64 << 10;
/// Silence after which a connection has ended.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests at once on a connection.
const STREAMS_MAX: u32 = 256;
/// The streams that HTTP/3 has beside those of requests, which are three, and some to grow.
const CONTROL_STREAMS_MAX: u32 = 8;
/// Bytes under way towards this node, on a stream and on a connection; the same on a connection towards the caller.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const SEND_WINDOW: u64 = 1 << 20;
