//! Step 1: connections in, from applications on this host and from other nodes.

pub(crate) mod disguise;
pub(crate) mod framing;
pub(crate) mod host;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod links;
pub(crate) mod listeners;
pub(crate) mod local;
pub(crate) mod named;
pub(crate) mod quic;
pub(crate) mod request;
pub(crate) mod room;
pub(crate) mod sniff;
pub(crate) mod streams;
pub(crate) mod wire;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use weft_proto::identity::Identity;
use weft_proto::service::{InstanceName, ServiceName};

use crate::identify::Memory;
use crate::net::Net;
use crate::table::Table;
use crate::worker::Worker;
use room::Taken;

/// Which end of an exchange this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// The application that calls is on this host.
    Caller,
    /// The instance that is called is on this host, and another node asks.
    Callee,
}

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    /// A port of a service.
    Fixed(ServiceName, u16),
    /// Whatever each exchange names.
    Named,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) enum Peer {
    /// A process of this host.
    Local,
    /// A holder of an SVID: another node, or anyone who calls over mutual TLS.
    Svid(Arc<Caller>),
}

/// A holder of an SVID.
#[derive(Debug)]
pub(crate) struct Caller {
    /// Whom its certificate names.
    pub(crate) identity: Identity,
    /// What it asked for by SNI.
    pub(crate) server_name: Box<str>,
    /// The instance on this node that it has picked; none where it leaves that to this node.
    pub(crate) instance: Option<InstanceName>,
}

/// A connection that was taken.
pub(crate) struct Connection<N: Net> {
    pub(crate) worker: Arc<Worker<N>>,
    pub(crate) destination: Destination,
    /// Who is at the other end.
    pub(crate) peer: Peer,
    pub(crate) ours: SocketAddr,
    pub(crate) theirs: SocketAddr,
    pub(crate) memory: Mutex<Memory>,
    owner: OnceLock<Option<u32>>,
    /// A local process' place.
    _taken: Option<Arc<Taken>>,
}

impl<N: Net> Connection<N> {
    /// A connection of a local process.
    pub(crate) fn local(
        worker: &Arc<Worker<N>>,
        destination: Destination,
        (ours, theirs): (SocketAddr, SocketAddr),
        taken: Taken,
    ) -> Arc<Self> {
        Arc::new(Self {
            worker: worker.clone(),
            destination,
            _taken: Some(Arc::new(taken)),
            peer: Peer::Local,
            ours,
            theirs,
            memory: Mutex::default(),
            owner: OnceLock::new(),
        })
    }

    /// A connection of another node, or of any holder of an SVID.
    pub(crate) fn remote(
        worker: &Arc<Worker<N>>,
        destination: Destination,
        caller: Caller,
        (ours, theirs): (SocketAddr, SocketAddr),
    ) -> Arc<Self> {
        Arc::new(Self {
            worker: worker.clone(),
            destination,
            _taken: None,
            peer: Peer::Svid(Arc::new(caller)),
            ours,
            theirs,
            memory: Mutex::default(),
            owner: OnceLock::new(),
        })
    }

    /// The same connection, for something else than what it came for.
    pub(crate) fn towards(&self, destination: Destination) -> Arc<Self> {
        Arc::new(Self {
            worker: self.worker.clone(),
            destination,
            _taken: self._taken.clone(),
            peer: self.peer.clone(),
            ours: self.ours,
            theirs: self.theirs,
            memory: Mutex::default(),
            owner: self.owner.clone(),
        })
    }

    /// Which end this node is.
    pub(crate) fn end(&self) -> End {
        match self.peer {
            Peer::Local => End::Caller,
            Peer::Svid(_) => End::Callee,
        }
    }

    /// Whether policies ask for what only a request has, so that the verdict on a stream says nothing of requests.
    pub(crate) fn is_judged_by_http(&self) -> bool {
        let Destination::Fixed(name, _) = &self.destination else { return false };
        self.worker.plane.table.load().service(name).is_some_and(|service| service.needs_http())
    }

    /// The user that the calling process runs as: asked from the kernel once, and only where it matters.
    pub(crate) fn user(&self, table: &Table) -> Option<u32> {
        if table.callers.is_empty() {
            return None;
        }
        *self.owner.get_or_init(|| self.worker.plane.net.owner(self.ours, self.theirs))
    }
}
