//! Faults begin and end, on real hosts.

use super::inhabitant::Order;
use super::relay::Delay;
use super::{Chaos, Stop};
use crate::faults::{Fault, FaultKind};
use crate::trace::Kind;

/// Of so many cycles that a process lives one is its last, in a storm.
const STORM_CYCLES: u64 = 15;
/// No delay.
const NONE: Delay = Delay { least: 0, most: 0 };

impl Chaos {
    pub(super) async fn begin(&mut self, fault: &Fault) -> Result<(), Stop> {
        let count = self.setup.nodes;
        let (pick, other, amount) = self.choice(fault);
        let text = format!("{} begins: n{pick}, n{other}, {} ms", fault.kind, fault.lasts);
        self.trace.add(self.now(), None, Kind::Fault, text);
        match fault.kind {
            FaultKind::Kill => self.fall(pick).await,
            FaultKind::Blackout => {
                for host in 0..count {
                    self.fall(host).await;
                }
            }
            FaultKind::Partition => {
                let parted = |a: usize, b: usize| (amount >> a) & 1 != (amount >> b) & 1;
                let ways = (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
                let ways: Vec<_> = ways.filter(|(a, b)| parted(*a, *b)).collect();
                self.stage.drop_packets(&ways, 0).await?;
            }
            FaultKind::OneWay => self.stage.drop_packets(&[(pick, other)], 0).await?,
            FaultKind::Isolate => {
                let others = (0..count).filter(|other| *other != pick);
                let ways: Vec<_> = others.flat_map(|other| [(pick, other), (other, pick)]).collect();
                self.stage.drop_packets(&ways, 0).await?;
            }
            FaultKind::Loss => self.stage.drop_packets(&[], 10 + amount % 200).await?,
            FaultKind::Delay => self.stage.delay(Delay { least: 5, most: 20 + amount % 400 }).await?,
            FaultKind::Freeze => {
                self.frozen.push(pick);
                self.stage.freeze(pick, true).await?;
            }
            FaultKind::Clock => self.stage.skew(pick, i64::try_from(amount % 240).unwrap_or(0) - 120)?,
            FaultKind::FullDisk => self.stage.fill_up(pick, true).await?,
            FaultKind::Storm => self.storms.push(pick),
            FaultKind::Application => self.stage.order(pick, None, &Order::Open(false)).await?,
            kind => return Err(Stop::Stage(format!("{kind} is not for real hosts"))),
        }
        Ok(())
    }

    pub(super) async fn end(&mut self, fault: &Fault) -> Result<(), Stop> {
        let (pick, ..) = self.choice(fault);
        self.trace.add(self.now(), None, Kind::Fault, format!("{} ends", fault.kind));
        match fault.kind {
            FaultKind::Kill => self.rise(pick)?,
            FaultKind::Blackout => (0..self.setup.nodes).try_for_each(|host| self.rise(host))?,
            FaultKind::Partition | FaultKind::OneWay | FaultKind::Isolate | FaultKind::Loss => {
                self.stage.drop_packets(&[], 0).await?;
            }
            FaultKind::Delay => self.stage.delay(NONE).await?,
            FaultKind::Freeze => {
                self.frozen.retain(|host| *host != pick);
                self.stage.freeze(pick, false).await?;
            }
            FaultKind::Clock => self.stage.skew(pick, 0)?,
            FaultKind::FullDisk => self.stage.fill_up(pick, false).await?,
            FaultKind::Storm => self.storms.retain(|host| *host != pick),
            FaultKind::Application => self.stage.order(pick, None, &Order::Open(true)).await?,
            _ => {}
        }
        Ok(())
    }

    /// Which host, which other one, how much.
    fn choice(&self, fault: &Fault) -> (usize, usize, u64) {
        let count = self.setup.nodes as u64;
        let number = |value: u64| usize::try_from(value).unwrap_or(0);
        let pick = fault.choice % count;
        let other = (pick + 1 + (fault.choice >> 8) % (count - 1).max(1)) % count;
        (number(pick), number(other), fault.choice >> 16)
    }

    /// Nothing is wrong any more.
    pub(super) async fn relent(&mut self) -> Result<(), Stop> {
        self.stage.drop_packets(&[], 0).await?;
        self.stage.delay(NONE).await?;
        self.storms.clear();
        self.frozen.clear();
        for host in 0..self.setup.nodes {
            self.stage.freeze(host, false).await?;
            self.stage.skew(host, 0)?;
            self.stage.fill_up(host, false).await?;
            self.stage.order(host, None, &Order::Open(true)).await?;
            self.rise(host)?;
        }
        self.trace.add(self.now(), None, Kind::Fault, "no more faults");
        Ok(())
    }

    /// Processes that end again and again do.
    pub(super) fn storm(&mut self, now: u64) -> Vec<usize> {
        let mut due = Vec::new();
        for host in self.storms.clone() {
            if self.stage.is_up(host) && self.dice.chance(STORM_CYCLES) {
                self.restarts.push((now + self.dice.range(5, 1_000), host));
                due.push(host);
            }
        }
        due
    }

    pub(super) async fn fall(&mut self, host: usize) {
        self.stage.kill(host).await;
        self.claims.ended(host);
    }

    pub(super) fn rise(&mut self, host: usize) -> Result<(), String> {
        if self.stage.is_up(host) {
            return Ok(());
        }
        let line = self.line.clone();
        self.stage.start(host, &["--join", &line])?;
        self.started[host] = self.now();
        self.trace.add(self.now(), Some(host), Kind::Node, "starts");
        Ok(())
    }
}
