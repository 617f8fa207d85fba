//! Nothing piles up: when the load is over, what it took has been given back.

use std::fmt;

use super::Breach;

/// What is open and under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Hosts.
    pub hosts: usize,
    /// Connections of all of them.
    pub connections: usize,
    /// Tasks of the one that has most.
    pub tasks: usize,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} connections and at most {} tasks on a host", self.connections, self.tasks)
    }
}

/// Between every two hosts there are links of either kind, each way, and a few for control; a handful of tasks serve
/// each.
pub fn check(left: Left) -> Result<(), Breach> {
    let connections_max = 40 + 6 * left.hosts * left.hosts;
    let tasks_max = 80 + 10 * left.hosts;
    if left.connections <= connections_max && left.tasks <= tasks_max {
        return Ok(());
    }
    let text = format!("{left}; {connections_max} and {tasks_max} are enough");
    Err(Breach { invariant: "nothing piles up", text })
}
