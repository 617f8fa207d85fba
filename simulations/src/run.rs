//! One run: hosts, faults, load, and the invariants that are looked at all the time; then calm, and what must be whole
//! again.

mod calm;
mod form;
mod load;
mod observe;
mod strike;
mod visit;

pub(crate) use calm::{judge_loss, tell_assertions};

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::dice::Dice;
use crate::faults::{Fault, FaultKind, Kinds, plan};
use crate::host::Host;
pub use crate::host::VOTERS;
use crate::invariants::Breach;
use crate::invariants::agreement::Agreement;
use crate::invariants::claims::Claims;
use crate::invariants::durability::Durability;
use crate::invariants::leadership::Leadership;
use crate::invariants::once::Once;
use crate::invariants::reads::Reads;
use crate::invariants::retries::Retries;
use crate::load::Load;
use crate::mesh::Mesh;
use crate::trace::{Kind, Trace};
use crate::world::network::Network;
use parking_lot::Mutex;

/// What a run is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Everything random follows from it.
    pub seed: u64,
    /// Hosts.
    pub nodes: usize,
    /// Simulated minutes of faults and load.
    pub minutes: u64,
    /// Faults that may be drawn.
    pub faults: Vec<FaultKind>,
    /// What runs, and what must hold of it.
    pub mesh: Arc<Mesh>,
    /// A planted bug, to test the net.
    pub bug: Option<Bug>,
}

/// Bugs that can be planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Not the node's: disks acknowledge before they flush.
    LyingDisk,
    /// The node's own, in builds that have them.
    #[cfg(feature = "planted")]
    Planted(weft_proto::planted::Bug),
}

/// How a run ended.
#[derive(Debug)]
pub struct Report {
    /// What happened.
    pub trace: Trace,
    /// The invariant that broke.
    pub breach: Option<(u64, Breach)>,
    /// Simulated milliseconds.
    pub simulated: u64,
    /// Decisions acknowledged, and operators told nothing.
    pub decisions: (u64, u64),
    /// Calls allowed, denied, failed.
    pub calls: [u64; 3],
    /// Faults.
    pub faults: usize,
    /// What became of each assertion, a line each.
    pub assertions: Vec<String>,
}

/// Length of a step, in milliseconds.
const STEP: u64 = 5;
/// How long the mesh has to form.
const FORMING: u64 = 60_000;
/// Time between calls, between decisions, and between consistent reads, in milliseconds.
const CALL_GAP: (u64, u64) = (50, 400);
const DECISION_GAP: (u64, u64) = (300, 3_000);
const READ_GAP: (u64, u64) = (300, 2_000);

/// What operators have been told since the last step.
enum Told {
    Furnished(Result<u64, String>),
    Acknowledged { switch: usize, present: bool, index: u64 },
    Refused { switch: usize, present: bool },
    Nothing,
    Read { host: usize, wanted: u64, index: u64 },
    Waited { index: u64, tables: Vec<String> },
    Line { services: Vec<String>, line: String, id: String },
}

struct Run {
    setup: Setup,
    network: Arc<Network>,
    hosts: Vec<Host>,
    trace: Trace,
    dice: Dice,
    told: Arc<Mutex<Vec<Told>>>,
    /// Join lines, by the services that they are for.
    lines: BTreeMap<Vec<String>, String>,
    /// The newest token: its line and id.
    token: Option<(String, String)>,
    leadership: Leadership,
    agreement: Agreement,
    durability: Durability,
    claims: Claims,
    once: Once,
    reads: Reads,
    retries: Retries,
    load: Load,
    /// Calls allowed, denied, failed.
    outcomes: [u64; 3],
    /// What `after any one host is lost` came to, by assertion.
    losses: BTreeMap<usize, String>,
    /// What the mesh said to the documents that are kept.
    furnished: Option<Result<u64, String>>,
    decisions: (u64, u64),
    restarts: Vec<(u64, usize)>,
    /// Hosts whose processes end again and again.
    storms: Vec<usize>,
    /// Hosts whose callers call as fast as they can.
    overloads: Vec<usize>,
}

/// Runs.
pub fn run(setup: Setup) -> Report {
    crate::entropy::seed(setup.seed);
    #[cfg(feature = "planted")]
    if let Some(Bug::Planted(bug)) = setup.bug {
        weft_proto::planted::plant(bug);
    }
    // One place is for visitors.
    let network = Network::new(setup.nodes + 1, setup.seed);
    network.rise(setup.nodes);
    let lying = setup.bug == Some(Bug::LyingDisk);
    let mut hosts: Vec<Host> =
        (0..setup.nodes).map(|id| Host::new(&network, id, setup.seed, &setup.mesh, lying)).collect();
    for (id, host) in hosts.iter_mut().enumerate() {
        let services = 0..setup.mesh.services.len();
        host.run(services.filter(|service| setup.mesh.runs_on(*service, id, setup.nodes)).collect());
    }
    let mut run = Run {
        dice: Dice::new(setup.seed, "load"),
        network,
        hosts,
        trace: Trace::default(),
        told: Arc::default(),
        lines: BTreeMap::new(),
        token: None,
        leadership: Leadership::default(),
        agreement: Agreement::default(),
        durability: Durability::default(),
        claims: Claims::new(setup.mesh.clone()),
        once: Once::default(),
        reads: Reads::default(),
        retries: Retries::new(setup.mesh.clone()),
        load: Load::new(setup.mesh.clone(), setup.nodes),
        outcomes: [0; 3],
        losses: BTreeMap::new(),
        furnished: None,
        decisions: (0, 0),
        restarts: Vec::new(),
        storms: Vec::new(),
        overloads: Vec::new(),
        setup,
    };
    let (outcome, faults) = run.live();
    let simulated = run.network.now();
    let breach = outcome.err().map(|breach| (simulated, breach));
    if let Some((at, breach)) = &breach {
        run.trace.add(*at, None, Kind::Broken, breach.to_string());
    }
    for host in &mut run.hosts {
        host.kill(false);
    }
    let assertions = tell_assertions(&run.setup.mesh, run.claims.tallies(), &run.losses);
    let Run { trace, decisions, outcomes: calls, .. } = run;
    Report { trace, breach, simulated, decisions, calls, faults, assertions }
}
impl Run {
    /// All of it; with the number of faults.
    fn live(&mut self) -> (Result<(), Breach>, usize) {
        if let Err(breach) = self.form().and_then(|()| self.furnish()) {
            return (Err(breach), 0);
        }
        let from = self.network.now();
        let end = from + self.setup.minutes * 60_000;
        let faults = plan(self.setup.seed, (&self.setup.faults, Kinds::Some), from, end);
        let count = faults.len();
        let outcome = self
            .suffer(faults, end)
            .and_then(|()| self.heal())
            .and_then(|()| self.serve())
            .and_then(|()| self.lose_each())
            .and_then(|()| self.visit());
        (outcome, count)
    }

    /// Faults and load.
    fn suffer(&mut self, faults: Vec<Fault>, end: u64) -> Result<(), Breach> {
        let mut coming = faults.into_iter().peekable();
        let mut ending: Vec<(u64, Fault)> = Vec::new();
        let now = self.network.now();
        let (mut next_call, mut next_decision, mut next_read) = (now, now, now);
        while self.network.now() < end {
            let now = self.network.now();
            while let Some(fault) = coming.next_if(|fault| fault.at <= now) {
                self.begin(&fault);
                ending.push((now + fault.lasts, fault));
            }
            let (over, still): (Vec<_>, Vec<_>) = ending.into_iter().partition(|(at, _)| *at <= now);
            ending = still;
            over.iter().for_each(|(_, fault)| self.end(fault));
            if now >= next_call {
                next_call = now + self.dice.range(CALL_GAP.0, CALL_GAP.1);
                self.call_somewhere();
            }
            for host in self.overloads.clone() {
                self.call_from(host);
            }
            if now >= next_decision {
                next_decision = now + self.dice.range(DECISION_GAP.0, DECISION_GAP.1);
                self.decide();
            }
            if now >= next_read {
                next_read = now + self.dice.range(READ_GAP.0, READ_GAP.1);
                self.read();
            }
            self.step()?;
        }
        ending.iter().for_each(|(_, fault)| self.end(fault));
        Ok(())
    }

    /// Lets a moment pass everywhere and looks at all that must hold.
    fn step(&mut self) -> Result<(), Breach> {
        self.network.advance(STEP);
        let now = self.network.now();
        for host in &mut self.hosts {
            host.tick(now, STEP);
        }
        self.storm(now);
        let due: Vec<usize> = self.restarts.extract_if(.., |(at, _)| *at <= now).map(|(_, host)| host).collect();
        due.into_iter().for_each(|host| self.rise(host));
        self.watch(now);
        self.hear(now)?;
        self.look(now)
    }

    /// Lets time pass.
    fn pass(&mut self, millis: u64) -> Result<(), Breach> {
        let until = self.network.now() + millis;
        while self.network.now() < until {
            self.step()?;
        }
        Ok(())
    }

    /// Lets time pass until it holds; whether it does within the bound.
    fn until(&mut self, bound: u64, holds: impl Fn(&Self) -> bool) -> Result<bool, Breach> {
        let deadline = self.network.now() + bound;
        while !holds(self) {
            if self.network.now() >= deadline {
                return Ok(false);
            }
            self.step()?;
        }
        Ok(true)
    }
}
