//! Starting a node: production and simulation call [`start`] alike.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use weft_consensus::replica::{Replica, Settings};
use weft_consensus::state::State;
use weft_proto::RaftId;
use weft_proto::command::{Proposal, VERSION};
use weft_proto::facts::NodeFacts;
use weft_proto::identity::{Identity, NodeName, TrustDomain};
use weft_proxy::plane::{Clock, Handover, Plane, PlaneSettings};
use weft_proxy::record::Record;
use weft_proxy::table::Table;
use weft_proxy::table::description::{Bind, Description, Intercepts};
use weft_proxy::table::peers::PeersDescription;
use weft_proxy::tls::{Identities, IdentitySet};

use crate::advertise::{Ears, admission};
use crate::book::Book;
use crate::certificates::certified_all;
use crate::compile::Site;
use crate::config::{Config, Loopback};
use crate::control::{ConsensusPeers, Control, GossipLinks};
use crate::issue::Issuer;
use crate::member::{become_member, finish_founding, read_founding};
use crate::node::{Host, Node};
use crate::publish::Enforced;
use crate::start_error::StartError;
use crate::store::{NodeIdentity, Store};
use crate::tasks::{self, Parts};
use crate::vault::Vault;
use crate::world::{World, random};

/// Control connections waiting to be taken from the data plane.
const HANDOVERS_MAX: usize = 256;
/// Access records waiting to be written; more are dropped and counted.
const RECORDS_MAX: usize = 4096;

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
    let identities = open_identities(&store, &me, &roots, world.clock())?;
    let book = Arc::new(open_book(&store, &name, host.address)?);
    let (making, made) = mpsc::channel(HANDOVERS_MAX);
    let control = Control::new(world.net().clone(), me.clone(), identities.clone(), book.clone(), making);

    let seeds = book.all().into_keys().filter(|seed| *seed != name).collect();
    let settings = Settings { seeds, ..Settings::new(raft_id, name.clone()) };
    let started = Replica::start(settings, world.disk(), Arc::new(ConsensusPeers(control.clone()))).await;
    let replica = started.map_err(|error| StartError::Corrupt(error.to_string()))?;
    finish_founding(&world, &replica, founding).await?;
    identities.judge_nodes(admission(&replica));

    let issuer = Arc::new(Issuer::new(world.clone(), name.clone(), keys.clone(), replica.clone()));
    let first = first_facts((&config, &world), &name, raft_id, &host, &replica.state().borrow());
    let links = GossipLinks::new(&control, &book, host.address, world.clock());
    let ears = Ears { world: &world, store: &store, book: &book, address: host.address, keys: keys.clone() };
    let gossip = Arc::new(ears.open(&trust_domain, first, links, &replica).await?);

    let site = site(&config, &world, &name, host.address);
    let (plane, recorded, handed) = open_plane((&config, &world, &site), &identities, &trust_domain)?;
    let ((told_enforced, enforced), (told_expires, expires)) = (watch::channel(Enforced::default()), watch::channel(0));
    let (told_held, held) = watch::channel(Arc::default());
    let vault = Arc::new(Vault::new(&world, &issuer, &replica, &control));
    let node = Arc::new(Node {
        config,
        world,
        site,
        me,
        raft_id,
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
        vault,
        held,
        registrar: host.registrar,
        started: Instant::now(),
        tasks: parking_lot::Mutex::default(),
    });
    let (enforced, expires, held) = (told_enforced, told_expires, told_held);
    tasks::spawn(&node, &mut node.tasks.lock(), Parts { issuer, keys, store, handed, made, enforced, expires, held });
    Ok((node, recorded))
}

type Opened<N> = (Arc<Plane<N>>, mpsc::Receiver<Record>, mpsc::Receiver<Handover<N>>);

/// A data plane that denies everything, its records, and what arrives for the control plane.
fn open_plane<W: World>(
    (config, world, site): (&Config, &W, &Site),
    identities: &Arc<Identities>,
    trust_domain: &TrustDomain,
) -> Result<Opened<W::Net>, StartError> {
    let (records, recorded) = mpsc::channel(RECORDS_MAX);
    let (handovers, handed) = mpsc::channel(HANDOVERS_MAX);
    let (empty, set) = (empty_table(site, trust_domain)?, plane_settings(config, world, site));
    let plane = Plane::new(set, world.net().clone(), identities.clone(), empty, &records, handovers);
    Ok((plane, recorded, handed))
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
        gateway_ip: config.listen.ip(),
        gateway_ports: config.gateway_ports.clone(),
        kinds: config.kinds,
    }
}

/// What others hear of it first. What has been started again runs what it ran before, and others are not told otherwise for a moment.
fn first_facts<W: World>(
    (config, world): (&Config, &W),
    name: &NodeName,
    raft_id: RaftId,
    host: &Host,
    state: &State,
) -> NodeFacts {
    NodeFacts {
        name: name.clone(),
        raft_id,
        generation: world.now(),
        sequence: 0,
        address: host.address.to_string(),
        zone: config.zone.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        refused: String::new(),
        instances: host.local.borrow().advertised(state, name),
        draining: false,
        commands: VERSION,
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
        peers: PeersDescription::default(),
        local: Vec::new(),
        callers: BTreeMap::new(),
        caller_any: None,
        caller_groups: BTreeMap::new(),
        aliases: Vec::new(),
        grants: Vec::new(),
        binds: Vec::new(),
        intercepts: Intercepts::default(),
        gateways: Vec::new(),
        challenges: Vec::new(),
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
        clock: world.clock(),
        seed: u64::from_be_bytes(random(world)),
        connections_max: config.connections_max,
    }
}
