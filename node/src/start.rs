//! Starting a node: production and simulation call [`start`] alike.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use weft_consensus::gossip::{Gossip, GossipSettings};
use weft_consensus::replica::{RaftStatus, Replica, Settings};
use weft_consensus::state::State;
use weft_proto::command::Proposal;
use weft_proto::facts::NodeFacts;
use weft_proto::identity::{Identity, NodeName, TrustDomain};
use weft_proto::service::ServiceName;
use weft_proto::{RaftId, UnixMillis};
use weft_proxy::plane::{Clock, Handover, Plane, PlaneSettings};
use weft_proxy::quic::QuicClient;
use weft_proxy::record::Record;
use weft_proxy::table::Table;
use weft_proxy::table::description::{Bind, Description};
use weft_proxy::tls::{Admission, Identities, IdentitySet};

use crate::advertise::{Admitted, FactSigner};
use crate::api::schema::ServiceSpec;
use crate::authority;
use crate::book::Book;
use crate::certificates::certified_all;
use crate::compile::Site;
use crate::config::Config;
use crate::control::{ConsensusPeers, Control, GossipLinks};
use crate::issue::Issuer;
use crate::join::JoinError;
use crate::keys::{KeyError, Keys};
use crate::member::{become_member, finish_founding, read_founding};
use crate::publish::Enforced;
use crate::registry::Local;
use crate::store::{NodeIdentity, Store};
use crate::tasks::{self, Parts};
use crate::world::{World, clock, random};

/// Control connections waiting to be taken from the data plane.
const HANDOVERS_MAX: usize = 256;
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
    pub(crate) register: Register,
    pub(crate) unregister: Unregister,
    tasks: parking_lot::Mutex<JoinSet<()>>,
}

/// Registers a service on this host; faults one line each.
pub type Register = Box<dyn Fn(&ServiceSpec) -> Result<ServiceName, Vec<String>> + Send + Sync>;
/// Takes a service off this host; tells whether it was registered.
pub type Unregister = Box<dyn Fn(&ServiceName) -> Result<bool, String> + Send + Sync>;

/// What the host gives a node beside its [`World`].
pub struct Host {
    /// The address at which other nodes reach this one.
    pub address: SocketAddr,
    /// What is registered on this host.
    pub local: watch::Sender<Arc<Local>>,
    /// Registers a service.
    pub register: Register,
    /// Takes a service off.
    pub unregister: Unregister,
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
    let quic = Some(QuicClient::new(world.net(), identities.clone()));
    let control = Control::new(world.net().clone(), me.clone(), identities.clone(), book.clone(), quic);

    let seeds = book.all().into_keys().filter(|seed| *seed != name).collect();
    let settings = Settings { seeds, ..Settings::new(raft_id, name.clone()) };
    let replica = Replica::start(settings, world.disk(), Arc::new(ConsensusPeers(control.clone())))
        .await
        .map_err(|error| StartError::Corrupt(error.to_string()))?;
    finish_founding(&world, &replica, founding).await?;
    identities.judge_nodes(admission(&replica));

    let issuer = Arc::new(Issuer::new(world.clone(), name.clone(), keys.clone(), replica.clone()));
    let first = first_facts(&config, &world, &name, raft_id, host.address);
    let links = GossipLinks { control: control.clone(), book: book.clone(), from: host.address };
    let gossip = start_gossip(&world, &name, &trust_domain, first, links, keys.clone(), replica.clone(), &book).await?;

    let site = site(&config, &name, host.address);
    let (records, recorded) = mpsc::channel(RECORDS_MAX);
    let (handovers, handed) = mpsc::channel::<Handover<W::Net>>(HANDOVERS_MAX);
    let (empty, settings) = (empty_table(&site, &trust_domain)?, plane_settings(&config, &world));
    let plane = Plane::new(settings, world.net().clone(), identities.clone(), empty, &records, handovers);

    let (enforced_sender, enforced) = watch::channel(Enforced::default());
    let (expires_sender, expires) = watch::channel(0);
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
        register: host.register,
        unregister: host.unregister,
        tasks: parking_lot::Mutex::default(),
    });
    let parts = Parts { issuer, keys, store, handed, enforced: enforced_sender, expires: expires_sender };
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

/// By the replicated state. Of a node that it does not know a valid certificate must do: it may come with a newer one.
fn admission(replica: &Replica) -> Admission {
    let states = replica.state();
    Box::new(move |name, key| {
        let state = states.borrow();
        state.nodes.get(name).map(|record| record.keys.fact_key[..] == *key)
    })
}

fn open_book(store: &Store, name: &NodeName, address: SocketAddr) -> Result<Book, StartError> {
    let peers = store.peers().map_err(|error| StartError::Corrupt(error.to_string()))?;
    let mut peers: BTreeMap<NodeName, SocketAddr> =
        peers.into_iter().filter_map(|(name, address)| Some((name, address.parse().ok()?))).collect();
    peers.insert(name.clone(), address);
    Ok(Book::new(peers))
}

fn site(config: &Config, name: &NodeName, address: SocketAddr) -> Site {
    let bind =
        |bind: &crate::config::Bind| Bind { address: bind.address, service: bind.service.clone(), port: bind.port };
    Site {
        node: name.clone(),
        address,
        zone: config.zone.clone(),
        loopback: config.loopback,
        binds: config.binds.iter().map(bind).collect(),
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

#[expect(clippy::too_many_arguments, reason = "gossip is where the node's keys, links and state meet; called once")]
async fn start_gossip<W: World>(
    world: &W,
    name: &NodeName,
    trust_domain: &TrustDomain,
    facts: NodeFacts,
    links: GossipLinks<W::Net>,
    keys: Arc<Keys>,
    replica: Replica,
    book: &Book,
) -> Result<Arc<Gossip>, StartError> {
    let seeds =
        book.all().into_iter().filter(|(seed, _)| seed != name).map(|(_, address)| address.to_string()).collect();
    let settings = GossipSettings {
        name: name.clone(),
        raft_id: facts.raft_id,
        trust_domain: trust_domain.to_string(),
        address: links.from,
        generation: world.now(),
        seeds,
        interval: GossipSettings::INTERVAL,
    };
    let verifier = Arc::new(Admitted(replica.state()));
    let gossip = Gossip::start(settings, Arc::new(links), Arc::new(FactSigner(keys)), verifier, facts).await;
    Ok(Arc::new(gossip?))
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

fn plane_settings<W: World>(config: &Config, world: &W) -> PlaneSettings {
    PlaneSettings {
        mesh_address: config.listen,
        proxy_address: config.proxy,
        workers: config.workers,
        access_sample: config.access_sample,
        transport: config.transport,
        clock: clock(world),
        seed: u64::from_be_bytes(random(world)),
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

    /// Whether the node has the mesh's state and enforces it.
    pub fn is_ready(&self) -> bool {
        self.enforced.borrow().index > 0 && self.identities.current().certificates.contains_key(&self.me)
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
