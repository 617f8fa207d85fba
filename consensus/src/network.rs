//! The port to other nodes, and openraft's network over it.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, RaftNetworkFactory, RaftNetworkV2};
use weft_proto::RaftId;
use weft_proto::convert::ConvertError;
use weft_proto::identity::NodeName;
use weft_proto::wire::cluster::{
    Consensus, ConsensusReply, FollowEvent, FollowRequest, InstallSnapshot, consensus, consensus_reply,
};

use crate::raft::{Member, Snapshot, TypeConfig, Vote};
use crate::wire;

/// Other nodes, over authenticated links.
pub trait Peers: Send + Sync + 'static {
    /// One request, one answer.
    fn call(&self, to: NodeName, request: Consensus) -> BoxFuture<'static, Result<ConsensusReply, PeerError>>;

    /// The committed log as a stream.
    fn follow(
        &self,
        to: NodeName,
        request: FollowRequest,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<FollowEvent, PeerError>>, PeerError>>;
}

/// Why another node did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It was not reached, or not in time.
    #[error("{0}")]
    Unreachable(String),
    /// It was reached and would not.
    #[error("{0}")]
    Refused(String),
}

/// Makes openraft's connections.
pub(crate) struct Network {
    pub(crate) peers: Arc<dyn Peers>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: RaftId, node: &Member) -> Connection {
        Connection { to: target, name: node.node(), peers: self.peers.clone() }
    }
}

/// openraft's connection to one member.
pub(crate) struct Connection {
    to: RaftId,
    name: Option<NodeName>,
    peers: Arc<dyn Peers>,
}

/// Bound on sending a snapshot, whatever the option says: it may be large.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(20);

impl Connection {
    async fn call(
        &self,
        kind: consensus::Kind,
        bound: Duration,
    ) -> Result<consensus_reply::Kind, RPCError<TypeConfig>> {
        let name = self.name.clone().ok_or_else(|| unreachable("the member has no name"))?;
        let request = Consensus { to: self.to, kind: Some(kind) };
        let reply = tokio::time::timeout(bound, self.peers.call(name, request))
            .await
            .map_err(|_| unreachable("no answer in time"))?
            .map_err(unreachable)?;
        match reply.kind {
            Some(consensus_reply::Kind::Error(text)) => Err(unreachable(text)),
            Some(kind) => Ok(kind),
            None => Err(garbled("an empty answer")),
        }
    }
}

fn unreachable(error: impl fmt::Display) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(&AnyError::error(error)))
}

fn garbled(error: impl fmt::Display) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(&AnyError::error(error)))
}

fn parsed<T>(result: Result<T, ConvertError>) -> Result<T, RPCError<TypeConfig>> {
    result.map_err(garbled)
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = Vec<u8>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let kind = consensus::Kind::Append(wire::append(&rpc));
        match self.call(kind, option.soft_ttl()).await? {
            consensus_reply::Kind::Append(reply) => parsed(wire::parse_append_reply(reply)),
            _ => Err(garbled("another answer than was asked for")),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(consensus::Kind::Vote(wire::vote_request(&rpc)), option.soft_ttl()).await? {
            consensus_reply::Kind::Vote(reply) => parsed(wire::parse_vote_reply(&reply)),
            _ => Err(garbled("another answer than was asked for")),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(consensus::Kind::PreVote(wire::vote_request(&rpc)), option.soft_ttl()).await? {
            consensus_reply::Kind::PreVote(reply) => parsed(wire::parse_vote_reply(&reply)),
            _ => Err(garbled("another answer than was asked for")),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let message = InstallSnapshot { vote: Some(wire::vote(&vote)), snapshot: Some(wire::snapshot(&snapshot)) };
        let send = self.call(consensus::Kind::Snapshot(message), SNAPSHOT_TIMEOUT);
        let reply = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            reply = send => reply?,
        };
        match reply {
            consensus_reply::Kind::Snapshot(reply) => Ok(parsed(wire::parse_snapshot_reply(&reply))?),
            _ => Err(garbled("another answer than was asked for").into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.call(consensus::Kind::Transfer(wire::transfer(&req)), option.soft_ttl()).await? {
            consensus_reply::Kind::Transfer(_) => Ok(Ok(())),
            _ => Err(garbled("another answer than was asked for")),
        }
    }
}
