//! Bugs that the simulation plants, to prove that its invariants would find them.
//!
//! They exist only in builds with the feature `planted`, which no binary that ships has: without it [`planted`] is a
//! constant, and what hangs on it is not compiled.

/// A bug that can be planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Log entries are acknowledged before they are on the disk.
    FlushSkipped,
    /// A vote is kept in memory only.
    VoteNotKept,
    /// Checksums of records are not compared.
    ChecksumIgnored,
    /// A node skips a decision now and then.
    EntrySkipped,
    /// A repeated proposal is applied again.
    AnswersForgotten,
    /// A decision is acknowledged when the leader has taken it, not when it is committed.
    AcknowledgedEarly,
    /// An operator whose time is up is told that it worked.
    TimeoutAsSuccess,
    /// Replicas are fed what is not committed yet.
    UncommittedFed,
    /// A node that is made a member does not notice.
    PromotionIgnored,
    /// Voters that are dead stay voters.
    DeadVotersKept,
    /// Nodes that are dead stay listed as live.
    DeadStayLive,
    /// What a read must wait for is told without asking a majority.
    StaleRead,
    /// Waiting returns without asking the other nodes.
    WaitingSkipped,
    /// An index is announced as enforced before its table is in force.
    AnnouncedEarly,
    /// The table is made without the newest policy.
    PolicyLeftOut,
    /// The callee's node trusts that the caller's node has judged.
    CalleeTrusts,
    /// Open exchanges are not judged again.
    RejudgingSkipped,
    /// A request that may have been acted on is sent again.
    RetriedBlindly,
    /// However much is retried already, more is.
    BudgetIgnored,
    /// A failure that a rule makes is not made.
    FaultLeftOut,
    /// Who comes in at a gateway is not judged there.
    GateOpen,
    /// Calls of hosts outside go past the rules for them.
    GoesPast,
    /// Any node gets a certificate for any service.
    GrantsUnchecked,
    /// A revoked token admits.
    RevokedTokenTaken,
    /// A token that has expired admits.
    ExpiredTokenTaken,
    /// The secret of a token is not compared.
    SecretUnchecked,
    /// A token admits more nodes than it may.
    UsesUncounted,
}

/// All of them, with the names by which they are asked for.
pub const BUGS: [(&str, Bug); 27] = [
    ("flush-skipped", Bug::FlushSkipped),
    ("vote-not-kept", Bug::VoteNotKept),
    ("checksum-ignored", Bug::ChecksumIgnored),
    ("entry-skipped", Bug::EntrySkipped),
    ("answers-forgotten", Bug::AnswersForgotten),
    ("acknowledged-early", Bug::AcknowledgedEarly),
    ("timeout-as-success", Bug::TimeoutAsSuccess),
    ("uncommitted-fed", Bug::UncommittedFed),
    ("promotion-ignored", Bug::PromotionIgnored),
    ("dead-voters-kept", Bug::DeadVotersKept),
    ("dead-stay-live", Bug::DeadStayLive),
    ("stale-read", Bug::StaleRead),
    ("waiting-skipped", Bug::WaitingSkipped),
    ("announced-early", Bug::AnnouncedEarly),
    ("policy-left-out", Bug::PolicyLeftOut),
    ("callee-trusts", Bug::CalleeTrusts),
    ("rejudging-skipped", Bug::RejudgingSkipped),
    ("retried-blindly", Bug::RetriedBlindly),
    ("budget-ignored", Bug::BudgetIgnored),
    ("fault-left-out", Bug::FaultLeftOut),
    ("gate-open", Bug::GateOpen),
    ("goes-past", Bug::GoesPast),
    ("grants-unchecked", Bug::GrantsUnchecked),
    ("revoked-token-taken", Bug::RevokedTokenTaken),
    ("expired-token-taken", Bug::ExpiredTokenTaken),
    ("secret-unchecked", Bug::SecretUnchecked),
    ("uses-uncounted", Bug::UsesUncounted),
];

/// Whether the bug is planted.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn planted(_: Bug) -> bool {
    false
}

/// Whether the bug is planted.
#[cfg(feature = "planted")]
pub fn planted(bug: Bug) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == bug as u8 + 1
}

/// Plants a bug in this process.
#[cfg(feature = "planted")]
pub fn plant(bug: Bug) {
    PLANTED.store(bug as u8 + 1, std::sync::atomic::Ordering::Relaxed);
}

#[cfg(feature = "planted")]
static PLANTED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);
