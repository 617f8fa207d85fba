//! From a committed decision or a changed fact to the table in force.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use weft_consensus::state::State;
use weft_proto::Index;
use weft_proto::facts::NodeFacts;
use weft_proto::identity::NodeName;
use weft_proto::planted::{Bug, planted};
use weft_proxy::net::Net;
use weft_proxy::plane::Plane;
use weft_proxy::table::Table;

use crate::compile::{Site, compile};
use crate::registry::Local;

/// What is in force here, and why nothing newer is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Enforced {
    /// Index of the table in force.
    pub index: Index,
    /// Why a newer state was refused; empty when none was.
    pub refused: String,
}

/// Keeps the table in step with what it is made of.
pub struct Publisher<N: Net> {
    pub(crate) site: Site,
    pub(crate) plane: Arc<Plane<N>>,
    pub(crate) states: watch::Receiver<Arc<State>>,
    pub(crate) live: watch::Receiver<Arc<BTreeMap<NodeName, NodeFacts>>>,
    pub(crate) local: watch::Receiver<Arc<Local>>,
    pub(crate) enforced: watch::Sender<Enforced>,
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
        let built = compile(&self.site, &state, &live, &local).and_then(|description| {
            Table::build(description, Some(&self.plane.table())).map_err(|error| error.to_string())
        });
        let index = state.index;
        match built {
            Ok(table) => {
                if planted(Bug::AnnouncedEarly) && index.is_multiple_of(2) {
                    return self.announce(Enforced { index, refused: String::new() });
                }
                self.plane.swap(table);
                self.announce(Enforced { index, refused: String::new() });
            }
            Err(why) => {
                let before = self.enforced.borrow().clone();
                if before.refused != why {
                    tracing::error!(index, why, "a change cannot be enforced; the table before it stays in force");
                    metrics::counter!("weft_table_refused_total").increment(1);
                }
                self.announce(Enforced { index: before.index, refused: why });
            }
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
