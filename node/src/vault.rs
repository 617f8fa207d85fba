//! What must stay secret in documents: sealed with a key that whoever holds the authority's key has too, so that it stands in the
//! replicated state and on disks in no other form. Voters open it for the gateways that need it.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use weft_consensus::replica::Replica;
use weft_consensus::state::State;
use weft_proto::identity::NodeName;
use weft_proto::kinds::reference_grant::ReferenceGrant;
use weft_proto::kinds::secret::Secret;
use weft_proto::kinds::{Kind, Spec};
use weft_proto::resource::{Resource, ResourceKey};
use weft_proto::wire::cluster::{
    ControlRequest, SecretReply, SecretRequest, SecretValue, control_request, control_response,
};

use crate::control::Control;
use crate::issue::Issuer;
use crate::world::{World, random};

/// Names with their values.
pub type Values = std::collections::BTreeMap<String, Vec<u8>>;

/// Seals and opens, here or by a node that can.
pub struct Vault<W: World> {
    world: W,
    issuer: Arc<Issuer<W>>,
    replica: Replica,
    control: Arc<Control<W::Net>>,
}

impl<W: World> Vault<W> {
    /// The vault of a node.
    pub fn new(world: &W, issuer: &Arc<Issuer<W>>, replica: &Replica, control: &Arc<Control<W::Net>>) -> Self {
        let (world, issuer, replica, control) = (world.clone(), issuer.clone(), replica.clone(), control.clone());
        Self { world, issuer, replica, control }
    }

    /// Seals the values of the secret of that namespace and name.
    pub async fn seal(&self, (namespace, name): (&str, &str), values: &Values) -> Result<Values, String> {
        if values.is_empty() {
            return Ok(Values::new());
        }
        if let Some(sealed) = self.seal_here((namespace, name), values) {
            return sealed;
        }
        self.ask(request((namespace, name), values)).await
    }

    /// Opens the values of a secret that this node may have.
    pub async fn open(&self, key: &ResourceKey, me: &NodeName) -> Result<Values, String> {
        let state = self.replica.state().borrow().clone();
        if let Some(opened) = self.open_here(&state, key, me) {
            return opened;
        }
        self.ask(request((&key.namespace, &key.name), &Values::new())).await
    }

    /// Whether this node holds the authority's key.
    pub fn opens(&self) -> bool {
        self.issuer.authority().is_some()
    }

    /// Opens the values of a secret for the mesh's own use, where this node holds the authority's key.
    pub fn open_own(&self, secret: &Resource) -> Result<Values, String> {
        let key = self.issuer.authority().and_then(|authority| key(&authority.secret()));
        open_with(&key.ok_or(NO_KEY)?, secret)
    }

    /// Answers another node.
    pub fn answer(&self, from: &NodeName, request: &SecretRequest) -> SecretReply {
        let named = (request.namespace.as_str(), request.name.as_str());
        let done = if request.values.is_empty() {
            let (kind, namespace, name) = (Secret::KIND.key(), request.namespace.clone(), request.name.clone());
            let state = self.replica.state().borrow().clone();
            self.open_here(&state, &ResourceKey { kind, namespace, name }, from)
        } else {
            let values = request.values.iter().map(|one| (one.name.clone(), one.value.to_vec())).collect();
            self.seal_here(named, &values)
        };
        match done.unwrap_or_else(|| Err(NO_KEY.into())) {
            Ok(values) => SecretReply { error: String::new(), values: listed(&values) },
            Err(error) => SecretReply { error, values: Vec::new() },
        }
    }

    /// None where this node cannot.
    fn seal_here(&self, named: (&str, &str), values: &Values) -> Option<Result<Values, String>> {
        let key = key(&self.issuer.authority()?.secret())?;
        let seal = |(name, value): (&String, &Vec<u8>)| {
            let nonce: [u8; NONCE_LEN] = random(&self.world);
            let mut text = value.clone();
            let sealed = key.seal_in_place_append_tag(Nonce::from(&nonce), Aad::from(bound(named, name)), &mut text);
            sealed.map_err(|_| format!("{name} cannot be sealed"))?;
            Ok((name.clone(), [&nonce[..], &text].concat()))
        };
        Some(values.iter().map(seal).collect())
    }

    /// None where this node cannot.
    fn open_here(&self, state: &State, document: &ResourceKey, node: &NodeName) -> Option<Result<Values, String>> {
        let key = key(&self.issuer.authority()?.secret())?;
        if !may_have(state, document, node) {
            return Some(Err(format!("{node} serves no gateway that may have {document}")));
        }
        let Some(resource) = state.resources.get(document) else { return Some(Err(format!("there is no {document}"))) };
        Some(open_with(&key, resource))
    }

    /// Asks the voters in turn, the leader first.
    async fn ask(&self, request: SecretRequest) -> Result<Values, String> {
        let status = self.replica.status().borrow().clone();
        let leader = status.leader.clone();
        let others = status.voters.into_iter().filter(|voter| status.leader.as_ref() != Some(voter));
        let mut why = "no voter is known yet".to_owned();
        for voter in leader.into_iter().chain(others) {
            let asked = ControlRequest { kind: Some(control_request::Kind::Secret(request.clone())) };
            match self.control.exchange(&voter, asked).await.map(|response| response.kind) {
                Ok(Some(control_response::Kind::Secret(reply))) if reply.error.is_empty() => {
                    return Ok(reply.values.into_iter().map(|one| (one.name, one.value.to_vec())).collect());
                }
                Ok(Some(control_response::Kind::Secret(reply))) => why = format!("{voter}: {}", reply.error),
                Ok(_) => why = format!("{voter} does not know how: upgrade it"),
                Err(error) => why = format!("{voter}: {error}"),
            }
        }
        Err(why)
    }
}

/// Opens what is sealed in a secret.
fn open_with(key: &LessSafeKey, secret: &Resource) -> Result<Values, String> {
    let named = (secret.key.namespace.as_str(), secret.key.name.as_str());
    let open = |(name, sealed): (String, Vec<u8>)| {
        let damaged = || format!("{name} of {} was not sealed by this mesh: apply it again", secret.key);
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
        let nonce: [u8; NONCE_LEN] = nonce.try_into().map_err(|_| damaged())?;
        let mut text = text.to_vec();
        let opened = key.open_in_place(Nonce::from(&nonce), Aad::from(bound(named, &name)), &mut text);
        let value = opened.map_err(|_| damaged())?.to_vec();
        Ok((name, value))
    };
    Secret::of(secret).and_then(|secret| secret.boxes().into_iter().map(open).collect())
}

const NO_KEY: &str = "this node does not hold the authority's key; ask a voter";

fn request((namespace, name): (&str, &str), values: &Values) -> SecretRequest {
    SecretRequest { namespace: namespace.to_owned(), name: name.to_owned(), values: listed(values) }
}

fn listed(values: &Values) -> Vec<SecretValue> {
    values.iter().map(|(name, value)| SecretValue { name: name.clone(), value: value.clone().into() }).collect()
}

/// Whether a node may have a secret: it serves a gateway in its namespace, or in one whose gateways were granted it.
fn may_have(state: &State, document: &ResourceKey, node: &NodeName) -> bool {
    let kind: Kind = ReferenceGrant::KIND;
    let grants =
        state.resources.values().filter(|one| one.key.kind == kind.key() && one.key.namespace == document.namespace);
    let grants: Vec<ReferenceGrant> = grants.filter_map(|one| ReferenceGrant::of(one).ok()).collect();
    let mut own = state.services.iter().filter(|(_, record)| record.declared.contains_key(node)).map(|(name, _)| name);
    own.any(|service| {
        service.namespace() == document.namespace
            || grants.iter().any(|grant| grant.allows_secret(service.namespace(), &document.name))
    })
}

/// A box is good for one value of one document.
fn bound((namespace, name): (&str, &str), value: &str) -> Vec<u8> {
    format!("{namespace}/{name} {value}").into_bytes()
}

/// The key that follows from the authority's.
fn key(authority: &[u8]) -> Option<LessSafeKey> {
    struct Length;
    impl KeyType for Length {
        fn len(&self) -> usize {
            AES_256_GCM.key_len()
        }
    }
    let derived = Salt::new(HKDF_SHA256, b"weft").extract(authority);
    let mut bytes = [0; 32];
    derived.expand(&[b"secrets of documents v1"], Length).ok()?.fill(&mut bytes).ok()?;
    Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).ok()?))
}
