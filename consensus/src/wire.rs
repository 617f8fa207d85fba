//! Raft's types to wire messages and back.

use std::collections::{BTreeMap, BTreeSet};

use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use openraft::impls::leader_id_std::LeaderId;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft::vote::leader_id_std::CommittedLeaderId;
use weft_proto::convert::ConvertError;
use weft_proto::wire::cluster as wire;

use crate::raft::{Entry, LogId, Member, Membership, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, Vote};

type Parsed<T> = Result<T, ConvertError>;

pub(crate) fn log_id(id: &LogId) -> wire::LogId {
    wire::LogId { term: id.leader_id.term, index: id.index }
}

pub(crate) fn parse_log_id(id: &wire::LogId) -> LogId {
    LogId { leader_id: CommittedLeaderId::new(id.term), index: id.index }
}

pub(crate) fn vote(vote: &Vote) -> wire::Vote {
    wire::Vote { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

pub(crate) fn parse_vote(vote: &wire::Vote) -> Vote {
    Vote { leader_id: LeaderId { term: vote.term, voted_for: vote.node }, committed: vote.committed }
}

fn required_vote(message: Option<&wire::Vote>) -> Parsed<Vote> {
    message.map(parse_vote).ok_or(ConvertError::Missing("vote"))
}

fn membership(membership: &Membership) -> wire::Membership {
    let config = |voters: &BTreeSet<u64>| wire::Config { voters: voters.iter().copied().collect() };
    let nodes = membership.nodes().map(|(id, member)| (*id, wire::Member { name: member.name.clone() }));
    wire::Membership { configs: membership.get_joint_config().iter().map(config).collect(), nodes: nodes.collect() }
}

fn parse_membership(message: wire::Membership) -> Parsed<Membership> {
    let configs = message.configs.into_iter().map(|config| config.voters.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, Member> =
        message.nodes.into_iter().map(|(id, member)| (id, Member { name: member.name })).collect();
    Membership::new(configs, nodes).map_err(|_| ConvertError::Range("membership"))
}

pub(crate) fn entry(entry: &Entry) -> wire::Entry {
    use wire::entry::Payload;
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank(wire::Blank {}),
        EntryPayload::Normal(proposal) => Payload::Proposal(proposal.clone().into()),
        EntryPayload::Membership(members) => Payload::Membership(membership(members)),
    };
    wire::Entry { id: Some(log_id(&entry.log_id())), payload: Some(payload) }
}

pub(crate) fn parse_entry(message: wire::Entry) -> Parsed<Entry> {
    use wire::entry::Payload;
    let id = message.id.as_ref().map(parse_log_id).ok_or(ConvertError::Missing("entry.id"))?;
    let payload = match message.payload.ok_or(ConvertError::Missing("entry.payload"))? {
        Payload::Blank(_) => EntryPayload::Blank,
        Payload::Proposal(proposal) => EntryPayload::Normal(proposal.try_into()?),
        Payload::Membership(members) => EntryPayload::Membership(parse_membership(members)?),
    };
    Ok(Entry { log_id: id, payload })
}

pub(crate) fn append(request: &AppendEntriesRequest<TypeConfig>) -> wire::AppendEntries {
    wire::AppendEntries {
        vote: Some(vote(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id),
        entries: request.entries.iter().map(entry).collect(),
        committed: request.leader_commit.as_ref().map(log_id),
    }
}

pub(crate) fn parse_append(message: wire::AppendEntries) -> Parsed<AppendEntriesRequest<TypeConfig>> {
    Ok(AppendEntriesRequest {
        vote: required_vote(message.vote.as_ref())?,
        prev_log_id: message.previous.as_ref().map(parse_log_id),
        entries: message.entries.into_iter().map(parse_entry).collect::<Parsed<_>>()?,
        leader_commit: message.committed.as_ref().map(parse_log_id),
    })
}

pub(crate) fn append_reply(response: &AppendEntriesResponse<TypeConfig>) -> wire::AppendReply {
    use wire::append_reply::Kind;
    let kind = match response {
        AppendEntriesResponse::Success => Kind::Success(wire::Success {}),
        AppendEntriesResponse::PartialSuccess(id) => Kind::Partial(wire::Partial { matching: id.as_ref().map(log_id) }),
        AppendEntriesResponse::Conflict => Kind::Conflict(wire::Conflict {}),
        AppendEntriesResponse::HigherVote(higher) => Kind::HigherVote(vote(higher)),
    };
    wire::AppendReply { kind: Some(kind) }
}

pub(crate) fn parse_append_reply(message: wire::AppendReply) -> Parsed<AppendEntriesResponse<TypeConfig>> {
    use wire::append_reply::Kind;
    Ok(match message.kind.ok_or(ConvertError::Missing("append_reply.kind"))? {
        Kind::Success(_) => AppendEntriesResponse::Success,
        Kind::Partial(partial) => AppendEntriesResponse::PartialSuccess(partial.matching.as_ref().map(parse_log_id)),
        Kind::Conflict(_) => AppendEntriesResponse::Conflict,
        Kind::HigherVote(higher) => AppendEntriesResponse::HigherVote(parse_vote(&higher)),
    })
}

pub(crate) fn vote_request(request: &VoteRequest<TypeConfig>) -> wire::VoteRequest {
    wire::VoteRequest {
        vote: Some(vote(&request.vote)),
        last: request.last_log_id.as_ref().map(log_id),
        transfer: request.leadership_transfer,
    }
}

pub(crate) fn parse_vote_request(message: &wire::VoteRequest) -> Parsed<VoteRequest<TypeConfig>> {
    Ok(VoteRequest {
        vote: required_vote(message.vote.as_ref())?,
        last_log_id: message.last.as_ref().map(parse_log_id),
        leadership_transfer: message.transfer,
    })
}

pub(crate) fn vote_reply(response: &VoteResponse<TypeConfig>) -> wire::VoteReply {
    wire::VoteReply {
        vote: Some(vote(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(log_id),
    }
}

pub(crate) fn parse_vote_reply(message: &wire::VoteReply) -> Parsed<VoteResponse<TypeConfig>> {
    Ok(VoteResponse {
        vote: required_vote(message.vote.as_ref())?,
        vote_granted: message.granted,
        last_log_id: message.last.as_ref().map(parse_log_id),
    })
}

pub(crate) fn snapshot_meta(meta: &SnapshotMeta) -> wire::SnapshotMeta {
    wire::SnapshotMeta {
        last: meta.last_log_id.as_ref().map(log_id),
        membership_id: meta.last_membership.log_id().as_ref().map(log_id),
        membership: Some(membership(meta.last_membership.membership())),
    }
}

pub(crate) fn parse_snapshot_meta(message: wire::SnapshotMeta) -> Parsed<SnapshotMeta> {
    let members = match message.membership {
        Some(members) if !members.configs.is_empty() => parse_membership(members)?,
        _ => Membership::default(),
    };
    Ok(SnapshotMeta {
        last_log_id: message.last.as_ref().map(parse_log_id),
        last_membership: StoredMembership::new(message.membership_id.as_ref().map(parse_log_id), members),
    })
}

pub(crate) fn snapshot(snapshot: &Snapshot) -> wire::Snapshot {
    wire::Snapshot {
        meta: Some(snapshot_meta(&snapshot.meta)),
        checksum: crc32fast::hash(&snapshot.snapshot),
        state: snapshot.snapshot.clone().into(),
    }
}

pub(crate) fn parse_snapshot(message: wire::Snapshot) -> Parsed<Snapshot> {
    if crc32fast::hash(&message.state) != message.checksum {
        return Err(ConvertError::Range("snapshot.checksum"));
    }
    let meta = parse_snapshot_meta(message.meta.ok_or(ConvertError::Missing("snapshot.meta"))?)?;
    Ok(Snapshot { meta, snapshot: message.state.to_vec() })
}

pub(crate) fn parse_install(message: wire::InstallSnapshot) -> Parsed<(Vote, Snapshot)> {
    let vote = required_vote(message.vote.as_ref())?;
    Ok((vote, parse_snapshot(message.snapshot.ok_or(ConvertError::Missing("snapshot"))?)?))
}

pub(crate) fn snapshot_reply(response: &SnapshotResponse<TypeConfig>) -> wire::SnapshotReply {
    wire::SnapshotReply { vote: Some(vote(&response.vote)) }
}

pub(crate) fn parse_snapshot_reply(message: &wire::SnapshotReply) -> Parsed<SnapshotResponse<TypeConfig>> {
    Ok(SnapshotResponse { vote: required_vote(message.vote.as_ref())? })
}

pub(crate) fn transfer(request: &TransferLeaderRequest<TypeConfig>) -> wire::TransferLeader {
    wire::TransferLeader {
        from: Some(vote(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().map(log_id),
    }
}

pub(crate) fn parse_transfer(message: &wire::TransferLeader) -> Parsed<TransferLeaderRequest<TypeConfig>> {
    let from = required_vote(message.from.as_ref())?;
    Ok(TransferLeaderRequest::new(from, message.to, message.last.as_ref().map(parse_log_id)))
}

/// The Raft node in whose name a message speaks.
pub(crate) fn spoken_for(kind: &wire::consensus::Kind) -> Option<u64> {
    use wire::consensus::Kind;
    let vote = match kind {
        Kind::Append(message) => message.vote,
        Kind::Vote(message) | Kind::PreVote(message) => message.vote,
        Kind::Snapshot(message) => message.vote,
        Kind::Transfer(message) => message.from,
        Kind::Propose(_) | Kind::ReadIndex(_) => None,
    };
    vote.map(|vote| vote.node)
}
