//! Faults begin and end.

use weft::config::Start;

use super::Run;
use crate::faults::{Fault, FaultKind};
use crate::host::Host;
use crate::trace::Kind;

impl Run {
    pub(super) fn begin(&mut self, fault: &Fault) {
        let count = self.hosts.len();
        let pick = usize::try_from(fault.choice % count as u64).unwrap_or(0);
        let other = (pick + 1 + usize::try_from((fault.choice >> 8) % (count as u64 - 1).max(1)).unwrap_or(0)) % count;
        let amount = fault.choice >> 16;
        let now = self.network.now();
        self.trace.add(now, None, Kind::Fault, format!("{} begins: n{pick}, n{other}, {} ms", fault.kind, fault.lasts));
        match fault.kind {
            FaultKind::Kill | FaultKind::Power => self.fall(pick, fault.kind == FaultKind::Power),
            FaultKind::BitFlip => {
                // Without a majority of the voters' disks nothing heals by itself, and need not.
                let spare = self.may_lose_a_disk();
                self.fall(pick, true);
                if spare {
                    self.hosts[pick].disk().flip_bit();
                }
            }
            FaultKind::Blackout => (0..count).for_each(|host| self.fall(host, true)),
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
        }
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
            FaultKind::Kill | FaultKind::Power | FaultKind::BitFlip => self.rise(pick),
            FaultKind::Blackout => (0..count).for_each(|host| self.rise(host)),
            FaultKind::Partition | FaultKind::OneWay | FaultKind::Isolate | FaultKind::Flap => {
                self.network.change(|conditions| conditions.cut.clear());
            }
            FaultKind::Loss => self.network.change(|conditions| conditions.loss = 0),
            FaultKind::Delay => self.network.change(|conditions| conditions.latency = (1, 3)),
            FaultKind::Freeze => self.hosts[pick].freeze(0),
            FaultKind::Clock => self.hosts[pick].world().skew(0),
            FaultKind::SlowDisk => self.hosts.iter().for_each(|host| host.disk().slow(None)),
            FaultKind::FullDisk => self.hosts[pick].disk().fill_up(false),
        }
    }

    pub(super) fn fall(&mut self, host: usize, power: bool) {
        self.hosts[host].kill(power);
        self.agreement.ended(host);
        self.authorization.ended(host);
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
