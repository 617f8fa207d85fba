//! Serves QUIC links of other nodes.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::streams;
use crate::connection::Connection;
use crate::net::Net;
use crate::quic::QuicLink;
use crate::stream;
use crate::tls::Validity;

/// Serves a link until it ends. `validity` is that of the other end's certificate.
pub(crate) async fn serve<N: Net>(connection: Arc<Connection<N>>, link: QuicLink, validity: Validity) {
    let mut draining = connection.core.shared.draining.subscribe();
    let mut leaving = false;
    let mut end = pin!(validity.over());
    loop {
        tokio::select! {
            biased;
            arrived = link.accept() => match arrived {
                Ok((sender, receiver)) => {
                    let connection = connection.clone();
                    tokio::spawn(async move {
                        let _counted = connection.core.over_quic.clone();
                        match timeout(HEAD_TIMEOUT, stream::request(sender, receiver)).await {
                            Ok(Ok((request, responder))) => streams::respond_to(connection, request, responder).await,
                            Ok(Err(error)) => tracing::debug!(%error, "a stream of a link was no request"),
                            Err(_) => tracing::debug!("a stream of a link brought no request in time"),
                        }
                    });
                }
                Err(_) => return,
            },
            _ = draining.wait_for(|draining| *draining), if !leaving => {
                leaving = true;
                let link = link.clone();
                tokio::spawn(async move { link.say_goodbye().await });
            }
            () = &mut end => return link.close(),
        }
    }
}

/// Bound on a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
