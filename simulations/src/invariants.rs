//! What must hold at every moment, one file each.

pub mod admission;
pub mod agreement;
pub mod authorization;
pub mod durability;
pub mod leadership;
pub mod once;
pub mod waiting;

/// An invariant that broke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// Which.
    pub invariant: &'static str,
    /// How.
    pub text: String,
}

impl std::fmt::Display for Breach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.invariant, self.text)
    }
}
