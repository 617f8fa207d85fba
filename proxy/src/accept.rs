//! Step 1: connections in, from applications on this host and from other nodes.

pub(crate) mod gateway;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod links;
pub(crate) mod listeners;
pub(crate) mod local;
pub(crate) mod named;
pub(crate) mod quic;
pub(crate) mod sniff;
pub(crate) mod streams;
pub(crate) mod wire;

use std::sync::Arc;

use crate::connection::Connection;
use crate::net::Net;
use crate::speech::Speech;
use sniff::Sniffing;

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
