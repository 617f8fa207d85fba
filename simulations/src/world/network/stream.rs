//! One host's share of the network: what its node dials, listens on, reads and writes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use weft_proxy::net::{Accepted, Listener, Net, Process, Stream};

use super::{HostId, Network, Pipe, Segment, WINDOW};

/// One host's share of the network.
#[derive(Clone)]
pub struct SimNet {
    network: Arc<Network>,
    host: HostId,
    user: Option<u32>,
}

/// Ports that connections come from.
const PORTS: (u64, u64) = (20_000, 40_000);

fn port_of(pipe: u64) -> u16 {
    u16::try_from(PORTS.0 + pipe % PORTS.1).unwrap_or(0)
}

impl SimNet {
    /// The host's.
    pub fn new(network: Arc<Network>, host: HostId) -> Self {
        Self { network, host, user: None }
    }

    /// The same for a process of that user.
    pub fn of_user(&self, user: u32) -> Self {
        Self { user: Some(user), ..self.clone() }
    }

    /// All of it.
    pub fn network(&self) -> &Arc<Network> {
        &self.network
    }

    /// A host's address.
    pub fn address(host: HostId) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(
            10,
            0,
            u8::try_from(host / 250).unwrap_or(0),
            u8::try_from(host % 250 + 1).unwrap_or(0),
        ))
    }

    /// The host of an address.
    pub fn host_of(address: IpAddr) -> Option<HostId> {
        let IpAddr::V4(address) = address else { return None };
        let [10, 0, high, low] = address.octets() else { return None };
        Some(usize::from(high) * 250 + usize::from(low).checked_sub(1)?)
    }

    fn try_dial(&self, to: HostId, address: SocketAddr) -> Option<io::Result<SimStream>> {
        let mut inner = self.network.inner.lock();
        let blocked = |a, b| inner.conditions.cut.contains(&(a, b));
        if !inner.up.get(to).copied().unwrap_or(false) || blocked(self.host, to) || blocked(to, self.host) {
            return None;
        }
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
        let listener = inner.listeners.get(&(to, address)).or_else(|| inner.listeners.get(&(to, any))).cloned();
        let Some(listener) = listener else { return Some(Err(io::ErrorKind::ConnectionRefused.into())) };
        let id = inner.next_pipe;
        inner.next_pipe += 1;
        inner.pipes.insert(id, Pipe { hosts: [self.host, to], user: self.user, halves: Default::default() });
        drop(inner);
        let port = port_of(id);
        let from = if self.host == to && address.ip().is_loopback() { address.ip() } else { Self::address(self.host) };
        let theirs = SocketAddr::new(from, port);
        let stream = |side| SimStream { network: self.network.clone(), id, side };
        let accepted = Accepted { stream: stream(1), ours: address, theirs };
        let ours = stream(0);
        Some(match listener.send(accepted) {
            Ok(()) => Ok(ours),
            Err(_) => Err(io::ErrorKind::ConnectionRefused.into()),
        })
    }
}

impl Net for SimNet {
    type Stream = SimStream;
    type Listener = SimListener;

    fn listen(&self, address: SocketAddr) -> io::Result<SimListener> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut inner = self.network.inner.lock();
        let slot = inner.listeners.entry((self.host, address));
        if let std::collections::btree_map::Entry::Occupied(taken) = &slot
            && !taken.get().is_closed()
        {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        slot.insert_entry(sender);
        Ok(SimListener { receiver, address })
    }

    async fn dial(&self, address: SocketAddr) -> io::Result<SimStream> {
        let to = if address.ip().is_loopback() { Some(self.host) } else { Self::host_of(address.ip()) };
        let to = to.ok_or(io::ErrorKind::AddrNotAvailable)?;
        loop {
            let delay = {
                let mut inner = self.network.inner.lock();
                inner.delay(self.host, to) + inner.delay(to, self.host)
            };
            tokio::time::sleep(Duration::from_millis(delay)).await;
            match self.try_dial(to, address) {
                Some(outcome) => return outcome,
                None => tokio::time::sleep(CONNECT_RETRY).await,
            }
        }
    }

    fn datagrams(&self, _: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn owner(&self, _: SocketAddr, theirs: SocketAddr) -> Option<Process> {
        let inner = self.network.inner.lock();
        let from_here = |(id, pipe): &(&u64, &Pipe)| pipe.hosts[0] == self.host && port_of(**id) == theirs.port();
        inner.pipes.iter().rev().find(from_here).and_then(|(_, pipe)| pipe.user).map(Process::of_user)
    }
}

/// Takes connections of a host.
pub struct SimListener {
    receiver: mpsc::UnboundedReceiver<Accepted<SimStream>>,
    address: SocketAddr,
}

impl Listener for SimListener {
    type Stream = SimStream;

    async fn accept(&mut self) -> io::Result<Accepted<SimStream>> {
        self.receiver.recv().await.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    fn local_address(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// One end of a connection.
pub struct SimStream {
    network: Arc<Network>,
    id: u64,
    side: usize,
}

impl SimStream {
    /// What this end writes into.
    fn out(&self) -> usize {
        self.side
    }
}

impl Stream for SimStream {
    fn abort(&mut self) {
        let mut inner = self.network.inner.lock();
        let back = self.out() == 1;
        let open = inner.pipes.get_mut(&self.id).map(|pipe| &mut pipe.halves[self.side]);
        if let Some(half) = open
            && !half.closed
        {
            half.closed = true;
            inner.send(self.id, back, Segment::Reset);
        }
    }
}

impl AsyncRead for SimStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.network.inner.lock();
        let Some(pipe) = inner.pipes.get_mut(&self.id) else { return Poll::Ready(Ok(())) };
        let half = &mut pipe.halves[1 - self.side];
        match half.arrived.front_mut() {
            None => {
                half.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Some(Segment::End) => return Poll::Ready(Ok(())),
            Some(Segment::Reset) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Some(Segment::Data(data)) => {
                let taken = data.split_to(data.len().min(buffer.remaining()));
                buffer.put_slice(&taken);
                half.bytes -= taken.len();
                if data.is_empty() {
                    half.arrived.pop_front();
                }
            }
        }
        let writer = half.writer.take();
        drop(inner);
        writer.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.network.inner.lock();
        let back = self.out() == 1;
        let Some(pipe) = inner.pipes.get_mut(&self.id) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let half = &mut pipe.halves[self.side];
        if half.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if half.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if half.bytes >= WINDOW {
            half.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let length = data.len().min(WINDOW);
        inner.send(self.id, back, Segment::Data(Bytes::copy_from_slice(&data[..length])));
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.network.inner.lock();
        let back = self.out() == 1;
        if let Some(pipe) = inner.pipes.get_mut(&self.id)
            && !std::mem::replace(&mut pipe.halves[self.side].closed, true)
        {
            inner.send(self.id, back, Segment::End);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let mut wakers = Vec::new();
        {
            let mut inner = self.network.inner.lock();
            let back = self.out() == 1;
            let Some(pipe) = inner.pipes.get_mut(&self.id) else { return };
            let unread = pipe.halves[1 - self.side].arrived.iter().any(|segment| matches!(segment, Segment::Data(_)));
            let incoming = &mut pipe.halves[1 - self.side];
            incoming.deaf = true;
            incoming.arrived.clear();
            wakers.extend(incoming.writer.take());
            if !std::mem::replace(&mut pipe.halves[self.side].closed, true) {
                let segment = if unread { Segment::Reset } else { Segment::End };
                inner.send(self.id, back, segment);
            }
            inner.forget_ended(self.id);
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Pause between attempts to connect to a host that does not answer.
const CONNECT_RETRY: Duration = Duration::from_secs(1);
