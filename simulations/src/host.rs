//! One simulated host: the shipped node, applications behind it, and callers in front, on a runtime of its own whose
//! clock only the simulation moves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use weft::api::schema::{PortSpec, ServiceSpec};
use weft::config::{Config, Loopback, Start};
use weft::node::{Host as HostParts, Node, Registrar};
use weft::registry::{self, Local, Names};
use weft::start::start;
use weft::world::World;
use weft_proto::identity::NodeName;
use weft_proto::kinds::Kinds;
use weft_proxy::plane::Transport;

use crate::application::{self, Seen};
use crate::call::Call;
use crate::caller::{self, PROXY};
use crate::mesh::assertion::Caller;
use crate::mesh::{Mesh, Protocol, Role};
use crate::world::SimWorld;
use crate::world::disk::SimDisk;
use crate::world::network::{HostId, Network, SimNet};

/// What a host's node is at the moment.
#[derive(Clone, Default)]
pub enum Stage {
    /// Nothing runs.
    #[default]
    Down,
    /// It starts: joins, or reads its disk.
    Starting,
    /// It runs.
    Running(Arc<Node<SimWorld>>),
    /// It would not start.
    Refused(String),
}

/// One host.
pub struct Host {
    id: HostId,
    name: NodeName,
    lives: u32,
    disk: Arc<SimDisk>,
    world: SimWorld,
    runtime: Option<Runtime>,
    stage: Arc<Mutex<Stage>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    frozen_until: u64,
    idle_ms: u64,
    mesh: Arc<Mesh>,
    /// The services that run on it, by place.
    runs: Vec<usize>,
    /// Whether its applications take connections.
    open: watch::Sender<bool>,
    kinds: Kinds,
}

/// Voters that are wanted, as in production by default.
pub const VOTERS: usize = 5;
/// Where nodes reach each other.
pub const MESH_PORT: u16 = 7946;
/// The first user of a service's processes; that of the next is one higher.
const FIRST_USER: u32 = 1000;
/// Where the first application listens.
const FIRST_PORT: u16 = 18_000;

impl Host {
    /// A host whose node has not started yet.
    pub fn new(network: &Arc<Network>, id: HostId, seed: u64, mesh: &Arc<Mesh>, lying_disk: bool) -> Self {
        let disk = SimDisk::new(network.clone(), seed ^ (id as u64) << 32, lying_disk);
        let world = SimWorld::new(network, id, disk.clone(), seed);
        Self {
            id,
            name: format!("n{id}").parse().expect("a name"),
            lives: 0,
            disk,
            world,
            runtime: None,
            stage: Arc::default(),
            seen: Arc::default(),
            frozen_until: 0,
            idle_ms: 0,
            mesh: mesh.clone(),
            runs: Vec::new(),
            open: watch::channel(true).0,
            kinds: Kinds::ALL,
        }
    }

    /// From its next start on it is of a version that knows these kinds of documents.
    pub fn know(&mut self, kinds: Kinds) {
        self.kinds = kinds;
    }

    /// Has these services run on it, by place.
    pub fn run(&mut self, services: Vec<usize>) {
        self.runs = services;
    }

    /// Whether its applications take connections.
    pub fn open(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// Its disk.
    pub fn disk(&self) -> &Arc<SimDisk> {
        &self.disk
    }

    /// Its clock.
    pub fn world(&self) -> &SimWorld {
        &self.world
    }

    /// What its node is.
    pub fn stage(&self) -> Stage {
        self.stage.lock().clone()
    }

    /// The node, while it runs.
    pub fn node(&self) -> Option<Arc<Node<SimWorld>>> {
        match &*self.stage.lock() {
            Stage::Running(node) => Some(node.clone()),
            _ => None,
        }
    }

    /// Whether its process runs.
    pub fn is_up(&self) -> bool {
        self.runtime.is_some()
    }

    /// Starts the process.
    pub fn start(&mut self, how: Start) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
        self.world.net().network().rise(self.id);
        self.lives += 1;
        *self.stage.lock() = Stage::Starting;
        let config = self.config(how);
        let (world, stage) = (self.world.clone(), self.stage.clone());
        let parts = self.parts();
        let serves =
            |service: &&usize| matches!(self.mesh.services[**service].role, Role::Application | Role::External);
        for service in self.runs.iter().filter(serves) {
            let external = self.mesh.services[*service].role == Role::External;
            let own = target(*service);
            let anywhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), own.port());
            let application = application::Application {
                net: world.net().clone(),
                address: if external { anywhere } else { own },
                service: *service,
                protocol: self.mesh.services[*service].protocol,
                seen: self.seen.clone(),
            };
            runtime.spawn(application.serve(self.open.subscribe()));
        }
        runtime.spawn(async move {
            match start(config, world.clone(), parts).await {
                Err(error) => *stage.lock() = Stage::Refused(error.to_string()),
                Ok((node, mut records)) => {
                    tokio::spawn(async move { while records.recv().await.is_some() {} });
                    tokio::spawn(node.plane().clone().run_worker(0));
                    *stage.lock() = Stage::Running(node);
                }
            }
        });
        self.runtime = Some(runtime);
        self.idle_ms = 0;
    }

    fn config(&self, how: Start) -> Config {
        Config {
            data_dir: PathBuf::from("/simulated"),
            start: how,
            name: Some(self.name.clone()),
            host_name: None,
            advertise: None,
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), MESH_PORT),
            zone: format!("zone-{}", self.id % 3),
            proxy: Some(PROXY),
            metrics: None,
            dns: weft::config::Dns::Off,
            loopback: Loopback::Off,
            connections_max: 10_000,
            kinds: self.kinds,
            binds: Vec::new(),
            gateways: Vec::new(),
            gateway_ports: BTreeMap::new(),
            transport: Transport::Tcp,
            workers: 1,
            access_sample: 0.0,
            voters: VOTERS,
        }
    }

    /// What is registered on the host.
    fn parts(&self) -> HostParts {
        let mut local = Local { read: true, ..Local::default() };
        let inside = |service: &&usize| self.mesh.services[**service].role != Role::External;
        for service in self.runs.iter().filter(inside) {
            let it = &self.mesh.services[*service];
            let gate = matches!(it.role, Role::Gateway | Role::Egress);
            let protocol = match it.protocol {
                Protocol::Http => weft_proto::service::Protocol::Http,
                Protocol::Tcp => weft_proto::service::Protocol::Tcp,
            };
            let spec = ServiceSpec {
                instance: None,
                labels: BTreeMap::new(),
                service_account: None,
                name: it.name.clone(),
                ports: match gate {
                    true => Vec::new(),
                    false => vec![PortSpec { port: it.port, target: Some(target(*service).to_string()), protocol }],
                },
                check: (!gate).then(|| "tcp".into()),
                unit: None,
                user: Some(it.name.clone()),
                caller: None,
                weight: None,
                gateway: it.role == Role::Gateway,
                egress: it.role == Role::Egress,
            };
            let instance = registry::parse(&spec, &Names { user: &|_| Some(user(*service)), address: &|_| None })
                .expect("a good specification");
            local.instances.insert(instance.id.clone(), instance);
        }
        HostParts {
            address: SocketAddr::new(SimNet::address(self.id), MESH_PORT),
            local: watch::channel(Arc::new(local)).0,
            registrar: Registrar {
                register: Box::new(|_| Err(vec!["not in a simulation".into()])),
                unregister: Box::new(|_, _| Ok(Vec::new())),
                listen: Box::new(|_, _| Ok(BTreeSet::new())),
                intercept: Box::new(|_| Err("not in a simulation".into())),
            },
        }
    }

    /// Ends the process at once. With `power` the host goes down with it, and what was not flushed is lost.
    pub fn kill(&mut self, power: bool) {
        self.world.net().network().fall(self.id, power);
        *self.stage.lock() = Stage::Down;
        drop(self.runtime.take());
        if power { self.disk.lose_power() } else { self.disk.end_process() }
    }

    /// A fresh disk and a new name, as an operator gives them to a node that cannot come back.
    pub fn wipe(&mut self, network: &Arc<Network>, seed: u64) {
        let seed = seed ^ (self.id as u64) << 32 ^ u64::from(self.lives) << 16;
        self.disk = SimDisk::new(network.clone(), seed, false);
        self.world = SimWorld::new(network, self.id, self.disk.clone(), seed);
        self.name = format!("n{}-{}", self.id, self.lives).parse().expect("a name");
    }

    /// The process gets no processor until then.
    pub fn freeze(&mut self, until: u64) {
        self.frozen_until = until;
    }

    /// Lets time pass on this host.
    pub fn tick(&mut self, now: u64, millis: u64) {
        self.disk.tick();
        let Some(runtime) = &self.runtime else { return };
        if now < self.frozen_until {
            self.idle_ms += millis;
            return;
        }
        let missed = std::mem::take(&mut self.idle_ms);
        runtime.block_on(async {
            if missed > 0 {
                tokio::time::advance(Duration::from_millis(missed)).await;
            }
            tokio::time::sleep(Duration::from_millis(millis)).await;
        });
    }

    /// Tasks of its process.
    pub fn tasks(&self) -> usize {
        self.runtime.as_ref().map_or(0, |runtime| runtime.metrics().num_alive_tasks())
    }

    /// Runs something on the host.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(task);
        }
    }

    /// Makes a call from here.
    pub fn call(&self, number: u64, call: &Call) {
        let net = match call.from {
            Caller::Outside | Caller::Stranger => self.world.net().clone(),
            Caller::Service(service) => self.world.net().of_user(user(service)),
        };
        let (seen, to) = (self.seen.clone(), &self.mesh.services[call.to]);
        let made = caller::make(net, number, call.clone(), to);
        self.spawn(async move {
            let status = made.await;
            seen.lock().push(Seen::Answered(number, status));
        });
    }

    /// Somebody from elsewhere sends something to this host.
    pub fn be_intruded(&self, net: SimNet, address: SocketAddr, what: Vec<u8>) {
        let seen = self.seen.clone();
        self.spawn(async move {
            let first = caller::intrude(net, address, &what).await;
            seen.lock().push(Seen::Stranger(first));
        });
    }

    /// What was seen since the last time.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock())
    }
}

/// The user of a service's processes.
pub fn user(service: usize) -> u32 {
    FIRST_USER + u32::try_from(service).unwrap_or(0)
}

/// Where the application of a service listens.
pub fn target(service: usize) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), FIRST_PORT + u16::try_from(service).unwrap_or(0))
}
