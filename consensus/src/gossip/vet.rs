//! What is checked in a gossip message before chitchat sees it.
//!
//! chitchat believes every member about every other member, grows by every name it hears, and
//! asserts on bytes that a peer may choose. So names that are not of this mesh are taken out of a
//! message, counters that no honest node reaches refuse it, and its size is bounded both before
//! and after decompression.

use std::collections::{BTreeMap, BTreeSet};

use chitchat::{ChitchatId, ChitchatMessage, Deserializable, Serializable};
use weft_proto::identity::NodeName;

/// Why a message was not handed to chitchat; the label of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Larger than an honest node's largest message, as sent or once decompressed.
    TooLarge,
    /// Not a chitchat message.
    Malformed,
    /// A counter beyond what any node can count to.
    Counter,
}

impl Fault {
    /// The counter's label.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::Counter => "counter",
        }
    }
}

/// What others claim that this node has said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Claim {
    /// Highest heartbeat.
    pub(super) heartbeat: u64,
    /// Highest version of a key.
    pub(super) version: u64,
}

/// The members that chitchat may know of, and what is claimed about this node.
pub(super) struct Gate {
    own: ChitchatId,
    known: BTreeSet<ChitchatId>,
    /// The newest generation of each node that its owner has signed.
    signed: BTreeMap<String, u64>,
    digest_bytes: usize,
    claim: Claim,
}

impl Gate {
    /// An empty gate of the node with this id.
    pub(super) fn new(own: ChitchatId) -> Self {
        Self { own, known: BTreeSet::new(), signed: BTreeMap::new(), digest_bytes: 0, claim: Claim::default() }
    }

    /// Decodes `bytes`, without the members that `admitted` does not know.
    pub(super) fn vet(&mut self, bytes: &[u8], admitted: impl Fn(&NodeName) -> bool) -> Result<ChitchatMessage, Fault> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(Fault::TooLarge);
        }
        let (header, mut rest) = bytes.split_at_checked(HEADER_BYTES).ok_or(Fault::Malformed)?;
        let mut vetted = header.to_vec();
        match header[HEADER_BYTES - 1] {
            SYN => self.vet_digest(&mut rest, &mut vetted, admitted)?,
            SYN_ACK => {
                self.vet_digest(&mut rest, &mut vetted, admitted)?;
                vet_delta(rest)?;
            }
            ACK => vet_delta(rest)?,
            _ => {}
        }
        vetted.extend_from_slice(rest);
        let mut rest = &vetted[..];
        let message = ChitchatMessage::deserialize(&mut rest).map_err(|_| Fault::Malformed)?;
        if rest.is_empty() { Ok(message) } else { Err(Fault::Malformed) }
    }

    /// Copies the digest at the head of `rest` to `vetted`, member by member.
    fn vet_digest(
        &mut self,
        rest: &mut &[u8],
        vetted: &mut Vec<u8>,
        admitted: impl Fn(&NodeName) -> bool,
    ) -> Result<(), Fault> {
        let count = u16::deserialize(rest).map_err(|_| Fault::Malformed)?;
        let mut kept = BTreeMap::new();
        for _ in 0..count {
            let (id, counters) = digest_entry(rest).map_err(|_| Fault::Malformed)?;
            if counters.iter().any(|counter| *counter > COUNTER_MAX) {
                return Err(Fault::Counter);
            }
            let [heartbeat, _, version] = counters;
            if id == self.own {
                self.claim.heartbeat = self.claim.heartbeat.max(heartbeat);
                self.claim.version = self.claim.version.max(version);
            }
            if self.admit(&id, &admitted) {
                kept.insert(id, counters);
            }
        }
        u16::try_from(kept.len()).expect("at most as many as were counted in 16 bits").serialize(vetted);
        for (id, counters) in kept {
            id.serialize(vetted);
            counters.iter().for_each(|counter| counter.serialize(vetted));
        }
        Ok(())
    }

    fn admit(&mut self, id: &ChitchatId, admitted: impl Fn(&NodeName) -> bool) -> bool {
        if *id == self.own {
            return true;
        }
        // What a node was before says nothing of it any more; a node that restarts again and again must not fill the
        // digest with its own past.
        let newest = self.signed.get(&*id.node_id).copied().unwrap_or(0);
        if id.generation_id < newest {
            return false;
        }
        if self.known.contains(id) {
            return true;
        }
        let Ok(name) = id.node_id.parse::<NodeName>() else { return false };
        if !admitted(&name) {
            return false;
        }
        let bytes = entry_bytes(id);
        let lives = self.known.iter().filter(|known| known.node_id == id.node_id && known.generation_id >= newest);
        if self.digest_bytes + bytes > DIGEST_BYTES_MAX || lives.count() >= LIVES_MAX {
            metrics::counter!("weft_gossip_refused_total", "reason" => "no_room").increment(1);
            return false;
        }
        self.digest_bytes += bytes;
        self.known.insert(id.clone());
        true
    }

    /// Forgets the members that chitchat has forgotten.
    pub(super) fn retain(&mut self, mut in_chitchat: impl FnMut(&ChitchatId) -> bool) {
        let signed = &self.signed;
        self.known
            .retain(|id| in_chitchat(id) && signed.get(&*id.node_id).is_none_or(|newest| id.generation_id >= *newest));
        self.digest_bytes = self.known.iter().map(entry_bytes).sum();
    }

    /// Takes the generations that nodes have signed last.
    pub(super) fn sign<'a>(&mut self, newest: impl Iterator<Item = (&'a NodeName, u64)>) {
        for (name, generation) in newest {
            match self.signed.get_mut(name.as_str()) {
                Some(known) => *known = generation.max(*known),
                None => drop(self.signed.insert(name.to_string(), generation)),
            }
        }
    }

    /// A message of this node's own, without what nodes were before.
    pub(super) fn leave_out_old(&self, message: Vec<u8>) -> Vec<u8> {
        self.without_old(&message).unwrap_or(message)
    }

    fn without_old(&self, message: &[u8]) -> Option<Vec<u8>> {
        let (header, mut rest) = message.split_at_checked(HEADER_BYTES)?;
        if !matches!(header[HEADER_BYTES - 1], SYN | SYN_ACK) {
            return None;
        }
        let count = u16::deserialize(&mut rest).ok()?;
        let mut kept = Vec::new();
        for _ in 0..count {
            let (id, counters) = digest_entry(&mut rest).ok()?;
            if self.signed.get(&*id.node_id).is_none_or(|newest| id.generation_id >= *newest) {
                kept.push((id, counters));
            }
        }
        if kept.len() == usize::from(count) {
            return None;
        }
        let mut out = header.to_vec();
        u16::try_from(kept.len()).ok()?.serialize(&mut out);
        for (id, counters) in kept {
            id.serialize(&mut out);
            counters.iter().for_each(|counter| counter.serialize(&mut out));
        }
        out.extend_from_slice(rest);
        Some(out)
    }

    /// The highest counters that others claimed for this node.
    pub(super) fn claim(&self) -> Claim {
        self.claim
    }
}

/// Whether a message asks for an answer.
pub(super) fn asks(message: &[u8]) -> bool {
    message.get(HEADER_BYTES - 1) == Some(&SYN)
}

/// Whether a message is an answer to one that [`asks`].
pub(super) fn answers(message: &[u8]) -> bool {
    message.get(HEADER_BYTES - 1) == Some(&SYN_ACK)
}

/// Whether a message of this node's own tells nothing: it ends an exchange in which both had the same.
pub(super) fn says_nothing(message: &[u8]) -> bool {
    message.get(HEADER_BYTES - 1..) == Some(&[ACK, LAST_BLOCK])
}

/// A member with its heartbeat, last collected version and highest version.
fn digest_entry(rest: &mut &[u8]) -> anyhow::Result<(ChitchatId, [u64; 3])> {
    let id = ChitchatId::deserialize(rest)?;
    Ok((id, [u64::deserialize(rest)?, u64::deserialize(rest)?, u64::deserialize(rest)?]))
}

fn entry_bytes(id: &ChitchatId) -> usize {
    id.serialized_len() + 3 * size_of::<u64>()
}

/// Walks the compressed blocks of a delta: each grows to at most 64 KiB, so their number bounds
/// what the delta takes in memory.
fn vet_delta(mut rest: &[u8]) -> Result<(), Fault> {
    for _ in 0..=DELTA_BLOCKS_MAX {
        if u8::deserialize(&mut rest).map_err(|_| Fault::Malformed)? == LAST_BLOCK {
            return if rest.is_empty() { Ok(()) } else { Err(Fault::Malformed) };
        }
        let bytes = u16::deserialize(&mut rest).map_err(|_| Fault::Malformed)?;
        rest = rest.get(usize::from(bytes)..).ok_or(Fault::Malformed)?;
    }
    Err(Fault::TooLarge)
}

/// Magic number (2), version (1), kind (1): the head of every chitchat message.
const HEADER_BYTES: usize = 4;
const SYN: u8 = 0;
const SYN_ACK: u8 = 1;
const ACK: u8 = 2;
const LAST_BLOCK: u8 = 0;

/// chitchat fills a message up to 65,507 bytes and then adds its header.
pub(super) const MESSAGE_BYTES_MAX: usize = 66 << 10;
/// A node's own digest goes into every reply beside the delta; what it leaves of 64 KiB must hold
/// the largest record of facts. Enough for about 800 members with names of 12 letters.
const DIGEST_BYTES_MAX: usize = 44 << 10;
/// Generations of one node that are remembered at once, of those that it has not signed a later one than.
const LIVES_MAX: usize = 64;
/// Honest blocks hold 16 KiB of operations, so this is 512 KiB of them; 2 MiB at worst.
const DELTA_BLOCKS_MAX: usize = 32;
/// A million messages a second reach this in 12 days, a thousand in 34 years; below it no
/// arithmetic on counters overflows.
const COUNTER_MAX: u64 = 1 << 40;

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ChitchatId {
        ChitchatId::new(name, 7, ([10, 0, 0, 1], 7000).into())
    }

    fn syn(entries: &[(&str, u64)]) -> Vec<u8> {
        let mut bytes = vec![0x53, 0xb0, 0, SYN];
        (entries.len() as u16).serialize(&mut bytes);
        for (name, heartbeat) in entries {
            id(name).serialize(&mut bytes);
            [*heartbeat, 0, 1].iter().for_each(|counter| counter.serialize(&mut bytes));
        }
        "mesh".serialize(&mut bytes);
        bytes
    }

    #[test]
    fn keeps_members_and_leaves_strangers_out() {
        let mut gate = Gate::new(id("own"));
        let message =
            gate.vet(&syn(&[("a", 1), ("b", 2), ("Not A Name", 1)]), |name| name.as_str() != "b").expect("vetted");
        assert_eq!(message.serialize_to_vec(), syn(&[("a", 1)]));
        let message = gate.vet(&syn(&[("own", 9)]), |_| false).expect("vetted");
        assert_eq!(message.serialize_to_vec(), syn(&[("own", 9)]));
        assert_eq!(gate.claim(), Claim { heartbeat: 9, version: 1 });
    }

    #[test]
    fn refuses_counters_bombs_and_trailing_bytes() {
        let mut gate = Gate::new(id("own"));
        assert_eq!(gate.vet(&syn(&[("a", u64::MAX)]), |_| true), Err(Fault::Counter));
        let mut bomb = vec![0x53, 0xb0, 0, ACK];
        bomb.extend([2, 0, 0].repeat(DELTA_BLOCKS_MAX + 1));
        bomb.push(LAST_BLOCK);
        assert_eq!(gate.vet(&bomb, |_| true), Err(Fault::TooLarge));
        assert_eq!(gate.vet(&vec![0; MESSAGE_BYTES_MAX + 1], |_| true), Err(Fault::TooLarge));
        let mut trailing = syn(&[("a", 1)]);
        trailing.push(0);
        assert_eq!(gate.vet(&trailing, |_| true), Err(Fault::Malformed));
        for length in 0..trailing.len() - 1 {
            assert_eq!(gate.vet(&trailing[..length], |_| true), Err(Fault::Malformed), "{length}");
        }
    }

    #[test]
    fn makes_room_only_for_so_many() {
        let mut gate = Gate::new(id("own"));
        let names: Vec<String> = (0..1000).map(|n| format!("node-{n:07}")).collect();
        for chunk in names.chunks(500) {
            let entries: Vec<(&str, u64)> = chunk.iter().map(|name| (name.as_str(), 1)).collect();
            gate.vet(&syn(&entries), |_| true).expect("vetted");
        }
        assert!(gate.known.len() > 800);
        gate.retain(|id| id.node_id.as_ref() == "node-0000001");
        assert_eq!((gate.known.len(), gate.digest_bytes), (1, entry_bytes(&id("node-0000001"))));
    }
}
