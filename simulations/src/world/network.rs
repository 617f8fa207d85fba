//! A network in memory: streams between hosts that keep their order, with latency, loss, cuts, and ends that die.
//!
//! Loss costs time, as it does on TCP. What is sent into a cut waits, and arrives after it. There are no datagrams, so
//! nodes take TCP for everything, as they do where UDP is blocked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use weft_proxy::net::{Accepted, Listener, Net, Stream};

use crate::dice::Dice;

/// A host, counted from 0.
pub type HostId = usize;

/// All hosts' connections.
pub struct Network {
    inner: Mutex<Inner>,
}

struct Inner {
    now: u64,
    dice: Dice,
    up: Vec<bool>,
    listeners: BTreeMap<(HostId, SocketAddr), mpsc::UnboundedSender<Accepted<SimStream>>>,
    pipes: BTreeMap<u64, Pipe>,
    next_pipe: u64,
    /// When something arrives: moment, pipe, direction.
    due: BTreeSet<(u64, u64, bool)>,
    conditions: Conditions,
}

/// What is wrong with the network.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    /// Ways, from host to host, on which nothing arrives.
    pub cut: BTreeSet<(HostId, HostId)>,
    /// Of a thousand segments so many are lost and come later.
    pub loss: u64,
    /// One-way latency in milliseconds.
    pub latency: (u64, u64),
}

/// A connection: what `a` sends to `b` and back.
struct Pipe {
    hosts: [HostId; 2],
    halves: [Half; 2],
}

/// One direction.
#[derive(Default)]
struct Half {
    /// Sent: arrives then.
    flying: VecDeque<(u64, Segment)>,
    arrived: VecDeque<Segment>,
    bytes: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// The writing end has ended it.
    closed: bool,
    /// The reading end is gone without a word.
    deaf: bool,
    /// It has been reset.
    reset: bool,
}

#[derive(Debug)]
enum Segment {
    Data(Bytes),
    End,
    Reset,
}

/// Bytes under way in one direction before the writer waits.
const WINDOW: usize = 256 << 10;
/// How long a lost segment takes to be sent again, in milliseconds.
const RETRANSMISSION: u64 = 200;
/// Pause between attempts to connect to a host that does not answer.
const CONNECT_RETRY: Duration = Duration::from_secs(1);

impl Network {
    /// A network of so many hosts, all of them down.
    pub fn new(hosts: usize, seed: u64) -> Arc<Self> {
        let conditions = Conditions { latency: (1, 3), ..Conditions::default() };
        Arc::new(Self {
            inner: Mutex::new(Inner {
                now: 0,
                dice: Dice::new(seed, "network"),
                up: vec![false; hosts],
                listeners: BTreeMap::new(),
                pipes: BTreeMap::new(),
                next_pipe: 0,
                due: BTreeSet::new(),
                conditions,
            }),
        })
    }

    /// Milliseconds since the run began.
    pub fn now(&self) -> u64 {
        self.inner.lock().now
    }

    /// Lets time pass and delivers what arrives in it.
    pub fn advance(&self, millis: u64) {
        let mut wakers = Vec::new();
        {
            let mut inner = self.inner.lock();
            inner.now += millis;
            let now = inner.now;
            while let Some(&(at, pipe, back)) = inner.due.first().filter(|(at, ..)| *at <= now) {
                inner.due.remove(&(at, pipe, back));
                inner.deliver(pipe, back, &mut wakers);
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Changes what is wrong. What a cut held back is on its way again once it is gone.
    pub fn change(&self, change: impl FnOnce(&mut Conditions)) {
        let mut inner = self.inner.lock();
        change(&mut inner.conditions);
        let now = inner.now;
        let waiting: Vec<(u64, bool)> = inner
            .pipes
            .iter()
            .flat_map(|(id, pipe)| [(*id, false, &pipe.halves[0]), (*id, true, &pipe.halves[1])])
            .filter(|(_, _, half)| half.flying.front().is_some_and(|(at, _)| *at <= now))
            .map(|(id, back, _)| (id, back))
            .collect();
        for (id, back) in waiting {
            let (from, to) = inner.ways(id, back);
            let delay = inner.delay(from, to);
            inner.due.insert((now + delay, id, back));
        }
    }

    /// A host starts.
    pub fn rise(&self, host: HostId) {
        self.inner.lock().up[host] = true;
    }

    /// A host's process ends: the system resets its connections. With `silently` the host is gone and says nothing.
    pub fn fall(&self, host: HostId, silently: bool) {
        let mut wakers = Vec::new();
        {
            let mut inner = self.inner.lock();
            inner.up[host] = !silently;
            inner.listeners.retain(|(owner, _), _| *owner != host);
            let ids: Vec<u64> =
                inner.pipes.iter().filter(|(_, pipe)| pipe.hosts.contains(&host)).map(|(id, _)| *id).collect();
            for id in ids {
                for side in 0..2 {
                    if inner.pipes.get(&id).is_some_and(|pipe| pipe.hosts[side] == host) {
                        inner.lose_end(id, side, silently, &mut wakers);
                    }
                }
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Connections, for bounds.
    pub fn connections(&self) -> usize {
        self.inner.lock().pipes.len()
    }
}

impl Inner {
    fn ways(&self, pipe: u64, back: bool) -> (HostId, HostId) {
        let hosts = self.pipes.get(&pipe).map_or([0, 0], |pipe| pipe.hosts);
        if back { (hosts[1], hosts[0]) } else { (hosts[0], hosts[1]) }
    }

    fn delay(&mut self, from: HostId, to: HostId) -> u64 {
        if from == to {
            return 0;
        }
        let (least, most) = self.conditions.latency;
        let mut delay = self.dice.range(least, most.max(least + 1));
        let mut again = RETRANSMISSION;
        while self.conditions.loss > 0 && self.dice.range(0, 1000) < self.conditions.loss && again < 10_000 {
            delay += again;
            again *= 2;
        }
        delay
    }

    fn send(&mut self, pipe: u64, back: bool, segment: Segment) {
        let (from, to) = self.ways(pipe, back);
        let at = self.now + self.delay(from, to);
        let Some(half) = self.pipes.get_mut(&pipe).map(|pipe| &mut pipe.halves[usize::from(back)]) else { return };
        let at = half.flying.back().map_or(at, |(last, _)| at.max(*last));
        if let Segment::Data(data) = &segment {
            half.bytes += data.len();
        }
        half.flying.push_back((at, segment));
        self.due.insert((at.max(self.now + 1), pipe, back));
    }

    fn deliver(&mut self, id: u64, back: bool, wakers: &mut Vec<Waker>) {
        let (from, to) = self.ways(id, back);
        if self.conditions.cut.contains(&(from, to)) {
            return;
        }
        let (now, up) = (self.now, self.up[to]);
        let mut refuse = false;
        if let Some(pipe) = self.pipes.get_mut(&id) {
            let half = &mut pipe.halves[usize::from(back)];
            while half.flying.front().is_some_and(|(at, _)| *at <= now) {
                let Some((_, segment)) = half.flying.pop_front() else { break };
                if half.deaf {
                    refuse |= up && !matches!(segment, Segment::Reset);
                    continue;
                }
                if matches!(segment, Segment::Reset) {
                    half.reset = true;
                    half.arrived.clear();
                }
                half.arrived.push_back(segment);
            }
            let reset = half.reset;
            wakers.extend(half.reader.take());
            if let Some((at, _)) = half.flying.front() {
                let at = (*at).max(now + 1);
                self.due.insert((at, id, back));
            }
            if reset {
                // Whoever writes the other way learns it too.
                let other = &mut pipe.halves[usize::from(!back)];
                other.reset = true;
                wakers.extend(other.writer.take());
            }
        }
        if refuse {
            self.send(id, !back, Segment::Reset);
        }
        self.forget_ended(id);
    }

    /// One end is gone.
    fn lose_end(&mut self, id: u64, side: usize, silently: bool, wakers: &mut Vec<Waker>) {
        let out = side == 1;
        if let Some(pipe) = self.pipes.get_mut(&id) {
            let (outward, inward) = if out { (1, 0) } else { (0, 1) };
            pipe.halves[inward].deaf = true;
            pipe.halves[outward].closed = true;
            if silently {
                pipe.halves[outward].flying.clear();
            }
            wakers.extend(pipe.halves[inward].writer.take());
        }
        if !silently {
            self.send(id, out, Segment::Reset);
        }
        self.forget_ended(id);
    }

    fn forget_ended(&mut self, id: u64) {
        let ended = self.pipes.get(&id).is_some_and(|pipe| pipe.halves.iter().all(|half| half.deaf && half.closed));
        if ended {
            self.pipes.remove(&id);
        }
    }
}

/// One host's share of the network.
#[derive(Clone)]
pub struct SimNet {
    network: Arc<Network>,
    host: HostId,
}

impl SimNet {
    /// The host's.
    pub fn new(network: Arc<Network>, host: HostId) -> Self {
        Self { network, host }
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

    fn host_of(address: IpAddr) -> Option<HostId> {
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
        inner.pipes.insert(id, Pipe { hosts: [self.host, to], halves: Default::default() });
        drop(inner);
        let port = u16::try_from(20_000 + id % 40_000).unwrap_or(20_000);
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

    fn owner(&self, _: SocketAddr, _: SocketAddr) -> Option<u32> {
        None
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
