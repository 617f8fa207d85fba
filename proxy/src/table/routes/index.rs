//! Finds the rules that a path can fall under without asking each.

use std::collections::{BTreeMap, HashMap};

use super::Rule;
use super::matching::Text;

/// Places of rules by the paths that they ask for.
#[derive(Debug, Default)]
pub(super) struct Index {
    exact: HashMap<Box<str>, Vec<usize>>,
    /// By the length of the prefix.
    prefixes: BTreeMap<usize, HashMap<Box<str>, Vec<usize>>>,
    /// Those that a path does not tell of.
    rest: Vec<usize>,
}

impl Index {
    pub(super) fn new(rules: &[Rule]) -> Self {
        let mut index = Self::default();
        for (at, rule) in rules.iter().enumerate() {
            if rule.matches.is_empty() {
                index.rest.push(at);
            }
            for block in &rule.matches {
                let path = block.path.as_ref().filter(|path| !path.ignores_case).map(|path| &path.text);
                let places = match path {
                    Some(Text::Exact(text)) => index.exact.entry(text.clone()).or_default(),
                    Some(Text::Prefix(text) | Text::Segments(text)) => {
                        index.prefixes.entry(text.len()).or_default().entry(text.clone()).or_default()
                    }
                    _ => &mut index.rest,
                };
                if places.last() != Some(&at) {
                    places.push(at);
                }
            }
        }
        index
    }

    /// The first of the rules that a path can fall under which `fits`.
    pub(super) fn first<T>(&self, path: &str, mut fits: impl FnMut(usize) -> Option<T>) -> Option<(usize, T)> {
        let mut best: Option<(usize, T)> = None;
        let mut ask = |places: &[usize]| {
            for at in places {
                if best.as_ref().is_some_and(|(first, _)| first <= at) {
                    break;
                }
                if let Some(found) = fits(*at) {
                    best = Some((*at, found));
                    break;
                }
            }
        };
        if let Some(places) = self.exact.get(path) {
            ask(places);
        }
        for (length, by_text) in self.prefixes.range(..=path.len()) {
            if let Some(places) = path.get(..*length).and_then(|start| by_text.get(start)) {
                ask(places);
            }
        }
        ask(&self.rest);
        best
    }
}

#[cfg(test)]
mod tests {
    use super::super::matching::{Match, PathMatch};
    use super::super::{Action, Shares};
    use super::*;

    fn rule(text: Option<Text>) -> Rule {
        let path = text.map(|text| PathMatch { text, ignores_case: false });
        let matches = vec![Match { path, ..Match::default() }];
        Rule { matches, ..Rule::only("", Action::Forward(Shares { shares: Vec::new(), sum: 0 })) }
    }

    /// What a walk finds is what the index finds, for paths and rules of few letters.
    #[test]
    fn it_finds_what_a_walk_finds() {
        let mut seed = 1u64;
        let mut draw = |bound: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % bound
        };
        for _ in 0..500 {
            let mut text = || -> Box<str> {
                let length = draw(4);
                let letters: String = (0..length).map(|_| ["/", "a", "b"][draw(3) as usize]).collect();
                format!("/{letters}").into()
            };
            let rules: Vec<Rule> = (0..12)
                .map(|at| match at % 4 {
                    0 => rule(Some(Text::Exact(text()))),
                    1 => rule(Some(Text::Prefix(text()))),
                    2 => rule(Some(Text::Segments(text().trim_end_matches('/').into()))),
                    _ => rule(Some(Text::Regex(regex::Regex::new(&format!("^{}.$", text())).expect("an expression")))),
                })
                .collect();
            let (index, path) = (Index::new(&rules), text());
            let fits =
                |at: usize| rules[at].matches[0].path.as_ref().is_none_or(|one| one.text.fits(&path)).then_some(());
            let walked = (0..rules.len()).find(|at| fits(*at).is_some());
            assert_eq!(index.first(&path, fits).map(|(at, ())| at), walked, "{path}");
        }
    }
}
