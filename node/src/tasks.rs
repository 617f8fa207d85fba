//! The tasks that keep a node in step with its mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use weft_proto::UnixMillis;
use weft_proxy::plane::Handover;

use crate::acme;
use crate::advertise::{advertise, let_go, remember_peers};
use crate::certificates::Certificates;
use crate::compile::{Compiler, Held};
use crate::credentials::Credentials;
use crate::issue::Issuer;
use crate::join::Gate;
use crate::keys::Keys;
use crate::node::Node;
use crate::publish::{Enforced, Publisher};
use crate::reconcile::Reconciler;
use crate::registry::Registry;
use crate::serve::Server;
use crate::store::Store;
use crate::world::World;

/// What the tasks need beside the node.
pub(crate) struct Parts<W: World> {
    pub(crate) issuer: Arc<Issuer<W>>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) store: Store,
    pub(crate) handed: mpsc::Receiver<Handover<W::Net>>,
    pub(crate) made: mpsc::Receiver<quinn::Connection>,
    pub(crate) enforced: watch::Sender<Enforced>,
    pub(crate) expires: watch::Sender<UnixMillis>,
    pub(crate) held: watch::Sender<Arc<Held>>,
}

/// Starts them all.
pub(crate) fn spawn<W: World>(node: &Arc<Node<W>>, tasks: &mut JoinSet<()>, parts: Parts<W>) {
    let Parts { issuer, keys, store, handed, made, enforced, expires, held } = parts;
    let (wanted_sender, wanted) = watch::channel(None);
    let (asking, asked) = watch::channel(BTreeSet::new());
    tasks.spawn(Arc::new(server(node, issuer.clone())).run(handed, made));
    let publisher = Publisher {
        plane: node.plane.clone(),
        states: node.replica.state(),
        live: node.gossip.live(),
        local: node.local.subscribe(),
        enforced,
        wanted: asking,
        held: node.held.clone(),
        compiler: Compiler::new(node.site.clone()),
    };
    tasks.spawn(publisher.run());
    let credentials = Credentials {
        world: node.world.clone(),
        me: node.name().clone(),
        keys: keys.clone(),
        store: store.clone(),
        vault: node.vault.clone(),
        states: node.replica.state(),
        wanted: asked,
        held,
        opened: BTreeMap::new(),
    };
    tasks.spawn(credentials.run());
    let certificates = Certificates {
        world: node.world.clone(),
        me: node.me.clone(),
        name: node.name().clone(),
        keys,
        store: store.clone(),
        identities: node.identities.clone(),
        replica: node.replica.clone(),
        control: node.control.clone(),
        issuer: issuer.clone(),
        wanted,
        renew: node.renew.clone(),
        failing: BTreeSet::new(),
        expires,
    };
    tasks.spawn(certificates.run());
    let (replica, live) = (node.replica.clone(), node.gossip.live());
    let name = node.name().clone();
    tasks.spawn(Reconciler { name, replica, issuer, live, wanted: node.config.voters }.run());
    let (world, name, replica) = (node.world.clone(), node.name().clone(), node.replica.clone());
    tasks.spawn(Registry { world, name, replica, local: node.local.clone() }.run());
    tasks.spawn(advertise(node.clone(), wanted_sender));
    tasks.spawn(acme::keep(node.clone()));
    tasks.spawn(let_go(node.clone()));
    tasks.spawn(remember_peers(node.clone(), store));
}

fn server<W: World>(node: &Arc<Node<W>>, issuer: Arc<Issuer<W>>) -> Server<W> {
    let (world, replica, book) = (node.world.clone(), node.replica.clone(), node.book.clone());
    let gate = Gate { world, replica, issuer: issuer.clone(), book };
    let (streams, strangers) = Server::<W>::bounds();
    Server {
        replica: node.replica.clone(),
        gossip: node.gossip.clone(),
        issuer,
        gate,
        identities: node.identities.clone(),
        book: node.book.clone(),
        control: node.control.clone(),
        enforced: node.enforced.clone(),
        expires: node.expires.clone(),
        vault: node.vault.clone(),
        streams,
        strangers,
    }
}
