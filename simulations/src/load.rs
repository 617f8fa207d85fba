//! The calls of a run, drawn from what the mesh's assertions are about.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::call::Call;
use crate::dice::Dice;
use crate::mesh::assertion::{Caller, Calls, Claim, When};
use crate::mesh::{Mesh, Protocol, Role};

/// How long calls are remembered, in milliseconds.
const REMEMBERED: u64 = 120_000;

/// Calls of the last minutes.
pub struct Load {
    mesh: Arc<Mesh>,
    hosts: usize,
    calls: BTreeMap<u64, Call>,
    last: u64,
}

impl Load {
    /// None yet, on so many hosts.
    pub fn new(mesh: Arc<Mesh>, hosts: usize) -> Self {
        Self { mesh, hosts, calls: BTreeMap::new(), last: 0 }
    }

    /// The call of that number.
    pub fn get(&self, number: u64) -> Option<&Call> {
        self.calls.get(&number)
    }

    /// Those that are remembered.
    pub fn calls(&self) -> impl Iterator<Item = &Call> {
        self.calls.values()
    }

    /// The number of the oldest that is remembered.
    pub fn oldest(&self) -> Option<u64> {
        self.calls.first_key_value().map(|(number, _)| *number)
    }

    /// The call of that number ended.
    pub fn ended(&mut self, number: u64, now: u64, status: Option<u16>) -> Option<&Call> {
        let call = self.calls.get_mut(&number)?;
        call.ended = Some((now, status));
        Some(call)
    }

    /// A call that an assertion is about, from a host that its caller is on.
    pub fn draw(&mut self, dice: &mut Dice, now: u64) -> Option<u64> {
        let all = self.kinds();
        let calls = all.get(dice.below(all.len().max(1)))?.clone();
        let hosts = self.mesh.hosts_of(calls.from, self.hosts);
        let host = *hosts.get(dice.below(hosts.len().max(1)))?;
        Some(self.fill(dice, now, host, &calls))
    }

    /// The same from that host.
    pub fn draw_from(&mut self, dice: &mut Dice, now: u64, host: usize) -> Option<u64> {
        let mut all = self.kinds();
        all.retain(|calls| self.mesh.hosts_of(calls.from, self.hosts).contains(&host));
        let calls = all.get(dice.below(all.len().max(1)))?.clone();
        Some(self.fill(dice, now, host, &calls))
    }

    /// The calls that assertions speak of, with whether they are allowed while all policies of conditions are there, or
    /// none.
    pub fn wanted(&self, switches: bool) -> Vec<(Calls, bool)> {
        let mut wanted = Vec::new();
        for assertion in &self.mesh.assertions {
            let Claim::Calls { calls, allowed, when, .. } = &assertion.claim else { continue };
            let holds = match when {
                When::Always => true,
                When::While(_) => switches,
                When::Unless(_) => !switches,
            };
            if holds {
                wanted.push((calls.clone(), *allowed));
            }
        }
        wanted
    }

    /// One call of every kind from every host that its caller is on, with whether it is allowed.
    pub fn round(&mut self, wanted: &[(Calls, bool)], now: u64) -> Vec<(u64, bool)> {
        let mut made = Vec::new();
        for (calls, allowed) in wanted {
            for host in self.mesh.hosts_of(calls.from, self.hosts) {
                for to in self.mesh.callees(calls.to) {
                    made.push((self.plain(now, host, calls, to), *allowed));
                }
            }
        }
        made
    }

    /// What is wrong with a round; none where every call ended as it should.
    pub fn fault(&self, round: &[(u64, bool)]) -> Option<String> {
        round.iter().find_map(|(number, allowed)| {
            let call = self.calls.get(number)?;
            let status = call.ended.and_then(|(_, status)| status);
            let denied = status == Some(403) || (!call.is_http() && !call.succeeded());
            if if *allowed { call.succeeded() } else { denied } {
                return None;
            }
            let end = call.ended.map_or_else(|| "did not end".into(), |(_, status)| format!("ended with {status:?}"));
            let should = if *allowed { "succeed" } else { "be denied" };
            Some(format!("{} {end}; it should {should}", call.describe(&self.mesh)))
        })
    }

    /// A call that should be allowed, between hosts that are still there; none where no such call can be.
    pub fn without(&mut self, dice: &mut Dice, now: u64, lost: usize, between: Option<(Caller, usize)>) -> Option<u64> {
        let (mesh, count) = (self.mesh.clone(), self.hosts);
        let served = |to| (0..count).any(|host| host != lost && mesh.runs_on(to, host, count) && mesh.admits(host, to));
        let mut choices = Vec::new();
        // What goes through gateways has only so many ways.
        let direct = |calls: &Calls| {
            let external = |to: usize| mesh.services[to].role == Role::External;
            calls.from != Caller::Stranger && !calls.to.is_some_and(external)
        };
        let allowed = self.wanted(false).into_iter().filter(|(calls, allowed)| *allowed && direct(calls));
        for (calls, _) in allowed {
            let wanted = |to: &usize| between.is_none_or(|between| between == (calls.from, *to)) && served(*to);
            for to in mesh.callees(calls.to).into_iter().filter(wanted) {
                let hosts = mesh.hosts_of(calls.from, count).into_iter().filter(|host| *host != lost);
                choices.extend(hosts.map(|host| (host, calls.clone(), to)));
            }
        }
        let (host, calls, to) = choices.get(dice.below(choices.len().max(1)))?;
        Some(self.plain(now, *host, calls, *to))
    }

    fn kinds(&self) -> Vec<Calls> {
        let calls = |claim: &Claim| match claim {
            Claim::Calls { calls, .. } | Claim::Share { calls, .. } | Claim::Retries { calls, .. } => {
                Some(calls.clone())
            }
            Claim::Loss { .. } => None,
        };
        self.mesh.assertions.iter().filter_map(|assertion| calls(&assertion.claim)).collect()
    }

    /// One of these calls; what they leave open is drawn.
    fn fill(&mut self, dice: &mut Dice, now: u64, host: usize, calls: &Calls) -> u64 {
        let callees = self.mesh.callees(calls.to);
        let to = callees[dice.below(callees.len())];
        let (drawn, long) = match dice.below(8) {
            0 => ("GET", true),
            1..4 => ("POST", false),
            _ => ("GET", false),
        };
        let method = calls.method.clone().unwrap_or_else(|| drawn.to_owned());
        let long = long && method == "GET";
        self.add(now, host, calls, (to, method, long))
    }

    /// One of these calls, the short one that nobody minds to see twice.
    fn plain(&mut self, now: u64, host: usize, calls: &Calls, to: usize) -> u64 {
        self.add(now, host, calls, (to, calls.method.clone().unwrap_or_else(|| "GET".into()), false))
    }

    fn add(&mut self, now: u64, host: usize, calls: &Calls, (to, method, long): (usize, String, bool)) -> u64 {
        let path = calls.path.clone().unwrap_or_else(|| "/".into());
        let gateways = self.mesh.gateways(Role::Gateway, self.hosts);
        let own = usize::try_from(self.last).unwrap_or(0) % gateways.len().max(1);
        let via = gateways.get(own).copied().filter(|_| calls.from == Caller::Stranger);
        let mut call = Call { host, from: calls.from, to, method, path, via, long, began: now, ended: None };
        if self.mesh.services[to].protocol == Protocol::Tcp {
            (call.method, call.path, call.long) = (String::new(), String::new(), false);
        }
        while self.calls.first_entry().is_some_and(|oldest| oldest.get().began + REMEMBERED < now) {
            self.calls.pop_first();
        }
        self.last += 1;
        self.calls.insert(self.last, call);
        self.last
    }
}
