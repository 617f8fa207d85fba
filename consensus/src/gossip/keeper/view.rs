//! What chitchat holds, sorted by what is to be done about it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use chitchat::{Chitchat, ChitchatId};
use weft_proto::identity::NodeName;

use super::KEY;
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
            let Some(value) = state.get(KEY) else { continue };
            if id.node_id == own.node_id {
                if id.generation_id > own.generation_id {
                    self.own_later.push((id.clone(), value.to_owned()));
                }
                continue;
            }
            if live.contains(id)
                && let Ok(name) = id.node_id.parse()
            {
                self.alive.insert(name);
                self.addresses.insert(id.gossip_advertise_addr);
            }
            if !records.believes(id, value) {
                self.unknown.push((id.clone(), value.to_owned()));
            }
        }
    }
}
