//! Which instances go before others by where they are: groups, of which the next one serves as far as those before it cannot,
//! or which have shares.

use weft_proto::kinds::destination_rule::LocalitySetting;
use weft_proto::service::Labels;

use crate::table::destinations::Localities;

/// The candidates by where they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Spread {
    /// All alike.
    #[default]
    Even,
    /// The first group first.
    Priorities(Vec<Vec<usize>>),
    /// Each with its share.
    Shares(Vec<(u32, Vec<usize>)>),
}

/// Where a caller or an instance is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site<'a> {
    /// `region/zone/subzone`.
    pub(crate) locality: &'a str,
    /// Whether it is this node.
    pub(crate) here: bool,
    pub(crate) labels: &'a Labels,
}

/// The candidates by where they are, as seen from the caller.
pub(crate) fn spread<'a>(
    localities: &Localities,
    caller: &Site<'_>,
    candidates: &[usize],
    site: impl Fn(usize) -> Site<'a>,
) -> Spread {
    let setting = match localities {
        Localities::Alike => return Spread::Even,
        // Who has not said where it is means no order.
        Localities::Nearest if matches!(caller.locality, "" | UNSAID) => return Spread::Even,
        Localities::Nearest => {
            return ranked(candidates, |at| match site(at) {
                own if own.here => 0,
                other => 1 + distance(caller.locality, other.locality, None),
            });
        }
        Localities::Set(setting) => setting,
        Localities::ZoneAware(setting, least) => {
            let own = |at: &&usize| distance(caller.locality, site(**at).locality, None) < 3;
            if candidates.iter().filter(own).count() < *least && setting.failover_priority.is_empty() {
                return by_region(setting, caller, candidates, site, 2);
            }
            setting
        }
    };
    if !setting.distribute.is_empty() {
        return distributed(setting, caller, candidates, site);
    }
    if !setting.failover_priority.is_empty() {
        return ranked(candidates, |at| by_labels(&setting.failover_priority, caller, &site(at)));
    }
    by_region(setting, caller, candidates, site, 0)
}

/// The nearest first, of which those that are no farther than `alike` are all the same.
fn by_region<'a>(
    setting: &LocalitySetting,
    caller: &Site<'_>,
    candidates: &[usize],
    site: impl Fn(usize) -> Site<'a>,
    alike: usize,
) -> Spread {
    let region = parts(caller.locality).next();
    let next = setting.failover.iter().find(|one| Some(one.from.as_str()) == region).map(|one| one.to.as_str());
    ranked(candidates, |at| distance(caller.locality, site(at).locality, next).max(alike))
}

/// Shares as the first entry says that covers the caller.
fn distributed<'a>(
    setting: &LocalitySetting,
    caller: &Site<'_>,
    candidates: &[usize],
    site: impl Fn(usize) -> Site<'a>,
) -> Spread {
    let Some(entry) = setting.distribute.iter().find(|entry| covers(&entry.from, caller.locality)) else {
        return Spread::Even;
    };
    let share = |(place, weight): (&String, &u32)| {
        let there = candidates.iter().copied().filter(|at| covers(place, site(*at).locality));
        (*weight, there.collect::<Vec<usize>>())
    };
    Spread::Shares(entry.to.iter().map(share).filter(|(_, there)| !there.is_empty()).collect())
}

/// Groups by rank, the lowest first.
fn ranked(candidates: &[usize], rank: impl Fn(usize) -> usize) -> Spread {
    let mut ranks: Vec<(usize, usize)> = candidates.iter().map(|at| (rank(*at), *at)).collect();
    ranks.sort_unstable();
    let groups: Vec<Vec<usize>> =
        ranks.chunk_by(|a, b| a.0 == b.0).map(|group| group.iter().map(|(_, at)| *at).collect()).collect();
    if groups.len() < 2 { Spread::Even } else { Spread::Priorities(groups) }
}

/// 0: the same subzone, 1: zone, 2: region, 3: the region that is next to it, 4: elsewhere.
fn distance(caller: &str, other: &str, next: Option<&str>) -> usize {
    let (mut own, mut others) = (parts(caller), parts(other));
    match (own.next(), others.next()) {
        (a, b) if a != b => return if b.is_some() && b == next { 3 } else { 4 },
        _ => {}
    }
    if own.next() != others.next() {
        return 2;
    }
    usize::from(own.next() != others.next())
}

/// How many of the labels, from the first one on without a gap, an instance has: the more, the lower.
fn by_labels(wanted: &[String], caller: &Site<'_>, other: &Site<'_>) -> usize {
    let has = |one: &&String| {
        let (key, value) = one.split_once('=').map_or((one.as_str(), None), |(key, value)| (key, Some(value)));
        let place = |site: &Site<'_>| match PLACES.iter().position(|place| *place == key) {
            Some(at) => parts(site.locality).nth(at).map(str::to_owned),
            None => site.labels.get(key).cloned(),
        };
        let expected = value.map(str::to_owned).or_else(|| place(caller));
        match key {
            HOSTNAME => other.here,
            _ => place(other) == expected,
        }
    };
    wanted.len() - wanted.iter().take_while(has).count()
}

/// Whether a locality is the one that is named, or within it.
fn covers(pattern: &str, locality: &str) -> bool {
    let mut own = parts(locality);
    parts(pattern).all(|part| match part {
        "*" => true,
        part => own.next() == Some(part),
    })
}

fn parts(locality: &str) -> impl Iterator<Item = &str> {
    locality.split('/').filter(|part| !part.is_empty())
}

/// The locality of a host that says none.
const UNSAID: &str = "default";
/// Labels that mean region, zone and subzone.
const PLACES: [&str; 3] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];
/// The label that means the node.
const HOSTNAME: &str = "kubernetes.io/hostname";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weft_proto::kinds::destination_rule::{Distribute, Failover};

    use super::*;

    const ZONES: [&str; 6] = ["r1/z1/s1", "r1/z1/s2", "r1/z2/s1", "r2/z3/s1", "r3/z4/s1", "r1/z1/s1"];

    fn spread_of(localities: &Localities, here: Option<usize>) -> Spread {
        spread_from("r1/z1/s1", localities, here)
    }

    fn spread_from(locality: &str, localities: &Localities, here: Option<usize>) -> Spread {
        let labels = Labels::new();
        let caller = Site { locality, here: true, labels: &labels };
        let site = |at: usize| Site { locality: ZONES[at], here: Some(at) == here, labels: &labels };
        spread(localities, &caller, &[0, 1, 2, 3, 4, 5], site)
    }

    fn set(setting: LocalitySetting) -> Localities {
        Localities::Set(Arc::new(setting))
    }

    #[test]
    fn the_nearest_go_first() {
        let groups = |groups: &[&[usize]]| Spread::Priorities(groups.iter().map(|group| group.to_vec()).collect());
        let plain = groups(&[&[0, 5], &[1], &[2], &[3, 4]]);
        assert_eq!(spread_of(&set(LocalitySetting::default()), Some(5)), plain);
        assert_eq!(spread_of(&Localities::Nearest, Some(5)), groups(&[&[5], &[0], &[1], &[2], &[3, 4]]));
        assert_eq!(spread_of(&Localities::Alike, Some(5)), Spread::Even);
        assert_eq!(spread_from("default", &Localities::Nearest, Some(5)), Spread::Even);
        let next = Failover { from: "r1".into(), to: "r3".into() };
        let failover = LocalitySetting { failover: vec![next], ..LocalitySetting::default() };
        assert_eq!(spread_of(&set(failover), None), groups(&[&[0, 5], &[1], &[2], &[4], &[3]]));
        let groups_of = |least| spread_of(&Localities::ZoneAware(Arc::default(), least), None);
        assert_eq!(groups_of(4), plain);
        assert_eq!(groups_of(5), groups(&[&[0, 1, 2, 5], &[3, 4]]), "too few for zones");
        let labels = vec!["topology.kubernetes.io/region".into(), "topology.kubernetes.io/zone=z2".into()];
        let labels = LocalitySetting { failover_priority: labels, ..LocalitySetting::default() };
        assert_eq!(spread_of(&set(labels), None), groups(&[&[2], &[0, 1, 5], &[3, 4]]));
    }

    #[test]
    fn shares_are_those_of_the_entry_that_covers_the_caller() {
        let entry = |from: &str| Distribute {
            from: from.into(),
            to: [("r1/z1/*".to_owned(), 70), ("r1/z2/*".to_owned(), 20), ("r3".to_owned(), 10)].into(),
        };
        let setting = |from: &str| LocalitySetting { distribute: vec![entry(from)], ..LocalitySetting::default() };
        let shares = Spread::Shares(vec![(70, vec![0, 1, 5]), (20, vec![2]), (10, vec![4])]);
        for from in ["r1/z1/*", "r1/*", "*", "r1/z1/s1"] {
            assert_eq!(spread_of(&set(setting(from)), None), shares, "{from}");
        }
        assert_eq!(spread_of(&set(setting("r2/*")), None), Spread::Even);
    }
}
