//! QUIC between nodes, for control links and for exchanges: the same certificates and checks as over TCP, one endpoint a
//! worker.

mod bounded;
pub(crate) mod head;
pub(crate) mod http3;
pub(crate) mod stream;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, Incoming, ServerConfig, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use rustls::server::ResolvesServerCert;
use tokio::time::timeout;
use weft_proto::identity::Identity;

use crate::limits::LINK_STREAMS_MAX;
use crate::net::Net;
use crate::tls::{ALPN_CONTROL, ALPN_EXCHANGE, Clients, Identities, TlsError, peer_identity};
use stream::{Receiver, Sender, StreamError};

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// This node holds no certificate, or the peer's is not what it should be.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It could not be begun.
    #[error("{0}")]
    Connect(#[from] quinn::ConnectError),
    /// It ended.
    #[error("{0}")]
    Connection(#[from] quinn::ConnectionError),
    /// The handshake took too long.
    #[error("no handshake within {HANDSHAKE_TIMEOUT:?}")]
    Late,
    /// A socket or a configuration.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Takes connections on one worker's share of the mesh port.
#[derive(Clone)]
pub struct QuicServer {
    endpoint: Endpoint,
}

/// A connection that has arrived, its other end verified.
pub struct Arrived {
    /// The connection.
    pub connection: Connection,
    /// What it is for.
    pub alpn: Vec<u8>,
    /// Whom it names.
    pub sni: Option<String>,
    /// Who calls.
    pub identity: Identity,
    /// The caller's certificates. A node's may be of another time, which is for control links only.
    pub chain: Vec<CertificateDer<'static>>,
}

impl QuicServer {
    /// Listens; workers share the address.
    pub fn bind(net: &impl Net, address: SocketAddr, identities: &Arc<Identities>) -> io::Result<Self> {
        let tls = identities.server_config(&[ALPN_CONTROL, ALPN_EXCHANGE], Clients::Members);
        let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
        let mut config = ServerConfig::with_crypto(Arc::new(crypto));
        // Whoever has made a connection keeps it alive.
        config.transport_config(Arc::new(transport(IDLE_TIMEOUT_CONTROL, None)));
        Self::open(net, address, config)
    }

    /// Listens for callers from outside, who speak HTTP/3; workers share the address.
    pub(crate) fn edge(
        net: &impl Net,
        address: SocketAddr,
        certificates: Arc<dyn ResolvesServerCert>,
    ) -> io::Result<Self> {
        let tls = http3::server_config(certificates).map_err(io::Error::other)?;
        let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
        let mut config = ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(Arc::new(http3::transport()));
        Self::open(net, address, config)
    }

    fn open(net: &impl Net, address: SocketAddr, mut config: ServerConfig) -> io::Result<Self> {
        config.max_incoming(INCOMING_MAX);
        // Connections stay where the kernel has put them: another worker's socket would not know them.
        config.migration(false);
        let runtime = Arc::new(quinn::TokioRuntime);
        let socket = net.datagrams(address)?;
        let endpoint = Endpoint::new_with_abstract_socket(EndpointConfig::default(), Some(config), socket, runtime)?;
        Ok(Self { endpoint })
    }

    /// The next connection that asks; none after [`QuicServer::close`].
    pub async fn accept(&self) -> Option<Incoming> {
        loop {
            let incoming = self.endpoint.accept().await?;
            // Under load an address must show that it is its sender's before anything is spent on it.
            if self.endpoint.open_connections() > RETRY_ABOVE
                && !incoming.remote_address_validated()
                && incoming.may_retry()
            {
                let _ = incoming.retry();
                continue;
            }
            return Some(incoming);
        }
    }

    /// Ends all connections, and lets go of the port once their other ends know.
    pub(crate) async fn leave(self) {
        self.close();
        // Whoever has not heard by then asks again.
        let _ = timeout(LEAVE_TIMEOUT, self.endpoint.wait_idle()).await;
    }

    /// Takes no more connections and ends those that are open.
    pub fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"");
    }
}

/// Completes a handshake within a bound.
pub async fn handshake(incoming: Incoming) -> Result<Arrived, QuicError> {
    let connection = timeout(HANDSHAKE_TIMEOUT, incoming).await.map_err(|_| QuicError::Late)??;
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    let chain = chain(&connection);
    let identity = peer_identity(&chain)?;
    let (alpn, sni) = data.map(|data| (data.protocol.unwrap_or_default(), data.server_name)).unwrap_or_default();
    Ok(Arrived { connection, alpn, sni, identity, chain })
}

/// The certificates that the other end has shown.
pub fn chain(connection: &Connection) -> Vec<CertificateDer<'static>> {
    let identity = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    identity.map(|chain| *chain).unwrap_or_default()
}

/// Makes connections, from one socket an address family.
pub struct QuicClient {
    identities: Arc<Identities>,
    endpoints: Mutex<[Option<Endpoint>; 2]>,
    open: Box<dyn Fn(SocketAddr) -> io::Result<Endpoint> + Send + Sync>,
}

impl QuicClient {
    /// Connects with these identities. Sockets are opened when they are first needed.
    pub fn new(net: &impl Net, identities: Arc<Identities>) -> Self {
        let net = net.clone();
        let open = move |address| {
            let socket = net.datagrams(address)?;
            Endpoint::new_with_abstract_socket(EndpointConfig::default(), None, socket, Arc::new(quinn::TokioRuntime))
        };
        Self { identities, endpoints: Mutex::default(), open: Box::new(open) }
    }

    /// Connects as `from` to who must be `expect` and is asked for by `server_name`.
    pub async fn connect(
        &self,
        address: SocketAddr,
        (from, expect): (&Identity, &Identity),
        server_name: &str,
        alpn: &[u8],
    ) -> Result<Connection, QuicError> {
        let tls = self.identities.client_config(from, expect, &[alpn])?;
        let crypto = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        let (idle, keep_alive) = match alpn {
            ALPN_CONTROL => (IDLE_TIMEOUT_CONTROL, KEEP_ALIVE_CONTROL),
            _ => (IDLE_TIMEOUT, KEEP_ALIVE),
        };
        config.transport_config(Arc::new(transport(idle, Some(keep_alive))));
        let connecting = self.endpoint(address)?.connect_with(config, address, server_name)?;
        Ok(timeout(HANDSHAKE_TIMEOUT, connecting).await.map_err(|_| QuicError::Late)??)
    }

    fn endpoint(&self, to: SocketAddr) -> io::Result<Endpoint> {
        let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let mut endpoints = self.endpoints.lock();
        let slot = &mut endpoints[usize::from(to.is_ipv6())];
        if let Some(endpoint) = slot {
            return Ok(endpoint.clone());
        }
        Ok(slot.insert((self.open)(SocketAddr::new(any, 0))?).clone())
    }
}

/// A connection that carries exchanges, one on each of its streams.
#[derive(Debug, Clone)]
pub(crate) struct QuicLink(Connection);

impl QuicLink {
    pub(crate) fn new(connection: Connection) -> Self {
        Self(connection)
    }

    /// Opens a stream; waits while as many are open as the other end allows.
    pub(crate) async fn open(&self) -> Result<(Sender, Receiver), StreamError> {
        let (sender, receiver) = self.0.open_bi().await.map_err(StreamError::NotOpened)?;
        Ok((Sender::new(sender), Receiver::new(receiver)))
    }

    /// The next stream that the other end opens.
    pub(crate) async fn accept(&self) -> Result<(Sender, Receiver), StreamError> {
        let (sender, receiver) = self.0.accept_bi().await.map_err(StreamError::Lost)?;
        Ok((Sender::new(sender), Receiver::new(receiver)))
    }

    /// Asks the other end to open no more streams.
    pub(crate) async fn say_goodbye(&self) {
        if let Ok(mut stream) = self.0.open_uni().await {
            let _ = stream.finish();
            let _ = stream.stopped().await;
        }
    }

    /// Ends when the other end says goodbye, or the connection ends.
    pub(crate) async fn goodbye(&self) {
        let _ = self.0.accept_uni().await;
    }

    /// Ends when the connection does.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }

    /// Sends what has to be acknowledged and is read by nobody.
    pub(crate) fn ask(&self) {
        let _ = self.0.send_datagram(bytes::Bytes::from_static(b"?"));
    }

    /// Datagrams that have arrived.
    pub(crate) fn datagrams_received(&self) -> u64 {
        self.0.stats().udp_rx.datagrams
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.close_reason().is_some()
    }

    /// Ends it, and every exchange on it.
    pub(crate) fn close(&self) {
        self.0.close(VarInt::from_u32(stream::Code::None.number()), b"");
    }
}

fn transport(idle: Duration, keep_alive: Option<Duration>) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .initial_rtt(INITIAL_RTT)
        .max_idle_timeout(Some(idle.try_into().expect("less than 2^62 ms")))
        .keep_alive_interval(keep_alive)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(GOODBYES_MAX))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW);
    config
}

/// Bound on a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long other ends have to hear that their connections end: some round trips.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// What the round trip is taken for before it is measured; hosts of a mesh are near each other.
const INITIAL_RTT: Duration = Duration::from_millis(20);
/// Silence after which a connection of exchanges has ended, and how often it is kept alive.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// The same of control connections, of which every node may have one with every other.
const IDLE_TIMEOUT_CONTROL: Duration = Duration::from_secs(45);
const KEEP_ALIVE_CONTROL: Duration = Duration::from_secs(15);
/// Exchanges at once on one connection.
const STREAMS_MAX: u32 = LINK_STREAMS_MAX;
/// A server that drains says so on a stream of its own.
const GOODBYES_MAX: u32 = 1;
/// Bytes under way on one stream. Twice that of links over TCP: QUIC links are the long ones.
const STREAM_WINDOW: u32 = 512 << 10;
/// Bytes that wait to be read on one connection: those of all its streams, so that none is held up by others.
const CONNECTION_WINDOW: u32 = STREAMS_MAX * STREAM_WINDOW;
/// Bytes that are sent and not yet acknowledged on one connection.
const SEND_WINDOW: u64 = 16 << 20;
/// Handshakes waiting to be taken.
const INCOMING_MAX: usize = 4096;
/// Open connections above which addresses must be validated first.
const RETRY_ABOVE: usize = 2048;
