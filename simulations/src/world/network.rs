//! A network in memory: streams between hosts that keep their order, with latency, loss, cuts, and ends that die.
//!
//! Loss costs time, as it does on TCP. What is sent into a cut waits, and arrives after it. There are no datagrams, so
//! nodes take TCP for everything, as they do where UDP is blocked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use weft_proxy::net::Accepted;

use crate::dice::Dice;

mod stream;

pub use stream::{SimListener, SimNet, SimStream};

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
    /// By how many milliseconds the date is ahead of the run: days that were passed over.
    pub passed_over: u64,
}

/// A connection: what `a` sends to `b` and back.
struct Pipe {
    hosts: [HostId; 2],
    /// Whose process has opened it.
    user: Option<u32>,
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

    /// Milliseconds by which the date is ahead of that.
    pub fn passed_over(&self) -> u64 {
        self.inner.lock().conditions.passed_over
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
