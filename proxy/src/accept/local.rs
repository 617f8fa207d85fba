//! Connections of local processes to a service's port.

use std::sync::Arc;
use std::time::Duration;

use weft_proto::service::Protocol;

use super::sniff::{Speech, sniff};
use super::{Connection, http1, http2};
use crate::exchange;
use crate::forward::bytes::End as Near;
use crate::net::{Net, Stream};

/// Serves a connection whose destination is fixed, in the protocol that the port speaks.
pub(crate) async fn serve<N: Net, S>(connection: Arc<Connection<N>>, stream: S, protocol: Protocol)
where
    S: Stream,
{
    let bound = match protocol {
        Protocol::Tcp => return opaque(connection, stream).await,
        Protocol::Auto => AUTO_BOUND,
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => FIRST_BYTES_TIMEOUT,
    };
    let Ok((stream, speech)) = sniff(stream, bound).await else { return };
    match speech {
        Speech::Http1 => http1::serve(connection, stream).await,
        Speech::Http2 => http2::serve(connection, stream, None).await,
        Speech::Socks5 | Speech::Opaque if protocol == Protocol::Auto => opaque(connection, stream).await,
        // Answered with what is wrong with it.
        Speech::Socks5 | Speech::Opaque => http1::serve(connection, stream).await,
    }
}

async fn opaque<N: Net, S>(connection: Arc<Connection<N>>, mut stream: S)
where
    S: Stream,
{
    let worker = &connection.worker;
    let place = worker.holds.enter(&worker.recorder);
    match exchange::stream(&connection, &place.hold, None).await {
        Ok(tunnel) => tunnel.join(Near::io(stream)).await,
        Err(_) => stream.abort(),
    }
}

/// How long an `auto` port waits for first bytes before it takes the stream for opaque: what a protocol in which the
/// server speaks first loses once a connection.
const AUTO_BOUND: Duration = Duration::from_millis(300);
/// How long an HTTP port waits for first bytes.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(60);
