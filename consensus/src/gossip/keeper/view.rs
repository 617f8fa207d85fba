//! What chitchat holds, sorted by what is to be done about it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use chitchat::{Chitchat, ChitchatId};
use weft_proto::identity::NodeName;

use crate::gossip::parts;
use crate::gossip::records::Records;

/// What chitchat holds at one moment.
#[derive(Default)]
pub(super) struct View {
    /// Members of which some life is alive: one that restarts quickly is never absent.
    pub(super) alive: BTreeSet<NodeName>,
    pub(super) addresses: BTreeSet<SocketAddr>,
    /// Values that are not believed, or not yet.
    pub(super) unknown: Vec<(ChitchatId, String)>,
    /// Values under this node's name with a later generation, which an earlier process with a
    /// clock ahead of this one's may have signed.
    pub(super) own_later: Vec<(ChitchatId, String)>,
}

impl View {
    pub(super) fn look(&mut self, chitchat: &Chitchat, records: &Records) {
        let own = chitchat.self_chitchat_id();
        let live: BTreeSet<&ChitchatId> = chitchat.live_nodes().collect();
        for (id, state) in chitchat.node_states() {
            if id.node_id == own.node_id {
                if id.generation_id > own.generation_id
                    && let Some(value) = parts::join(|key| state.get(key))
                {
                    self.own_later.push((id.clone(), value.into_owned()));
                }
                continue;
            }
            if state.get(parts::KEYS[0]).is_none() {
                continue;
            }
            if live.contains(id)
                && let Ok(name) = id.node_id.parse()
            {
                self.alive.insert(name);
                self.addresses.insert(id.gossip_advertise_addr);
            }
            if let Some(value) = parts::join(|key| state.get(key))
                && !records.believes(id, &value)
            {
                self.unknown.push((id.clone(), value.into_owned()));
            }
        }
    }
}
