//! The end: nothing goes wrong any more, and the mesh has to be whole again, to decide, to serve, and to bear a loss.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_consensus::status::Role;

use super::{Run, VOTERS};
use crate::host::Host;
use crate::invariants::Breach;
use crate::invariants::bounds::{self, Left};
use crate::load::Load;
use crate::mesh::Mesh;
use crate::mesh::assertion::{Assertion, Calls, Claim};
use crate::trace::Kind;

/// How long the mesh has to be whole again after the last fault, in milliseconds.
const HEALING: u64 = 150_000;
/// How long it has to decide what operators ask of it, and to enforce that everywhere.
const DECIDING: u64 = 30_000;
/// How long what they asked for amid faults may still come to be.
const STRAGGLING: u64 = 12_000;
/// How long what the load has left behind may take to go.
const SUBSIDING: u64 = 60_000;
/// How often they ask again.
const ASKING: u64 = 3_000;
/// Rounds of calls in the end, and how long each takes.
const ROUNDS: usize = 6;
const ROUND: u64 = 5_000;
/// How long a host is lost, and the time between calls meanwhile.
const LOST: u64 = 10_000;
const LOST_GAP: u64 = 50;

impl Run {
    /// Nothing goes wrong any more: within a bound the mesh is whole and agrees.
    pub(super) fn heal(&mut self) -> Result<(), Breach> {
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
            host.open(true);
        }
        self.trace.add(self.network.now(), None, Kind::Fault, "no more faults");
        match self.until(HEALING, Self::is_whole)? {
            true => Ok(()),
            false => Err(Breach { invariant: "a mesh heals", text: self.shape() }),
        }
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
            node.is_ready() && node.plane().table().index() == index && node.live().len() == self.hosts.len() && voted
        };
        nodes.len() == self.hosts.len() && led && nodes.iter().all(all)
    }

    /// What assertions say of calls holds from every host, with the policies of conditions in force and without.
    pub(super) fn serve(&mut self) -> Result<(), Breach> {
        self.pass(STRAGGLING)?;
        for present in [true, false] {
            self.switch(present)?;
            self.read_everywhere()?;
            let wanted = self.load.wanted(present);
            self.call_all(&wanted)?;
        }
        self.until(SUBSIDING, |run| bounds::check(run.left()).is_ok())?;
        let left = self.left();
        self.trace.add(self.network.now(), None, Kind::Node, format!("the mesh is whole, with {left}"));
        bounds::check(left)
    }

    /// What is open and under way.
    fn left(&self) -> Left {
        let tasks = self.hosts.iter().map(Host::tasks).max().unwrap_or(0);
        Left { hosts: self.hosts.len(), connections: self.network.connections(), tasks }
    }

    /// A consistent read is answered at every host.
    fn read_everywhere(&mut self) -> Result<(), Breach> {
        let done = self.reads.done() + self.hosts.len();
        (0..self.hosts.len()).for_each(|host| self.read_at(host));
        match self.until(DECIDING, |run| run.reads.done() >= done)? {
            true => Ok(()),
            false => Err(Breach { invariant: "a whole mesh serves", text: "consistent reads are not answered".into() }),
        }
    }

    /// Every policy of a condition is there, or none; everywhere.
    fn switch(&mut self, present: bool) -> Result<(), Breach> {
        let deadline = self.network.now() + DECIDING;
        while self.network.now() < deadline {
            for switch in 0..self.setup.mesh.switches.len() {
                let host = self.dice.below(self.hosts.len());
                self.decide_at(host, switch, (present, false));
            }
            if self.until(ASKING, |run| run.claims.settled(present, run.network.now()))? {
                // What was asked for may still be on its way, on a host that was slow to answer.
                return self.pass(ASKING);
            }
        }
        Err(Breach { invariant: "a whole mesh serves", text: "what operators ask for is not decided".into() })
    }

    /// Calls from every host succeed, or are denied, as they should. A round may fail: what was sent into a connection
    /// that had died is not repeated, since nobody can know whether it was acted on.
    fn call_all(&mut self, wanted: &[(Calls, bool)]) -> Result<(), Breach> {
        let mut wrong = String::new();
        for _ in 0..ROUNDS {
            let round = self.load.round(wanted, self.network.now());
            round.iter().for_each(|(number, _)| self.make(*number));
            self.pass(ROUND)?;
            let Some(fault) = self.load.fault(&round) else { return Ok(()) };
            wrong = fault;
        }
        Err(Breach { invariant: "a whole mesh serves", text: wrong })
    }

    /// One host after the other is lost while calls go on, where assertions ask for it.
    pub(super) fn lose_each(&mut self) -> Result<(), Breach> {
        let mesh = self.setup.mesh.clone();
        if self.hosts.len() < 2
            || !mesh.assertions.iter().any(|assertion| matches!(assertion.claim, Claim::Loss { .. }))
        {
            return Ok(());
        }
        for lost in 0..self.hosts.len() {
            self.trace.add(self.network.now(), Some(lost), Kind::Fault, "is lost");
            self.fall(lost, true);
            let mut made: Vec<(usize, u64)> = Vec::new();
            let until = self.network.now() + LOST;
            while self.network.now() < until {
                for (at, assertion) in mesh.assertions.iter().enumerate() {
                    if let Claim::Loss { between, .. } = &assertion.claim
                        && let Some(number) = self.load.without(&mut self.dice, self.network.now(), lost, *between)
                    {
                        self.make(number);
                        made.push((at, number));
                    }
                }
                self.pass(LOST_GAP)?;
            }
            self.pass(ROUND)?;
            for at in 0..mesh.assertions.len() {
                let of: Vec<u64> = made.iter().filter(|(other, _)| *other == at).map(|(_, number)| *number).collect();
                self.note_loss(at, lost, &of)?;
            }
            self.rise(lost);
            if !self.until(HEALING, Self::is_whole)? {
                return Err(Breach { invariant: "a mesh heals", text: self.shape() });
            }
        }
        Ok(())
    }

    fn note_loss(&mut self, at: usize, lost: usize, made: &[u64]) -> Result<(), Breach> {
        let judged = judge_loss(&self.load, &self.setup.mesh.assertions[at], lost, made);
        let Some((told, held)) = judged else { return Ok(()) };
        self.trace.add(self.network.now(), Some(lost), Kind::Node, told.clone());
        let all = self.losses.entry(at).or_default();
        all.push_str(if all.is_empty() { "" } else { "; " });
        all.push_str(&told);
        held
    }
}

/// What became of the calls without a host, and whether that is as the assertion says; none where it says nothing, or
/// where there were none.
pub(crate) fn judge_loss(
    load: &Load,
    assertion: &Assertion,
    lost: usize,
    made: &[u64],
) -> Option<(String, Result<(), Breach>)> {
    let Claim::Loss { percent, within, .. } = assertion.claim else { return None };
    if made.is_empty() {
        return None;
    }
    let in_time = |number: &&u64| {
        let Some(call) = load.get(**number) else { return false };
        call.succeeded() && call.ended.is_some_and(|(at, _)| at - call.began <= within)
    };
    let succeeded = made.iter().filter(in_time).count();
    let share = 100.0 * succeeded as f64 / made.len() as f64;
    let told = format!("without n{lost} {succeeded} of {} calls succeeded in time, {share:.1} %", made.len());
    if share >= percent {
        return Some((told, Ok(())));
    }
    let text = format!("\"{assertion}\": {told}");
    Some((told, Err(Breach { invariant: "a lost host is borne", text })))
}

/// What became of each assertion, a line each.
pub(crate) fn tell_assertions(mesh: &Mesh, tallies: &[[u64; 3]], losses: &BTreeMap<usize, String>) -> Vec<String> {
    let line = |(at, (assertion, tally)): (usize, (&Assertion, &[u64; 3]))| {
        let became = match &assertion.claim {
            Claim::Loss { .. } => losses.get(&at).cloned().unwrap_or_else(|| "not looked at".into()),
            Claim::Calls { .. } | Claim::Share { .. } | Claim::Retries { .. } => {
                let [allowed, denied, failed] = tally;
                format!("{allowed} calls allowed, {denied} denied, {failed} failed")
            }
        };
        format!("{assertion}: {became}")
    };
    mesh.assertions.iter().zip(tallies).enumerate().map(line).collect()
}
