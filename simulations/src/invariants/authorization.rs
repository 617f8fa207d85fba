//! No call reaches an application that its node's decisions deny. Judged from the decisions themselves, not by the code
//! that enforces them.

use std::collections::BTreeMap;

use weft_consensus::state::State;
use weft_proto::resource::{Kind, ResourceKey};

use super::Breach;

/// Since when each host's table denies each path.
#[derive(Debug, Default)]
pub struct Authorization {
    denied: BTreeMap<(usize, String), u64>,
}

/// How long a call that was let through may take to reach the application.
const ON_ITS_WAY_MS: u64 = 3000;

impl Authorization {
    /// A host enforces the decisions up to `enforced`; `state` is its newest.
    pub fn saw(&mut self, host: usize, state: &State, enforced: u64, paths: &[String], now: u64) {
        for path in paths {
            let name = policy_of(path);
            let key = ResourceKey { kind: Kind::AuthorizationPolicy, namespace: "default".into(), name };
            let denies = state.resources.get(&key).is_some_and(|policy| policy.version <= enforced);
            let slot = (host, path.clone());
            match denies {
                true => drop(self.denied.entry(slot).or_insert(now)),
                false => drop(self.denied.remove(&slot)),
            }
        }
    }

    /// The host's process ended.
    pub fn ended(&mut self, host: usize) {
        self.denied.retain(|(owner, _), _| *owner != host);
    }

    /// A call for the path reached the application of the host.
    pub fn arrived(&self, host: usize, path: &str, now: u64) -> Result<(), Breach> {
        match self.denied.get(&(host, path.to_owned())) {
            Some(since) if now > since + ON_ITS_WAY_MS => {
                let text = format!("{path} reached the application on n{host}, which denies it since {since} ms");
                Err(Breach { invariant: "what is denied does not arrive", text })
            }
            _ => Ok(()),
        }
    }
}

/// The policy that denies a path.
pub fn policy_of(path: &str) -> String {
    format!("deny{}", path.replace('/', "-"))
}
