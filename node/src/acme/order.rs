//! An order, from the account to the certificate (RFC 8555, 7.4).

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use instant_acme::{AuthorizationStatus, Identifier, NewOrder, OrderStatus, RetryPolicy};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, RsaKeySize};
use weft_proto::command::ResourceAction;
use weft_proto::kinds::Spec;
use weft_proto::kinds::certificate::{KeyAlgorithm, RotationPolicy};
use weft_proto::kinds::issuer::{Acme, ChallengeType};
use weft_proto::kinds::order::{Challenge, Order, OrderState};
use weft_proto::kinds::secret::{Credential, Secret};
use weft_proxy::tls::{check_credential, credential_names};

use super::account::{account, issuer, sealed, value};
use super::wish::{CERTIFICATE_NAME, ISSUER_KIND, ISSUER_NAME, Wish, beside};
use super::{change, delete, put};
use crate::node::Node;
use crate::vault::Values;
use crate::world::World;

/// How long gateways may take until all of them answer. Whoever does not by then may be asked in vain.
const SPREAD_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the server may take to look, and to sign.
const POLLING: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.5).timeout(Duration::from_secs(100));

/// Orders a certificate and puts it where it is wanted.
pub(super) async fn order<W: World>(node: &Node<W>, wish: &Wish) -> Result<(), String> {
    let state = node.state();
    let from = wish.spec.issuer(&wish.key.namespace);
    let acme = issuer(&state, &from)?;
    let bound = acme.external_account_binding.as_ref().map(|external| &external.key_secret_ref);
    let mut accounts = [Some(&acme.private_key_secret_ref), bound].into_iter().flatten();
    if accounts.any(|own| beside(&from, &Secret::KIND, &own.name) == wish.secret_key()) {
        return Err(format!("{} is that of the issuer's account: name another secretName", wish.secret_key()));
    }
    let account = account(node, &from, &acme).await?;
    let told = |error: instant_acme::Error| format!("{}: {error}", acme.server);
    let names: Vec<Identifier> = wish.spec.names().into_iter().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&names)).await.map_err(told)?;
    prove(node, wish, &acme, &mut order).await?;
    let key = key(node, wish).await?;
    let mut request = CertificateParams::new(wish.spec.names().into_iter().collect::<Vec<_>>()).map_err(to_string)?;
    request.distinguished_name = DistinguishedName::new();
    let request = request.serialize_request(&key).map_err(to_string)?;
    order.finalize_csr(request.der()).await.map_err(told)?;
    let chain = order.poll_certificate(&POLLING).await.map_err(told)?;
    keep(node, wish, (chain, &key)).await
}

/// Proves to the server that the names are ours.
async fn prove<W: World>(
    node: &Node<W>,
    wish: &Wish,
    acme: &Acme,
    order: &mut instant_acme::Order,
) -> Result<(), String> {
    let told = |error: instant_acme::Error| format!("{}: {error}", acme.server);
    let mut challenges = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(told)?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let name = authorization.identifier().to_string();
        let how = acme.solver(&name).ok_or_else(|| format!("no solver of the issuer is for {name}"))?;
        let challenge = authorization.challenge(asked(how));
        let challenge = challenge.ok_or_else(|| format!("{} does not take {how} for {name}", acme.server))?;
        let (token, key) = (challenge.token.clone(), challenge.key_authorization().as_str().to_owned());
        challenges.push(Challenge { r#type: how, dns_name: name, token, key });
    }
    if challenges.is_empty() {
        return Ok(());
    }
    let pending = Order {
        certificate: wish.version,
        issuer: wish.issuer,
        state: OrderState::Pending,
        reason: String::new(),
        failures: wish.failures(),
        tried: node.world.now(),
        challenges,
    };
    let index = change(node, vec![put(wish.order_key(), &pending)]).await?;
    let spread = node.enforced_at(index, SPREAD_TIMEOUT).await;
    if !spread.lagging.is_empty() {
        tracing::warn!(certificate = %wish.key, lagging = ?spread.lagging, "not every gateway answers the server yet");
    }
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(told)?;
        let name = authorization.identifier().to_string();
        let Some(one) = pending.challenges.iter().find(|one| one.dns_name == name) else { continue };
        if let Some(mut challenge) = authorization.challenge(asked(one.r#type)) {
            challenge.set_ready().await.map_err(told)?;
        }
    }
    match order.poll_ready(&POLLING).await {
        Ok(OrderStatus::Ready) => Ok(()),
        Ok(_) => Err(refusal(order).await.unwrap_or_else(|| format!("{} takes no proof of these names", acme.server))),
        Err(error) => Err(refusal(order).await.unwrap_or_else(|| told(error))),
    }
}

/// Why the server does not take what it was shown.
async fn refusal(order: &mut instant_acme::Order) -> Option<String> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.ok()?;
        authorization.refresh().await.ok()?;
        let name = authorization.identifier().to_string();
        if let Some(error) = authorization.challenges.iter().find_map(|one| one.error.clone()) {
            return Some(format!("{name} is not proved: {}", error.detail.unwrap_or_default()));
        }
    }
    None
}

fn asked(how: ChallengeType) -> instant_acme::ChallengeType {
    match how {
        ChallengeType::Http01 => instant_acme::ChallengeType::Http01,
        ChallengeType::TlsAlpn01 => instant_acme::ChallengeType::TlsAlpn01,
    }
}

/// The certificate's key: a new one, or the one of before where that is to stay.
async fn key<W: World>(node: &Node<W>, wish: &Wish) -> Result<KeyPair, String> {
    let own = wish.spec.private_key;
    let state = node.state();
    if let (RotationPolicy::Never, Some(secret)) = (own.rotation_policy, state.resources.get(&wish.secret_key())) {
        let pem = String::from_utf8(value(node, secret, KEY)?).map_err(to_string)?;
        return KeyPair::from_pem(&pem).map_err(|error| format!("the key of {}: {error}", secret.key));
    }
    let make = move || match (own.algorithm, own.size) {
        (KeyAlgorithm::Ecdsa, Some(384)) => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        (KeyAlgorithm::Ecdsa, _) => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        (KeyAlgorithm::Rsa, size) => {
            let size = match size {
                Some(4096) => RsaKeySize::_4096,
                Some(3072) => RsaKeySize::_3072,
                _ => RsaKeySize::_2048,
            };
            KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size)
        }
    };
    // A long one of RSA takes a second.
    tokio::task::spawn_blocking(make).await.map_err(to_string)?.map_err(to_string)
}

/// Puts a certificate with its key where it is wanted, and ends the order.
async fn keep<W: World>(node: &Node<W>, wish: &Wish, (chain, key): (String, &KeyPair)) -> Result<(), String> {
    let pem = key.serialize_pem();
    let credential = Credential {
        chain: Some(chain.clone().into_bytes()),
        key: Some(pem.clone().into_bytes()),
        ..Credential::default()
    };
    check_credential(&credential).map_err(|error| format!("what the server has signed is of no use: {error}"))?;
    let names = credential_names(&credential);
    if let Some(lacks) = wish.spec.names().iter().find(|name| !names.contains(name)) {
        return Err(format!("what the server has signed is not for {lacks}"));
    }
    let secret = Secret {
        r#type: "kubernetes.io/tls".into(),
        data: BTreeMap::from([("tls.crt".to_owned(), STANDARD.encode(chain))]),
        ..Secret::default()
    };
    let values = Values::from([(KEY.to_owned(), pem.into_bytes())]);
    let mut changed = sealed(node, wish.secret_key(), &secret, &values).await?;
    if let ResourceAction::Put(resource) = &mut changed.action {
        let template = wish.spec.secret_template.clone().unwrap_or_default();
        (resource.labels, resource.annotations) = (template.labels, template.annotations);
        let issuer = &wish.spec.issuer_ref;
        let noted = [(CERTIFICATE_NAME, &wish.key.name), (ISSUER_NAME, &issuer.name), (ISSUER_KIND, &issuer.kind)];
        resource.annotations.extend(noted.map(|(name, value)| (name.to_owned(), value.clone())));
    }
    let mut changes = vec![changed];
    if node.state().resources.contains_key(&wish.order_key()) {
        changes.push(delete(wish.order_key()));
    }
    change(node, changes).await.map(drop)
}

fn to_string(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Where a certificate's key stands in its Secret.
const KEY: &str = "tls.key";
