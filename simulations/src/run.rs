//! One run: hosts, faults, load, and the invariants that are looked at all the time; then calm, and what must be whole
//! again.

mod observe;
mod operate;
mod strike;
mod visit;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use weft::config::Start;
use weft_consensus::replica::Role;

use crate::dice::Dice;
use crate::faults::{Fault, FaultKind, plan};
use crate::host::{Host, Shape};
use crate::invariants::Breach;
use crate::invariants::agreement::Agreement;
use crate::invariants::authorization::Authorization;
use crate::invariants::durability::Durability;
use crate::invariants::leadership::Leadership;
use crate::invariants::once::Once;
use crate::trace::{Kind, Trace};
use crate::world::network::Network;

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
}

/// Voters that are wanted, as in production by default.
pub(crate) const VOTERS: usize = 5;
/// Length of a step, in milliseconds.
const STEP: u64 = 5;
/// How long the mesh has to form.
const FORMING: u64 = 60_000;
/// How long it has to be whole again after the last fault.
const HEALING: u64 = 150_000;
/// The host whose operator runs a service on it that its node was not admitted for.
const NARROW: usize = 2;
/// Rounds of calls in the end, and how long each takes.
const ROUNDS: usize = 6;
const ROUND: u64 = 5_000;
/// Paths that callers ask for; each has a policy that may deny it.
const PATHS: [&str; 4] = ["/a", "/b", "/c", "/d"];
/// Time between calls and between decisions, in milliseconds.
const CALL_GAP: (u64, u64) = (50, 400);
const DECISION_GAP: (u64, u64) = (300, 3_000);

/// What operators have been told since the last step.
enum Told {
    Acknowledged { policy: String, present: bool, index: u64 },
    Refused { policy: String, present: bool },
    Nothing,
    Waited { index: u64, tables: Vec<String> },
    Line { services: &'static str, line: String, id: String },
}

struct Run {
    setup: Setup,
    network: Arc<Network>,
    hosts: Vec<Host>,
    trace: Trace,
    dice: Dice,
    told: Arc<Mutex<Vec<Told>>>,
    /// Join lines, by the services that they are for.
    lines: BTreeMap<&'static str, String>,
    /// The newest token: its line and id.
    token: Option<(String, String)>,
    leadership: Leadership,
    agreement: Agreement,
    durability: Durability,
    authorization: Authorization,
    once: Once,
    next_call: u64,
    calls: [u64; 3],
    decisions: (u64, u64),
    restarts: Vec<(u64, usize)>,
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
    let lying = setup.bug == Some(Bug::LyingDisk);
    let host = |id| Host::new(&network, id, setup.seed, id % 2 == 1 || setup.nodes < 3 || id == NARROW, lying);
    let mut hosts: Vec<Host> = (0..setup.nodes).map(host).collect();
    if let Some(host) = hosts.get_mut(NARROW) {
        host.narrow = Some("front");
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
        authorization: Authorization::default(),
        once: Once::default(),
        next_call: 0,
        calls: [0; 3],
        decisions: (0, 0),
        restarts: Vec::new(),
        setup,
    };
    let end = FORMING + run.setup.minutes * 60_000;
    let faults = plan(run.setup.seed, &run.setup.faults.clone(), FORMING, end);
    let count = faults.len();
    let outcome =
        run.form().and_then(|()| run.suffer(faults, end)).and_then(|()| run.heal()).and_then(|()| run.visit());
    let simulated = run.network.now();
    let breach = outcome.err().map(|breach| (simulated, breach));
    if let Some((at, breach)) = &breach {
        run.trace.add(*at, None, Kind::Broken, breach.to_string());
    }
    for host in &mut run.hosts {
        host.kill(false);
    }
    Report { trace: run.trace, breach, simulated, decisions: run.decisions, calls: run.calls, faults: count }
}

impl Run {
    /// The first node makes the mesh, the others join; ready when all are members.
    fn form(&mut self) -> Result<(), Breach> {
        let trust_domain = "mesh.test".parse().expect("a name");
        self.hosts[0].start(Start::Found { trust_domain, deny_by_default: false });
        let (mut asked, mut renewed) = (false, false);
        while self.network.now() < FORMING {
            self.step()?;
            if !asked && self.hosts[0].node().is_some() {
                asked = true;
                self.ask_for_line(0, "*");
                self.ask_for_line(0, "front");
            }
            if !renewed && self.network.now() > FORMING / 2 {
                // One that names all voters, for nodes that join anew when the first host is down.
                renewed = true;
                self.ask_for_line(self.hosts.len() - 1, "*");
                self.ask_for_line(self.hosts.len() - 1, "front");
            }
            if self.lines.len() == 2 {
                for host in 1..self.hosts.len() {
                    if !self.hosts[host].is_up() {
                        let line = self.line_of(host);
                        self.hosts[host].start(Start::Join { line });
                    }
                }
            }
        }
        match self.hosts.iter().all(|host| host.node().is_some_and(|node| node.is_ready())) {
            true => Ok(()),
            false => Err(Breach { invariant: "a mesh forms", text: self.shape() }),
        }
    }

    /// The line that a host joins by.
    fn line_of(&self, host: usize) -> String {
        self.lines.get(self.hosts[host].narrow.unwrap_or("*")).cloned().unwrap_or_default()
    }

    /// Faults and load.
    fn suffer(&mut self, faults: Vec<Fault>, end: u64) -> Result<(), Breach> {
        let mut coming = faults.into_iter().peekable();
        let mut ending: Vec<(u64, Fault)> = Vec::new();
        let (mut next_call, mut next_decision) = (self.network.now(), self.network.now());
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
                self.call();
            }
            if now >= next_decision {
                next_decision = now + self.dice.range(DECISION_GAP.0, DECISION_GAP.1);
                self.decide();
            }
            self.step()?;
        }
        ending.iter().for_each(|(_, fault)| self.end(fault));
        Ok(())
    }

    /// Nothing goes wrong any more: within a bound the mesh is whole, agrees, decides and serves.
    fn heal(&mut self) -> Result<(), Breach> {
        self.network.change(|conditions| {
            conditions.cut.clear();
            conditions.loss = 0;
            conditions.latency = (1, 3);
        });
        for host in &mut self.hosts {
            host.disk().slow(None);
            host.disk().fill_up(false);
            host.freeze(0);
            host.world().skew(0);
        }
        self.trace.add(self.network.now(), None, Kind::Fault, "no more faults");
        let deadline = self.network.now() + HEALING;
        while self.network.now() < deadline {
            self.step()?;
            if self.is_whole() {
                return self.serve();
            }
        }
        Err(Breach { invariant: "a mesh heals", text: self.shape() })
    }

    fn is_whole(&self) -> bool {
        let nodes: Vec<_> = self.hosts.iter().filter_map(Host::node).collect();
        let index = nodes.iter().map(|node| node.state().index).max().unwrap_or(0);
        let led = nodes.iter().any(|node| node.raft_status().role == Role::Leader);
        let names: Vec<_> = nodes.iter().map(|node| node.name().clone()).collect();
        let wanted = self.hosts.len().min(VOTERS);
        let voters = if wanted % 2 == 1 { wanted } else { wanted - 1 };
        let all = |node: &Arc<weft::Node<_>>| {
            let found = node.raft_status().voters;
            let voted = found.len() == voters && found.iter().all(|voter| names.contains(voter));
            node.is_ready() && node.plane().table().index == index && node.live().len() == self.hosts.len() && voted
        };
        nodes.len() == self.hosts.len() && led && nodes.iter().all(all)
    }

    /// A decision is made, and calls from every host succeed. One round may fail: what was sent into a connection that
    /// had died is not repeated, since nobody can know whether it was acted on.
    fn serve(&mut self) -> Result<(), Breach> {
        let before = self.decisions.0;
        let host = self.dice.below(self.hosts.len());
        self.decide_at(host, PATHS[0], (true, false));
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let succeeded = self.calls[0];
            for host in 0..self.hosts.len() {
                self.call_from(host, "/open", Shape::Get);
            }
            let deadline = self.network.now() + ROUND;
            while self.network.now() < deadline {
                self.step()?;
            }
            let succeeded = self.calls[0] - succeeded;
            if self.decisions.0 > before && succeeded >= self.hosts.len() as u64 {
                self.trace.add(self.network.now(), None, Kind::Node, "the mesh is whole");
                return Ok(());
            }
            rounds.push(succeeded);
        }
        let decided = self.decisions.0 > before;
        let text = format!("calls that succeeded: {rounds:?} of {}, decided: {decided}", self.hosts.len());
        Err(Breach { invariant: "a whole mesh serves", text })
    }

    /// Lets a moment pass everywhere and looks at all that must hold.
    fn step(&mut self) -> Result<(), Breach> {
        self.network.advance(STEP);
        let now = self.network.now();
        for host in &mut self.hosts {
            host.tick(now, STEP);
        }
        let due: Vec<usize> = self.restarts.extract_if(.., |(at, _)| *at <= now).map(|(_, host)| host).collect();
        due.into_iter().for_each(|host| self.rise(host));
        self.hear(now)?;
        self.look(now)
    }
}
