//! A node that runs, and what its host gives it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use weft_consensus::gossip::Gossip;
use weft_consensus::replica::Replica;
use weft_consensus::state::State;
use weft_consensus::status::RaftStatus;
use weft_proto::facts::Live;
use weft_proto::identity::{Identity, NodeName, TrustDomain};
use weft_proto::service::{InstanceId, InstanceName, ServiceName};
use weft_proto::{RaftId, UnixMillis};
use weft_proxy::plane::Plane;
use weft_proxy::tls::Identities;

use crate::api::schema::ServiceSpec;
use crate::book::Book;
use crate::compile::{Held, Site};
use crate::config::Config;
use crate::control::Control;
use crate::intercept::Kept;
use crate::publish::Enforced;
use crate::registry::Local;
use crate::vault::Vault;
use crate::world::World;

/// How long a node that starts waits to hear of others before it is ready all the same.
const HEARING: Duration = Duration::from_secs(10);

/// A node that runs.
pub struct Node<W: World> {
    pub(crate) config: Config,
    pub(crate) world: W,
    pub(crate) site: Site,
    pub(crate) me: Identity,
    pub(crate) raft_id: RaftId,
    pub(crate) replica: Replica,
    pub(crate) gossip: Arc<Gossip>,
    pub(crate) plane: Arc<Plane<W::Net>>,
    pub(crate) control: Arc<Control<W::Net>>,
    pub(crate) identities: Arc<Identities>,
    pub(crate) book: Arc<Book>,
    pub(crate) local: watch::Sender<Arc<Local>>,
    pub(crate) enforced: watch::Receiver<Enforced>,
    pub(crate) expires: watch::Receiver<UnixMillis>,
    pub(crate) renew: Arc<Notify>,
    pub(crate) vault: Arc<Vault<W>>,
    /// Certificates of the gateways that it serves.
    pub(crate) held: watch::Receiver<Arc<Held>>,
    pub(crate) registrar: Registrar,
    pub(crate) started: Instant,
    pub(crate) tasks: parking_lot::Mutex<JoinSet<()>>,
}

/// Registers an instance on this host; faults one line each.
pub type Register = Box<dyn Fn(&ServiceSpec) -> Result<InstanceId, Vec<String>> + Send + Sync>;
/// Takes a service off this host, or one instance of it; tells which instances were registered.
pub type Unregister = Box<dyn Fn(&ServiceName, Option<&InstanceName>) -> Result<Vec<InstanceId>, String> + Send + Sync>;

/// Listens on services' loopback addresses, or no more where that is said; tells for which it listens then.
pub type Listen = Box<dyn Fn(&[ServiceName], bool) -> Result<BTreeSet<ServiceName>, String> + Send + Sync>;

/// Keeps what of the host's connections is sent to the node, or that nothing is.
pub type Intercept = Box<dyn Fn(Option<&Kept>) -> Result<(), String> + Send + Sync>;

/// What the host gives a node beside its [`World`].
pub struct Host {
    /// The address at which other nodes reach this one.
    pub address: SocketAddr,
    /// What is registered on this host.
    pub local: watch::Sender<Arc<Local>>,
    /// Changes it.
    pub registrar: Registrar,
}

/// Changes what is registered on a host, and what it listens on.
pub struct Registrar {
    /// Registers an instance.
    pub register: Register,
    /// Takes instances off.
    pub unregister: Unregister,
    /// Listens on loopback addresses.
    pub listen: Listen,
    /// Takes what the firewall sends to the node.
    pub intercept: Intercept,
}

impl<W: World> Node<W> {
    /// Its name.
    pub fn name(&self) -> &NodeName {
        &self.site.node
    }

    /// Its mesh.
    pub fn trust_domain(&self) -> &TrustDomain {
        self.me.trust_domain()
    }

    /// The data plane; the caller runs each of its workers.
    pub fn plane(&self) -> &Arc<Plane<W::Net>> {
        &self.plane
    }

    /// The newest state applied here.
    pub fn state(&self) -> Arc<State> {
        self.replica.state().borrow().clone()
    }

    /// How the Raft group looks from here.
    pub fn raft_status(&self) -> RaftStatus {
        self.replica.status().borrow().clone()
    }

    /// The live nodes of the mesh and their facts.
    pub fn live(&self) -> Arc<Live> {
        let (mut live, state) = (self.gossip.live().borrow().clone(), self.state());
        let stays =
            |name: &NodeName| state.trust_domain.is_none() || state.nodes.contains_key(name) || name == self.name();
        // Gossip takes a moment to forget one that was removed.
        if !live.keys().all(stays) {
            Arc::make_mut(&mut live).retain(|name, _| stays(name));
        }
        live
    }

    /// Whether the node can call.
    pub fn is_ready(&self) -> bool {
        self.readiness().is_ok()
    }

    /// Why the node cannot call yet: it has to enforce the mesh's state, hold certificates that are valid for itself and
    /// its services, and know of other nodes where there are any, or have had time to hear of them.
    pub fn readiness(&self) -> Result<(), String> {
        let (set, state) = (self.identities.current(), self.state());
        if self.is_removed() {
            return Err("this node was removed from the mesh".into());
        }
        if self.enforced.borrow().index == 0 {
            return Err("the mesh's state is not in force here yet".into());
        }
        let services = self.local.borrow().identities(&state, self.trust_domain(), self.name());
        for identity in [self.me.clone()].into_iter().chain(services) {
            match set.certificates.get(&identity) {
                Some(held) if self.identities.is_current(&held.cert) => {}
                Some(_) => return Err(format!("the certificate of {identity} is not valid now and is being renewed")),
                None => return Err(format!("no certificate of {identity} has been issued to this node yet")),
            }
        }
        match state.nodes.len() <= 1 || self.live().len() > 1 || self.started.elapsed() > HEARING {
            true => Ok(()),
            false => Err("no other node has been heard of yet".into()),
        }
    }

    /// Whether the mesh knows this node no more, as its own state has it.
    pub(crate) fn is_removed(&self) -> bool {
        let state = self.state();
        let stays = state.nodes.get(self.name()).is_some_and(|record| record.raft_id == self.raft_id);
        state.trust_domain.is_some() && !stays
    }

    /// Told when the replicated state has failed for good.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.replica.failed()
    }

    /// Stops: finishes exchanges, then the control plane.
    pub async fn stop(&self) {
        self.plane.drain();
        self.replica.stop().await;
        self.tasks.lock().abort_all();
    }
}
