//! Starting a node: production and simulation call [`start`] alike.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use weft_consensus::gossip::Gossip;
use weft_consensus::replica::{RaftStatus, Replica, Settings};
use weft_consensus::state::State;
use weft_proto::command::Proposal;
use weft_proto::facts::NodeFacts;
use weft_proto::identity::{Identity, NodeName, TrustDomain};
use weft_proto::service::ServiceName;
use weft_proto::{RaftId, UnixMillis};
use weft_proxy::plane::{Clock, Handover, Plane, PlaneSettings};
use weft_proxy::record::Record;
use weft_proxy::table::Table;
use weft_proxy::table::description::{Bind, Description};
use weft_proxy::tls::{Identities, IdentitySet};

use crate::advertise::{Ears, admission};
use crate::api::schema::ServiceSpec;
use crate::authority;
use crate::book::Book;
use crate::certificates::certified_all;
use crate::compile::Site;
use crate::config::{Config, Loopback};
use crate::control::{ConsensusPeers, Control, GossipLinks};
use crate::issue::Issuer;
use crate::join::JoinError;
use crate::keys::KeyError;
use crate::member::{become_member, finish_founding, read_founding};
use crate::publish::Enforced;
use crate::registry::Local;
use crate::store::{NodeIdentity, Store};
use crate::tasks::{self, Parts};
use crate::world::{World, clock, random};

/// Control connections waiting to be taken from the data plane.
const HANDOVERS_MAX: usize = 256;
/// How long a node that starts waits to hear of others before it is ready all the same.
const HEARING: Duration = Duration::from_secs(10);
/// Access records waiting to be written; more are dropped and counted.
const RECORDS_MAX: usize = 4096;

/// A node that runs.
pub struct Node<W: World> {
    pub(crate) config: Config,
    pub(crate) world: W,
    pub(crate) site: Site,
    pub(crate) me: Identity,
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
    pub(crate) registrar: Registrar,
    pub(crate) started: Instant,
    tasks: parking_lot::Mutex<JoinSet<()>>,
}

/// Registers a service on this host; faults one line each.
pub type Register = Box<dyn Fn(&ServiceSpec) -> Result<ServiceName, Vec<String>> + Send + Sync>;
/// Takes a service off this host; tells whether it was registered.
pub type Unregister = Box<dyn Fn(&ServiceName) -> Result<bool, String> + Send + Sync>;

/// Listens on services' loopback addresses, or no more where that is said; tells for which it listens then.
pub type Listen = Box<dyn Fn(&[ServiceName], bool) -> Result<BTreeSet<ServiceName>, String> + Send + Sync>;

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
    /// Registers a service.
    pub register: Register,
    /// Takes a service off.
    pub unregister: Unregister,
    /// Listens on loopback addresses.
    pub listen: Listen,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `--init` on a directory that holds a node.
    #[error(
        "this data directory already holds node {node} of mesh {mesh}; start it with `weft up`, or choose another --data-dir"
    )]
    Founded {
        /// The node.
        node: NodeName,
        /// Its mesh.
        mesh: TrustDomain,
    },
    /// No state, and neither `--init` nor `--join`.
    #[error(
        "this data directory holds no node: make a mesh with `weft up --init`, or join one with `weft up --join LINE`"
    )]
    Empty,
    /// A node without a name.
    #[error("the node has no name: give it one with --name")]
    Nameless,
    /// The state on disk cannot be trusted.
    #[error(
        "the state on disk cannot be used: {0}. Nothing was changed and nothing is served from it. To bring the node back, move its \
         data directory away and join it again under a new name"
    )]
    Corrupt(String),
    /// Joining failed.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// Keys or certificates could not be made.
    #[error("keys or certificates could not be made: {0}")]
    Crypto(String),
    /// A disk, a socket.
    #[error("{0}")]
    Host(#[from] io::Error),
    /// The replicated state could not be started or founded.
    #[error("the replicated state could not be started: {0}")]
    Consensus(String),
}

impl From<KeyError> for StartError {
    fn from(error: KeyError) -> Self {
        Self::Crypto(error.to_string())
    }
}

impl From<authority::AuthorityError> for StartError {
    fn from(error: authority::AuthorityError) -> Self {
        Self::Crypto(error.to_string())
    }
}

/// Starts a node: makes or joins a mesh where the disk is fresh, resumes where it is not.
pub async fn start<W: World>(
    config: Config,
    world: W,
    host: Host,
) -> Result<(Arc<Node<W>>, mpsc::Receiver<Record>), StartError> {
    let store = Store::new(world.disk());
    let identity = become_member(&config, &world, &store, host.address).await?;
    let founding = read_founding(&world)?;
    wire_up(config, world, store, identity, host, founding).await
}

async fn wire_up<W: World>(
    config: Config,
    world: W,
    store: Store,
    identity: NodeIdentity,
    host: Host,
    founding: Vec<Proposal>,
) -> Result<(Arc<Node<W>>, mpsc::Receiver<Record>), StartError> {
    let NodeIdentity { name, raft_id, trust_domain, roots, keys } = identity;
    let keys = Arc::new(keys);
    let me = Identity::node(trust_domain.clone(), name.clone());
    let identities = open_identities(&store, &me, &roots, clock(&world))?;
    let book = Arc::new(open_book(&store, &name, host.address)?);
    let control = Control::new(world.net().clone(), me.clone(), identities.clone(), book.clone());

    let seeds = book.all().into_keys().filter(|seed| *seed != name).collect();
    let settings = Settings { seeds, ..Settings::new(raft_id, name.clone()) };
    let replica = Replica::start(settings, world.disk(), Arc::new(ConsensusPeers(control.clone())))
        .await
        .map_err(|error| StartError::Corrupt(error.to_string()))?;
    finish_founding(&world, &replica, founding).await?;
    identities.judge_nodes(admission(&replica));

    let issuer = Arc::new(Issuer::new(world.clone(), name.clone(), keys.clone(), replica.clone()));
    let first = first_facts(&config, &world, &name, raft_id, host.address);
    let links = GossipLinks::new(&control, &book, host.address, clock(&world));
    let ears = Ears { world: &world, store: &store, book: &book, address: host.address, keys: keys.clone() };
    let gossip = Arc::new(ears.open(&trust_domain, first, links, &replica).await?);

    let site = site(&config, &world, &name, host.address);
    let (records, recorded) = mpsc::channel(RECORDS_MAX);
    let (handovers, handed) = mpsc::channel::<Handover<W::Net>>(HANDOVERS_MAX);
    let (empty, settings) = (empty_table(&site, &trust_domain)?, plane_settings(&config, &world, &site));
    let plane = Plane::new(settings, world.net().clone(), identities.clone(), empty, &records, handovers);

    let ((told_enforced, enforced), (told_expires, expires)) = (watch::channel(Enforced::default()), watch::channel(0));
    let node = Arc::new(Node {
        config,
        world,
        site,
        me,
        replica,
        gossip,
        plane,
        control,
        identities,
        book,
        local: host.local,
        enforced,
        expires,
        renew: Arc::default(),
        registrar: host.registrar,
        started: Instant::now(),
        tasks: parking_lot::Mutex::default(),
    });
    let parts = Parts { issuer, keys, store, handed, enforced: told_enforced, expires: told_expires };
    tasks::spawn(&node, &mut node.tasks.lock(), parts);
    Ok((node, recorded))
}

fn open_identities(
    store: &Store,
    me: &Identity,
    roots: &[Vec<u8>],
    clock: Clock,
) -> Result<Arc<Identities>, StartError> {
    let svids = store.svids().map_err(|error| StartError::Corrupt(error.to_string()))?;
    Ok(Arc::new(Identities::new(
        IdentitySet {
            trust_domain: me.trust_domain().clone(),
            node: me.clone(),
            roots: roots.iter().map(|root| CertificateDer::from(root.clone())).collect(),
            certificates: certified_all(&svids).map_err(StartError::Crypto)?,
        },
        clock,
    )))
}

fn open_book(store: &Store, name: &NodeName, address: SocketAddr) -> Result<Book, StartError> {
    let peers = store.peers().map_err(|error| StartError::Corrupt(error.to_string()))?;
    let mut peers: BTreeMap<NodeName, SocketAddr> =
        peers.into_iter().filter_map(|(name, address)| Some((name, address.parse().ok()?))).collect();
    peers.insert(name.clone(), address);
    Ok(Book::new(peers))
}

fn site<W: World>(config: &Config, world: &W, name: &NodeName, address: SocketAddr) -> Site {
    let bind =
        |bind: &crate::config::Bind| Bind { address: bind.address, service: bind.service.clone(), port: bind.port };
    Site {
        node: name.clone(),
        address,
        zone: config.zone.clone(),
        loopback: config.loopback.clone(),
        captured: if config.loopback == Loopback::Off { None } else { world.capture() },
        binds: config.binds.iter().map(bind).collect(),
        kinds: config.kinds,
    }
}

fn first_facts<W: World>(
    config: &Config,
    world: &W,
    name: &NodeName,
    raft_id: RaftId,
    address: SocketAddr,
) -> NodeFacts {
    NodeFacts {
        name: name.clone(),
        raft_id,
        generation: world.now(),
        sequence: 0,
        address: address.to_string(),
        zone: config.zone.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        enforced: 0,
        refused: String::new(),
        instances: Vec::new(),
        certificate_expires: 0,
        voter: false,
        draining: false,
    }
}

fn empty_table(site: &Site, trust_domain: &TrustDomain) -> Result<Table, StartError> {
    let description = Description {
        index: 0,
        trust_domain: trust_domain.clone(),
        node: site.node.clone(),
        zone: site.zone.clone(),
        deny_by_default: true,
        services: Vec::new(),
        policies: Vec::new(),
        local: Vec::new(),
        callers: BTreeMap::new(),
        caller_any: None,
        binds: Vec::new(),
    };
    Table::build(description, None).map_err(|error| StartError::Consensus(error.to_string()))
}

fn plane_settings<W: World>(config: &Config, world: &W, site: &Site) -> PlaneSettings {
    PlaneSettings {
        mesh_address: config.listen,
        proxy_address: config.proxy,
        captured: site.captured,
        workers: config.workers,
        access_sample: config.access_sample,
        transport: config.transport,
        clock: clock(world),
        seed: u64::from_be_bytes(random(world)),
        connections_max: config.connections_max,
    }
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

    /// The live nodes and their facts.
    pub fn live(&self) -> Arc<BTreeMap<NodeName, NodeFacts>> {
        self.gossip.live().borrow().clone()
    }

    /// Whether the node can call: it enforces the mesh's state, holds certificates that are valid for itself and its
    /// services, and knows of other nodes where there are any, or has had time to hear of them.
    pub fn is_ready(&self) -> bool {
        let (set, state) = (self.identities.current(), self.state());
        let held = |identity: &Identity| {
            set.certificates.get(identity).is_some_and(|held| self.identities.is_current(&held.cert))
        };
        let certified =
            held(&self.me) && self.local.borrow().identities(&state, self.trust_domain(), self.name()).iter().all(held);
        let heard = state.nodes.len() <= 1 || self.live().len() > 1 || self.started.elapsed() > HEARING;
        self.enforced.borrow().index > 0 && certified && heard
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
