//! At most one leader in a term.

use std::collections::BTreeMap;

use weft_proto::identity::NodeName;

use super::Breach;

/// Who led in which term.
#[derive(Debug, Default)]
pub struct Leadership(BTreeMap<u64, NodeName>);

impl Leadership {
    /// A node says that it leads.
    pub fn saw(&mut self, term: u64, leader: &NodeName) -> Result<bool, Breach> {
        match self.0.get(&term) {
            None => {
                self.0.insert(term, leader.clone());
                Ok(true)
            }
            Some(known) if known == leader => Ok(false),
            Some(known) => {
                let text = format!("{known} and {leader} both led in term {term}");
                Err(Breach { invariant: "one leader a term", text })
            }
        }
    }
}
