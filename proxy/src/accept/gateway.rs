//! Connections from outside the mesh, at the ports of a gateway.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use weft_proto::service::Protocol;

use super::local::Told;
use super::sniff::Sniffing;
use super::{http1, http2, local};
use crate::call::{Door, Outside};
use crate::connection::Connection;
use crate::core::Core;
use crate::forward::bytes::End as Near;
use crate::net::{Accepted, Net, Stream};
use crate::room::Taken;
use crate::table::gateways::{Ending, Port, Then, for_name};
use crate::tls::{self, ALPN_H2};

/// Serves a connection at the port of that number.
pub(crate) async fn serve<N: Net>(core: Arc<Core<N>>, accepted: Accepted<N::Stream>, taken: Taken, port: u16) {
    let Accepted { stream, ours, theirs } = accepted;
    let table = core.shared.table.load_full();
    let mut near = Near::io(stream);
    let enter = |listener: Option<Arc<str>>, outside: Outside| {
        Connection::outside(&core, Door { port, listener }, outside, (ours, theirs), taken)
    };
    let listeners = match table.gateways.port(port) {
        None => return near.abort(),
        Some(Port::Http(_)) => {
            return local::serve(enter(None, Outside::default()), near, Protocol::Http).await;
        }
        Some(Port::Tcp(_)) => {
            return local::opaque(&enter(None, Outside::default()), Sniffing::new(near), Told::ByPort).await;
        }
        Some(Port::Tls(listeners)) => listeners,
    };
    let mut sniffing = Sniffing::new(near);
    let patience = core.shared.room.silence_max().min(PATIENCE);
    let Ok(Ok(Some(name))) = timeout(patience, sniffing.server_name()).await else { return sniffing.abort() };
    let name = name.to_ascii_lowercase();
    let Some(listener) = for_name(listeners, &name) else { return refuse(sniffing, UNRECOGNIZED_NAME).await };
    let outside = Outside { server_name: name.into() };
    let connection = enter(Some(listener.name.clone()), outside);
    match &listener.then {
        Then::Refuse => refuse(sniffing, HANDSHAKE_FAILURE).await,
        Then::Pass(_) => local::opaque(&connection, sniffing, Told::ByPort).await,
        Then::Http(ending, _) => {
            let ending = ending.clone();
            drop(table);
            let Some(stream) = end(sniffing, &ending, patience).await else { return };
            if stream.get_ref().1.alpn_protocol() == Some(ALPN_H2) {
                http2::serve(connection, stream, None).await;
            } else {
                http1::serve(connection, stream).await;
            }
        }
        Then::Stream(ending, _) => {
            let ending = ending.clone();
            drop(table);
            let Some(stream) = end(sniffing, &ending, patience).await else { return };
            local::opaque(&connection, Sniffing::new(Near::io(stream)), Told::ByPort).await;
        }
    }
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
