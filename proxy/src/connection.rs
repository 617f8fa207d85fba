//! A connection that was taken, and what it remembers between its exchanges.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use weft_proto::service::InstanceName;

use crate::call::{Caller, Destination, Door, End, Outside, Peer};
use crate::core::Core;
use crate::host::Host;
use crate::lane::Leg;
use crate::net::{Net, Process};
use crate::reject::Reject;
use crate::room::Taken;
use crate::table::Table;

/// A connection that was taken.
pub(crate) struct Connection<N: Net> {
    pub(crate) core: Arc<Core<N>>,
    pub(crate) destination: Destination,
    /// Who is at the other end.
    pub(crate) peer: Peer,
    pub(crate) ours: SocketAddr,
    pub(crate) theirs: SocketAddr,
    /// Who calls, where the other node has said so.
    client: Option<SocketAddr>,
    pub(crate) memory: Mutex<Memory>,
    owner: OnceLock<Option<Process>>,
    /// The place of a connection that is no link.
    _taken: Option<Arc<Taken>>,
}

impl<N: Net> Connection<N> {
    /// A connection of a local process.
    pub(crate) fn local(
        core: &Arc<Core<N>>,
        destination: Destination,
        addresses: (SocketAddr, SocketAddr),
        taken: Taken,
    ) -> Arc<Self> {
        Self::new(core, destination, Peer::Local, addresses, Some(taken))
    }

    /// A connection of another node, or of any holder of an SVID.
    pub(crate) fn remote(
        core: &Arc<Core<N>>,
        destination: Destination,
        caller: Caller,
        addresses: (SocketAddr, SocketAddr),
    ) -> Arc<Self> {
        Self::new(core, destination, Peer::Svid(Arc::new(caller)), addresses, None)
    }

    /// A connection of somebody outside the mesh, who has come in at a gateway.
    pub(crate) fn outside(
        core: &Arc<Core<N>>,
        door: Door,
        outside: Outside,
        addresses: (SocketAddr, SocketAddr),
        taken: Taken,
    ) -> Arc<Self> {
        Self::new(core, Destination::Gateway(door), Peer::Outside(Arc::new(outside)), addresses, Some(taken))
    }

    /// A connection in plain text to the own port of an instance of this node.
    pub(crate) fn plain(
        core: &Arc<Core<N>>,
        destination: Destination,
        instance: InstanceName,
        addresses: (SocketAddr, SocketAddr),
        taken: Taken,
    ) -> Arc<Self> {
        Self::new(core, destination, Peer::Plain(instance), addresses, Some(taken))
    }

    /// A connection between our address and theirs.
    fn new(
        core: &Arc<Core<N>>,
        destination: Destination,
        peer: Peer,
        (ours, theirs): (SocketAddr, SocketAddr),
        taken: Option<Taken>,
    ) -> Arc<Self> {
        Arc::new(Self {
            core: core.clone(),
            destination,
            peer,
            ours,
            theirs,
            client: None,
            memory: Mutex::default(),
            owner: OnceLock::new(),
            _taken: taken.map(Arc::new),
        })
    }

    /// The same connection, for something else than what it came for.
    pub(crate) fn towards(&self, destination: Destination) -> Arc<Self> {
        self.again(destination, self.peer.clone())
    }

    /// The same connection of a caller of the mesh, at the door of a gateway that the name means which it asks for by SNI.
    pub(crate) fn entering(&self, door: Door, server_name: Box<str>) -> Arc<Self> {
        let peer = match &self.peer {
            Peer::Svid(caller) => {
                let (identity, certificate) = (caller.identity.clone(), caller.certificate);
                Peer::Svid(Arc::new(Caller { identity, server_name, instance: None, certificate }))
            }
            other => other.clone(),
        };
        self.again(Destination::Gateway(door), peer)
    }

    fn again(&self, destination: Destination, peer: Peer) -> Arc<Self> {
        Arc::new(Self {
            core: self.core.clone(),
            destination,
            _taken: self._taken.clone(),
            peer,
            ours: self.ours,
            theirs: self.theirs,
            client: self.client,
            memory: Mutex::default(),
            owner: self.owner.clone(),
        })
    }

    /// The same connection of another node, for somebody who has called there.
    pub(crate) fn on_behalf_of(&self, client: SocketAddr) -> Arc<Self> {
        let mut same = self.again(self.destination.clone(), self.peer.clone());
        Arc::get_mut(&mut same).expect("nobody else has it yet").client = Some(client);
        same
    }

    /// Who calls: as the other node says, or a proxy that stands before a gateway, else whoever is at the other end.
    pub(crate) fn client(&self) -> SocketAddr {
        let behind = match &self.peer {
            Peer::Outside(outside) => outside.behind.map(|ip| SocketAddr::new(ip, 0)),
            _ => None,
        };
        self.client.or(behind).unwrap_or(self.theirs)
    }

    /// Which end this node is: where a gateway is entered calls go on from it.
    pub(crate) fn end(&self) -> End {
        match (&self.peer, &self.destination) {
            (Peer::Svid(_), Destination::Fixed(..) | Destination::Named | Destination::Intercepted(_))
            | (Peer::Plain(_), _) => End::Callee,
            (Peer::Local | Peer::Outside(_), _) | (_, Destination::Gateway(_)) => End::Caller,
        }
    }

    /// Whether it is one of another node, or of any holder of an SVID.
    pub(crate) fn is_link(&self) -> bool {
        matches!(self.peer, Peer::Svid(_))
    }

    /// Whether the other end is told that a node has refused, so that it may try elsewhere: what fails behind a gateway has been tried
    /// from there already, and is its answer.
    pub(crate) fn is_told(&self, reject: &Reject) -> bool {
        self.is_link() && (self.end() == End::Callee || *reject == Reject::Denied)
    }

    /// Whether policies ask for what only a request has, so that the verdict on a stream says nothing of requests.
    pub(crate) fn is_judged_by_http(&self) -> bool {
        let Destination::Fixed(name, number) = &self.destination else { return false };
        self.core.shared.table.load().meant(name, Some(*number)).is_some_and(|meant| meant.service.needs_http())
    }

    /// The process that calls: asked from the kernel once, and only where it matters.
    pub(crate) fn process(&self, table: &Table) -> Option<Process> {
        if table.callers.is_empty() && table.caller_groups.is_empty() {
            return None;
        }
        *self.owner.get_or_init(|| self.core.shared.net.owner(self.ours, self.theirs))
    }
}

/// What a connection remembers between its exchanges.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) host: Option<Arc<Host>>,
    pub(crate) leg: Option<Arc<Leg>>,
    /// The host that the leg was found by, on a connection to no service in particular.
    pub(crate) found_by: Option<Arc<Host>>,
}
