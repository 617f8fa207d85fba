//! From a committed decision or a changed fact to the table in force.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use weft_consensus::state::State;
use weft_proto::facts::Live;
use weft_proto::planted::{Bug, planted};
use weft_proto::wire::cluster::EnforcedReply;
use weft_proto::{Index, UnixMillis};
use weft_proxy::net::Net;
use weft_proxy::plane::Plane;
use weft_proxy::table::Table;

use crate::compile::{Compiler, Held, Source, Unenforced};
use crate::registry::Local;

/// What is in force here, and what is not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Enforced {
    /// Index of the table in force.
    pub index: Index,
    /// Why no table could be made of a newer state; empty when one could.
    pub refused: String,
    /// Documents of that state that are not enforced as they are.
    pub unenforced: Arc<Vec<Unenforced>>,
}

impl Enforced {
    /// Why the changes that were made at an index are not in force here; nothing where they are.
    pub fn lacks(&self, index: Index) -> Option<String> {
        if self.index < index {
            return Some(match self.refused.as_str() {
                "" => "it has not received it yet".into(),
                why => format!("it refuses it: {why}"),
            });
        }
        let changed = self.unenforced.iter().filter(|one| one.version == index);
        let texts: Vec<String> = changed.map(|one| format!("{}: {}", one.key, one.why)).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }

    /// What is told to whoever asks about an index, with when the first certificate of this node ends.
    pub fn reply(&self, index: Index, certificate_expires: UnixMillis) -> EnforcedReply {
        EnforcedReply {
            enforced: self.index,
            lacks: self.lacks(index).unwrap_or_default(),
            unenforced: self.unenforced.iter().cloned().map(Into::into).collect(),
            certificate_expires,
        }
    }

    /// What is not in force, for others to be told: shortened to a line.
    pub fn refused(&self) -> String {
        if !self.refused.is_empty() {
            return self.refused.clone();
        }
        let mut text: Vec<String> =
            self.unenforced.iter().take(TOLD_MAX).map(|one| format!("{}: {}", one.key, one.why)).collect();
        if self.unenforced.len() > TOLD_MAX {
            text.push(format!("{} more", self.unenforced.len() - TOLD_MAX));
        }
        text.join("; ")
    }
}

/// Documents that are named to other nodes.
const TOLD_MAX: usize = 3;

/// Keeps the table in step with what it is made of.
pub struct Publisher<N: Net> {
    pub(crate) plane: Arc<Plane<N>>,
    pub(crate) states: watch::Receiver<Arc<State>>,
    pub(crate) live: watch::Receiver<Arc<Live>>,
    pub(crate) local: watch::Receiver<Arc<Local>>,
    pub(crate) enforced: watch::Sender<Enforced>,
    /// Certificates that gateways here want, and those that are held.
    pub(crate) wanted: watch::Sender<BTreeSet<Source>>,
    pub(crate) held: watch::Receiver<Arc<Held>>,
    pub(crate) compiler: Compiler,
}

impl<N: Net> Publisher<N> {
    /// Runs until the node stops.
    pub async fn run(mut self) {
        loop {
            self.publish();
            let ended = tokio::select! {
                biased;
                changed = self.states.changed() => changed.is_err(),
                changed = self.local.changed() => changed.is_err(),
                changed = self.held.changed() => changed.is_err(),
                changed = self.live.changed() => changed.is_err(),
            };
            if ended {
                return;
            }
        }
    }

    fn publish(&mut self) {
        let state = self.states.borrow_and_update().clone();
        let live = self.live.borrow_and_update().clone();
        let local = self.local.borrow_and_update().clone();
        if state.trust_domain.is_none() {
            return;
        }
        self.compiler.hold(&self.held.borrow_and_update().clone());
        self.plane.revoke(state.revoked.keys().cloned().collect());
        let built = self.compiler.compile(&state, &live, &local).and_then(|description| {
            Table::build(description, Some(&self.plane.table())).map_err(|error| error.to_string())
        });
        self.wanted.send_if_modified(|wanted| {
            let new = wanted != self.compiler.sources();
            if new {
                wanted.clone_from(self.compiler.sources());
            }
            new
        });
        let unenforced = self.compiler.unenforced();
        self.tell(&unenforced);
        let unenforced = Arc::new(unenforced);
        match built {
            Ok(table) => {
                let index = state.index;
                let swap = !planted(Bug::AnnouncedEarly) || !index.is_multiple_of(2);
                let before = self.plane.table();
                match table.is_as(&before) {
                    // Most facts and decisions change nothing of the table.
                    true if swap => before.advance(index),
                    false if swap => self.plane.swap(table),
                    _ => {}
                }
                self.announce(Enforced { index, refused: String::new(), unenforced });
            }
            Err(why) => {
                let Enforced { index, refused, .. } = self.enforced.borrow().clone();
                if refused != why {
                    tracing::error!(index, why, "no table can be made of a change; the one before it stays in force");
                    metrics::counter!("weft_table_refused_total").increment(1);
                }
                self.announce(Enforced { index, refused: why, unenforced });
            }
        }
    }

    /// Tells of each document once that it is not enforced.
    fn tell(&self, unenforced: &[Unenforced]) {
        #[expect(clippy::cast_precision_loss, reason = "so many documents are out of reach")]
        metrics::gauge!("weft_resources_not_enforced").set(unenforced.len() as f64);
        let before = self.enforced.borrow().unenforced.clone();
        for one in unenforced.iter().filter(|one| !before.contains(one)) {
            tracing::error!(resource = %one.key, version = one.version, why = one.why, "a document is not enforced");
        }
    }

    fn announce(&self, enforced: Enforced) {
        #[expect(clippy::cast_precision_loss, reason = "an index beyond 2^53 is out of reach")]
        metrics::gauge!("weft_enforced_index").set(enforced.index as f64);
        self.enforced.send_if_modified(|before| {
            let changed = *before != enforced;
            *before = enforced;
            changed
        });
    }
}
