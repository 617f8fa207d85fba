//! Joining: a node that knows a join line becomes a member, or nothing has happened.
//!
//! The line carries addresses, the SHA-256 fingerprint of the mesh's root and a token. The joining node verifies the
//! root against the fingerprint before it sends anything, the token included.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use weft_consensus::replica::Replica;
use weft_proto::UnixMillis;
use weft_proto::command::{Admission, Command, DIGEST_LENGTH, KEY_LENGTH, NodeKeys, Outcome, Proposal};
use weft_proto::identity::{Identity, NodeName, TrustDomain};
use weft_proto::wire::mesh::{JoinLine, JoinRequest, JoinResponse};
use weft_proxy::net::Net;
use weft_proxy::tls::join_client_config;

use crate::authority;
use crate::book::Book;
use crate::frame::{self, FRAME_LENGTH_MAX, STRANGER_FRAME_LENGTH_MAX};
use crate::issue::Issuer;
use crate::keys::Keys;
use crate::store::{NodeIdentity, Svid};
use crate::world::{OFFSET_MAX_MS, World, random};

/// What a join line starts with; the number is the version of its form.
const LINE_PREFIX: &str = "weft1.";
/// Bound on one attempt with one address.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// How often all addresses are gone through before giving up.
const ROUNDS_MAX: usize = 3;
/// Most addresses followed from an answer that names others.
const ADDRESSES_MAX: usize = 16;
/// Bound on serving one stranger.
const SERVE_TIMEOUT: Duration = Duration::from_secs(12);
/// Bound on the log's decision about an admission.
const DECISION_TIMEOUT: Duration = Duration::from_secs(8);

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The line is not one.
    #[error("the join line is not valid: {0}. Copy it whole, as `weft token create` printed it")]
    Line(String),
    /// The mesh said no; asking again will not help.
    #[error("the mesh refused this node: {0}")]
    Refused(String),
    /// Nobody could be asked.
    #[error(
        "no node of the mesh could be reached: {0}. Check the addresses, and that the port is open for TCP and UDP"
    )]
    Unreachable(String),
    /// What was answered cannot be used.
    #[error("the mesh's answer cannot be used: {0}")]
    Answer(String),
}

/// What a successful join gives.
#[derive(Debug)]
pub struct Joined {
    /// Who this node now is.
    pub node: NodeIdentity,
    /// Its first certificate.
    pub svid: Svid,
    /// Members and where they are.
    pub peers: BTreeMap<NodeName, SocketAddr>,
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Svid").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Writes a join line.
pub fn write_line(line: &JoinLine) -> String {
    let body = line.encode_to_vec();
    let checksum = crc32fast::hash(&body).to_be_bytes();
    format!("{LINE_PREFIX}{}", URL_SAFE_NO_PAD.encode([&body[..], &checksum].concat()))
}

/// Reads a join line.
pub fn read_line(text: &str) -> Result<JoinLine, JoinError> {
    let error = |why: &str| JoinError::Line(why.to_owned());
    let text: String = text.split_whitespace().collect();
    let encoded = text.strip_prefix(LINE_PREFIX).ok_or_else(|| error("it starts with weft1."))?;
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| error("it holds a character that does not belong"))?;
    let (body, checksum) =
        bytes.split_at_checked(bytes.len().saturating_sub(4)).ok_or_else(|| error("it is cut short"))?;
    if crc32fast::hash(body).to_be_bytes() != checksum {
        return Err(error("a part is missing or changed"));
    }
    let line = JoinLine::decode(body).map_err(|_| error("it cannot be decoded"))?;
    if line.root_fingerprint.len() != DIGEST_LENGTH || line.addresses.is_empty() {
        return Err(error("it lacks the root's fingerprint or an address"));
    }
    Ok(line)
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; DIGEST_LENGTH] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

/// Joins the mesh that the line names, as the holder of these keys.
pub async fn join<W: World>(world: &W, name: &NodeName, keys: Keys, line: &str) -> Result<Joined, JoinError> {
    let line = read_line(line)?;
    let trust_domain: TrustDomain = line.trust_domain.parse().map_err(|error| JoinError::Line(format!("{error}")))?;
    let own = keys.pkcs8().map_err(|error| JoinError::Answer(error.to_string()))?;
    let (csr, key) = authority::request_of(&own).map_err(|error| JoinError::Answer(error.to_string()))?;
    let admission: [u8; KEY_LENGTH] = random(world);
    let request = JoinRequest {
        token_id: line.token_id.clone(),
        token_secret: line.token_secret.clone(),
        node: Some(keys.public(name).into()),
        csr: csr.into(),
        key: admission.to_vec().into(),
    };
    let fingerprint = line.root_fingerprint.as_ref().try_into().map_err(|_| JoinError::Line("fingerprint".into()))?;
    let (response, root) = ask_all(world, &line.addresses, fingerprint, &request).await?;
    let identity = Identity::node(trust_domain.clone(), name.clone());
    let chain = response.certificate_chain.iter().map(|certificate| certificate.to_vec()).collect();
    let peers = response.addresses.iter().filter_map(|entry| parse_peer(entry)).collect();
    let roots = response.roots.iter().map(|root| root.to_vec()).collect();
    let node = NodeIdentity { name: name.clone(), raft_id: response.raft_id, trust_domain, roots, keys };
    if let Some(told) = clock_off(world.now(), response.now) {
        tracing::warn!("{told}");
    }
    if !node.roots.contains(&root) {
        return Err(JoinError::Answer("it names other roots than the one of the join line".into()));
    }
    Ok(Joined { node, svid: Svid { identity, key, chain }, peers })
}

/// What is wrong with this host's clock, by that of the node that has just admitted it.
fn clock_off(own: UnixMillis, other: UnixMillis) -> Option<String> {
    let off = own.abs_diff(other);
    let way = if own > other { "ahead of" } else { "behind" };
    (off > OFFSET_MAX_MS).then(|| {
        format!(
            "the clock of this host is {} s {way} that of the node that admitted it: let each host keep time by NTP",
            off / 1000
        )
    })
}

async fn ask_all<W: World>(
    world: &W,
    addresses: &[String],
    fingerprint: [u8; DIGEST_LENGTH],
    request: &JoinRequest,
) -> Result<(JoinResponse, Vec<u8>), JoinError> {
    let mut why = String::new();
    let mut addresses: Vec<String> = addresses.to_vec();
    for _ in 0..ROUNDS_MAX {
        let mut next = 0;
        while let Some(address) = addresses.get(next).cloned() {
            next += 1;
            match timeout(ATTEMPT_TIMEOUT, ask(world, &address, fingerprint, request)).await {
                Ok(Ok((response, _))) if !response.error.is_empty() => return Err(JoinError::Refused(response.error)),
                Ok(Ok((response, root))) if !response.certificate_chain.is_empty() => return Ok((response, root)),
                Ok(Ok((response, _))) => {
                    // A node that cannot sign names those that can.
                    let others = response.addresses.iter().filter_map(|entry| parse_peer(entry));
                    for (_, other) in others {
                        let other = other.to_string();
                        if addresses.len() < ADDRESSES_MAX && !addresses.contains(&other) {
                            addresses.push(other);
                        }
                    }
                    why = format!("{address} cannot admit nodes at the moment");
                }
                Ok(Err(error)) => why = format!("{address}: {error}"),
                Err(_) => why = format!("{address}: no answer within {ATTEMPT_TIMEOUT:?}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Err(JoinError::Unreachable(why))
}

async fn ask<W: World>(
    world: &W,
    address: &str,
    fingerprint: [u8; DIGEST_LENGTH],
    request: &JoinRequest,
) -> io::Result<(JoinResponse, Vec<u8>)> {
    let address: SocketAddr =
        address.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not an address with a port"))?;
    let stream = world.net().dial(address).await?;
    let name: ServerName<'static> = ServerName::IpAddress(address.ip().into());
    let mut stream = TlsConnector::from(join_client_config(fingerprint, world.clock()))
        .connect(name, stream)
        .await
        .map_err(|error| {
            let text = not_ours(&error);
            io::Error::new(io::ErrorKind::PermissionDenied, text)
        })?;
    let root = stream.get_ref().1.peer_certificates().and_then(|chain| chain.last()).map(|root| root.to_vec());
    frame::write(&mut stream, request).await?;
    let response = frame::read(&mut stream, FRAME_LENGTH_MAX).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((response, root.unwrap_or_default()))
}

/// Why the other end is not the mesh that was meant; a certificate out of its time is more often a clock that is wrong.
fn not_ours(error: &io::Error) -> String {
    use rustls::{CertificateError, Error};
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
    let clock = "check the clocks of both hosts";
    match cause {
        Some(Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => {
            format!("its certificate is not valid yet by this host's time: {clock}")
        }
        Some(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            format!("its certificate has ended by this host's time: {clock}")
        }
        _ => format!("it is not the mesh that the join line names, or not a weft node: {error}"),
    }
}

fn parse_peer(entry: &str) -> Option<(NodeName, SocketAddr)> {
    let (name, address) = entry.split_once('=')?;
    Some((name.parse().ok()?, address.parse().ok()?))
}

/// Why a node is not admitted.
enum No {
    /// Asking again may help, with the same keys: it may have been admitted by then.
    NotNow(String),
    /// It will not.
    Never(String),
}

/// The side that admits.
pub struct Gate<W: World> {
    pub(crate) world: W,
    pub(crate) replica: Replica,
    pub(crate) issuer: Arc<Issuer<W>>,
    pub(crate) book: Arc<Book>,
}

impl<W: World> Gate<W> {
    /// Serves one stranger, who has seen this mesh's certificates and shown none.
    pub async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin, from: SocketAddr) {
        let serve = async {
            let request: JoinRequest =
                frame::read(&mut stream, STRANGER_FRAME_LENGTH_MAX).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let response = self.admit(request, from).await;
            frame::write(&mut stream, &response).await?;
            stream.shutdown().await
        };
        match timeout(SERVE_TIMEOUT, serve).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%from, %error, "a join ended early"),
            Err(_) => tracing::debug!(%from, "a join took too long"),
        }
    }

    async fn admit(&self, request: JoinRequest, from: SocketAddr) -> JoinResponse {
        if self.issuer.authority().is_none() {
            return JoinResponse { addresses: self.voters(), ..JoinResponse::default() };
        }
        match self.decide(request, from).await {
            Ok(response) => response,
            Err(No::NotNow(why)) => {
                tracing::warn!(%from, why, "a node could not be admitted at the moment");
                JoinResponse { addresses: self.voters(), ..JoinResponse::default() }
            }
            Err(No::Never(error)) => {
                metrics::counter!("weft_joins_refused_total").increment(1);
                tracing::warn!(%from, error, "a node was not admitted");
                JoinResponse { error, ..JoinResponse::default() }
            }
        }
    }

    async fn decide(&self, request: JoinRequest, from: SocketAddr) -> Result<JoinResponse, No> {
        let never = |why: &str| No::Never(why.to_owned());
        let node = request.node.ok_or_else(|| never("the request names no node"))?;
        let node: NodeKeys = node.try_into().map_err(|error| No::Never(format!("{error}")))?;
        let key = <[u8; KEY_LENGTH]>::try_from(request.key.as_ref());
        let key = key.map_err(|_| never("the request's key has a wrong length"))?;
        authority::check_request(&request.csr)
            .map_err(|error| No::Never(format!("the signing request is not good: {error}")))?;
        let name = node.name.clone();
        let admission = Admission { token_id: request.token_id, secret_hash: sha256(&request.token_secret), node };
        let proposal = Proposal { key, at: self.world.now(), command: Command::Admit(admission) };
        let decided = self.replica.propose(proposal, DECISION_TIMEOUT).await;
        let raft_id = match decided.map_err(|error| No::NotNow(error.to_string()))?.1 {
            Outcome::Admitted { raft_id } => raft_id,
            Outcome::Refused(refusal) => return Err(No::Never(refusal.detail)),
            other => return Err(No::NotNow(format!("the log answered {other:?}"))),
        };
        let state = self.replica.state().borrow().clone();
        let no_name = || No::NotNow("the mesh has no name yet".into());
        let trust_domain = state.trust_domain.clone().ok_or_else(no_name)?;
        let identity = Identity::node(trust_domain, name.clone()).to_string();
        let certificate_key = random(&self.world);
        let chain = self.issuer.issue(&name, &identity, &request.csr, certificate_key).await.map_err(No::NotNow)?;
        tracing::info!(node = %name, raft_id, %from, "node admitted");
        metrics::counter!("weft_joins_total").increment(1);
        let addresses = self.book.all().iter().map(|(name, address)| format!("{name}={address}")).collect();
        Ok(JoinResponse {
            error: String::new(),
            raft_id,
            certificate_chain: chain.into_iter().map(Into::into).collect(),
            roots: state.roots.iter().map(|root| root.to_vec().into()).collect(),
            addresses,
            now: self.world.now(),
        })
    }

    fn voters(&self) -> Vec<String> {
        let status = self.replica.status().borrow().clone();
        let known = status.voters.iter().filter_map(|voter| Some(format!("{voter}={}", self.book.address(voter)?)));
        known.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_hours_off_is_told_of() {
        assert_eq!(clock_off(1_000_000, 1_050_000), None);
        assert!(clock_off(11_800_000, 1_000_000).is_some_and(|told| told.contains("10800 s ahead of")));
        assert!(clock_off(1_000_000, 11_800_000).is_some_and(|told| told.contains("10800 s behind")));
    }

    #[test]
    fn a_wrong_clock_is_told_apart_from_a_wrong_mesh() {
        use rustls::{CertificateError, Error};
        let told = |error| not_ours(&io::Error::new(io::ErrorKind::InvalidData, Error::InvalidCertificate(error)));
        assert!(told(CertificateError::NotValidYet).contains("clocks"));
        assert!(told(CertificateError::Expired).contains("clocks"));
        assert!(told(CertificateError::UnknownIssuer).contains("not the mesh"));
    }
}
