//! Re-judges open exchanges after a swap, and ends those that are now denied.

use weft_proto::planted::{Bug, planted};

use crate::decide::judge;
use crate::decide::relation::Current;
use crate::hold::Holds;
use crate::table::Table;

/// Judges every open exchange by the table; how many were ended.
pub(crate) fn judge_again(holds: &Holds, table: &Table) -> usize {
    if planted(Bug::RejudgingSkipped) {
        return 0;
    }
    holds.end(|current| {
        let denies = |current: &Current| {
            let relation = &current.relation;
            let service = table.again(&relation.service.name, relation.port.port, relation.onward());
            judge::denies(service.as_deref(), current)
        };
        denies(current) || current.gate.as_deref().is_some_and(denies)
    })
}
