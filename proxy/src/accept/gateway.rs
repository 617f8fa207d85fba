//! Connections from outside the mesh, at the ports of a gateway.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use weft_proto::service::Protocol;

use super::local::Told;
use super::sniff::Sniffing;
use super::{http1, http2, local, preface};
use crate::call::{Destination, Door, Outside};
use crate::connection::Connection;
use crate::core::Core;
use crate::forward::bytes::End as Near;
use crate::net::{Accepted, Net, Stream};
use crate::room::Taken;
use crate::table::gateways::{Ending, Port, Then, for_name};
use crate::tls::{self, ALPN_H2};

/// Serves a connection from outside at the port of that number.
pub(crate) async fn serve<N: Net>(core: Arc<Core<N>>, accepted: Accepted<N::Stream>, taken: Taken, port: u16) {
    let Accepted { mut stream, ours, theirs } = accepted;
    let door = Door { port, gateway: None, listener: None };
    let (found, introduced, speaks_http3) = {
        let table = core.shared.table.load();
        (table.gateways.port(&door).cloned(), table.is_introduced(port), table.speaks_http3(port))
    };
    let behind = match introduced {
        false => None,
        true => match timeout(PATIENCE, preface::read(&mut stream)).await {
            Ok(Ok(said)) => said,
            Ok(Err(_)) | Err(_) => return stream.abort(),
        },
    };
    let mut near = Near::io(stream);
    let enter = |door: Door, outside: Outside| Connection::outside(&core, door, outside, (ours, theirs), taken);
    let Some(port) = found else { return near.abort() };
    let anybody = Outside { behind, ..Outside::default() };
    match &*port {
        Port::Http(_) => local::serve(enter(door, anybody), near, Protocol::Http).await,
        Port::Tcp(_) => local::opaque(&enter(door, anybody), Sniffing::new(near), Told::ByPort).await,
        Port::Tls(_) => {
            let enter = |listener, server_name, quic| {
                enter(Door { listener, ..door }, Outside { server_name, behind, http3: speaks_http3 && quic })
            };
            secured(&core, port, Sniffing::new(near), enter).await;
        }
    }
}

/// Serves a stream of a caller of the mesh, which has come in at a gateway.
pub(super) async fn serve_stream<N: Net>(connection: Arc<Connection<N>>, near: Near, port: Arc<Port>) {
    match (&*port, &connection.destination) {
        (Port::Tls(_), Destination::Gateway(door)) => {
            let enter = |listener, name, _| connection.entering(Door { listener, ..door.clone() }, name);
            secured(&connection.core, port, Sniffing::new(near), enter).await;
        }
        _ => local::opaque(&connection, Sniffing::new(near), Told::ByPort).await,
    }
}

/// Serves a stream of TLS, by the name that it asks for.
async fn secured<N: Net>(
    core: &Core<N>,
    port: Arc<Port>,
    mut sniffing: Sniffing,
    enter: impl FnOnce(Option<Arc<str>>, Box<str>, bool) -> Arc<Connection<N>>,
) {
    let Port::Tls(listeners) = &*port else { return sniffing.abort() };
    let patience = core.shared.room.silence_max().min(PATIENCE);
    let Ok(Ok(Some(hello))) = timeout(patience, sniffing.hello()).await else { return sniffing.abort() };
    let name = hello.server_name.to_ascii_lowercase();
    if hello.proof {
        match prove(core, sniffing, &name, patience).await {
            Ok(()) => return,
            Err(unasked) => sniffing = unasked,
        }
    }
    let Some(listener) = for_name(listeners, &name) else { return refuse(sniffing, UNRECOGNIZED_NAME).await };
    let connection = enter(Some(listener.name.clone()), name.into(), listener.secure().is_some());
    let (ending, http) = match &listener.then {
        Then::Refuse => return refuse(sniffing, HANDSHAKE_FAILURE).await,
        Then::Pass(_) => {
            drop(port);
            return local::opaque(&connection, sniffing, Told::ByPort).await;
        }
        Then::Http(ending, _) => (ending.clone(), true),
        Then::Stream(ending, _) => (ending.clone(), false),
    };
    // What it has of certificates is not kept for as long as the connection lasts.
    drop(port);
    let Some(stream) = end(sniffing, &ending, patience).await else { return };
    match (http, stream.get_ref().1.alpn_protocol() == Some(ALPN_H2)) {
        (true, true) => http2::serve(connection, stream, None).await,
        (true, false) => http1::serve(connection, stream).await,
        (false, _) => local::opaque(&connection, Sniffing::new(Near::io(stream)), Told::ByPort).await,
    }
}

/// Proves to a certificate authority that the name is ours, where it is asked for at present. Nothing follows (RFC 8737, 3).
async fn prove<N: Net>(core: &Core<N>, sniffing: Sniffing, name: &str, patience: Duration) -> Result<(), Sniffing> {
    let config = core.shared.table.load().challenges.handshake(name).cloned();
    let Some(config) = config else { return Err(sniffing) };
    let proved = async { TlsAcceptor::from(config).accept(sniffing.into_stream()).await?.shutdown().await };
    // Who asks closes too.
    let _ = timeout(patience, proved).await;
    Ok(())
}

type Ended = tokio_rustls::server::TlsStream<crate::net::rejoined::Rejoined<Box<dyn Stream>>>;

/// Ends TLS; none where the handshake fails, or the caller's certificate has none of the names that it needs.
async fn end(sniffing: Sniffing, ending: &Ending, patience: Duration) -> Option<Ended> {
    let accepting = TlsAcceptor::from(ending.config.clone()).accept(sniffing.into_stream());
    let mut stream = timeout(patience, accepting).await.ok()?.ok()?;
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let named = ending.names.is_empty() || leaf.is_none_or(|leaf| tls::edge::has_name(leaf, &ending.names));
    if !named {
        stream.abort();
        return None;
    }
    Some(stream)
}

/// Tells why there will be no handshake (RFC 8446, 6).
async fn refuse(sniffing: Sniffing, why: u8) {
    let mut stream = sniffing.into_stream();
    let told = async {
        stream.write_all(&[ALERT, 3, 3, 0, 2, FATAL, why]).await?;
        stream.shutdown().await
    };
    // Whoever does not read it has gone, or will.
    let _ = timeout(PATIENCE, told).await;
}

/// Bound on what comes before the first request.
const PATIENCE: Duration = Duration::from_secs(10);
const ALERT: u8 = 21;
const FATAL: u8 = 2;
const HANDSHAKE_FAILURE: u8 = 40;
const UNRECOGNIZED_NAME: u8 = 112;
