//! The sockets of the host that this process runs on.

use std::collections::BTreeSet;
use std::future::pending;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use quinn::Runtime;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use super::names::Names;
use super::{Accepted, Aside, Handle, Listener, Net, Process, Stream};

/// Connections that may wait to be taken.
const BACKLOG: i32 = 4096;
/// Buffers of a datagram socket, bytes.
const DATAGRAM_BUFFER: usize = 4 << 20;
/// Silence after which the kernel asks whether the other end is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Reads without taking and without waiting: `MSG_PEEK | MSG_DONTWAIT` of recv(2) on Linux.
const PEEK: i32 = 0x02 | 0x40;
/// Most bytes that are put together into one write.
const TOGETHER_MAX: usize = 1024;

/// A TCP connection.
#[derive(Debug)]
pub struct HostStream(Arc<TcpStream>);

/// Finds the process at the other end of a connection: given our end and theirs.
pub type Owner = Arc<dyn Fn(SocketAddr, SocketAddr) -> Option<Process> + Send + Sync>;

/// The host's sockets.
#[derive(Clone)]
pub struct HostNet {
    owner: Owner,
    /// Addresses that were found free of other processes' listeners.
    claimed: Arc<Mutex<BTreeSet<SocketAddr>>>,
    /// Where connections arrive that went elsewhere.
    captured: Arc<OnceLock<SocketAddr>>,
    names: Names,
    shelf: Option<Arc<dyn Shelf>>,
}

/// Where listeners are kept that are to outlive the process.
pub trait Shelf: Send + Sync {
    /// One that the process before this one has left at an address, with the name that it is kept by.
    fn take(&self, address: SocketAddr) -> Option<(String, StdListener)>;

    /// Keeps one; by which name.
    fn put(&self, listener: BorrowedFd<'_>) -> String;

    /// Keeps it no more.
    fn remove(&self, name: &str);
}

/// A listener of the host.
pub struct HostListener {
    inner: TcpListener,
    kept: Option<(Arc<dyn Shelf>, String)>,
}

impl Drop for HostListener {
    fn drop(&mut self) {
        if let Some((shelf, name)) = &self.kept {
            shelf.remove(name);
        }
    }
}

impl HostNet {
    /// The host's sockets, with the kernel's answer to who owns one.
    pub fn new(owner: Owner) -> Self {
        Self { owner, claimed: Arc::default(), captured: Arc::default(), names: Names::default(), shelf: None }
    }

    /// The same, whose listeners outlive the process.
    pub fn with_shelf(self, shelf: Arc<dyn Shelf>) -> Self {
        Self { shelf: Some(shelf), ..self }
    }

    /// What the process before this one has left at an address.
    fn left(&self, address: SocketAddr) -> io::Result<Option<HostListener>> {
        let Some(shelf) = &self.shelf else { return Ok(None) };
        let Some((name, listener)) = shelf.take(address) else { return Ok(None) };
        listener.set_nonblocking(true)?;
        let inner = TcpListener::from_std(listener)?;
        Ok(Some(HostListener { inner, kept: Some((shelf.clone(), name)) }))
    }

    /// The kernel sends connections to this address that went elsewhere; their own end is where they went.
    pub fn capture(&self, address: SocketAddr) {
        let _ = self.captured.set(address);
    }
}

/// Fails with `AddrInUse` where another process listens already. Shared listening alone would not tell: two processes
/// of one user may share an address without knowing of each other.
fn claim(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

impl Net for HostNet {
    type Stream = HostStream;
    type Listener = HostListener;

    fn listen(&self, address: SocketAddr) -> io::Result<HostListener> {
        let mut claimed = self.claimed.lock();
        if let Some(left) = self.left(address)? {
            claimed.insert(address);
            return Ok(left);
        }
        if !claimed.contains(&address) {
            claim(address)?;
            claimed.insert(address);
        }
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if self.captured.get() == Some(&address) {
            socket.set_ip_transparent_v4(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let kept = self.shelf.as_ref().map(|shelf| (shelf.clone(), shelf.put(socket.as_fd())));
        let inner = TcpListener::from_std(StdListener::from(socket))?;
        Ok(HostListener { inner, kept })
    }

    async fn dial(&self, address: SocketAddr) -> io::Result<HostStream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        if !address.ip().is_loopback() {
            SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        }
        Ok(HostStream(Arc::new(stream)))
    }

    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        self.names.resolve(host).await
    }

    fn datagrams(&self, address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        // The kernel caps these at net.core.{r,w}mem_max; a smaller buffer costs losses, not correctness.
        let _ = socket.set_recv_buffer_size(DATAGRAM_BUFFER);
        let _ = socket.set_send_buffer_size(DATAGRAM_BUFFER);
        socket.bind(&address.into())?;
        quinn::TokioRuntime.wrap_udp_socket(socket.into())
    }

    fn meant(&self, stream: &HostStream) -> Option<SocketAddr> {
        let socket = SockRef::from(&*stream.0);
        let is_ipv4 = stream.0.local_addr().ok()?.ip().to_canonical().is_ipv4();
        let meant = if is_ipv4 { socket.original_dst_v4() } else { socket.original_dst_v6() };
        meant.ok()?.as_socket()
    }

    fn owner(&self, ours: SocketAddr, theirs: SocketAddr) -> Option<Process> {
        (self.owner)(ours, theirs)
    }
}

impl Stream for HostStream {
    fn abort(&mut self) {
        // It fails only where the connection is gone already.
        let _ = SockRef::from(&*self.0).set_linger(Some(Duration::ZERO));
    }

    fn handle(&self) -> Option<Handle> {
        Some(Arc::new(Beside(Arc::downgrade(&self.0))))
    }
}

/// A connection that something else reads and writes.
#[derive(Debug)]
struct Beside(Weak<TcpStream>);

impl Aside for Beside {
    fn is_spent(&self) -> bool {
        self.0.upgrade().is_none_or(|stream| is_spent(&stream))
    }

    fn abort(&self) {
        if let Some(stream) = self.0.upgrade() {
            // It fails only where the connection is gone already.
            let _ = SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
        }
    }

    fn reset(&self) -> BoxFuture<'static, ()> {
        let stream = self.0.clone();
        Box::pin(async move {
            if let Some(stream) = stream.upgrade()
                && stream.ready(Interest::ERROR).await.is_ok()
            {
                return;
            }
            // What cannot be watched tells when it is read or written.
            pending::<()>().await;
        })
    }
}

impl Listener for HostListener {
    type Stream = HostStream;

    async fn accept(&mut self) -> io::Result<Accepted<HostStream>> {
        let (stream, theirs) = self.inner.accept().await?;
        stream.set_nodelay(true)?;
        let ours = stream.local_addr()?;
        Ok(Accepted { stream: HostStream(Arc::new(stream)), ours, theirs })
    }

    fn local_address(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

impl AsyncRead for HostStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(drop)),
            }
        }
    }
}

/// Whether anything but silence is to be read: the end, an error, or bytes.
fn is_spent(stream: &TcpStream) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    let peeked = SockRef::from(stream).recv_with_flags(&mut byte, PEEK);
    !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

impl HostStream {
    fn poll_try<T>(&self, cx: &mut Context<'_>, attempt: impl Fn(&TcpStream) -> io::Result<T>) -> Poll<io::Result<T>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match attempt(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl AsyncWrite for HostStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_try(cx, |stream| stream.try_write(data))
    }

    /// Few bytes in several pieces are put together first: a plain write of them is cheaper for the kernel.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = pieces {
            return self.poll_try(cx, |stream| stream.try_write(only));
        }
        let mut together = [0; TOGETHER_MAX];
        let mut length = 0;
        for piece in pieces {
            let Some(place) = together.get_mut(length..length + piece.len()) else {
                return self.poll_try(cx, |stream| stream.try_write_vectored(pieces));
            };
            place.copy_from_slice(piece);
            length += piece.len();
        }
        self.poll_try(cx, |stream| stream.try_write(&together[..length]))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(Shutdown::Write))
    }
}
