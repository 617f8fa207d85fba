//! What goes wrong, drawn from the seed: each run switches a part of the kinds on, so that rare combinations come up.

use std::fmt;
use std::str::FromStr;

use crate::dice::Dice;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// A process is killed and started again.
    Kill,
    /// A host loses its power: what was not flushed is gone.
    Power,
    /// Hosts are parted into two groups that do not reach each other.
    Partition,
    /// Nothing arrives on one way between two hosts.
    OneWay,
    /// A host is alone.
    Isolate,
    /// Segments are lost.
    Loss,
    /// The network is slow.
    Delay,
    /// A link comes and goes.
    Flap,
    /// A process gets no processor.
    Freeze,
    /// A clock is wrong.
    Clock,
    /// A disk is slow.
    SlowDisk,
    /// A disk is full.
    FullDisk,
    /// A bit on a disk flips while the host is down.
    BitFlip,
    /// All processes end at once.
    Blackout,
    /// A host comes back with an empty disk and a new name.
    Wipe,
    /// A process ends again and again.
    Storm,
    /// The applications of a host end and come back.
    Application,
    /// Callers of a host call as fast as they can.
    Overload,
    /// Somebody who is no member sends what he likes to a node's port.
    Stranger,
    /// A clock jumps by days, and back.
    Leap,
    /// All hosts are off for days.
    Weekend,
    /// One host is off for days.
    Holiday,
    /// A majority is off for days, and what the others hold runs out meanwhile.
    Outage,
}

/// All kinds.
pub const KINDS: [FaultKind; 23] = [
    FaultKind::Kill,
    FaultKind::Power,
    FaultKind::Partition,
    FaultKind::OneWay,
    FaultKind::Isolate,
    FaultKind::Loss,
    FaultKind::Delay,
    FaultKind::Flap,
    FaultKind::Freeze,
    FaultKind::Clock,
    FaultKind::SlowDisk,
    FaultKind::FullDisk,
    FaultKind::BitFlip,
    FaultKind::Blackout,
    FaultKind::Wipe,
    FaultKind::Storm,
    FaultKind::Application,
    FaultKind::Overload,
    FaultKind::Stranger,
    FaultKind::Leap,
    FaultKind::Weekend,
    FaultKind::Holiday,
    FaultKind::Outage,
];

impl FaultKind {
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Power => "power",
            Self::Partition => "partition",
            Self::OneWay => "one-way",
            Self::Isolate => "isolate",
            Self::Loss => "loss",
            Self::Delay => "delay",
            Self::Flap => "flap",
            Self::Freeze => "freeze",
            Self::Clock => "clock",
            Self::SlowDisk => "slow-disk",
            Self::FullDisk => "full-disk",
            Self::BitFlip => "bit-flip",
            Self::Blackout => "blackout",
            Self::Wipe => "wipe",
            Self::Storm => "storm",
            Self::Application => "application",
            Self::Overload => "overload",
            Self::Stranger => "stranger",
            Self::Leap => "leap",
            Self::Weekend => "weekend",
            Self::Holiday => "holiday",
            Self::Outage => "outage",
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FaultKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || KINDS.map(FaultKind::name).join(", ");
        KINDS
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| format!("{text:?} is no fault; there are: {}", known()))
    }
}

/// A fault that is drawn: when it begins, how long it lasts, what it strikes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Milliseconds since the run began.
    pub at: u64,
    /// How long it lasts.
    pub lasts: u64,
    /// What it is.
    pub kind: FaultKind,
    /// A number from which the rest is told: which hosts, how much.
    pub choice: u64,
}

/// Time from one fault to the next, in milliseconds.
const GAP: (u64, u64) = (1_000, 15_000);
/// How long a fault lasts.
const LASTS: (u64, u64) = (500, 20_000);

/// Which of the kinds that are allowed a run may meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinds {
    /// About half of them, drawn from the seed, so that rare combinations come up in many short runs.
    Some,
    /// All of them, for a long run.
    All,
}

/// The faults of a run: kinds from `allowed`, moments in `[from, to)`.
pub fn plan(seed: u64, (allowed, which): (&[FaultKind], Kinds), from: u64, to: u64) -> Vec<Fault> {
    let mut dice = Dice::new(seed, "faults");
    let mut kinds: Vec<FaultKind> = allowed.iter().copied().filter(|_| dice.chance(2)).collect();
    if kinds.is_empty() || which == Kinds::All {
        kinds = allowed.to_vec();
    }
    let mut faults = Vec::new();
    let mut at = from;
    while !kinds.is_empty() {
        at += dice.range(GAP.0, GAP.1);
        if at >= to {
            break;
        }
        let lasts = dice.range(LASTS.0, LASTS.1).min(to - at);
        faults.push(Fault { at, lasts, kind: kinds[dice.below(kinds.len())], choice: dice.draw() });
    }
    faults
}
