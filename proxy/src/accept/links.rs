//! Connections on the mesh port: links of other nodes, any holder of an SVID, and what is for the control plane.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::server::Acceptor;
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};
use weft_proto::identity::Identity;

use super::quic as quic_exchanges;
use super::{http1, http2};
use crate::call::Over;
use crate::call::{Caller, Destination, Door};
use crate::connection::Connection;
use crate::core::Core;
use crate::net::{Accepted, Net};
use crate::quic::{self, Arrived, QuicLink, QuicServer};
use crate::record::metrics::OpenLink;
use crate::room::Stranger;
use crate::shared::{ControlAlpn, Handover};
use crate::tls::{self, ALPN_CONTROL, ALPN_H1, ALPN_H2, ALPN_JOIN, Clients, Target};

/// Serves a connection on TCP.
pub(crate) async fn serve<N: Net>(core: Arc<Core<N>>, accepted: Accepted<N::Stream>) {
    let Accepted { stream, ours, theirs } = accepted;
    let strangers = &core.shared.strangers;
    let Some(stranger) = strangers.take(theirs.ip()) else { return refused(&core) };
    let acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream);
    let Ok(Ok(handshake)) = timeout(strangers.patience(), acceptor).await else { return refused(&core) };
    let control = handshake.client_hello().alpn().and_then(|mut names| {
        names.find_map(|name| match name {
            ALPN_CONTROL => Some(ControlAlpn::Control),
            ALPN_JOIN => Some(ControlAlpn::Join),
            _ => None,
        })
    });
    if let Some(alpn) = control {
        let handover = Handover::Tcp { handshake: Box::new(handshake), alpn, from: theirs };
        if core.shared.handover.try_send(handover).is_err() {
            tracing::warn!("the control plane takes no more connections at the moment");
        }
        return;
    }
    if data(&core, handshake, stranger, (ours, theirs)).await.is_none() {
        refused(&core);
    }
}

fn refused<N: Net>(core: &Core<N>) {
    core.recorder.links.in_failed.fetch_add(1, Ordering::Relaxed);
}

async fn data<N: Net>(
    core: &Arc<Core<N>>,
    handshake: StartHandshake<N::Stream>,
    stranger: Stranger,
    addresses: (std::net::SocketAddr, std::net::SocketAddr),
) -> Option<()> {
    let config = core.shared.identities.server_config(&[ALPN_H2, ALPN_H1], Clients::Required);
    let patience = core.shared.strangers.patience();
    let stream = timeout(patience, handshake.into_stream(config)).await.ok()?.ok()?;
    drop(stranger);
    timeout(FIRST_TABLE_TIMEOUT, core.shared.in_force()).await.ok()?;
    let session = stream.get_ref().1;
    let chain = session.peer_certificates()?;
    let peer = tls::peer_identity(chain).ok()?;
    let validity = core.shared.identities.validity(chain);
    let (destination, caller) = destination(core, session.server_name()?, (peer, chain))?;
    let h2 = session.alpn_protocol() == Some(ALPN_H2);
    let connection = Connection::remote(core, destination, caller, addresses);
    let _open = OpenLink::taken(&core.recorder, Over::Tcp);
    if h2 {
        http2::serve(connection, stream, Some(validity)).await;
    } else {
        // A client that knows only TLS. Its certificate's end cuts the connection.
        tokio::select! {
            biased;
            () = http1::serve(connection, stream) => {}
            () = validity.over() => {}
        }
    }
    Some(())
}

/// The service's port that SNI names, the first one where it names none, and the instance.
fn destination<N: Net>(
    core: &Core<N>,
    server_name: &str,
    (identity, chain): (Identity, &[CertificateDer<'_>]),
) -> Option<(Destination, Caller)> {
    let target = Target::parse(server_name)?;
    let server_name = match &target {
        // Which instance it is is no concern of policies: both ends judge by the same name.
        Target::Instance { instance, port } => {
            let target = Target::Service { service: instance.service.clone(), port: Some(*port) };
            target.server_name().to_str().into()
        }
        _ => crate::path::host(server_name).into(),
    };
    let (service, port, instance) = match target {
        Target::Service { service, port } => (service, port, None),
        Target::Instance { instance, port } => (instance.service, Some(port), Some(instance.name)),
        Target::Node(_) => return None,
    };
    let table = core.shared.table.load();
    let known = table.service(&service);
    let port = port.or_else(|| known?.ports.first().map(|port| port.port))?;
    let destination = match known.is_some_and(|service| service.is_entered_here()) {
        true => Destination::Gateway(Door { port, gateway: Some(service), listener: None }),
        false => Destination::Fixed(service, port),
    };
    let certificate = tls::digest(chain.first()?);
    Some((destination, Caller { identity, server_name, instance, certificate }))
}

/// Takes QUIC connections until the worker ends: those of the control plane are handed over.
pub(crate) async fn serve_quic<N: Net>(core: Arc<Core<N>>, server: QuicServer) {
    while let Some(incoming) = server.accept().await {
        let core = core.clone();
        tokio::spawn(async move {
            match quic::handshake(incoming).await {
                Ok(Arrived { connection, alpn, .. }) if alpn == ALPN_CONTROL => {
                    let _ = core.shared.handover.try_send(Handover::Quic { connection });
                }
                Ok(arrived) => {
                    if quic_data(&core, arrived).await.is_none() {
                        refused(&core);
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "a QUIC handshake failed");
                    refused(&core);
                }
            }
        });
    }
}

/// The handshake has agreed on a protocol; of the two that are offered, this is the one that is not for control.
async fn quic_data<N: Net>(core: &Arc<Core<N>>, arrived: Arrived) -> Option<()> {
    let Arrived { connection, sni, identity, chain, .. } = arrived;
    let addresses = (core.shared.settings.mesh_address, connection.remote_address());
    let link = QuicLink::new(connection);
    timeout(FIRST_TABLE_TIMEOUT, core.shared.in_force()).await.ok()?;
    let sni = sni.filter(|_| core.shared.identities.is_current(&chain));
    let found = sni.and_then(|name| destination(core, &name, (identity, &chain)));
    let Some((destination, caller)) = found else {
        link.close();
        return None;
    };
    let connection = Connection::remote(core, destination, caller, addresses);
    let _open = OpenLink::taken(&core.recorder, Over::Quic);
    quic_exchanges::serve(connection, link, core.shared.identities.validity(&chain)).await;
    Some(())
}

/// How long a link waits at a node that has just been started.
const FIRST_TABLE_TIMEOUT: Duration = Duration::from_secs(5);
