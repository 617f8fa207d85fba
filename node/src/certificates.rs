//! The asking side of certificates: one SVID for the node and for each service it runs, renewed at half life.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use tokio::sync::{Notify, watch};
use weft_consensus::replica::Replica;
use weft_proto::UnixMillis;
use weft_proto::identity::{Identity, NodeName};
use weft_proto::wire::cluster::{CertificateRequest, ControlRequest, control_request, control_response};
use weft_proxy::tls::{self, Identities, IdentitySet};

use crate::authority;
use crate::control::Control;
use crate::issue::Issuer;
use crate::keys::Keys;
use crate::store::{Store, Svid};
use crate::world::{World, random};

/// How often certificates are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Pause after a failure, doubled up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Renewal comes up to this share of the life earlier than half, so that a mesh does not renew all at once.
const JITTER_SHARE: u64 = 10;

/// Keeps this node's certificates.
pub struct Certificates<W: World> {
    pub(crate) world: W,
    pub(crate) me: Identity,
    pub(crate) name: NodeName,
    pub(crate) keys: Arc<Keys>,
    pub(crate) store: Store,
    pub(crate) identities: Arc<Identities>,
    pub(crate) replica: Replica,
    pub(crate) control: Arc<Control<W::Net>>,
    pub(crate) issuer: Arc<Issuer<W>>,
    /// Services that this node runs; none before that is known.
    pub(crate) wanted: watch::Receiver<Option<BTreeSet<Identity>>>,
    /// Told to renew everything now.
    pub(crate) renew: Arc<Notify>,
    /// Identities whose certificate could not be had the last time.
    pub(crate) failing: BTreeSet<Identity>,
    /// The end of the first certificate to end.
    pub(crate) expires: watch::Sender<UnixMillis>,
}

impl<W: World> Certificates<W> {
    /// Runs until the node stops.
    pub async fn run(mut self) {
        // What is held from before may have ended meanwhile.
        self.publish_expiry();
        let mut backoff = BACKOFF_MIN;
        let mut force = false;
        loop {
            let healthy = self.round(force).await;
            force = false;
            backoff = if healthy { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
            let pause = if healthy { LOOK_INTERVAL } else { backoff };
            tokio::select! {
                biased;
                () = self.renew.notified() => force = true,
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Obtains what is missing or due, forgets what is no longer run; tells whether all is well.
    async fn round(&mut self, force: bool) -> bool {
        let known = self.wanted.borrow_and_update().clone();
        let all_known = known.is_some();
        let mut wanted = known.unwrap_or_default();
        wanted.insert(self.me.clone());
        let mut healthy = true;
        for identity in &wanted {
            if !force && !self.is_due(identity) {
                continue;
            }
            let obtained = self.obtain(identity).await;
            if obtained.is_ok() {
                self.failing.remove(identity);
            }
            if let Err(why) = obtained {
                healthy = false;
                metrics::counter!("weft_certificate_failures_total").increment(1);
                if self.failing.insert(identity.clone()) {
                    tracing::warn!(%identity, why, "no new certificate; it is tried again until there is one");
                }
            }
        }
        if all_known {
            self.forget_others(&wanted).await;
        }
        self.publish_expiry();
        healthy
    }

    fn is_due(&self, identity: &Identity) -> bool {
        let current = self.identities.current();
        let Some(certificate) = current.certificates.get(identity) else { return true };
        let Some((start, end)) = tls::validity(&certificate.cert) else { return true };
        let life = end.saturating_sub(start);
        let spread =
            u64::from(certificate.cert.first().map_or(0, |leaf| crc32fast::hash(leaf))) % (life / JITTER_SHARE).max(1);
        let now = self.world.now();
        now + spread >= start + life / 2 || now < start
    }

    async fn obtain(&self, identity: &Identity) -> Result<(), String> {
        let made = match *identity == self.me {
            true => authority::request_of(&self.keys.pkcs8().map_err(|error| error.to_string())?),
            false => authority::request(),
        };
        let (csr, key) = made.map_err(|error| error.to_string())?;
        let chain = self.ask(identity, &csr).await?;
        let svid = Svid { identity: identity.clone(), key, chain };
        install(&self.identities, std::slice::from_ref(&svid))?;
        self.store.keep_svid(&svid).await.map_err(|error| format!("the certificate cannot be kept: {error}"))?;
        metrics::counter!("weft_certificates_issued_total").increment(1);
        tracing::info!(%identity, "certificate installed");
        Ok(())
    }

    /// Asks this node's own authority, else the voters in turn, the leader first.
    async fn ask(&self, identity: &Identity, csr: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let key = random(&self.world);
        if self.issuer.authority().is_some() {
            return self.issuer.issue(&self.name, &identity.to_string(), csr, key).await;
        }
        let status = self.replica.status().borrow().clone();
        let leader = status.leader.clone();
        let others = status.voters.into_iter().filter(|voter| status.leader.as_ref() != Some(voter));
        let voters = leader.into_iter().chain(others);
        let mut why = "no voter is known yet".to_owned();
        for voter in voters {
            let request = CertificateRequest {
                identity: identity.to_string(),
                csr: csr.to_vec().into(),
                key: key.to_vec().into(),
            };
            let request = ControlRequest { kind: Some(control_request::Kind::Certificate(request)) };
            match self.control.exchange(&voter, request).await.map(|response| response.kind) {
                Ok(Some(control_response::Kind::Certificate(reply))) if reply.error.is_empty() => {
                    return Ok(reply.chain.into_iter().map(|certificate| certificate.to_vec()).collect());
                }
                Ok(Some(control_response::Kind::Certificate(reply))) => why = format!("{voter}: {}", reply.error),
                Ok(_) => why = format!("{voter} answered something else"),
                Err(error) => why = format!("{voter}: {error}"),
            }
        }
        Err(why)
    }

    async fn forget_others(&self, wanted: &BTreeSet<Identity>) {
        let current = self.identities.current();
        let gone: Vec<Identity> = current.certificates.keys().filter(|held| !wanted.contains(*held)).cloned().collect();
        if gone.is_empty() {
            return;
        }
        let mut set = IdentitySet::clone(&current);
        for identity in gone {
            set.certificates.remove(&identity);
            if let Err(error) = self.store.forget_svid(&identity).await {
                tracing::warn!(%identity, %error, "a certificate no longer needed stays on disk");
            }
        }
        self.identities.swap(set);
    }

    fn publish_expiry(&self) {
        let current = self.identities.current();
        let ends = current.certificates.values().filter_map(|certificate| tls::validity(&certificate.cert));
        let first = ends.map(|(_, end)| end).min().unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "a gauge of seconds needs no more precision")]
        metrics::gauge!("weft_certificate_expires_timestamp_seconds").set((first / 1000) as f64);
        self.expires.send_if_modified(|old| std::mem::replace(old, first) != first);
    }
}

/// Puts certificates into force for new handshakes.
pub fn install(identities: &Identities, svids: &[Svid]) -> Result<(), String> {
    let mut set = IdentitySet::clone(&identities.current());
    for svid in svids {
        set.certificates.insert(svid.identity.clone(), certified(svid)?);
    }
    identities.swap(set);
    Ok(())
}

/// The certificates as rustls takes them.
pub fn certified_all(svids: &[Svid]) -> Result<BTreeMap<Identity, Arc<CertifiedKey>>, String> {
    svids.iter().map(|svid| Ok((svid.identity.clone(), certified(svid)?))).collect()
}

fn certified(svid: &Svid) -> Result<Arc<CertifiedKey>, String> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.key.clone()));
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|error| error.to_string())?;
    let chain = svid.chain.iter().map(|certificate| CertificateDer::from(certificate.clone())).collect();
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}
