//! Two nodes in one process, with real sockets, certificates and applications.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::mpsc;
use tokio::time::timeout;
use weft_proto::document;
use weft_proto::identity::{Identity, TrustDomain};
use weft_proto::kinds::authorization_policy::AuthorizationPolicy;
use weft_proto::kinds::tcp_route::TcpRoute;
use weft_proto::kinds::tls_route::TlsRoute;
use weft_proto::kinds::{Kinds, Spec};
use weft_proto::resource::Resource;
use weft_proto::service::{InstanceId, InstanceName, Labels, Protocol, ServiceName, ServicePort};
use weft_proxy::net::Net;
use weft_proxy::net::host::{HostNet, HostStream};
use weft_proxy::plane::{Handover, Plane, PlaneSettings, Transport};
use weft_proxy::record::Record;
use weft_proxy::table::Table;
use weft_proxy::table::authz::PolicyDescription;
use weft_proxy::table::description::{
    AliasDescription, Bind, Calls, Description, EndpointDescription, LocalInstance, LocalPort, ServiceDescription,
};
use weft_proxy::table::routes::Document;
use weft_proxy::tls::{Identities, IdentitySet, provider};

/// Bound on everything that a test waits for.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Waits at most [`LIMIT`].
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what} took longer than {LIMIT:?}"))
}

pub(crate) fn trust_domain() -> TrustDomain {
    "mesh.test".parse().expect("valid")
}

pub(crate) fn service(name: &str) -> ServiceName {
    format!("default/{name}").parse().expect("valid")
}

pub(crate) fn identity(name: &str) -> Identity {
    Identity::service(trust_domain(), service(name))
}

pub(crate) fn now() -> u64 {
    u64::try_from(SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis()).expect("fits")
}

/// A certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) root: CertificateDer<'static>,
}

/// What a certificate says.
pub(crate) struct Leaf {
    pub(crate) uris: Vec<String>,
    pub(crate) from: i64,
    pub(crate) to: i64,
    pub(crate) is_ca: bool,
    pub(crate) dns: Vec<String>,
}

impl Leaf {
    pub(crate) fn of(identity: &Identity) -> Self {
        Self { uris: vec![identity.to_string()], from: -3600, to: 3600, is_ca: false, dns: Vec::new() }
    }
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).expect("signed").der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// Signs whatever the leaf says; its times are seconds from now.
    pub(crate) fn sign(&self, leaf: &Leaf) -> Arc<CertifiedKey> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        let uri = |uri: &String| SanType::URI(uri.as_str().try_into().expect("ASCII"));
        params.subject_alt_names = leaf.uris.iter().map(uri).collect();
        params
            .subject_alt_names
            .extend(leaf.dns.iter().map(|name| SanType::DnsName(name.as_str().try_into().expect("ASCII"))));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if leaf.is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let now = i64::try_from(now() / 1000).expect("fits");
        params.not_before = time::OffsetDateTime::from_unix_timestamp(now + leaf.from).expect("in range");
        params.not_after = time::OffsetDateTime::from_unix_timestamp(now + leaf.to).expect("in range");
        let signed = params.signed_by(&key, &self.issuer).expect("signed");
        let private = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let signing = provider().key_provider.load_private_key(private).expect("a key");
        Arc::new(CertifiedKey::new(vec![signed.der().clone()], signing))
    }

    pub(crate) fn identities(&self, node: &str, services: &[&str]) -> Arc<Identities> {
        let node = Identity::node(trust_domain(), node.parse().expect("valid"));
        let all = services.iter().map(|name| identity(name)).chain([node.clone()]);
        Arc::new(Identities::new(
            IdentitySet {
                trust_domain: trust_domain(),
                node,
                roots: vec![self.root.clone()],
                certificates: all.map(|identity| (identity.clone(), self.sign(&Leaf::of(&identity)))).collect(),
            },
            Arc::new(now),
        ))
    }
}

/// The host's sockets, of which some fail.
#[derive(Clone)]
pub(crate) struct TestNet {
    host: HostNet,
    pub(crate) datagrams_work: bool,
}

impl Net for TestNet {
    type Stream = HostStream;
    type Listener = weft_proxy::net::host::HostListener;

    fn listen(&self, address: SocketAddr) -> io::Result<weft_proxy::net::host::HostListener> {
        self.host.listen(address)
    }

    async fn dial(&self, address: SocketAddr) -> io::Result<HostStream> {
        self.host.dial(address).await
    }

    async fn resolve(&self, host: &str) -> io::Result<Vec<std::net::IpAddr>> {
        self.host.resolve(host).await
    }

    fn datagrams(&self, address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        if !self.datagrams_work {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.host.datagrams(address)
    }

    fn owner(&self, _: SocketAddr, _: SocketAddr) -> Option<weft_proxy::net::Process> {
        None
    }
}

/// One node.
pub(crate) struct TestNode<N: Net = TestNet> {
    pub(crate) plane: Arc<Plane<N>>,
    pub(crate) records: mpsc::Receiver<Record>,
    _handovers: mpsc::Receiver<Handover<N>>,
    name: &'static str,
}

/// Nodes `a`, which calls as `front`, and `b`, which runs `web`.
pub(crate) struct Mesh<N: Net = TestNet> {
    pub(crate) authority: Authority,
    pub(crate) a: TestNode<N>,
    pub(crate) b: TestNode<N>,
    /// Where callers of `a` reach each port of `web`.
    pub(crate) ways_in: BTreeMap<u16, SocketAddr>,
    /// The forward proxy of `a`.
    pub(crate) proxy: SocketAddr,
    /// Where `b` takes links.
    pub(crate) mesh_port: SocketAddr,
    ports: Vec<(ServicePort, SocketAddr)>,
    /// The instances of `web`, in force from the next policies on.
    pub(crate) instances: Vec<TestInstance>,
    /// Its service account, likewise; `b` holds certificates of `web` and `clerk`.
    pub(crate) account: &'static str,
    index: u64,
}

/// An instance of `web`.
pub(crate) struct TestInstance {
    pub(crate) name: &'static str,
    pub(crate) labels: &'static [(&'static str, &'static str)],
    /// `a` or `b`.
    pub(crate) node: &'static str,
    /// Where it serves every port; none: where each port was said to be.
    pub(crate) target: Option<SocketAddr>,
}

impl TestInstance {
    fn id(&self) -> InstanceId {
        InstanceId { service: service("web"), name: self.name.parse().expect("valid") }
    }

    fn labels(&self) -> Labels {
        self.labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }
}

/// How a mesh is made.
pub(crate) struct Setup {
    pub(crate) transport: Transport,
    pub(crate) same_zone: bool,
    pub(crate) datagrams_work: bool,
    /// Share of exchanges that are recorded.
    pub(crate) access_sample: f64,
}

impl Setup {
    pub(crate) fn over(transport: Transport) -> Self {
        Self { transport, same_zone: true, datagrams_work: true, access_sample: 1.0 }
    }
}

/// An address that nobody listens on, for TCP and UDP: one of this process alone, and a port below those that the kernel
/// gives to outgoing connections, so that none of them takes it before it is used.
pub(crate) fn free() -> SocketAddr {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    loop {
        let port = 4096 + TAKEN.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from(([127, 1 + high, middle, low], port));
        // A server of every address of the host holds it too.
        if std::net::TcpListener::bind(address).is_ok() && std::net::UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

impl Mesh {
    /// Both nodes on the host's sockets, with `web` serving these ports at these addresses on `b`.
    pub(crate) async fn start(setup: &Setup, ports: &[(u16, Protocol, SocketAddr)]) -> Self {
        let net = TestNet { host: HostNet::new(Arc::new(|_, _| None)), datagrams_work: setup.datagrams_work };
        Self::on(&net, setup, ports).await
    }
}

impl<N: Net> Mesh<N> {
    /// Both nodes, with `web` serving these ports at these addresses on `b`.
    pub(crate) async fn on(net: &N, setup: &Setup, ports: &[(u16, Protocol, SocketAddr)]) -> Self {
        let authority = Authority::new();
        let ports: Vec<_> = ports
            .iter()
            .map(|(port, protocol, target)| (ServicePort { port: *port, protocol: *protocol }, *target))
            .collect();
        let ways_in: BTreeMap<u16, SocketAddr> = ports.iter().map(|(port, _)| (port.port, free())).collect();
        let mesh_port = free();
        let proxy = free();
        let at_a = (free(), Some(proxy));
        let a = TestNode::start("a", at_a, authority.identities("a", &["front"]), (net, setup));
        let b = TestNode::start("b", (mesh_port, None), authority.identities("b", &["web", "clerk"]), (net, setup));
        let instances = vec![TestInstance { name: InstanceName::DEFAULT, labels: &[], node: "b", target: None }];
        let account = "web";
        let mut mesh = Self { authority, a, b, ways_in, proxy, mesh_port, ports, instances, account, index: 0 };
        mesh.enforce("", setup);
        for address in mesh.ways_in.values().chain([&mesh.mesh_port, &mesh.proxy]) {
            soon("listening", async {
                while net.dial(*address).await.is_err() {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
        mesh
    }

    /// Puts policies, and documents about calls of `web`, in force at both nodes.
    pub(crate) fn enforce(&mut self, policies: &str, setup: &Setup) {
        self.enforce_at(&[true, false], policies, setup);
    }

    /// Puts policies in force at `a` (true) or `b` (false), or both.
    pub(crate) fn enforce_at(&mut self, nodes: &[bool], policies: &str, setup: &Setup) {
        self.index += 1;
        for at_a in nodes {
            let node = if *at_a { &self.a } else { &self.b };
            let description = self.describe(*at_a, policies, setup);
            let table = Table::build(description, Some(&node.plane.table())).expect("compiles");
            node.plane.swap(table);
        }
    }

    fn describe(&self, at_a: bool, policies: &str, setup: &Setup) -> Description {
        let resources = if policies.is_empty() {
            Vec::new()
        } else {
            document::parse(Kinds::ALL, "test", policies).expect("valid")
        };
        let describe = |resource: &Resource| PolicyDescription {
            key: resource.key.clone(),
            policy: AuthorizationPolicy::of(resource).expect("checked"),
            dry_run: false,
        };
        let zone = if setup.same_zone { "one" } else { "two" };
        let web = service("web");
        let endpoint = |instance: &TestInstance| EndpointDescription {
            node: instance.node.parse().expect("valid"),
            instance: instance.id().name,
            labels: instance.labels(),
            address: self.mesh_port,
            zone: zone.into(),
            ports: self.ports.iter().map(|(port, _)| port.port).collect(),
            targets: Vec::new(),
            weight: 1,
            healthy: true,
            gateway: false,
        };
        let local = |instance: &TestInstance| LocalInstance {
            id: instance.id(),
            host: None,
            labels: instance.labels(),
            weight: 1,
            ports: self
                .ports
                .iter()
                .map(|(port, target)| LocalPort {
                    port: port.port,
                    target: instance.target.unwrap_or(*target),
                    protocol: port.protocol,
                })
                .collect(),
            healthy: true,
        };
        let here = if at_a { self.a.name } else { self.b.name };
        let bind = |(port, address): (&u16, &SocketAddr)| Bind { address: *address, service: web.clone(), port: *port };
        let aliases = resources.iter().filter_map(document);
        let aliases = aliases.map(|document| AliasDescription { document, calls: Calls::default() });
        Description {
            index: self.index,
            zone: if at_a { "one".into() } else { zone.into() },
            services: vec![Arc::new(ServiceDescription {
                name: web.clone(),
                account: service(self.account),
                labels: [("app".to_owned(), "web".to_owned())].into(),
                address: None,
                listened: Vec::new(),
                ports: self.ports.iter().map(|(port, _)| *port).collect(),
                settings: Some(Arc::default()),
                calls: Calls {
                    routes: resources.iter().filter_map(document).collect(),
                    gateway_routes: resources.iter().filter_map(document).collect(),
                    stream_routes: resources.iter().filter_map(stream_document).collect(),
                    subsets: resources.iter().filter_map(document).collect(),
                },
                endpoints: self.instances.iter().map(endpoint).collect(),
                outside: None,
            })],
            policies: resources.iter().filter(is::<AuthorizationPolicy>).map(describe).map(Arc::new).collect(),
            aliases: aliases.collect(),
            grants: resources.iter().filter_map(document).collect(),
            local: self.instances.iter().filter(|instance| instance.node == here).map(local).collect(),
            caller_any: at_a.then(|| service("front")),
            caller_groups: BTreeMap::new(),
            binds: if at_a { self.ways_in.iter().map(bind).collect() } else { Vec::new() },
            ..empty(here)
        }
    }
}

fn is<T: Spec>(resource: &&Resource) -> bool {
    resource.key.kind == T::KIND.key()
}

fn document<T: Spec>(resource: &Resource) -> Option<Arc<Document<T>>> {
    let spec = is::<T>(&resource).then(|| T::of(resource).expect("checked"))?;
    Some(Arc::new(Document { key: resource.key.clone(), created: 1, spec }))
}

fn stream_document(resource: &Resource) -> Option<Arc<Document<TcpRoute>>> {
    let tls = is::<TlsRoute>(&resource).then(|| TlsRoute::of(resource).expect("checked").to_tcp());
    let tls = tls.map(|spec| Arc::new(Document { key: resource.key.clone(), created: 1, spec }));
    tls.or_else(|| document(resource))
}

fn empty(node: &str) -> Description {
    Description {
        index: 0,
        trust_domain: trust_domain(),
        node: node.parse().expect("valid"),
        zone: String::new(),
        deny_by_default: false,
        peers: Default::default(),
        services: Vec::new(),
        policies: Vec::new(),
        local: Vec::new(),
        callers: BTreeMap::new(),
        caller_any: None,
        caller_groups: BTreeMap::new(),
        aliases: Vec::new(),
        grants: Vec::new(),
        binds: Vec::new(),
        intercepts: Default::default(),
        gateways: Vec::new(),
        challenges: Vec::new(),
    }
}

impl<N: Net> TestNode<N> {
    fn start(
        name: &'static str,
        (mesh_address, proxy_address): (SocketAddr, Option<SocketAddr>),
        identities: Arc<Identities>,
        (net, setup): (&N, &Setup),
    ) -> Self {
        let settings = PlaneSettings {
            captured: None,
            mesh_address,
            proxy_address,
            workers: 1,
            access_sample: setup.access_sample,
            transport: setup.transport,
            clock: Arc::new(now),
            seed: 7,
            connections_max: 10_000,
        };
        let (records, recorded) = mpsc::channel(1024);
        let (handovers, handed) = mpsc::channel(16);
        let table = Table::build(empty(name), None).expect("compiles");
        let plane = Plane::new(settings, net.clone(), identities, table, &records, handovers);
        tokio::spawn(plane.clone().run_worker(0));
        Self { plane, records: recorded, _handovers: handed, name }
    }

    /// The next record for which this holds.
    pub(crate) async fn record(&mut self, which: impl Fn(&Record) -> bool) -> Record {
        soon("a record", async {
            loop {
                let record = self.records.recv().await.expect("the plane runs");
                if which(&record) {
                    return record;
                }
            }
        })
        .await
    }
}

pub(crate) fn localhost(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}
