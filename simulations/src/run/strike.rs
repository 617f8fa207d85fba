//! Faults begin and end.

use std::net::SocketAddr;

use weft::config::Start;

use super::Run;
use crate::faults::{Fault, FaultKind};
use crate::host::{Host, MESH_PORT};
use crate::trace::Kind;
use crate::world::network::SimNet;

/// Of so many steps a process lives one is its last, in a storm.
const STORM_STEPS: u64 = 200;
/// By how many milliseconds a clock leaps: one to five days, ahead or back.
fn leap(amount: u64) -> i64 {
    let days = i64::try_from(1 + amount % 5).unwrap_or(1) * DAY_MS;
    if amount & 8 == 0 { days } else { -days }
}

const DAY_MS: i64 = 24 * 60 * 60 * 1000;
const PASSED_OVER_MAX: u64 = 25 * 24 * 60 * 60 * 1000;

impl Run {
    pub(super) fn begin(&mut self, fault: &Fault) {
        let count = self.hosts.len();
        let pick = usize::try_from(fault.choice % count as u64).unwrap_or(0);
        let other = (pick + 1 + usize::try_from((fault.choice >> 8) % (count as u64 - 1).max(1)).unwrap_or(0)) % count;
        let amount = fault.choice >> 16;
        let now = self.network.now();
        self.trace.add(now, None, Kind::Fault, format!("{} begins: n{pick}, n{other}, {} ms", fault.kind, fault.lasts));
        match fault.kind {
            FaultKind::Kill | FaultKind::Power | FaultKind::Holiday => self.fall(pick, fault.kind != FaultKind::Kill),
            FaultKind::BitFlip | FaultKind::Wipe => {
                // Without a majority of the voters' disks nothing heals by itself, and need not.
                let spare = self.may_lose_a_disk();
                self.fall(pick, true);
                match fault.kind {
                    _ if !spare => {}
                    FaultKind::Wipe => self.wipe(pick),
                    _ => drop(self.hosts[pick].disk().flip_bit()),
                }
            }
            FaultKind::Blackout | FaultKind::Weekend => (0..count).for_each(|host| self.fall(host, true)),
            FaultKind::Outage => {
                self.majority_from(pick).for_each(|host| self.fall(host, true));
                self.pass_over(2 + amount % 3);
            }
            FaultKind::Leap => self.hosts[pick].world().skew(leap(amount)),
            FaultKind::Partition | FaultKind::Flap => self.network.change(|conditions| {
                for a in 0..count {
                    for b in (0..count).filter(|b| (amount >> a) & 1 != (amount >> b) & 1) {
                        conditions.cut.insert((a, b));
                    }
                }
            }),
            FaultKind::OneWay => self.network.change(|conditions| conditions.cut.extend([(pick, other)])),
            FaultKind::Isolate => self.network.change(|conditions| {
                for other in (0..count).filter(|other| *other != pick) {
                    conditions.cut.extend([(pick, other), (other, pick)]);
                }
            }),
            FaultKind::Loss => self.network.change(|conditions| conditions.loss = 10 + amount % 200),
            FaultKind::Delay => self.network.change(|conditions| conditions.latency = (5, 20 + amount % 400)),
            FaultKind::Freeze => self.hosts[pick].freeze(now + fault.lasts),
            FaultKind::Clock => {
                let off = i64::try_from(amount % 240_000).unwrap_or(0) - 120_000;
                self.hosts[pick].world().skew(off);
            }
            FaultKind::SlowDisk => {
                // Half of the time everywhere, as where all share what is below them.
                let strikes = |host: &usize| *host == pick || amount & 1 == 0;
                for host in (0..count).filter(strikes) {
                    self.hosts[host].disk().slow(Some((50, 100 + amount % 900)));
                }
            }
            FaultKind::FullDisk => self.hosts[pick].disk().fill_up(true),
            FaultKind::Storm => self.storms.push(pick),
            FaultKind::Application => self.hosts[pick].open(false),
            FaultKind::Overload => self.overloads.push(pick),
            FaultKind::Stranger => self.intrude(pick, amount),
        }
    }

    /// A fresh disk and a new name.
    pub(super) fn wipe(&mut self, host: usize) {
        let (network, seed) = (self.network.clone(), self.setup.seed);
        self.hosts[host].wipe(&network, seed);
    }

    /// Processes that end again and again do.
    pub(super) fn storm(&mut self, now: u64) {
        for host in self.storms.clone() {
            if self.hosts[host].is_up() && self.dice.chance(STORM_STEPS) {
                self.fall(host, false);
                self.restarts.push((now + self.dice.range(5, 1_000), host));
            }
        }
    }

    /// A stranger sends this and that to the port of a host, and listens for what comes back.
    fn intrude(&mut self, host: usize, amount: u64) {
        let net = SimNet::new(self.network.clone(), self.hosts.len());
        let address = SocketAddr::new(SimNet::address(host), MESH_PORT);
        let mut noise = vec![0; 1 + usize::try_from(amount % 3000).unwrap_or(0)];
        self.dice.fill(&mut noise);
        let mut hello = vec![22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
        hello.extend_from_slice(&noise);
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        for what in [noise, hello, preface, b"GET /metrics HTTP/1.1\r\nHost: n0\r\n\r\n".to_vec(), Vec::new()] {
            self.hosts[host].be_intruded(net.clone(), address, what);
        }
    }

    /// More than half of the hosts, beginning with this one.
    fn majority_from(&self, first: usize) -> impl Iterator<Item = usize> + use<> {
        let count = self.hosts.len();
        (0..=count / 2).map(move |n| (first + n) % count)
    }

    /// The date moves on by so many days.
    fn pass_over(&self, days: u64) {
        self.network.change(|conditions| {
            let later = conditions.passed_over + days * u64::try_from(DAY_MS).unwrap_or(0);
            // Tokens live for 30 days, and hosts join by them again.
            if later < PASSED_OVER_MAX {
                conditions.passed_over = later;
            }
        });
    }

    /// Whether every voter that any node knows of is there, on the disk that it voted with.
    fn may_lose_a_disk(&self) -> bool {
        let nodes: Vec<_> = self.hosts.iter().filter_map(Host::node).collect();
        let names: Vec<_> = nodes.iter().map(|node| node.name().clone()).collect();
        let all = nodes.iter().all(|node| node.raft_status().voters.iter().all(|voter| names.contains(voter)));
        all && nodes.len() == self.hosts.len() && nodes.len() > 2
    }

    pub(super) fn end(&mut self, fault: &Fault) {
        let count = self.hosts.len();
        let pick = usize::try_from(fault.choice % count as u64).unwrap_or(0);
        self.trace.add(self.network.now(), None, Kind::Fault, format!("{} ends", fault.kind));
        match fault.kind {
            FaultKind::Kill | FaultKind::Power | FaultKind::BitFlip | FaultKind::Wipe => self.rise(pick),
            FaultKind::Weekend | FaultKind::Holiday => {
                // Whoever was not off has lived through it in an instant.
                self.pass_over(2 + (fault.choice >> 16) % 3);
                let everybody = fault.kind == FaultKind::Weekend;
                (0..count).filter(|host| everybody || *host == pick).for_each(|host| self.rise(host));
            }
            FaultKind::Outage => self.majority_from(pick).for_each(|host| self.rise(host)),
            FaultKind::Blackout => (0..count).for_each(|host| self.rise(host)),
            FaultKind::Partition | FaultKind::OneWay | FaultKind::Isolate | FaultKind::Flap => {
                self.network.change(|conditions| conditions.cut.clear());
            }
            FaultKind::Loss => self.network.change(|conditions| conditions.loss = 0),
            FaultKind::Delay => self.network.change(|conditions| conditions.latency = (1, 3)),
            FaultKind::Freeze => self.hosts[pick].freeze(0),
            FaultKind::Clock | FaultKind::Leap => self.hosts[pick].world().skew(0),
            FaultKind::SlowDisk => self.hosts.iter().for_each(|host| host.disk().slow(None)),
            FaultKind::FullDisk => self.hosts[pick].disk().fill_up(false),
            FaultKind::Storm => self.storms.retain(|host| *host != pick),
            FaultKind::Application => self.hosts[pick].open(true),
            FaultKind::Overload => self.overloads.retain(|host| *host != pick),
            FaultKind::Stranger => {}
        }
    }

    pub(super) fn fall(&mut self, host: usize, power: bool) {
        self.hosts[host].kill(power);
        self.agreement.ended(host);
        self.claims.ended(host);
        self.retries.ended(host, self.network.now());
    }

    pub(super) fn rise(&mut self, host: usize) {
        if self.hosts[host].is_up() {
            return;
        }
        // A disk with a node on it is resumed, whatever the line says.
        let line = self.line_of(host);
        self.hosts[host].start(Start::Join { line });
        self.trace.add(self.network.now(), Some(host), Kind::Node, "starts");
    }
}
