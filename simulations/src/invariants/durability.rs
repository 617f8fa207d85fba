//! What was acknowledged is never lost, and what was refused never happens.

use std::collections::BTreeMap;

use weft_proto::resource::ResourceKey;

use super::{Breach, Decisions};

/// What operators were told, by the policy they changed.
#[derive(Debug, Default)]
pub struct Durability {
    policies: BTreeMap<ResourceKey, Told>,
}

#[derive(Debug, Default)]
struct Told {
    /// The newest acknowledged change: its index, and whether the policy is there after it.
    acknowledged: Option<(u64, bool)>,
    /// Changes whose operator was told nothing: they may come to be, at any later index.
    open: Vec<bool>,
}

impl Durability {
    /// A change begins.
    pub fn began(&mut self, policy: &ResourceKey, present: bool) {
        self.policies.entry(policy.clone()).or_default().open.push(present);
    }

    /// It was acknowledged with this index.
    pub fn acknowledged(&mut self, policy: &ResourceKey, present: bool, index: u64) {
        let told = self.policies.entry(policy.clone()).or_default();
        if let Some(at) = told.open.iter().position(|open| *open == present) {
            told.open.remove(at);
        }
        if told.acknowledged.is_none_or(|(before, _)| before < index) {
            told.acknowledged = Some((index, present));
        }
    }

    /// It was refused for good.
    pub fn refused(&mut self, policy: &ResourceKey, present: bool) {
        let told = self.policies.entry(policy.clone()).or_default();
        if let Some(at) = told.open.iter().position(|open| *open == present) {
            told.open.remove(at);
        }
    }

    /// A node's state must hold all that was acknowledged up to its index.
    pub fn check(&self, host: usize, state: &impl Decisions) -> Result<(), Breach> {
        for (policy, told) in &self.policies {
            let Some((index, present)) = told.acknowledged else { continue };
            if state.index() < index {
                continue;
            }
            let found = state.version(policy);
            let changed_since = found.is_some_and(|version| version > index);
            let may_differ = told.open.iter().any(|open| *open != present) || changed_since;
            if found.is_some() != present && !may_differ {
                let text = format!(
                    "{policy} was acknowledged as {} at index {index}; n{host} has the opposite at index {}",
                    if present { "there" } else { "gone" },
                    state.index()
                );
                return Err(Breach { invariant: "acknowledged decisions are kept", text });
            }
        }
        Ok(())
    }
}
