//! The account at an ACME server: its key stands in a Secret, and is made where that is not there.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use instant_acme::{Account, ExternalAccountKey, Key, NewAccount};
use rcgen::KeyPair;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use weft_consensus::state::State;
use weft_proto::command::ResourceChange;
use weft_proto::kinds::issuer::{Acme, ClusterIssuer, Issuer};
use weft_proto::kinds::secret::Secret;
use weft_proto::kinds::{Spec, from_base64};
use weft_proto::resource::{Resource, ResourceKey};

use super::client::Client;
use super::wish::beside;
use super::{change, put};
use crate::credentials::system_authorities;
use crate::node::Node;
use crate::vault::Values;
use crate::world::World;

/// Where an account's key stands in its Secret.
const ACCOUNT_KEY: &str = "tls.key";
/// Where the key of an account elsewhere does, where nothing is said.
const EXTERNAL_KEY: &str = "secret";

/// What the issuer of that name says.
pub(super) fn issuer(state: &State, key: &ResourceKey) -> Result<Acme, String> {
    let resource = state.resources.get(key).ok_or_else(|| format!("there is no {key}"))?;
    let spec = match key.kind == ClusterIssuer::KIND.key() {
        true => ClusterIssuer::of(resource).map(|ClusterIssuer(spec)| spec),
        false => Issuer::of(resource),
    };
    Ok(spec?.acme)
}

/// The account of an issuer.
pub(super) async fn account<W: World>(node: &Node<W>, issuer: &ResourceKey, acme: &Acme) -> Result<Account, String> {
    let authorities = match acme.ca_bundle.as_str() {
        "" => system_authorities(&node.world)?,
        text => from_base64(text).ok_or("caBundle is not base64")?,
    };
    let client = Box::new(Client::new(node.world.net().clone(), &authorities)?);
    let key = beside(issuer, &Secret::KIND, &acme.private_key_secret_ref.name);
    let state = node.state();
    let told = |error: instant_acme::Error| format!("the account at {}: {error}", acme.server);
    let builder = Account::builder_with_http(client);
    if let Some(secret) = state.resources.get(&key) {
        let pem = value(node, secret, ACCOUNT_KEY)?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|error| format!("{key}: {ACCOUNT_KEY}: {error}"))?;
        let own = Key::from_pkcs8_der(der.clone_key())
            .map_err(|_| format!("{key}: {ACCOUNT_KEY} is not an ECDSA key of P-256, and others are not supported"))?;
        let (account, _) = builder.create_from_key((own, der.into()), acme.server.clone()).await.map_err(told)?;
        return Ok(account);
    }
    let contact = (!acme.email.is_empty()).then(|| format!("mailto:{}", acme.email));
    let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
    let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let external = external(node, &state, (issuer, acme))?;
    let made = builder.create(&new, acme.server.clone(), external.as_ref()).await;
    let (account, credentials) = made.map_err(told)?;
    let pem = KeyPair::try_from(credentials.private_key().secret_pkcs8_der()).map_err(|error| error.to_string())?;
    let values = Values::from([(ACCOUNT_KEY.to_owned(), pem.serialize_pem().into_bytes())]);
    change(node, vec![sealed(node, key, &Secret { r#type: "Opaque".into(), ..Secret::default() }, &values).await?])
        .await?;
    Ok(account)
}

/// What the server's operator knows the account's owner by.
fn external<W: World>(
    node: &Node<W>,
    state: &State,
    (issuer, acme): (&ResourceKey, &Acme),
) -> Result<Option<ExternalAccountKey>, String> {
    let Some(external) = &acme.external_account_binding else { return Ok(None) };
    let key = beside(issuer, &Secret::KIND, &external.key_secret_ref.name);
    let secret = state.resources.get(&key).ok_or_else(|| format!("there is no {key}"))?;
    let name = if external.key_secret_ref.key.is_empty() { EXTERNAL_KEY } else { &external.key_secret_ref.key };
    let text = value(node, secret, name)?;
    let text = String::from_utf8_lossy(&text);
    let raw = URL_SAFE_NO_PAD
        .decode(text.trim().trim_end_matches('='))
        .map_err(|_| format!("{key}: {name} is not base64url"))?;
    Ok(Some(ExternalAccountKey::new(external.key_id.clone(), &raw)))
}

/// A sealed value of a Secret.
pub(super) fn value<W: World>(node: &Node<W>, secret: &Resource, name: &str) -> Result<Vec<u8>, String> {
    let mut values = node.vault.open_own(secret)?;
    values.remove(name).ok_or_else(|| format!("{} has no {name}", secret.key))
}

/// A Secret that has these values too, sealed.
pub(super) async fn sealed<W: World>(
    node: &Node<W>,
    key: ResourceKey,
    secret: &Secret,
    values: &Values,
) -> Result<ResourceChange, String> {
    let boxes = node.vault.seal((&key.namespace, &key.name), values).await?;
    Ok(put(key, &secret.clone().kept(boxes)))
}
