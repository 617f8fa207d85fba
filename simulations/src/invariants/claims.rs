//! What the mesh's assertions say of single calls, judged from the decisions themselves, not by the code that enforces
//! them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Breach, Decisions};
use crate::call::Call;
use crate::mesh::Mesh;
use crate::mesh::assertion::{Claim, When};

/// How long a call that was let through may take to reach the application.
const ON_ITS_WAY_MS: u64 = 3000;

/// Calls that a share is looked at of: with fewer it would break by chance.
const SHARED_MIN: u64 = 200;

/// What the hosts have in force, and what became of the calls.
pub struct Claims {
    mesh: Arc<Mesh>,
    /// By host and document.
    hosts: BTreeMap<(usize, usize), Force>,
    /// By document: when a host that runs last did not have it in force.
    missing: Vec<u64>,
    /// By document: when a host that runs last may have had it in force.
    present: Vec<u64>,
    /// By assertion: calls allowed, denied, failed.
    tallies: Vec<[u64; 3]>,
}

/// Whether a host has a document in force.
#[derive(Debug, Default)]
struct Force {
    /// Since when it surely does.
    since: Option<u64>,
    /// Since when it surely does not.
    gone_since: Option<u64>,
    /// The first index at which it was seen to be gone.
    gone_at: Option<u64>,
}

impl Claims {
    /// Nothing has been seen.
    pub fn new(mesh: Arc<Mesh>) -> Self {
        let documents = mesh.documents().count();
        let tallies = vec![[0; 3]; mesh.assertions.len()];
        Self { mesh, hosts: BTreeMap::new(), missing: vec![0; documents], present: vec![0; documents], tallies }
    }

    /// A host enforces the decisions up to `enforced`; `newest` are those that it has applied.
    pub fn saw(&mut self, host: usize, newest: &impl Decisions, enforced: u64, now: u64) {
        for (at, document) in self.mesh.documents().enumerate() {
            let force = self.hosts.entry((host, at)).or_default();
            match newest.version(&document.key) {
                Some(version) => {
                    (force.gone_at, force.gone_since) = (None, None);
                    self.present[at] = now;
                    if version <= enforced {
                        force.since.get_or_insert(now);
                    } else {
                        force.since = None;
                        self.missing[at] = now;
                    }
                }
                None => {
                    force.since = None;
                    self.missing[at] = now;
                    if *force.gone_at.get_or_insert(newest.index()) <= enforced {
                        force.gone_since.get_or_insert(now);
                    } else {
                        self.present[at] = now;
                    }
                }
            }
        }
    }

    /// Nobody knows what a host that runs has in force.
    pub fn unknown(&mut self, host: usize, now: u64) {
        self.ended(host);
        self.missing.fill(now);
        self.present.fill(now);
    }

    /// The host's process ended.
    pub fn ended(&mut self, host: usize) {
        self.hosts.retain(|(owner, _), _| *owner != host);
    }

    /// A call reached an application on a host.
    pub fn arrived(&self, host: usize, call: &Call, now: u64) -> Result<(), Breach> {
        for (_, allowed, when, at_caller) in self.matching(call) {
            // Rules are asked once, when a call begins; policies are asked again while it is open.
            let (decides, at) = if at_caller { (call.host, call.began) } else { (host, now) };
            if !allowed && self.surely_denies(decides, when, at) {
                let text = format!("{} reached n{host} {}", call.describe(&self.mesh), because(when));
                return Err(Breach { invariant: "what is denied does not arrive", text });
            }
        }
        Ok(())
    }

    /// A call was answered, or given up.
    pub fn answered(&mut self, call: &Call, status: Option<u16>) -> Result<(), Breach> {
        let outcome = match status {
            Some(200) => 0,
            Some(403) => 1,
            _ => 2,
        };
        let matching: Vec<usize> = self.matching(call).map(|(at, ..)| at).collect();
        matching.iter().for_each(|at| self.tallies[*at][outcome] += 1);
        for (_, allowed, when, _) in self.matching(call) {
            if allowed && outcome == 1 && call.began > self.unsettled(when) {
                let text = format!("{} was denied {}", call.describe(&self.mesh), because(when));
                return Err(Breach { invariant: "what is allowed is not denied", text });
            }
        }
        if let Some(at) = call.claim_of_retries(&self.mesh) {
            self.tallies[at][outcome] += 1;
        }
        self.counted(call, outcome)
    }

    /// Counts a call for the shares that it is one of: those hold as soon as there are enough.
    fn counted(&mut self, call: &Call, outcome: usize) -> Result<(), Breach> {
        let mesh = self.mesh.clone();
        for (at, assertion) in mesh.assertions.iter().enumerate() {
            let Claim::Share { calls, percent: (least, most), when } = &assertion.claim else { continue };
            if !call.is_one_of(calls) || call.began <= self.unsettled(when) {
                continue;
            }
            let tally = &mut self.tallies[at];
            tally[outcome] += 1;
            let [allowed, denied, _] = *tally;
            let share = 100.0 * denied as f64 / (allowed + denied).max(1) as f64;
            if allowed + denied >= SHARED_MIN && !(*least..=*most).contains(&share) {
                let text = format!("\"{assertion}\": {share:.1} % of {} calls were", allowed + denied);
                return Err(Breach { invariant: "shares hold", text });
            }
        }
        Ok(())
    }

    /// Whether every document that is kept is in force on every host that runs, and the switches are as said.
    pub fn settled(&self, switches: bool, now: u64) -> bool {
        let fixed = self.mesh.fixed.len();
        let kept = self.missing[..fixed].iter().all(|missing| *missing < now);
        let last = if switches { &self.missing[fixed..] } else { &self.present[fixed..] };
        kept && last.iter().all(|last| *last < now)
    }

    /// What became of the calls that each assertion is about: allowed, denied, failed.
    pub fn tallies(&self) -> &[[u64; 3]] {
        &self.tallies
    }

    fn matching(&self, call: &Call) -> impl Iterator<Item = (usize, bool, &When, bool)> {
        self.mesh.assertions.iter().enumerate().filter_map(move |(at, assertion)| match &assertion.claim {
            Claim::Calls { calls, allowed, when, at_caller } if call.is_one_of(calls) => {
                Some((at, *allowed, when, *at_caller))
            }
            _ => None,
        })
    }

    /// Whether the host has denied such calls for so long that none is on its way any more.
    fn surely_denies(&self, host: usize, when: &When, now: u64) -> bool {
        let long = |since: Option<u64>| since.is_some_and(|since| now > since + ON_ITS_WAY_MS);
        let force = |at| self.hosts.get(&(host, at));
        let kept = (0..self.mesh.fixed.len()).all(|at| long(force(at).and_then(|force| force.since)));
        kept && match when {
            When::Always => true,
            When::While(name) => long(force(self.mesh.place_of(name)).and_then(|force| force.since)),
            When::Unless(name) => long(force(self.mesh.place_of(name)).and_then(|force| force.gone_since)),
        }
    }

    /// When such calls last may have been denied somewhere.
    fn unsettled(&self, when: &When) -> u64 {
        let kept = self.missing[..self.mesh.fixed.len()].iter().copied().max().unwrap_or(0);
        kept.max(match when {
            When::Always => 0,
            When::While(name) => self.missing[self.mesh.place_of(name)],
            When::Unless(name) => self.present[self.mesh.place_of(name)],
        })
    }
}

fn because(when: &When) -> String {
    match when {
        When::Always => "although the policies that decide it are in force".to_owned(),
        When::While(name) => format!("although {name} is in force"),
        When::Unless(name) => format!("although {name} is not there"),
    }
}
