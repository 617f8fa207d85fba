//! What does not work, as this node sees it: the same list for people, programs and metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_consensus::state::State;
use weft_consensus::status::{RaftStatus, Role};
use weft_proto::UnixMillis;
use weft_proto::facts::{Live, NodeFacts};
use weft_proto::identity::NodeName;

use super::certificates::failing;
use crate::authority::LEAF_LIFETIME_MS;
use crate::node::Node;
use crate::world::{OFFSET_MAX_MS, World};

/// Something that does not work, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its kind: the label of the metric `weft_problem`.
    pub kind: &'static str,
    /// For people: what, where, and what to do.
    pub text: String,
}

/// All kinds, so that the metric tells of each that there is none.
pub const KINDS: [&str; 13] = [
    "registration",
    "instance",
    "listener",
    "not-enforced",
    "no-leader",
    "node-not-live",
    "behind",
    "certificate",
    "clock",
    "facts-too-large",
    "node-not-reached",
    "outdated",
    "removed",
];

/// What a node says that the mesh knows no more.
const REMOVED: &str = "this node was removed from the mesh: nobody takes its calls or sends it any; to join again, start it from an \
                       empty directory on a new line of `weft token create`";
/// Nodes that are not live are named up to so many.
const NAMED_MAX: usize = 10;
/// For how long decisions may be under way before it is told.
const BEHIND_MIN: Duration = Duration::from_secs(3);
/// For how long no call may reach a node before it is told: less is told by its death.
const UNREACHED_MIN: Duration = Duration::from_secs(5);
/// A certificate is renewed at half its life; with less than this left that has failed for long.
const LIFE_LEFT_MIN_MS: u64 = LEAF_LIFETIME_MS / 4;

impl<W: World> Node<W> {
    /// Everything that does not work, as far as this node can tell.
    pub fn problems(&self) -> Vec<Problem> {
        let (status, state, live) = (self.replica.status().borrow().clone(), self.state(), self.live());
        let mut problems = self.own_problems();
        if self.is_removed() {
            // Whatever else is amiss follows from that.
            problems.push(Problem { kind: "removed", text: REMOVED.into() });
            return problems;
        }
        problems.extend(leadership(&status, &live, self.name()));
        problems.extend(absent(&state, &live));
        problems.extend(elsewhere(&live, self.name()));
        problems.extend(unreached(&self.plane.unreached(), &live));
        problems.extend(behind(&status));
        problems.extend(certificates(*self.expires.borrow(), self.world.now()));
        problems
            .extend(failing(&state, self.world.now()).into_iter().map(|text| Problem { kind: "certificate", text }));
        let offsets = self.book.offsets().into_iter().filter(|(name, _)| live.contains_key(name)).collect();
        problems.extend(clocks(&offsets));
        problems
    }

    fn own_problems(&self) -> Vec<Problem> {
        let local = self.local.borrow().clone();
        let new = |kind, text| Problem { kind, text };
        let mut problems: Vec<Problem> = local.faults.iter().map(|fault| new("registration", fault.clone())).collect();
        let refused = local.refused.iter();
        problems.extend(refused.map(|(service, why)| new("registration", format!("service {service}: {why}"))));
        let unhealthy = local.instances.keys().filter_map(|id| Some((id, local.problem(id)?)));
        problems.extend(unhealthy.map(|(id, why)| new("instance", format!("service {id} is not healthy: {why}"))));
        problems.extend(self.plane.problems().into_iter().map(|text| new("listener", text)));
        let enforced = self.enforced.borrow().clone();
        if !enforced.refused.is_empty() {
            problems.push(new("not-enforced", format!("the newest state is not enforced: {}", enforced.refused)));
        }
        let unenforced = enforced.unenforced.iter();
        problems.extend(unenforced.map(|one| new("not-enforced", format!("{} is not enforced: {}", one.key, one.why))));
        if let Some(index) = *self.replica.outdated().borrow() {
            problems.push(new(
                "outdated",
                format!(
                    "the mesh's decision {index} is of a later version of weft: upgrade weft on this host; calls go on by what \
                     was decided before"
                ),
            ));
        }
        if let Some(text) = self.gossip.too_large() {
            problems.push(new("facts-too-large", text));
        }
        problems
    }
}

/// More is committed than is applied here, and not only for a moment.
fn behind(status: &RaftStatus) -> Option<Problem> {
    let since = status.behind_since.filter(|since| since.elapsed() >= BEHIND_MIN)?;
    Some(Problem {
        kind: "behind",
        text: format!(
            "this node is behind since {} s: it has applied the decisions up to {} and there are more; calls are decided by what \
             is known here",
            since.elapsed().as_secs(),
            status.applied
        ),
    })
}

fn leadership(status: &RaftStatus, live: &Live, me: &NodeName) -> Option<Problem> {
    const MEANS: &str = "calls, discovery and issued certificates go on; policies, tokens, joins and renewals wait";
    let text = match (&status.leader, status.leaderless_since) {
        (_, Some(since)) => {
            let (seconds, count) = (since.elapsed().as_secs(), status.voters.len());
            format!("no leader for {seconds} s: {MEANS} until a majority of {count} is back")
        }
        (Some(leader), None) if status.role != Role::Leader && leader != me && !live.contains_key(leader) => {
            format!("the leader {leader} is not heard of here: {MEANS} until it or another one is")
        }
        _ => return None,
    };
    Some(Problem { kind: "no-leader", text })
}

fn absent(state: &State, live: &Live) -> Vec<Problem> {
    let absent: Vec<&NodeName> = state.nodes.keys().filter(|name| !live.contains_key(*name)).collect();
    let new = |text| Problem { kind: "node-not-live", text };
    let mut problems: Vec<Problem> = absent
        .iter()
        .take(NAMED_MAX)
        .map(|name| {
            new(format!("node {name} is not live: it is down, or cut off from here; its instances are not called"))
        })
        .collect();
    if absent.len() > NAMED_MAX {
        problems.push(new(format!("{} more nodes are not live: `weft members`", absent.len() - NAMED_MAX)));
    }
    problems
}

/// What is between the hosts may let one way through and not the other: gossip goes around it, calls do not.
fn unreached(lost: &BTreeMap<NodeName, Duration>, live: &Live) -> Vec<Problem> {
    let lost = lost.iter().filter(|(name, since)| live.contains_key(*name) && **since >= UNREACHED_MIN);
    let text = |name: &NodeName, since: &Duration| {
        format!(
            "calls from here do not reach node {name} since {} s, though others hear of it: look at what is between the two \
             hosts, on TCP and UDP and both ways",
            since.as_secs()
        )
    };
    lost.map(|(name, since)| Problem { kind: "node-not-reached", text: text(name, since) }).collect()
}

fn elsewhere(live: &Live, me: &NodeName) -> Vec<Problem> {
    let others = live.values().filter(|facts| facts.name != *me && !facts.refused.is_empty());
    let text = |facts: &NodeFacts| format!("node {} does not enforce everything: {}", facts.name, facts.refused);
    others.map(|facts| Problem { kind: "not-enforced", text: text(facts) }).collect()
}

fn certificates(expires: UnixMillis, now: UnixMillis) -> Option<Problem> {
    if expires == 0 || expires > now + LIFE_LEFT_MIN_MS {
        return None;
    }
    let minutes = expires.abs_diff(now) / 60_000;
    let what = match expires <= now {
        true => format!("a certificate of this node ended {minutes} min ago, and calls fail"),
        false => format!("a certificate of this node ends in {minutes} min and could not be renewed"),
    };
    let text = format!("{what}; it is tried again all the time: see the log, and the clock of this host");
    Some(Problem { kind: "certificate", text })
}

/// Where most others are off alike, it is this host's clock that is wrong.
fn clocks(offsets: &BTreeMap<NodeName, i64>) -> Vec<Problem> {
    const REMEDY: &str = "certificates are refused by hosts whose clocks differ: let each host keep time by NTP";
    let off: Vec<(&NodeName, i64)> = offsets
        .iter()
        .map(|(name, offset)| (name, *offset))
        .filter(|(_, offset)| offset.unsigned_abs() > OFFSET_MAX_MS)
        .collect();
    let new = |text: String| Problem { kind: "clock", text: format!("{text}; {REMEDY}") };
    let mut sorted: Vec<i64> = offsets.values().copied().collect();
    sorted.sort_unstable();
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0);
    if offsets.len() > 1 && off.len() * 2 > offsets.len() && median.unsigned_abs() > OFFSET_MAX_MS {
        let way = if median > 0 { "behind" } else { "ahead of" };
        return vec![new(format!(
            "the clock of this host is {} s {way} those of the others",
            median.unsigned_abs() / 1000
        ))];
    }
    off.iter()
        .map(|(name, offset)| {
            let way = if *offset > 0 { "ahead of" } else { "behind" };
            new(format!("the clock of node {name} is {} s {way} the one of this host", offset.unsigned_abs() / 1000))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(offsets: &[(&str, i64)]) -> Vec<String> {
        let offsets = offsets.iter().map(|(name, offset)| (name.parse().expect("a name"), *offset)).collect();
        clocks(&offsets)
            .into_iter()
            .map(|problem| problem.text.split(';').next().unwrap_or_default().to_owned())
            .collect()
    }

    #[test]
    fn a_clock_that_is_off_is_told_from_those_that_are_right() {
        assert!(told(&[("b", 59_000), ("c", -59_000)]).is_empty());
        assert_eq!(
            told(&[("b", 7_200_000), ("c", 0)]),
            ["the clock of node b is 7200 s ahead of the one of this host"]
        );
        assert_eq!(
            told(&[("b", -7_200_000), ("c", -7_200_100)]),
            ["the clock of this host is 7200 s ahead of those of the others"]
        );
        assert_eq!(told(&[("b", 61_000)]), ["the clock of node b is 61 s ahead of the one of this host"]);
    }

    #[test]
    fn a_certificate_is_told_of_before_it_ends() {
        assert_eq!(certificates(LEAF_LIFETIME_MS, LEAF_LIFETIME_MS / 2), None);
        assert!(
            certificates(LEAF_LIFETIME_MS, LEAF_LIFETIME_MS - 60_000)
                .is_some_and(|one| one.text.contains("ends in 1 min"))
        );
        assert!(certificates(1, 180_001).is_some_and(|one| one.text.contains("ended 3 min ago")));
    }
}
