//! `--wait` claims only what is so.

use super::Breach;

/// Whether the claim that all live nodes enforce an index holds: `tables` are the indexes in force on the nodes that it
/// names.
pub fn check(index: u64, tables: &[(String, u64)]) -> Result<(), Breach> {
    match tables.iter().find(|(_, table)| *table < index) {
        None => Ok(()),
        Some((name, table)) => {
            let text = format!("index {index} was said to be in force on {name}, whose table is that of {table}");
            Err(Breach { invariant: "waiting claims only what is so", text })
        }
    }
}
