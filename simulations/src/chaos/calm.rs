//! The end: nothing goes wrong any more, and the mesh has to be whole again, to decide, to serve, and to bear a loss.

use std::time::Duration;

use tokio::time::Instant;

use super::{Chaos, Stop};
use crate::invariants::Breach;
use crate::mesh::assertion::Claim;
use crate::run::{VOTERS, judge_loss};
use crate::trace::Kind;

/// How long the mesh has to be whole again after the last fault.
const HEALING: Duration = Duration::from_secs(150);
/// How long it has to decide what operators ask of it, and to enforce that everywhere.
const DECIDING: Duration = Duration::from_secs(30);
/// How long what they asked for amid faults may still come to be.
const STRAGGLING: Duration = Duration::from_secs(12);
/// How often they ask again.
const ASKING: Duration = Duration::from_secs(3);
/// Rounds of calls in the end, and how long each takes.
const ROUNDS: usize = 6;
const ROUND: Duration = Duration::from_secs(5);
/// How long a host is lost, and the time between calls meanwhile.
const LOST: Duration = Duration::from_secs(10);

impl Chaos {
    async fn pass(&mut self, time: Duration) -> Result<(), Stop> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.cycle().await?;
        }
        Ok(())
    }

    /// Nothing goes wrong any more: within a bound the mesh is whole and agrees.
    pub(super) async fn heal(&mut self) -> Result<(), Stop> {
        self.relent().await?;
        let deadline = Instant::now() + HEALING;
        loop {
            self.cycle().await?;
            let shape = self.shape().await;
            if shape.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Breach { invariant: "a mesh heals", text: shape }.into());
            }
        }
    }

    /// What is not whole; empty where all is.
    async fn shape(&self) -> String {
        let views = self.views().await;
        let newest = views.iter().flatten().map(|view| view.status.applied).max().unwrap_or(0);
        let wanted = self.setup.nodes.min(VOTERS);
        let voters = if wanted % 2 == 1 { wanted } else { wanted - 1 };
        let led = views.iter().flatten().any(|view| view.status.role == "leader");
        let mut shape: Vec<String> = if led { Vec::new() } else { vec!["nobody leads".into()] };
        for (host, view) in views.iter().enumerate() {
            let Some(status) = view.as_ref().map(|view| &view.status) else {
                shape.push(format!("n{host} does not answer"));
                continue;
            };
            let whole = status.nodes_live == self.setup.nodes
                && status.enforced == newest
                && status.voters.len() == voters
                && status.leader.is_some();
            if !whole {
                shape.push(format!(
                    "n{host}: {} term {} leader {:?} applied {} enforced {} of {newest} live {} voters {}",
                    status.role,
                    status.term,
                    status.leader,
                    status.applied,
                    status.enforced,
                    status.nodes_live,
                    status.voters.len()
                ));
            }
        }
        shape.join("; ")
    }

    /// What assertions say of calls holds from every host, with the policies of conditions in force and without.
    pub(super) async fn serve(&mut self) -> Result<(), Stop> {
        self.pass(STRAGGLING).await?;
        for present in [true, false] {
            self.switch(present).await?;
            let wanted = self.load.wanted(present);
            let mut wrong = Some(String::new());
            for _ in 0..ROUNDS {
                let round = self.load.round(&wanted, self.now());
                for (number, _) in &round {
                    self.make(*number).await?;
                }
                self.pass(ROUND).await?;
                wrong = self.load.fault(&round);
                if wrong.is_none() {
                    break;
                }
            }
            if let Some(text) = wrong {
                return Err(Breach { invariant: "a whole mesh serves", text }.into());
            }
        }
        self.trace.add(self.now(), None, Kind::Node, "the mesh is whole");
        Ok(())
    }

    /// Every policy of a condition is there, or none; everywhere.
    async fn switch(&mut self, present: bool) -> Result<(), Stop> {
        let deadline = Instant::now() + DECIDING;
        while Instant::now() < deadline {
            for switch in 0..self.setup.mesh.switches.len() {
                let host = self.dice.below(self.setup.nodes);
                self.decide(host, switch, (present, false));
            }
            let again = Instant::now() + ASKING;
            while Instant::now() < again {
                self.cycle().await?;
                // Looked at in this cycle: nothing was missing at its end.
                if self.claims.settled(present, self.looked) {
                    return self.pass(ASKING).await;
                }
            }
        }
        let text = "what operators ask for is not decided".into();
        Err(Breach { invariant: "a whole mesh serves", text }.into())
    }

    /// One host after the other is lost while calls go on, where assertions ask for it.
    pub(super) async fn lose_each(&mut self) -> Result<(), Stop> {
        let mesh = self.setup.mesh.clone();
        if self.setup.nodes < 2 || !mesh.assertions.iter().any(|one| matches!(one.claim, Claim::Loss { .. })) {
            return Ok(());
        }
        for lost in 0..self.setup.nodes {
            self.trace.add(self.now(), Some(lost), Kind::Fault, "is lost");
            self.fall(lost).await;
            let mut made: Vec<(usize, u64)> = Vec::new();
            let until = Instant::now() + LOST;
            while Instant::now() < until {
                for (at, assertion) in mesh.assertions.iter().enumerate() {
                    let now = self.now();
                    if let Claim::Loss { between, .. } = &assertion.claim
                        && let Some(number) = self.load.without(&mut self.dice, now, lost, *between)
                    {
                        self.make(number).await?;
                        made.push((at, number));
                    }
                }
                self.cycle().await?;
            }
            self.pass(ROUND).await?;
            for (at, assertion) in mesh.assertions.iter().enumerate() {
                let of: Vec<u64> = made.iter().filter(|(other, _)| *other == at).map(|(_, number)| *number).collect();
                if let Some((told, held)) = judge_loss(&self.load, assertion, lost, &of) {
                    self.trace.add(self.now(), Some(lost), Kind::Node, told.clone());
                    let all = self.losses.entry(at).or_default();
                    all.push_str(if all.is_empty() { "" } else { "; " });
                    all.push_str(&told);
                    held?;
                }
            }
            self.heal().await?;
        }
        Ok(())
    }
}
