//! TLS between nodes: TLS 1.3 only, both ends show an SVID, each checks that the other is who it should be.
//!
//! No session tickets and no early data: a resumed TLS 1.3 session would skip the verifier.

pub(crate) mod edge;
mod names;
pub(crate) mod originate;
pub(crate) mod proof;
mod validity;
mod verify;

pub use edge::{EdgeClients, EdgeTls, check_credential, credential_names, credential_validity};
pub(crate) use names::digest;
pub use names::{Target, TlsError, expiry, peer_identity, validity};
pub use validity::Revoked;
pub(crate) use validity::Validity;
pub use verify::join_client_config;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;
use tokio::time::Instant;
use weft_proto::UnixMillis;
use weft_proto::identity::{Identity, NodeName, TrustDomain};
use weft_proto::service::{InstanceId, ServiceName};

use verify::{Callee, Callers, Own, Times};

/// Control links between nodes.
pub const ALPN_CONTROL: &[u8] = b"weft-control/1";
/// Joining nodes, which have no certificate yet.
pub const ALPN_JOIN: &[u8] = b"weft-join/1";
/// Exchanges over QUIC.
pub const ALPN_EXCHANGE: &[u8] = b"weft-exchange/1";
/// Exchanges over TCP.
pub const ALPN_H2: &[u8] = b"h2";
/// Exchanges with clients that know no better.
pub const ALPN_H1: &[u8] = b"http/1.1";

/// Far enough away for any timer.
const YEAR_MS: u64 = 365 * 24 * 60 * 60 * 1000;
/// Most client configurations kept; beyond that all are made anew.
const CONFIGS_MAX: usize = 8192;

/// Reads the wall clock.
pub type Clock = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

/// The certificates that this node holds and the roots that it trusts.
#[derive(Clone)]
pub struct IdentitySet {
    /// The mesh.
    pub trust_domain: TrustDomain,
    /// This node's own identity.
    pub node: Identity,
    /// Roots of the trust domain.
    pub roots: Vec<CertificateDer<'static>>,
    /// Certificates with their keys, by the identity that each names.
    pub certificates: BTreeMap<Identity, Arc<CertifiedKey>>,
}

impl std::fmt::Debug for IdentitySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let identities: Vec<&Identity> = self.certificates.keys().collect();
        f.debug_struct("IdentitySet")
            .field("node", &self.node)
            .field("certificates", &identities)
            .finish_non_exhaustive()
    }
}

/// Whether clients must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// They must, and it must be a valid SVID of the trust domain.
    Required,
    /// The same, but of an admitted node an SVID of any time will do: control between nodes trusts the admission, and a
    /// node that was off for longer than its certificate lives must come back. Exchanges must look at the time themselves.
    Members,
    /// They need not: joining nodes. The chain shown to them includes the root, which they check by its fingerprint.
    Anonymous,
}

type ConfigKey = (Identity, Identity, Vec<Vec<u8>>);

/// The identities in force; a swap needs no new listener.
pub struct Identities {
    set: ArcSwap<IdentitySet>,
    provider: Arc<CryptoProvider>,
    time: Arc<Time>,
    clients: Mutex<BTreeMap<ConfigKey, Arc<ClientConfig>>>,
    admission: OnceLock<Admission>,
    /// Service accounts of those services that have another than their own name.
    accounts: ArcSwap<BTreeMap<ServiceName, Identity>>,
    revoked: watch::Sender<Arc<Revoked>>,
}

/// Tells whether a node was admitted with this key (the subject's public key, as X.509 has its bits); none where the node
/// is not known.
pub type Admission = Box<dyn Fn(&NodeName, &[u8]) -> Option<bool> + Send + Sync>;

impl Identities {
    /// Starts with a set. Whether a certificate is valid is told by the clock.
    pub fn new(set: IdentitySet, clock: Clock) -> Self {
        let time = Arc::new(Time(clock));
        let admission = OnceLock::new();
        Self {
            set: ArcSwap::from_pointee(set),
            provider: provider(),
            time,
            clients: Mutex::default(),
            admission,
            accounts: ArcSwap::default(),
            revoked: watch::Sender::default(),
        }
    }

    /// Says from now on which nodes are admitted, and by which keys. Said once.
    pub fn judge_nodes(&self, admission: Admission) {
        let _ = self.admission.set(admission);
    }

    /// Whether the node that a leaf names was admitted with the key that the leaf certifies; none where that is not known.
    fn is_admitted(&self, name: &NodeName, leaf: &CertificateDer<'_>) -> Option<bool> {
        self.admission.get()?(name, &names::public_key(leaf)?)
    }

    /// Certificates that are not trusted from now on, in handshakes and on what is open.
    pub fn revoke(&self, serials: Revoked) {
        self.revoked.send_if_modified(|revoked| {
            let changed = **revoked != serials;
            if changed {
                *revoked = Arc::new(serials);
            }
            changed
        });
    }

    /// Whether the first certificate of a chain was revoked.
    fn is_revoked(&self, chain: &[CertificateDer<'_>]) -> bool {
        let revoked = self.revoked.borrow();
        !revoked.is_empty() && names::serial(chain).is_none_or(|serial| revoked.contains(&serial))
    }

    /// How long the holder of these certificates is trusted.
    pub(crate) fn validity(&self, chain: &[CertificateDer<'_>]) -> Validity {
        let left = expiry(chain).unwrap_or(0).saturating_sub((self.time.0)()).min(YEAR_MS);
        Validity::new(chain, Instant::now() + Duration::from_millis(left), self.revoked.subscribe())
    }

    /// Says from now on which services have a service account of another name, and who their instances are.
    pub(crate) fn name_accounts(&self, accounts: BTreeMap<ServiceName, Identity>) {
        if **self.accounts.load() != accounts {
            self.accounts.store(Arc::new(accounts));
        }
    }

    /// Who the instances of a service are.
    fn of(&self, trust_domain: &TrustDomain, service: ServiceName) -> Identity {
        let named = self.accounts.load().get(&service).cloned();
        named.unwrap_or_else(|| Identity::service(trust_domain.clone(), service))
    }

    /// Whether this node holds a certificate of that identity.
    pub(crate) fn holds(&self, identity: &Identity) -> bool {
        self.current().certificates.contains_key(identity)
    }

    /// Whether the first certificate of a chain is valid now.
    pub fn is_current(&self, chain: &[CertificateDer<'_>]) -> bool {
        let now = (self.time.0)();
        validity(chain).is_some_and(|(start, end)| (start..end).contains(&now))
    }

    /// Puts another set into force for new handshakes.
    pub fn swap(&self, set: IdentitySet) {
        self.set.store(Arc::new(set));
        self.clients.lock().clear();
    }

    /// The set in force.
    pub fn current(&self) -> Arc<IdentitySet> {
        self.set.load_full()
    }

    /// The provider of cryptography.
    pub fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    /// How this node answers handshakes for these protocols.
    pub fn server_config(self: &Arc<Self>, alpn: &[&[u8]], clients: Clients) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider knows TLS 1.3");
        let builder = match clients {
            Clients::Required => builder.with_client_cert_verifier(Arc::new(Callers::new(self.clone(), Times::Now))),
            Clients::Members => {
                builder.with_client_cert_verifier(Arc::new(Callers::new(self.clone(), Times::AnyOfMembers)))
            }
            Clients::Anonymous => builder.with_no_client_auth(),
        };
        let with_root = clients == Clients::Anonymous;
        let mut config = builder.with_cert_resolver(Arc::new(Resolver { identities: self.clone(), with_root }));
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.time_provider = self.time.clone();
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Arc::new(config)
    }

    /// How this node calls as `from` someone who must be `expect`.
    pub fn client_config(
        self: &Arc<Self>,
        from: &Identity,
        expect: &Identity,
        alpn: &[&[u8]],
    ) -> Result<Arc<ClientConfig>, TlsError> {
        let key = (from.clone(), expect.clone(), alpn.iter().map(|protocol| protocol.to_vec()).collect::<Vec<_>>());
        if let Some(config) = self.clients.lock().get(&key) {
            return Ok(config.clone());
        }
        let set = self.current();
        let own = set.certificates.get(from).ok_or_else(|| TlsError::NoCertificate(Box::new(from.clone())))?;
        let times = if alpn == [ALPN_CONTROL] { Times::AnyOfMembers } else { Times::Now };
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider knows TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Callee::new(self.clone(), expect.clone(), times)))
            .with_client_cert_resolver(Arc::new(Own(own.clone())));
        config.time_provider = self.time.clone();
        config.alpn_protocols = key.2.clone();
        config.resumption = rustls::client::Resumption::disabled();
        let config = Arc::new(config);
        let mut clients = self.clients.lock();
        if clients.len() >= CONFIGS_MAX {
            clients.clear();
        }
        clients.insert(key, config.clone());
        Ok(config)
    }
}

/// The world's clock, as rustls asks for it.
pub(crate) struct Time(pub(crate) Clock);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis((self.0)())))
    }
}

impl std::fmt::Debug for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Time")
    }
}

/// aws-lc-rs with AES-128-GCM first: it is the cheapest of the three and strong enough for a day's certificate.
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider.kx_groups =
        vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
    Arc::new(provider)
}

/// Shows the certificate of the service or node that the client names.
struct Resolver {
    identities: Arc<Identities>,
    with_root: bool,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let set = self.identities.current();
        let wanted = match hello.server_name().map(Target::parse) {
            Some(Some(
                Target::Service { service, .. } | Target::Instance { instance: InstanceId { service, .. }, .. },
            )) => self.identities.of(&set.trust_domain, service),
            Some(None) => return None,
            Some(Some(Target::Node(name))) => Identity::node(set.trust_domain.clone(), name),
            None => set.node.clone(),
        };
        let held = set.certificates.get(&wanted)?;
        if !self.with_root {
            return Some(held.clone());
        }
        let mut chain = held.cert.clone();
        let root = set.roots.last()?;
        if chain.last() != Some(root) {
            chain.push(root.clone());
        }
        Some(Arc::new(CertifiedKey::new(chain, held.key.clone())))
    }
}
