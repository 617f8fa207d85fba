//! One simulated host: the shipped node, an application behind it, and callers in front, on a runtime of its own whose
//! clock only the simulation moves.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use weft::api::schema::{PortSpec, ServiceSpec};
use weft::config::{Config, Start};
use weft::registry::{self, Local};
use weft::start::{Host as HostParts, Node, start};
use weft::world::World;
use weft_proto::identity::NodeName;
use weft_proxy::net::{Listener, Net};
use weft_proxy::plane::Transport;

use crate::world::SimWorld;
use crate::world::disk::SimDisk;
use crate::world::network::{HostId, Network, SimNet, SimStream};

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

/// What callers and applications saw since it was last asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A call's answer: its number and status; none where there was no answer.
    Answered(u64, Option<u16>),
    /// A call reached the application.
    Arrived(Arrived),
}

/// A call, as the application sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// Its number.
    pub number: u64,
    /// The host that it came from.
    pub from: HostId,
    /// Its path.
    pub path: String,
    /// Whether it is a POST.
    pub post: bool,
    /// Whether this is a later part of an answer that goes on.
    pub goes_on: bool,
}

/// How a call is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A GET with a short answer.
    Get,
    /// A POST with a short answer.
    Post,
    /// A GET whose answer comes in parts, for a while.
    Long,
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
    runs_web: bool,
    /// The services that its node may run, where not all.
    pub narrow: Option<&'static str>,
}

/// Where the application listens.
const APPLICATION: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 18_080);
const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15_001);
const MESH_PORT: u16 = 7946;
/// Bound on a call.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// Bound on a call whose caller waits longer than a link takes to be given up.
const PATIENT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the application takes for a POST.
const WORK: Duration = Duration::from_millis(40);
/// Parts of an answer that goes on, and the time between them.
const LONG_PARTS: usize = 40;
const LONG_PAUSE: Duration = Duration::from_millis(250);

impl Host {
    /// A host whose node has not started yet.
    pub fn new(network: &Arc<Network>, id: HostId, seed: u64, runs_web: bool, lying_disk: bool) -> Self {
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
            runs_web,
            narrow: None,
        }
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
        let (world, stage, seen) = (self.world.clone(), self.stage.clone(), self.seen.clone());
        let parts = self.parts();
        runtime.spawn(async move {
            match start(config, world.clone(), parts).await {
                Err(error) => *stage.lock() = Stage::Refused(error.to_string()),
                Ok((node, mut records)) => {
                    tokio::spawn(async move { while records.recv().await.is_some() {} });
                    tokio::spawn(node.plane().clone().run_worker(0));
                    tokio::spawn(serve(world.net().clone(), seen));
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
            advertise: None,
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), MESH_PORT),
            zone: format!("zone-{}", self.id % 3),
            proxy: Some(PROXY),
            metrics: None,
            loopback: false,
            binds: Vec::new(),
            transport: Transport::Tcp,
            workers: 1,
            access_sample: 0.0,
            voters: crate::run::VOTERS,
        }
    }

    /// What is registered on the host: `web` where it runs, and who calls.
    fn parts(&self) -> HostParts {
        let port = |number| PortSpec { port: number, target: None, protocol: weft_proto::service::Protocol::Http };
        let spec = |name: &str, ports, caller: Option<&str>| ServiceSpec {
            name: name.to_owned(),
            ports,
            check: None,
            user: None,
            caller: caller.map(str::to_owned),
            weight: None,
        };
        let mut specs = vec![spec("front", vec![port(9000)], Some("any"))];
        if self.runs_web {
            let web = PortSpec { target: Some(APPLICATION.to_string()), ..port(8080) };
            specs.push(spec("web", vec![web], None));
        }
        let mut local = Local::default();
        for spec in specs {
            let service = registry::parse(&spec, |_| None).expect("a good specification");
            local.services.insert(service.name.clone(), service);
        }
        HostParts {
            address: SocketAddr::new(SimNet::address(self.id), MESH_PORT),
            local: watch::channel(Arc::new(local)).0,
            register: Box::new(|_| Err(vec!["not in a simulation".into()])),
            unregister: Box::new(|_| Ok(false)),
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

    /// Runs something on the host.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(task);
        }
    }

    /// Calls `web` from here.
    pub fn call(&self, number: u64, path: &str, shape: Shape) {
        let (net, seen) = (self.world.net().clone(), self.seen.clone());
        let target = format!("{path}?{number}&{}{}", self.id, if shape == Shape::Long { "&long" } else { "" });
        let bound = match shape {
            Shape::Get => CALL_TIMEOUT,
            Shape::Post => PATIENT_TIMEOUT,
            Shape::Long => LONG_PAUSE * 2 * LONG_PARTS as u32,
        };
        let method = if shape == Shape::Post { "POST" } else { "GET" };
        self.spawn(async move {
            let status = tokio::time::timeout(bound, call(net, method, &target)).await.ok().flatten();
            seen.lock().push(Seen::Answered(number, status));
        });
    }

    /// What was seen since the last time.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock())
    }
}

async fn call(net: SimNet, method: &str, target: &str) -> Option<u16> {
    let mut stream = net.dial(PROXY).await.ok()?;
    let head = format!(
        "{method} http://web.mesh:8080{target} HTTP/1.1\r\nHost: web.mesh:8080\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    // The status counts even where the rest broke off.
    let _ = stream.read_to_end(&mut answer).await;
    let text = String::from_utf8_lossy(&answer);
    text.get(9..12)?.parse().ok()
}

/// The application: tells what reaches it.
async fn serve(net: SimNet, seen: Arc<Mutex<Vec<Seen>>>) {
    let Ok(mut listener) = net.listen(APPLICATION) else { return };
    while let Ok(accepted) = listener.accept().await {
        tokio::spawn(answer(accepted.stream, seen.clone()));
    }
}

async fn answer(mut stream: SimStream, seen: Arc<Mutex<Vec<Seen>>>) {
    let mut head = Vec::new();
    loop {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        head.clear();
        let Some((arrived, long)) = read_request(&text) else { return };
        seen.lock().push(Seen::Arrived(arrived.clone()));
        if long {
            return go_on(stream, seen, arrived).await;
        }
        if arrived.post {
            tokio::time::sleep(WORK).await;
        }
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
            return;
        }
    }
}

/// `METHOD PATH?NUMBER&HOST[&long]`
fn read_request(text: &str) -> Option<(Arrived, bool)> {
    let mut words = text.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let (path, rest) = target.split_once('?')?;
    let mut parts = rest.split('&');
    let number = parts.next()?.parse().ok()?;
    let from = parts.next()?.parse().ok()?;
    let arrived = Arrived { number, from, path: path.to_owned(), post: method == "POST", goes_on: false };
    Some((arrived, parts.next().is_some()))
}

/// An answer in parts, until it is whole or nobody takes it any more.
async fn go_on(mut stream: SimStream, seen: Arc<Mutex<Vec<Seen>>>, arrived: Arrived) {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LONG_PARTS}\r\n\r\n");
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    let mut input = [0; 16];
    for _ in 0..LONG_PARTS {
        tokio::select! {
            biased;
            // The other end says nothing more; that it ends is how a broken exchange shows.
            read = stream.read(&mut input) => if !matches!(read, Ok(1..)) { return },
            () = tokio::time::sleep(LONG_PAUSE) => {}
        }
        if stream.write_all(b".").await.is_err() {
            return;
        }
        seen.lock().push(Seen::Arrived(Arrived { goes_on: true, ..arrived.clone() }));
    }
}
