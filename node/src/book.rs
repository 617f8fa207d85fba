//! Where nodes are: names to addresses and back, as last heard.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use parking_lot::RwLock;
use weft_proto::facts::Live;
use weft_proto::identity::NodeName;

/// Most strangers' addresses remembered; members' addresses are bounded by the mesh itself.
const HEARD_MAX: usize = 16_384;

/// An address book. Authentication does not depend on it: a link checks whom it has reached.
#[derive(Debug, Default)]
pub struct Book {
    pages: RwLock<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    by_name: BTreeMap<NodeName, SocketAddr>,
    by_address: BTreeMap<SocketAddr, NodeName>,
    /// By how many milliseconds a node's clock is ahead of this one's.
    offsets: BTreeMap<NodeName, i64>,
}

impl Book {
    /// A book with what was known at the last stop.
    pub fn new(peers: BTreeMap<NodeName, SocketAddr>) -> Self {
        let book = Self::default();
        peers.into_iter().for_each(|(name, address)| book.learn(name, address));
        book
    }

    /// A node is at this address.
    pub fn learn(&self, name: NodeName, address: SocketAddr) {
        if self.pages.read().by_name.get(&name) == Some(&address) {
            return;
        }
        let mut pages = self.pages.write();
        if pages.by_name.len() >= HEARD_MAX {
            return;
        }
        if let Some(old) = pages.by_name.insert(name.clone(), address) {
            pages.by_address.remove(&old);
        }
        pages.by_address.insert(address, name);
    }

    /// A node is no more.
    pub fn forget(&self, name: &NodeName) {
        let mut pages = self.pages.write();
        if let Some(address) = pages.by_name.remove(name) {
            pages.by_address.remove(&address);
        }
        pages.offsets.remove(name);
    }

    /// Learns from verified facts.
    pub fn learn_all(&self, live: &Live) {
        for facts in live.values() {
            if let Ok(address) = facts.address.parse() {
                self.learn(facts.name.clone(), address);
            }
        }
    }

    /// A node's clock is so many milliseconds ahead of this one's.
    pub fn set_offset(&self, name: NodeName, millis: i64) {
        self.pages.write().offsets.insert(name, millis);
    }

    /// By how many milliseconds nodes' clocks are ahead of this one's, as measured last.
    pub fn offsets(&self) -> BTreeMap<NodeName, i64> {
        self.pages.read().offsets.clone()
    }

    /// Where a node is.
    pub fn address(&self, name: &NodeName) -> Option<SocketAddr> {
        self.pages.read().by_name.get(name).copied()
    }

    /// Who is at an address.
    pub fn name(&self, address: SocketAddr) -> Option<NodeName> {
        self.pages.read().by_address.get(&address).cloned()
    }

    /// Every node and its address.
    pub fn all(&self) -> BTreeMap<NodeName, SocketAddr> {
        self.pages.read().by_name.clone()
    }
}
