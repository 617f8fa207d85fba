//! The answering side of control links: who may ask, and who answers what.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use weft_consensus::gossip::Gossip;
use weft_consensus::replica::Replica;
use weft_consensus::state::State;
use weft_proto::command::KEY_LENGTH;
use weft_proto::identity::{Identity, NodeName};
use weft_proto::wire::cluster::{
    CertificateReply, CertificateRequest, ControlRequest, ControlResponse, EnforcedReply, EnforcedRequest,
    FollowRequest, Gossip as GossipMessage, GossipReply, ProbeReply, control_request, control_response,
};
use weft_proto::{RaftId, UnixMillis};
use weft_proxy::net::Net;
use weft_proxy::plane::{ControlAlpn, Handover};
use weft_proxy::tls::{self, ALPN_CONTROL, ALPN_JOIN, Clients, Identities};

use crate::book::Book;
use crate::control::Control;
use crate::frame::{self, FRAME_LENGTH_MAX};
use crate::issue::Issuer;
use crate::join::Gate;
use crate::publish::Enforced;
use crate::vault::Vault;
use crate::world::World;

/// Bound on a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a control stream may be silent between requests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Streams of members served at once.
const STREAMS_MAX: usize = 8192;
/// Strangers served at once.
const STRANGERS_MAX: usize = 32;
/// How long a node that was removed is told why.
const REMOVAL_GRACE: Duration = Duration::from_secs(1);
/// Longest wait for an index to be enforced that one request may ask for.
const ENFORCED_WAIT_MAX: Duration = Duration::from_secs(60);

/// Answers members and strangers.
pub struct Server<W: World> {
    pub(crate) replica: Replica,
    pub(crate) gossip: Arc<Gossip>,
    pub(crate) issuer: Arc<Issuer<W>>,
    pub(crate) gate: Gate<W>,
    pub(crate) identities: Arc<Identities>,
    pub(crate) book: Arc<Book>,
    pub(crate) control: Arc<Control<W::Net>>,
    pub(crate) enforced: watch::Receiver<Enforced>,
    pub(crate) expires: watch::Receiver<UnixMillis>,
    pub(crate) vault: Arc<Vault<W>>,
    pub(crate) streams: Semaphore,
    pub(crate) strangers: Semaphore,
}

impl<W: World> Server<W> {
    /// The bounds on what is served at once: members' streams and strangers.
    pub fn bounds() -> (Semaphore, Semaphore) {
        (Semaphore::new(STREAMS_MAX), Semaphore::new(STRANGERS_MAX))
    }

    /// Serves what arrives on the mesh port for the control plane, until the data plane has ended.
    pub async fn run(
        self: Arc<Self>,
        mut handovers: mpsc::Receiver<Handover<W::Net>>,
        mut made: mpsc::Receiver<quinn::Connection>,
    ) {
        loop {
            let server = self.clone();
            tokio::select! {
                biased;
                handover = handovers.recv() => match handover {
                    Some(handover) => drop(tokio::spawn(async move { server.serve(handover).await })),
                    None => return,
                },
                Some(connection) = made.recv() => drop(tokio::spawn(async move { server.serve_quic(connection).await })),
            }
        }
    }

    async fn serve(self: Arc<Self>, handover: Handover<W::Net>) {
        match handover {
            Handover::Tcp { handshake, alpn: ControlAlpn::Control, from } => self.serve_member(handshake, from).await,
            Handover::Tcp { handshake, alpn: ControlAlpn::Join, from } => self.serve_stranger(handshake, from).await,
            Handover::Quic { connection } => self.serve_quic(connection).await,
        }
    }

    async fn serve_stranger(&self, handshake: Handshake<W>, from: SocketAddr) {
        let Ok(_permit) = self.strangers.try_acquire() else { return };
        let config = self.identities.server_config(&[ALPN_JOIN], Clients::Anonymous);
        if let Ok(Ok(stream)) = timeout(HANDSHAKE_TIMEOUT, handshake.into_stream(config)).await {
            self.gate.serve(stream, from).await;
        }
    }

    async fn serve_member(&self, handshake: Handshake<W>, from: SocketAddr) {
        let Ok(_permit) = self.streams.try_acquire() else { return };
        let config = self.identities.server_config(&[ALPN_CONTROL], Clients::Members);
        let stream = match timeout(HANDSHAKE_TIMEOUT, handshake.into_stream(config)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                metrics::counter!("weft_control_handshakes_refused_total").increment(1);
                tracing::debug!(%from, %error, "a control link was refused");
                return;
            }
            Err(_) => return,
        };
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        let Some(member) = self.member(&chain) else { return };
        self.converse(stream, member).await;
    }

    async fn serve_quic(self: Arc<Self>, connection: quinn::Connection) {
        let chain = connection
            .peer_identity()
            .and_then(|any| any.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok());
        let Some(member) = chain.and_then(|chain| self.member(&chain)) else {
            connection.close(0u32.into(), b"not a member");
            return;
        };
        self.control.adopt(&member.name, &connection);
        while let Ok((send, receive)) = connection.accept_bi().await {
            let (server, member) = (self.clone(), member.clone());
            let uses = self.control.used_by(&member.name, &connection);
            tokio::spawn(async move {
                let _uses = uses;
                let Ok(_permit) = server.streams.try_acquire() else { return };
                server.converse(tokio::io::join(receive, send), member).await;
            });
        }
    }

    /// The node that a certificate names, if it is one of this mesh's, or was and still votes.
    fn member(&self, chain: &[rustls::pki_types::CertificateDer<'static>]) -> Option<Member> {
        let Ok(Identity::Node { name, .. }) = tls::peer_identity(chain) else { return None };
        let state = self.replica.state().borrow().clone();
        let admitted = state.nodes.get(&name).map(|record| record.raft_id);
        // Before the first state has arrived the certificate alone must do: it is what the state will come over.
        let known = state.trust_domain.is_none() || admitted.is_some() || self.replica.is_in_group(&name);
        known.then_some(Member { name, admitted })
    }

    /// Whether the admission that the member came with was withdrawn.
    fn is_removed(member: &Member, state: &State) -> bool {
        let now = state.nodes.get(&member.name).map(|record| record.raft_id);
        state.trust_domain.is_some() && (now.is_none() || member.admitted.is_some() && now != member.admitted)
    }

    async fn converse(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin, member: Member) {
        loop {
            let read = timeout(IDLE_TIMEOUT, frame::read::<ControlRequest>(&mut stream, FRAME_LENGTH_MAX)).await;
            let Ok(Ok(Some(request))) = read else { return };
            let removed = Self::is_removed(&member, &self.replica.state().borrow());
            let Member { name: from, .. } = &member;
            if let Some(control_request::Kind::Follow(request)) = request.kind {
                if !removed {
                    self.feed(&mut stream, &member, request).await;
                }
                return;
            }
            // A vote is withdrawn after the node: until then the others cannot do without it.
            let votes = matches!(request.kind, Some(control_request::Kind::Consensus(_)));
            if removed && !(votes && self.replica.is_in_group(from)) {
                return;
            }
            let response = ControlResponse { kind: Some(self.answer(from, request).await) };
            if frame::write(&mut stream, &response).await.is_err() {
                return;
            }
        }
    }

    /// Sends the log as it grows, to a node that is removed up to that.
    async fn feed(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin), member: &Member, request: FollowRequest) {
        let mut states = self.replica.state();
        let removed = async {
            let _ = states.wait_for(|state| Self::is_removed(member, state)).await;
            sleep(REMOVAL_GRACE).await;
        };
        let mut events = self.replica.feed(&member.name, request);
        let fed = async {
            while let Some(event) = events.next().await {
                let response = ControlResponse { kind: Some(control_response::Kind::Follow(event)) };
                if frame::write(stream, &response).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = fed => {}
            () = removed => {}
        }
    }

    async fn answer(&self, from: &NodeName, request: ControlRequest) -> control_response::Kind {
        use control_request::Kind;
        match request.kind {
            Some(Kind::Consensus(request)) => {
                control_response::Kind::Consensus(self.replica.answer(from, request).await)
            }
            Some(Kind::Gossip(message)) => self.hear(from, message).await,
            Some(Kind::Certificate(request)) => {
                control_response::Kind::Certificate(self.certificate(from, request).await)
            }
            Some(Kind::Enforced(request)) => control_response::Kind::Enforced(self.wait_enforced(request).await),
            Some(Kind::Secret(request)) => control_response::Kind::Secret(self.vault.answer(from, &request)),
            Some(Kind::Probe(_)) => control_response::Kind::Probe(self.probe(from).await),
            Some(Kind::Follow(_)) | None => control_response::Kind::Error("this request is not known here".into()),
        }
    }

    async fn probe(&self, from: &NodeName) -> ProbeReply {
        let reached = self.control.probe(from).await;
        let told = |way: Result<(), String>| way.err().unwrap_or_default();
        ProbeReply { tcp: told(reached.tcp), udp: told(reached.udp), now: self.gate.world.now() }
    }

    async fn hear(&self, from: &NodeName, message: GossipMessage) -> control_response::Kind {
        let now = self.gate.world.now();
        let Ok(address) = message.from.parse() else {
            return control_response::Kind::Gossip(GossipReply { now, message: Bytes::new() });
        };
        self.book.learn(from.clone(), address);
        let message = self.gossip.receive(address, message.message).await;
        control_response::Kind::Gossip(GossipReply { now, message })
    }

    async fn certificate(&self, from: &NodeName, request: CertificateRequest) -> CertificateReply {
        let issued = match <[u8; KEY_LENGTH]>::try_from(request.key.as_ref()) {
            Ok(key) => self.issuer.issue(from, &request.identity, &request.csr, key).await,
            Err(_) => Err("the request's key has a wrong length".into()),
        };
        match issued {
            Ok(chain) => CertificateReply { error: String::new(), chain: chain.into_iter().map(Into::into).collect() },
            Err(error) => CertificateReply { error, chain: Vec::new() },
        }
    }

    async fn wait_enforced(&self, request: EnforcedRequest) -> EnforcedReply {
        let bound = Duration::from_millis(u64::from(request.wait)).min(ENFORCED_WAIT_MAX);
        let enforced = wait_enforced(self.enforced.clone(), request.index, Instant::now() + bound).await;
        enforced.reply(request.index, *self.expires.borrow())
    }
}

/// A node at the other end of a control link.
#[derive(Debug, Clone)]
struct Member {
    name: NodeName,
    /// The Raft node id that it was admitted under; none where that was not known.
    admitted: Option<RaftId>,
}

type Handshake<W> = Box<tokio_rustls::StartHandshake<<<W as World>::Net as Net>::Stream>>;

/// Waits until an index is enforced or refused, or the deadline has passed; answers what is so then.
pub async fn wait_enforced(mut enforced: watch::Receiver<Enforced>, index: u64, deadline: Instant) -> Enforced {
    let reached = |enforced: &Enforced| enforced.index >= index || !enforced.refused.is_empty();
    let _ = tokio::time::timeout_at(deadline, enforced.wait_for(reached)).await;
    enforced.borrow().clone()
}
