//! Pure: who should vote, from who lives where. The leader carries out one step at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weft_proto::RaftId;
use weft_proto::identity::NodeName;
use weft_proto::planted::{Bug, planted};

/// How long a voter may be dead before another takes its place.
pub const GRACE: Duration = Duration::from_secs(30);

/// What a plan is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The leader, which plans.
    pub leader: RaftId,
    /// Who votes.
    pub voters: BTreeSet<RaftId>,
    /// Who is in the Raft group without a vote.
    pub learners: BTreeSet<RaftId>,
    /// Every admitted node.
    pub candidates: Vec<Candidate>,
    /// How many voters are wanted: 1, 3, 5 or 7.
    pub wanted: usize,
}

/// An admitted node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its Raft node id.
    pub raft_id: RaftId,
    /// Its name.
    pub name: NodeName,
    /// Its failure domain.
    pub zone: String,
    /// How long it has been dead; none while it lives.
    pub dead_for: Option<Duration>,
    /// Whether it is leaving.
    pub draining: bool,
}

/// One change of the Raft group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// These become voters, in one change, so that their number stays odd.
    Add(Vec<(RaftId, NodeName)>),
    /// One takes another's place.
    Replace {
        /// Who votes no more.
        old: RaftId,
        /// Who votes instead.
        new: (RaftId, NodeName),
    },
    /// This one votes no more.
    Remove(RaftId),
    /// This one leaves the group; it never got its vote.
    Forget(RaftId),
}

/// The next step, if one is due.
pub fn plan(view: &View) -> Option<Step> {
    let by_id: BTreeMap<RaftId, &Candidate> = view.candidates.iter().map(|node| (node.raft_id, node)).collect();
    // Of a voter that was removed it is not known; the leader lives in any case.
    let is_live = |id: &RaftId| by_id.get(id).is_none_or(|node| node.dead_for.is_none());
    let live_voters = view.voters.iter().filter(|id| is_live(id)).count();
    let fit = |node: &&Candidate| node.dead_for.is_none() && !node.draining;
    let goal = largest_odd(view.wanted.min(view.candidates.iter().filter(fit).count().max(1)));
    if live_voters * 2 <= view.voters.len() {
        // No majority: nothing could be committed, and nothing should be tried.
        return None;
    }
    if view.voters.len() < goal {
        let mut voters = view.voters.clone();
        let mut added = Vec::new();
        while voters.len() < goal && added.len() < 2 {
            let next = best(view, &voters)?;
            voters.insert(next.0);
            added.push(next);
        }
        return (voters.len() % 2 == 1).then_some(Step::Add(added));
    }
    let weak = |id: &&RaftId| match by_id.get(id) {
        None => true,
        Some(node) => node.dead_for.is_some_and(|dead| dead >= GRACE) || node.draining && node.raft_id != view.leader,
    };
    if let Some(old) = view.voters.iter().find(weak).copied().filter(|_| !planted(Bug::DeadVotersKept)) {
        if view.voters.len() > largest_odd(view.wanted) {
            return Some(Step::Remove(old));
        }
        if let Some(new) = best(view, &view.voters) {
            return Some(Step::Replace { old, new });
        }
        // Whoever is no node any more goes without anyone in its place.
        if !by_id.contains_key(&old) && view.voters.len() > 1 {
            return Some(Step::Remove(old));
        }
    }
    // An even number bears no more deaths than the odd one below it.
    if view.voters.len() > largest_odd(view.wanted) || view.voters.len().is_multiple_of(2) {
        // A live voter goes only if the others that live are still a majority without it.
        let safe = (live_voters - 1) * 2 > view.voters.len() - 1;
        let last = view.voters.iter().rev().find(|id| **id != view.leader && is_live(id));
        return last.filter(|_| safe).map(|id| Step::Remove(*id));
    }
    view.learners.iter().next().map(|id| Step::Forget(*id))
}

/// The live node that votes least conspicuously missing: from the zone with fewest voters, then the oldest.
fn best(view: &View, voters: &BTreeSet<RaftId>) -> Option<(RaftId, NodeName)> {
    let in_zone =
        |zone: &str| view.candidates.iter().filter(|node| node.zone == zone && voters.contains(&node.raft_id)).count();
    let free = view
        .candidates
        .iter()
        .filter(|node| node.dead_for.is_none() && !node.draining && !voters.contains(&node.raft_id));
    free.min_by_key(|node| (in_zone(&node.zone), node.raft_id)).map(|node| (node.raft_id, node.name.clone()))
}

fn largest_odd(count: usize) -> usize {
    if count % 2 == 1 { count } else { count.saturating_sub(1).max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `voters | nodes | wanted`, where a node is `id:zone`, with `+SECONDS` when dead and `-` when draining.
    fn view(script: &str) -> View {
        let parts: Vec<&str> = script.split('|').map(str::trim).collect();
        let ids = |text: &str| text.split_whitespace().map(|id| id.parse().expect("id")).collect::<BTreeSet<RaftId>>();
        let node = |text: &str| {
            let draining = text.ends_with('-');
            let (text, dead) = text.trim_end_matches('-').split_once('+').map_or((text, None), |(t, s)| (t, Some(s)));
            let (id, zone) = text.trim_end_matches('-').split_once(':').expect("id:zone");
            Candidate {
                raft_id: id.parse().expect("id"),
                name: format!("n{id}").parse().expect("name"),
                zone: zone.to_owned(),
                dead_for: dead.map(|seconds| Duration::from_secs(seconds.trim_end_matches('-').parse().expect("s"))),
                draining,
            }
        };
        View {
            leader: 1,
            voters: ids(parts[0]),
            learners: BTreeSet::new(),
            candidates: parts[1].split_whitespace().map(node).collect(),
            wanted: parts[2].parse().expect("wanted"),
        }
    }

    fn planned(script: &str) -> String {
        match plan(&view(script)) {
            None => "nothing".into(),
            Some(Step::Add(new)) => format!("add {:?}", new.iter().map(|(id, _)| *id).collect::<Vec<_>>()),
            Some(Step::Replace { old, new }) => format!("replace {old} by {}", new.0),
            Some(Step::Remove(id)) => format!("remove {id}"),
            Some(Step::Forget(id)) => format!("forget {id}"),
        }
    }

    #[test]
    fn scripts() {
        for (script, expected) in [
            ("1 | 1:a | 5", "nothing"),
            ("1 | 1:a 2:a | 5", "nothing"),
            ("1 | 1:a 2:a 3:a | 5", "add [2, 3]"),
            ("1 2 3 | 1:a 2:a 3:a 4:a | 5", "nothing"),
            ("1 2 3 | 1:a 2:a 3:a 4:a 5:a | 5", "add [4, 5]"),
            ("1 2 3 | 1:a 2:a 3:a 4:a 5:a | 3", "nothing"),
            // Zones come before age.
            ("1 | 1:a 2:a 3:b 4:c | 3", "add [3, 4]"),
            // A short death changes nothing; a long one does, where there is someone else.
            ("1 2 3 | 1:a 2:a 3:a+10 4:a | 3", "nothing"),
            ("1 2 3 | 1:a 2:a 3:a+31 4:a | 3", "replace 3 by 4"),
            ("1 2 3 | 1:a 2:a 3:a+31 | 3", "nothing"),
            // Without a majority nothing is tried.
            ("1 2 3 | 1:a 2:a+99 3:a+99 4:a 5:a | 5", "nothing"),
            // A draining voter is replaced, the leader never by its own plan.
            ("1 2 3 | 1:a 2:a- 3:a 4:a | 3", "replace 2 by 4"),
            // Fewer wanted.
            ("1 2 3 4 5 | 1:a 2:a 3:a 4:a 5:a | 3", "remove 5"),
            ("1 2 3 4 5 | 1:a 2:a 3:a 4:a+1 5:a+1 | 3", "nothing"),
            // A voter that is no node any more, the leader too, with and without another one in its place.
            ("1 2 3 | 1:a 2:a 4:a | 3", "replace 3 by 4"),
            ("1 2 3 | 2:a 3:a 4:a | 3", "replace 1 by 4"),
            ("1 2 3 | 1:a 2:a | 3", "remove 3"),
            ("1 2 | 1:a 2:a | 3", "remove 2"),
            ("1 2 3 | 2:a 3:a | 3", "remove 1"),
            ("1 | 2:a | 3", "replace 1 by 2"),
        ] {
            assert_eq!(planned(script), expected, "{script}");
        }
    }
}
