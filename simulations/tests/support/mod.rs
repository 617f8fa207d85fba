//! A few simulated hosts, driven step by step.

#![allow(dead_code, unreachable_pub, reason = "each test uses its own part")]

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use weft::api::schema::{ApplyRequest, Enforced, Text, TokenRequest};
use weft::config::Start;
use weft::node::Node;
use weft_simulations::host::Host;
use weft_simulations::mesh::Mesh;
use weft_simulations::run::VOTERS;
use weft_simulations::world::SimWorld;
use weft_simulations::world::network::Network;

/// Simulated milliseconds of a step, and bound on everything that is waited for.
const STEP: u64 = 5;
const BOUND: u64 = 60_000;

pub struct Stage {
    pub network: Arc<Network>,
    pub hosts: Vec<Host>,
}

impl Stage {
    /// Hosts whose nodes have not started.
    pub fn new(hosts: usize) -> Self {
        weft_simulations::entropy::seed(1);
        let network = Network::new(hosts, 1);
        let mesh = Arc::new(Mesh::scenario("shop").expect("it comes with the program"));
        let hosts = (0..hosts).map(|id| Host::new(&network, id, 1, &mesh, false)).collect();
        Self { network, hosts }
    }

    /// Makes a mesh of all of them, the first one founding it, with these services, by host and place.
    pub fn found(&mut self, services: &[(usize, usize)]) {
        for host in 0..self.hosts.len() {
            let runs = services.iter().filter(|(on, _)| *on == host).map(|(_, service)| *service).collect();
            self.hosts[host].run(runs);
        }
        let trust_domain = "mesh.test".parse().expect("a name");
        self.hosts[0].start(Start::Found { trust_domain, deny_by_default: false, unless_done: false });
        let request = TokenRequest { lifetime_s: 3600, uses: 100, services: vec!["*".into()] };
        let line = self.on(0, |node| async move { node.api_create_token(request).await }).expect("a token").line;
        let count = self.hosts.len();
        for host in 1..count {
            self.hosts[host].start(Start::Join { line: line.clone() });
        }
        let voters = if count >= VOTERS { VOTERS } else { count - 1 + count % 2 };
        self.until("a mesh", |hosts| {
            let ready = |node: &Node<SimWorld>| {
                node.is_ready() && node.raft_status().voters.len() == voters && node.live().len() == count
            };
            hosts.iter().all(|host| host.node().is_some_and(|node| ready(&node))).then_some(())
        });
    }

    /// Lets time pass until something is found.
    pub fn until<T>(&mut self, what: &str, mut found: impl FnMut(&[Host]) -> Option<T>) -> T {
        let deadline = self.network.now() + BOUND;
        loop {
            if let Some(found) = found(&self.hosts) {
                return found;
            }
            assert!(self.network.now() < deadline, "{what}: not within {BOUND} ms");
            self.network.advance(STEP);
            let now = self.network.now();
            self.hosts.iter_mut().for_each(|host| host.tick(now, STEP));
        }
    }

    /// Does something on a host, and waits for what comes of it.
    pub fn on<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &mut self,
        host: usize,
        act: impl FnOnce(Arc<Node<SimWorld>>) -> F,
    ) -> T {
        let node = self.until("a node", |hosts| hosts[host].node());
        let answer = Arc::new(Mutex::new(None));
        let (acting, told) = (act(node), answer.clone());
        self.hosts[host].spawn(async move { *told.lock() = Some(acting.await) });
        self.until("an answer", |_| answer.lock().take())
    }

    /// Applies a document; its index.
    pub fn apply(&mut self, host: usize, text: &'static str) -> u64 {
        let request = ApplyRequest { texts: vec![Text { source: "test".into(), text: text.into() }] };
        let applied = self.on(host, |node| async move { node.api_apply(request, false).await });
        applied.unwrap_or_else(|failure| panic!("{failure:?}")).index
    }

    /// Who enforces an index, as a host sees it.
    pub fn enforced(&mut self, host: usize, index: u64) -> Enforced {
        let query: BTreeMap<String, String> =
            [("index".to_owned(), index.to_string()), ("timeout_ms".to_owned(), "5000".to_owned())].into();
        self.on(host, |node| async move { node.api_enforced(&query).await }).expect("asked")
    }
}
