//! Why a proposal was not decided.

/// Why a proposal was not decided, as far as this node knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// No leader could be found.
    #[error("no leader is known: a majority of the voters must be up; see `weft status`")]
    NoLeader,
    /// The deadline has passed; it may still be decided.
    #[error(
        "not decided in time: no majority of the voters has answered. It may still be decided; look before repeating it"
    )]
    Timeout,
    /// This node is stopping.
    #[error("this node is stopping")]
    Stopped,
    /// Not every node knows such a command.
    #[error("not every node of the mesh knows this yet: upgrade weft on all of them; see `weft members`")]
    TooNew,
    /// The log has failed.
    #[error("the log has failed: {0}")]
    Failed(String),
}
