//! Re-judges open exchanges after a swap, and ends those that are now denied.

use weft_proto::planted::{Bug, planted};

use crate::decide::judge;
use crate::hold::Holds;
use crate::table::Table;

/// Judges every open exchange by the table; how many were ended.
pub(crate) fn judge_again(holds: &Holds, table: &Table) -> usize {
    if planted(Bug::RejudgingSkipped) {
        return 0;
    }
    holds.end(|current| {
        let service = table.service(&current.relation.service.name);
        judge::denies(service.map(|service| &**service), current)
    })
}
