//! The port to a world's sockets.

pub mod host;
mod names;
pub(crate) mod rejoined;

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// Sockets of a world.
pub trait Net: Clone + Send + Sync + 'static {
    /// A connected stream.
    type Stream: Stream;
    /// A listener of streams.
    type Listener: Listener<Stream = Self::Stream>;

    /// Listens; several workers may listen on one address and share what arrives.
    fn listen(&self, address: SocketAddr) -> io::Result<Self::Listener>;

    /// Connects, with small writes sent at once.
    fn dial(&self, address: SocketAddr) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// The addresses of a host, by its name.
    fn resolve(&self, host: &str) -> impl Future<Output = io::Result<Vec<IpAddr>>> + Send {
        let unknown = io::Error::new(io::ErrorKind::NotFound, format!("{host}: names are not resolved here"));
        std::future::ready(Err(unknown))
    }

    /// A socket of datagrams; several workers may share one address.
    fn datagrams(&self, address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>>;

    /// Where a connection that was taken was to go, where the firewall has sent it here; none where it has not.
    fn meant(&self, _: &Self::Stream) -> Option<SocketAddr> {
        None
    }

    /// The process at the other end of a connection within this host.
    fn owner(&self, ours: SocketAddr, theirs: SocketAddr) -> Option<Process>;
}

/// A process of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its user.
    pub user: u32,
    /// The number of the control group that it was in when it made the connection, where the kernel tells that.
    pub group: Option<u64>,
}

impl Process {
    /// One of that user, in whatever control group.
    pub fn of_user(user: u32) -> Self {
        Self { user, group: None }
    }
}

/// A connected stream.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes its end an abrupt one, so that the other side does not take what it got for the whole (TCP's reset).
    fn abort(&mut self);

    /// What can be asked of the stream, and done to it, while something else reads and writes it; none where nothing can.
    fn handle(&self) -> Option<Handle> {
        None
    }
}

/// A stream that something else reads and writes. Held, it does not keep the stream open.
pub trait Aside: std::fmt::Debug + Send + Sync {
    /// Whether the other end has ended the stream, or has sent what nobody asked for.
    fn is_spent(&self) -> bool;

    /// As [`Stream::abort`].
    fn abort(&self);

    /// Ready when the other end has ended the stream abruptly, whether or not anybody reads it. Keeps it open meanwhile.
    fn reset(&self) -> BoxFuture<'static, ()>;
}

/// A stream that something else reads and writes.
pub type Handle = Arc<dyn Aside>;

impl<S: Stream> Stream for tokio_rustls::server::TlsStream<S> {
    fn abort(&mut self) {
        self.get_mut().0.abort();
    }
}

impl<S: Stream> Stream for tokio_rustls::client::TlsStream<S> {
    fn abort(&mut self) {
        self.get_mut().0.abort();
    }
}

impl Stream for Box<dyn Stream> {
    fn abort(&mut self) {
        (**self).abort();
    }

    fn handle(&self) -> Option<Handle> {
        (**self).handle()
    }
}

impl Stream for tokio::io::DuplexStream {
    /// In memory there is only one way to end.
    fn abort(&mut self) {}
}

/// Takes connections.
pub trait Listener: Send + 'static {
    /// What is taken.
    type Stream;

    /// The next connection.
    fn accept(&mut self) -> impl Future<Output = io::Result<Accepted<Self::Stream>>> + Send;

    /// Where it listens.
    fn local_address(&self) -> io::Result<SocketAddr>;
}

/// A connection that was taken.
#[derive(Debug)]
pub struct Accepted<S> {
    /// The stream.
    pub stream: S,
    /// This end.
    pub ours: SocketAddr,
    /// The other end.
    pub theirs: SocketAddr,
}
