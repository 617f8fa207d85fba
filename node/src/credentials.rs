//! Certificates of the gateways that this node serves: opened from documents, or read from files that are watched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use weft_consensus::state::State;
use weft_proto::Index;
use weft_proto::identity::NodeName;
use weft_proto::kinds::Spec;
use weft_proto::kinds::secret::{Credential, Secret};
use weft_proto::resource::{Resource, ResourceKey};
use weft_proxy::tls::check_credential;

use crate::compile::{Held, Source};
use crate::keys::{Keys, seal};
use crate::store::Store;
use crate::vault::{Values, Vault};
use crate::world::World;

/// How often files are looked at, and what could not be had is asked for again.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Where distributions keep the authorities that a host trusts.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Keeps them.
pub struct Credentials<W: World> {
    pub(crate) world: W,
    pub(crate) me: NodeName,
    pub(crate) keys: Arc<Keys>,
    pub(crate) store: Store,
    pub(crate) vault: Arc<Vault<W>>,
    pub(crate) states: watch::Receiver<Arc<State>>,
    /// What is wanted.
    pub(crate) wanted: watch::Receiver<BTreeSet<Source>>,
    /// What is held.
    pub(crate) held: watch::Sender<Arc<Held>>,
    /// Versions of documents that were opened.
    pub(crate) opened: BTreeMap<ResourceKey, (Index, Values)>,
}

impl<W: World> Credentials<W> {
    /// Runs until the node stops.
    pub async fn run(mut self) {
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let state = self.states.borrow_and_update().clone();
            let mut held = BTreeMap::new();
            for source in &wanted {
                let found = match source {
                    Source::Secret { namespace, name } => self.secret(&state, namespace, name).await,
                    Source::Files { chain, key, authorities } => self.files([chain, key, authorities]),
                    Source::System => system_authorities(&self.world)
                        .map(|found| Credential { authorities: Some(found), ..Credential::default() }),
                };
                let checked = found.and_then(|credential| check_credential(&credential).map(|()| credential));
                held.insert(source.clone(), checked);
            }
            self.opened.retain(|key, _| state.resources.contains_key(key));
            self.tell(Held(held));
            let idle = wanted.is_empty();
            let ended = tokio::select! {
                biased;
                changed = self.wanted.changed() => changed.is_err(),
                changed = self.states.changed() => changed.is_err(),
                () = tokio::time::sleep(LOOK_INTERVAL), if !idle => false,
            };
            if ended {
                return;
            }
        }
    }

    fn tell(&self, held: Held) {
        let before = self.held.borrow().clone();
        for (source, found) in &held.0 {
            if let (Err(why), true) = (found, before.0.get(source) != Some(found)) {
                tracing::warn!(?source, why, "a certificate of a gateway cannot be had");
            }
        }
        if *before != held {
            self.held.send_replace(Arc::new(held));
        }
    }

    async fn secret(&mut self, state: &State, namespace: &str, name: &str) -> Result<Credential, String> {
        let key = ResourceKey { kind: Secret::KIND.key(), namespace: namespace.to_owned(), name: name.to_owned() };
        let resource = state.resources.get(&key).ok_or_else(|| format!("there is no Secret {namespace}/{name}"))?;
        let secret = Secret::of(resource)?;
        let values = if secret.sealed.is_empty() { Values::new() } else { self.values(resource).await? };
        Ok(secret.credential(&values))
    }

    /// What is sealed in a document, opened. It is kept for the next start, sealed to this node.
    async fn values(&mut self, resource: &Resource) -> Result<Values, String> {
        let (key, version) = (&resource.key, resource.version);
        if let Some((known, values)) = self.opened.get(key)
            && *known == version
        {
            return Ok(values.clone());
        }
        let values = match self.kept(key, version) {
            Some(values) => values,
            None => {
                let values = self.vault.open(key, &self.me).await?;
                let public = self.keys.public(&self.me).seal_key;
                let text = serde_json::to_vec(&values).map_err(|error| error.to_string())?;
                let sealed = seal(&public, &text).map_err(|error| error.to_string())?;
                if let Err(error) = self.store.keep_secret(key, version, sealed).await {
                    tracing::warn!(%key, %error, "a secret could not be kept for the next start");
                }
                values
            }
        };
        self.opened.insert(key.clone(), (version, values.clone()));
        Ok(values)
    }

    fn kept(&self, key: &ResourceKey, version: Index) -> Option<Values> {
        let sealed = self.store.secret(key, version).ok().flatten()?;
        serde_json::from_slice(&self.keys.open(&sealed).ok()?).ok()
    }

    fn files(&self, [chain, key, authorities]: [&String; 3]) -> Result<Credential, String> {
        let read = |path: &String| match path.as_str() {
            "" => Ok(None),
            path => self.world.read_file(path.as_ref()).map(Some).map_err(|error| format!("{path}: {error}")),
        };
        Ok(Credential { chain: read(chain)?, key: read(key)?, authorities: read(authorities)?, revoked: None })
    }
}

/// The authorities that this host trusts, PEM, from where distributions keep them.
pub(crate) fn system_authorities(world: &impl World) -> Result<Vec<u8>, String> {
    let read = BUNDLES.iter().find_map(|path| world.read_file(path.as_ref()).ok());
    read.ok_or_else(|| "this host has no authorities that it trusts (ca-certificates)".into())
}
