//! What is looked at in every step: the nodes, and what operators, callers and applications were told.

use weft_consensus::status::Role;

use super::{Run, Told};
use crate::application::{Arrived, Seen};
use crate::host::{Host, Stage};
use crate::invariants::{Breach, admission, departures, strangers, waiting};
use crate::trace::Kind;

impl Run {
    /// What operators, callers and applications were told.
    pub(super) fn hear(&mut self, now: u64) -> Result<(), Breach> {
        let told = std::mem::take(&mut *self.told.lock());
        for one in told {
            match one {
                Told::Line { services, line, id } => {
                    drop(self.lines.insert(services, line.clone()));
                    self.token = Some((line, id));
                }
                Told::Nothing => self.decisions.1 += 1,
                Told::Read { host, wanted, index } => self.reads.check(host, wanted, index)?,
                Told::Furnished(outcome) => self.furnished = Some(outcome),
                Told::Refused { switch, present } => {
                    self.durability.refused(&self.setup.mesh.switches[switch].key, present);
                }
                Told::Acknowledged { switch, present, index } => {
                    self.decisions.0 += 1;
                    self.reads.acknowledged(index);
                    let key = &self.setup.mesh.switches[switch].key;
                    let what = if present { "there" } else { "gone" };
                    self.trace.add(now, None, Kind::Decision, format!("{} is {what} at index {index}", key.name));
                    self.durability.acknowledged(key, present, index);
                }
                Told::Waited { index, tables } => {
                    let found = self.hosts.iter().filter_map(Host::node);
                    let named = found.filter(|node| tables.contains(&node.name().to_string()));
                    let tables: Vec<_> =
                        named.map(|node| (node.name().to_string(), node.plane().table().index())).collect();
                    waiting::check(index, &tables)?;
                    self.trace.add(now, None, Kind::Decision, format!("index {index} is in force on {}", tables.len()));
                }
            }
        }
        for host in 0..self.hosts.len() {
            for seen in self.hosts[host].take_seen() {
                match seen {
                    Seen::Arrived(arrived) => self.arrived(host, arrived, now)?,
                    Seen::Stranger(first) => strangers::answered(first)?,
                    Seen::Answered(number, status) => {
                        let (kind, at) = match status {
                            Some(200) => (Kind::Allowed, 0),
                            Some(403) => (Kind::Denied, 1),
                            _ => (Kind::Failed, 2),
                        };
                        self.outcomes[at] += 1;
                        self.trace.add(now, Some(host), kind, format!("call {number}: {status:?}"));
                        if let Some(call) = self.load.ended(number, now, status) {
                            self.claims.answered(call, status)?;
                        }
                    }
                }
            }
        }
        self.retries.judge(&self.load, now)
    }

    /// A call reached an application, or more of its answer was taken there.
    fn arrived(&mut self, host: usize, arrived: Arrived, now: u64) -> Result<(), Breach> {
        let Some(call) = self.load.get(arrived.number) else { return Ok(()) };
        let mesh = &self.setup.mesh;
        if arrived.service != call.to {
            let text = format!("{} reached {}", call.describe(mesh), mesh.services[arrived.service].name);
            return Err(Breach { invariant: "calls reach whom they are for", text });
        }
        if !arrived.goes_on {
            let text = format!("call {}, {}, arrived", arrived.number, call.describe(mesh));
            self.trace.add(now, Some(host), Kind::Allowed, text);
            self.retries.arrived(arrived.number, call, now);
            if call.only_once(mesh) {
                self.once.arrived(arrived.number)?;
            }
        }
        if mesh.services[arrived.service].is_external() {
            departures::left(arrived.peer, call, mesh, self.hosts.len())?;
        } else {
            admission::arrived(host, call, mesh)?;
        }
        self.claims.arrived(host, call, now)
    }

    /// What the nodes have in force.
    pub(super) fn watch(&mut self, now: u64) {
        for id in 0..self.hosts.len() {
            if let Some(node) = self.hosts[id].node() {
                self.claims.saw(id, &*node.state(), node.plane().table().index(), now);
            }
        }
    }

    /// The nodes themselves.
    pub(super) fn look(&mut self, now: u64) -> Result<(), Breach> {
        for id in 0..self.hosts.len() {
            if let Stage::Refused(why) = self.hosts[id].stage() {
                self.give_up(id, &why, now);
            }
            let Some(node) = self.hosts[id].node() else { continue };
            if let Some(why) = node.failed().borrow().clone() {
                self.give_up(id, &why, now);
                continue;
            }
            let status = node.raft_status();
            if status.role == Role::Leader && self.leadership.saw(status.term, node.name())? {
                self.trace.add(now, Some(id), Kind::Node, format!("leads in term {}", status.term));
            }
            let state = node.state();
            if self.agreement.saw(id, &state)? {
                admission::certificates(&state)?;
                self.durability.check(id, &*state)?;
            }
        }
        Ok(())
    }

    /// A node that cannot go on from its disk: its process ends; an operator gives it a fresh one and a new name where
    /// the disk is to blame.
    fn give_up(&mut self, host: usize, why: &str, now: u64) {
        let fresh = why.contains("cannot be used") || why.contains("move its");
        self.trace.add(now, Some(host), Kind::Node, format!("ends: {}", why.chars().take(120).collect::<String>()));
        self.fall(host, false);
        self.hosts[host].disk().fill_up(false);
        if fresh {
            self.wipe(host);
        }
        let wait = self.dice.range(200, 2_000);
        self.restarts.push((now + wait, host));
    }

    pub(super) fn shape(&self) -> String {
        let mut shape = Vec::new();
        for (id, host) in self.hosts.iter().enumerate() {
            shape.push(match host.stage() {
                Stage::Down => format!("n{id}: down"),
                Stage::Starting => format!("n{id}: starting"),
                Stage::Refused(why) => format!("n{id}: {why}"),
                Stage::Running(node) => {
                    let status = node.raft_status();
                    format!(
                        "n{id}: {} term {} leader {:?} applied {} of {} table {} live {} ready {}",
                        status.role,
                        status.term,
                        status.leader.map(|name| name.to_string()),
                        status.applied,
                        status.last,
                        node.plane().table().index(),
                        node.live().len(),
                        node.is_ready()
                    )
                }
            });
        }
        shape.join("; ")
    }
}
