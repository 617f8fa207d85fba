//! Control links: authenticated streams between nodes that carry Raft, the log stream, gossip and certificates.
//!
//! A stream carries one request at a time. Over QUIC each is a stream of one connection; where UDP does not get
//! through, each is a TLS connection of its own, kept for the next request.

mod connections;
mod gossip;
mod probe;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use weft_consensus::replica::{PeerError, Peers};
use weft_proto::identity::{Identity, NodeName, TrustDomain};
use weft_proto::wire::cluster::{self as wire, ControlRequest, ControlResponse, control_request, control_response};
use weft_proxy::net::Net;
use weft_proxy::quic::QuicClient;
use weft_proxy::tls::{ALPN_CONTROL, Identities, Target};

use crate::book::Book;
use crate::frame::{self, FRAME_LENGTH_MAX};
use connections::{Connections, Kept};
pub use gossip::GossipLinks;
pub use probe::Reached;

/// Bound on reaching a node.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Bound on a request whose caller names none.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bound on the silence of a log stream, whose heartbeats come each second.
const FOLLOW_SILENCE: Duration = Duration::from_secs(5);
/// Idle streams kept for a node.
const IDLE_MAX: usize = 4;
/// How long an idle stream is kept; shorter than the other side's patience.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);
/// How long UDP is not tried again with a node that did not answer on it.
const QUIC_RETRY: Duration = Duration::from_secs(60);
/// Bound on a QUIC handshake before TCP is tried.
const QUIC_TIMEOUT: Duration = Duration::from_millis(700);
/// How often it is looked which connections nobody uses.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Requests in a row without an answer after which a connection is taken for dead.
const UNANSWERED_MAX: u32 = 3;

/// A stream of bytes on a control link. Boxed once a stream, never per byte.
pub trait Bytestream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytestream for T {}

/// A stream, and its use of the connection that it shares with others.
struct Stream {
    bytes: Box<dyn Bytestream>,
    _uses: Option<Arc<()>>,
}

/// The calling side of control links.
pub struct Control<N: Net> {
    net: N,
    me: Identity,
    identities: Arc<Identities>,
    book: Arc<Book>,
    quic: QuicClient,
    /// Connections that were made from here, on which the other end asks too.
    made: mpsc::Sender<quinn::Connection>,
    peers: Mutex<BTreeMap<NodeName, Peer>>,
    swept: Mutex<Instant>,
}

#[derive(Default)]
struct Peer {
    idle: Vec<(Stream, Instant)>,
    connections: Connections,
    quic_blocked_until: Option<Instant>,
    /// Requests in a row that were given up without an answer.
    unanswered: u32,
}

/// One request over a fresh stream. Given up again and again, it takes the connection down: a node that was killed and has
/// come back knows nothing of it, and only a new one reaches it.
struct Attempt<'a, N: Net> {
    control: &'a Control<N>,
    to: &'a NodeName,
    answered: bool,
}

impl<N: Net> Drop for Attempt<'_, N> {
    fn drop(&mut self) {
        let mut peers = self.control.peers.lock();
        let peer = peers.entry(self.to.clone()).or_default();
        peer.unanswered = if self.answered { 0 } else { peer.unanswered + 1 };
        if peer.unanswered >= UNANSWERED_MAX {
            peer.unanswered = 0;
            peer.connections.close(b"no answer");
        }
    }
}

impl<N: Net> Control<N> {
    /// Calls as the node `me`. Connections that are made are told, so that what the other end asks on them is answered.
    pub fn new(
        net: N,
        me: Identity,
        identities: Arc<Identities>,
        book: Arc<Book>,
        made: mpsc::Sender<quinn::Connection>,
    ) -> Arc<Self> {
        let quic = QuicClient::new(&net, identities.clone());
        let swept = Mutex::new(Instant::now());
        Arc::new(Self { net, me, identities, book, quic, made, peers: Mutex::default(), swept })
    }

    /// Asks on a connection too that a node has made: one with each node is enough.
    pub fn adopt(&self, name: &NodeName, connection: &quinn::Connection) {
        let mut peers = self.peers.lock();
        let connections = &mut peers.entry(name.clone()).or_default().connections;
        connections.add(Kept::new(connection, false), self.goes_before(name));
    }

    fn goes_before(&self, name: &NodeName) -> bool {
        matches!(&self.me, Identity::Node { name: me, .. } if me < name)
    }

    /// The use of a connection by what the other end asks on it.
    pub fn used_by(&self, name: &NodeName, connection: &quinn::Connection) -> Option<Arc<()>> {
        self.peers.lock().get(name)?.connections.uses(connection)
    }

    /// Ends connections from here that nobody has used for long, on either end.
    fn sweep(&self) {
        let now = Instant::now();
        let mut swept = self.swept.lock();
        if now - *swept < SWEEP_INTERVAL {
            return;
        }
        *swept = now;
        drop(swept);
        self.peers.lock().values_mut().for_each(|peer| peer.connections.sweep(now));
    }

    /// Keeps no connection with a node, and does not look for it any more.
    pub fn forget(&self, name: &NodeName) {
        self.book.forget(name);
        if let Some(mut peer) = self.peers.lock().remove(name) {
            peer.connections.close(b"removed");
        }
    }

    /// One request, one answer.
    pub async fn exchange(&self, to: &NodeName, request: ControlRequest) -> io::Result<ControlResponse> {
        self.exchange_within(to, request, EXCHANGE_TIMEOUT).await
    }

    /// One request, one answer, within a bound.
    pub async fn exchange_within(
        &self,
        to: &NodeName,
        request: ControlRequest,
        bound: Duration,
    ) -> io::Result<ControlResponse> {
        timeout(bound, self.exchange_unbounded(to, &request))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("{to} did not answer within {bound:?}")))?
    }

    async fn exchange_unbounded(&self, to: &NodeName, request: &ControlRequest) -> io::Result<ControlResponse> {
        // A kept stream may have been closed by the other side meanwhile; what it carries is harmless to repeat.
        while let Some(mut stream) = self.idle(to) {
            if let Ok(response) = converse(&mut stream, request).await {
                self.keep(to, stream);
                return Ok(response);
            }
        }
        let mut attempt = Attempt { control: self, to, answered: false };
        let (mut stream, reusable) = self.open(to).await?;
        let response = converse(&mut stream, request).await?;
        attempt.answered = true;
        drop(attempt);
        if reusable {
            self.keep(to, stream);
        }
        Ok(response)
    }

    /// One request, many answers.
    async fn subscribe(&self, to: &NodeName, request: &ControlRequest) -> io::Result<Stream> {
        let (mut stream, _) = self.open(to).await?;
        frame::write(&mut stream.bytes, request).await?;
        Ok(stream)
    }

    fn idle(&self, to: &NodeName) -> Option<Stream> {
        let mut peers = self.peers.lock();
        let idle = &mut peers.get_mut(to)?.idle;
        idle.retain(|(_, since)| since.elapsed() < IDLE_TIMEOUT);
        idle.pop().map(|(stream, _)| stream)
    }

    fn keep(&self, to: &NodeName, stream: Stream) {
        let mut peers = self.peers.lock();
        let idle = &mut peers.entry(to.clone()).or_default().idle;
        if idle.len() < IDLE_MAX {
            idle.push((stream, Instant::now()));
        }
    }

    /// Opens a stream, over QUIC if that gets through; tells whether the stream is worth keeping.
    async fn open(&self, to: &NodeName) -> io::Result<(Stream, bool)> {
        let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("no address is known for node {to}"));
        let address = self.book.address(to).ok_or_else(unknown)?;
        if let Some(stream) = self.open_quic(to, address).await {
            return Ok((stream, false));
        }
        let stream = timeout(CONNECT_TIMEOUT, self.open_tls(to, address))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("{to} at {address} does not answer")))??;
        Ok((stream, true))
    }

    async fn open_quic(&self, to: &NodeName, address: SocketAddr) -> Option<Stream> {
        self.sweep();
        let known = {
            let mut peers = self.peers.lock();
            let peer = peers.entry(to.clone()).or_default();
            let blocked = peer.quic_blocked_until.is_some_and(|until| until > Instant::now());
            match peer.connections.to(address) {
                None if blocked => return None,
                known => known,
            }
        };
        let (connection, uses) = match known {
            Some(known) => known,
            None => self.connect_quic(to, address).await?,
        };
        match connection.open_bi().await {
            Ok((send, receive)) => Some(Stream { bytes: Box::new(tokio::io::join(receive, send)), _uses: Some(uses) }),
            Err(_) => None,
        }
    }

    async fn connect_quic(&self, to: &NodeName, address: SocketAddr) -> Option<(quinn::Connection, Arc<()>)> {
        let expect = self.node(to);
        let target = Target::Node(to.clone());
        let name = target.server_name().to_str().into_owned();
        let attempt = self.quic.connect(address, (&self.me, &expect), &name, ALPN_CONTROL);
        let outcome = timeout(QUIC_TIMEOUT, attempt).await;
        let mut peers = self.peers.lock();
        let peer = peers.entry(to.clone()).or_default();
        match outcome {
            Ok(Ok(connection)) => {
                peer.connections.add(Kept::new(&connection, true), self.goes_before(to));
                let uses = peer.connections.uses(&connection).unwrap_or_default();
                // Full, the other end makes one of its own.
                let _ = self.made.try_send(connection.clone());
                Some((connection, uses))
            }
            failed => {
                let why = failed.map_or_else(|_| "no answer".to_owned(), |result| format!("{:?}", result.err()));
                tracing::debug!(node = %to, %address, why, "no control link over UDP; taking TCP");
                peer.quic_blocked_until = Some(Instant::now() + QUIC_RETRY);
                None
            }
        }
    }

    async fn open_tls(&self, to: &NodeName, address: SocketAddr) -> io::Result<Stream> {
        let config = self
            .identities
            .client_config(&self.me, &self.node(to), &[ALPN_CONTROL])
            .map_err(|error| io::Error::other(error.to_string()))?;
        let stream = self.net.dial(address).await?;
        let name: ServerName<'static> = Target::Node(to.clone()).server_name();
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        Ok(Stream { bytes: Box::new(stream), _uses: None })
    }

    fn node(&self, name: &NodeName) -> Identity {
        let trust_domain: &TrustDomain = self.me.trust_domain();
        Identity::node(trust_domain.clone(), name.clone())
    }
}

async fn converse(stream: &mut Stream, request: &ControlRequest) -> io::Result<ControlResponse> {
    frame::write(&mut stream.bytes, request).await?;
    frame::read(&mut stream.bytes, FRAME_LENGTH_MAX).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The consensus crate's view of control links.
pub struct ConsensusPeers<N: Net>(pub Arc<Control<N>>);

impl<N: Net> Peers for ConsensusPeers<N> {
    fn call(
        &self,
        to: NodeName,
        request: wire::Consensus,
    ) -> BoxFuture<'static, Result<wire::ConsensusReply, PeerError>> {
        let control = self.0.clone();
        Box::pin(async move {
            let request = ControlRequest { kind: Some(control_request::Kind::Consensus(request)) };
            match control.exchange(&to, request).await.map_err(unreachable)?.kind {
                Some(control_response::Kind::Consensus(reply)) => Ok(reply),
                other => Err(unexpected(&to, other)),
            }
        })
    }

    fn follow(
        &self,
        to: NodeName,
        request: wire::FollowRequest,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<wire::FollowEvent, PeerError>>, PeerError>> {
        let control = self.0.clone();
        Box::pin(async move {
            let request = ControlRequest { kind: Some(control_request::Kind::Follow(request)) };
            let stream = timeout(CONNECT_TIMEOUT * 2, control.subscribe(&to, &request))
                .await
                .map_err(|_| unreachable(io::ErrorKind::TimedOut.into()))?
                .map_err(unreachable)?;
            Ok(stream::unfold(Some((stream, to)), next_event).boxed())
        })
    }
}

async fn next_event(
    state: Option<(Stream, NodeName)>,
) -> Option<(Result<wire::FollowEvent, PeerError>, Option<(Stream, NodeName)>)> {
    let (mut stream, from) = state?;
    let message = timeout(FOLLOW_SILENCE, frame::read::<ControlResponse>(&mut stream.bytes, FRAME_LENGTH_MAX)).await;
    match message {
        Err(_) => Some((Err(unreachable(io::ErrorKind::TimedOut.into())), None)),
        Ok(Err(error)) => Some((Err(unreachable(error)), None)),
        Ok(Ok(None)) => None,
        Ok(Ok(Some(response))) => match response.kind {
            Some(control_response::Kind::Follow(event)) => Some((Ok(event), Some((stream, from)))),
            other => Some((Err(unexpected(&from, other)), None)),
        },
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it stands where errors are mapped")]
fn unreachable(error: io::Error) -> PeerError {
    PeerError::Unreachable(error.to_string())
}

fn unexpected(from: &NodeName, kind: Option<control_response::Kind>) -> PeerError {
    match kind {
        Some(control_response::Kind::Error(text)) => PeerError::Refused(format!("{from}: {text}")),
        _ => PeerError::Refused(format!("{from} answered something else than was asked")),
    }
}
