//! Why a node does not start.

use std::io;

use weft_proto::identity::{NodeName, TrustDomain};

use crate::authority;
use crate::join::JoinError;
use crate::keys::KeyError;

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `--init` on a directory that holds a node.
    #[error(
        "this data directory already holds node {node} of mesh {mesh}; start it with `weft up`, or choose another --data-dir"
    )]
    Founded {
        /// The node.
        node: NodeName,
        /// Its mesh.
        mesh: TrustDomain,
    },
    /// A node that has another name.
    #[error(
        "this data directory holds node {node}, which cannot be called {name}; start it without --name, or choose another --data-dir"
    )]
    Renamed {
        /// The node.
        node: NodeName,
        /// What it is to be called.
        name: NodeName,
    },
    /// No state, and neither `--init` nor `--join`.
    #[error(
        "this data directory holds no node: make a mesh with `weft up --init`, or join one with `weft up --join LINE`"
    )]
    Empty,
    /// A node without a name.
    #[error("the node has no name: give it one with --name")]
    Nameless,
    /// The state on disk cannot be trusted.
    #[error(
        "the state on disk cannot be used: {0}. Nothing was changed and nothing is served from it. To bring the node back, move its \
         data directory away and join it again under a new name"
    )]
    Corrupt(String),
    /// Joining failed.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// Keys or certificates could not be made.
    #[error("keys or certificates could not be made: {0}")]
    Crypto(String),
    /// A disk, a socket.
    #[error("{0}")]
    Host(#[from] io::Error),
    /// The replicated state could not be started or founded.
    #[error("the replicated state could not be started: {0}")]
    Consensus(String),
}

impl From<KeyError> for StartError {
    fn from(error: KeyError) -> Self {
        Self::Crypto(error.to_string())
    }
}

impl From<authority::AuthorityError> for StartError {
    fn from(error: authority::AuthorityError) -> Self {
        Self::Crypto(error.to_string())
    }
}
