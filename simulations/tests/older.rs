//! A node of an older version in a mesh that uses a kind which that version does not know.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use weft::api::schema::{ApplyRequest, Enforced, Text, TokenRequest};
use weft::config::Start;
use weft::node::Node;
use weft_proto::kinds::Kinds;
use weft_simulations::host::Host;
use weft_simulations::mesh::Mesh;
use weft_simulations::world::SimWorld;
use weft_simulations::world::network::Network;

/// Simulated milliseconds of a step, and bound on everything that is waited for.
const STEP: u64 = 5;
const BOUND: u64 = 60_000;

const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n\
                      spec: {selector: {matchLabels: {app: nobody}}, action: DENY, rules: [{}]}\n";
const SETTINGS: &str = "apiVersion: weft/v1\nkind: Service\nmetadata: {name: nobody}\nspec: {retries: 1}\n";

struct Stage {
    network: Arc<Network>,
    hosts: Vec<Host>,
}

impl Stage {
    fn until<T>(&mut self, what: &str, mut found: impl FnMut(&[Host]) -> Option<T>) -> T {
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
    fn on<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
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

    fn apply(&mut self, host: usize, text: &'static str) -> u64 {
        let request = ApplyRequest { texts: vec![Text { source: "test".into(), text: text.into() }] };
        let applied = self.on(host, |node| async move { node.api_apply(request, false).await });
        applied.unwrap_or_else(|failure| panic!("{failure:?}")).index
    }

    fn enforced(&mut self, host: usize, index: u64) -> Enforced {
        let query: BTreeMap<String, String> =
            [("index".to_owned(), index.to_string()), ("timeout_ms".to_owned(), "5000".to_owned())].into();
        self.on(host, |node| async move { node.api_enforced(&query).await }).expect("asked")
    }
}

#[test]
fn it_lives_on_enforces_the_rest_and_tells() {
    weft_simulations::entropy::seed(1);
    let network = Network::new(3, 1);
    let mesh = Arc::new(Mesh::scenario("shop").expect("it comes with the program"));
    let hosts = (0..3).map(|id| Host::new(&network, id, 1, &mesh, false)).collect();
    let mut stage = Stage { network, hosts };
    stage.hosts[2].know(Kinds::lacking(&["AuthorizationPolicy"]));
    let trust_domain = "mesh.test".parse().expect("a name");
    stage.hosts[0].start(Start::Found { trust_domain, deny_by_default: false });
    let request = TokenRequest { lifetime_s: 3600, uses: 5, services: vec!["*".into()] };
    let line = stage.on(0, |node| async move { node.api_create_token(request).await }).expect("a token").line;
    for host in [1, 2] {
        stage.hosts[host].start(Start::Join { line: line.clone() });
    }
    stage.until("three voters", |hosts| {
        let all = hosts.iter().all(|host| {
            host.node()
                .is_some_and(|node| node.is_ready() && node.raft_status().voters.len() == 3 && node.live().len() == 3)
        });
        all.then_some(())
    });

    // The others enforce it; the older one says that it does not, and which.
    let index = stage.apply(0, POLICY);
    let enforced = stage.enforced(0, index);
    assert_eq!((enforced.nodes, enforced.enforced), (3, 2), "{enforced:?}");
    assert_eq!(enforced.lagging[0].node, "n2");
    assert!(enforced.lagging[0].why.contains("does not know the kind AuthorizationPolicy"), "{enforced:?}");
    let told = stage.on(2, |node| async move { node.problems() });
    assert!(
        told.iter().any(|one| one.kind == "not-enforced" && one.text.contains("AuthorizationPolicy default/p")),
        "{told:?}"
    );
    let read = |kind: &str| -> BTreeMap<String, String> {
        [("kind".to_owned(), kind.to_owned()), ("status".to_owned(), "true".to_owned())].into()
    };
    let query = read("ap");
    let documents = stage.on(0, |node| async move { node.api_resources(&query).await }).expect("read");
    let condition = |kind: &str| {
        let conditions = documents[0]["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|one| one["type"] == kind).unwrap_or(Value::Null)
    };
    assert_eq!(
        (&condition("Accepted")["status"], &condition("Programmed")["status"]),
        (&"True".into(), &"False".into())
    );
    assert!(condition("Programmed")["message"].as_str().is_some_and(|text| text.contains("node n2")), "{documents:?}");

    // It goes on: what it knows it enforces, and what it does not know it keeps, shows and deletes.
    let index = stage.apply(2, SETTINGS);
    assert_eq!(stage.enforced(2, index).enforced, 3);
    let query = read("AuthorizationPolicy");
    assert_eq!(stage.on(2, |node| async move { node.api_resources(&query).await }).expect("read").len(), 1);
    stage.hosts[2].kill(true);
    stage.until("its death is seen", |hosts| hosts[0].node().filter(|node| node.live().len() == 2).map(drop));
    stage.hosts[2].start(Start::Resume);
    stage.until("it is back", |hosts| {
        hosts[2].node().filter(|node| node.is_ready() && node.live().len() == 3).map(drop)
    });
    stage.until("all states are equal", |hosts| {
        let digests: Vec<u32> = hosts.iter().filter_map(Host::node).map(|node| node.state().digest()).collect();
        (digests.len() == 3 && digests.windows(2).all(|pair| pair[0] == pair[1])).then_some(())
    });
    stage
        .on(2, |node| async move { node.api_delete("AuthorizationPolicy", "default", "p", None).await })
        .unwrap_or_else(|failure| panic!("{failure:?}"));
    stage.until("nothing is amiss", |hosts| {
        let told = hosts[2].node()?.problems();
        told.iter().all(|one| one.kind != "not-enforced").then_some(())
    });
}
