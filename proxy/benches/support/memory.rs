//! Sockets in memory: what is counted is Weft's own work, and the same work every time.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use parking_lot::Mutex;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use weft_proxy::net::{Accepted, Listener, Net};

/// Bytes that are under way in one direction before the writer waits: what Linux gives a new socket, about.
const BUFFER: usize = 256 << 10;

/// All sockets of all nodes.
#[derive(Clone, Default)]
pub(crate) struct MemoryNet(Arc<Shared>);

#[derive(Default)]
struct Shared {
    listeners: Mutex<BTreeMap<SocketAddr, mpsc::UnboundedSender<Accepted<DuplexStream>>>>,
    last_port: AtomicU16,
}

/// A listener in memory.
pub(crate) struct MemoryListener {
    address: SocketAddr,
    arrivals: mpsc::UnboundedReceiver<Accepted<DuplexStream>>,
}

impl Net for MemoryNet {
    type Stream = DuplexStream;
    type Listener = MemoryListener;

    fn listen(&self, address: SocketAddr) -> io::Result<MemoryListener> {
        let (sender, arrivals) = mpsc::unbounded_channel();
        self.0.listeners.lock().insert(address, sender);
        Ok(MemoryListener { address, arrivals })
    }

    async fn dial(&self, address: SocketAddr) -> io::Result<DuplexStream> {
        let (near, far) = tokio::io::duplex(BUFFER);
        let port = self.0.last_port.fetch_add(1, Ordering::Relaxed);
        let theirs = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listeners = self.0.listeners.lock();
        let listener = listeners.get(&address).ok_or(io::ErrorKind::ConnectionRefused)?;
        listener.send(Accepted { stream: far, ours: address, theirs }).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(near)
    }

    fn datagrams(&self, _: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn owner(&self, _: SocketAddr, _: SocketAddr) -> Option<weft_proxy::net::Process> {
        None
    }
}

impl Listener for MemoryListener {
    type Stream = DuplexStream;

    async fn accept(&mut self) -> io::Result<Accepted<DuplexStream>> {
        self.arrivals.recv().await.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    fn local_address(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
