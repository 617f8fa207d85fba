//! Step 1: connections in, from applications on this host and from other nodes.

pub(crate) mod gateway;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod http3;
pub(crate) mod intercepted;
pub(crate) mod links;
pub(crate) mod listeners;
pub(crate) mod local;
pub(crate) mod named;
mod preface;
pub(crate) mod quic;
pub(crate) mod sniff;
pub(crate) mod streams;
pub(crate) mod wire;

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::connection::Connection;
use crate::forward::bytes::End as Near;
use crate::net::Net;
use crate::speech::Speech;
use crate::table::gateways::Port;
use sniff::Sniffing;

/// Serves a stream of a caller of the mesh at a gateway. Boxed: a stream may carry a connection on which there are streams.
fn enter<N: Net>(connection: Arc<Connection<N>>, near: Near, port: Arc<Port>) -> BoxFuture<'static, ()> {
    Box::pin(gateway::serve_stream(connection, near, port))
}

/// Serves a connection in what it speaks.
async fn speak<N: Net>(connection: Arc<Connection<N>>, sniffing: Sniffing, speech: Speech) {
    match speech {
        Speech::Http1 => http1::serve(connection, sniffing.into_stream()).await,
        Speech::Http2 => http2::serve(connection, sniffing.into_stream(), None).await,
        Speech::Socks5 | Speech::Opaque => {
            local::opaque(&connection, sniffing, local::Told::ByBytes).await;
        }
    }
}
