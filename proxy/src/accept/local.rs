//! Connections of local processes to a service's port.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::timeout;
use weft_proto::service::Protocol;

use super::sniff::Sniffing;
use crate::connection::Connection;
use crate::exchange::tunnel::{self, Trial};
use crate::forward::bytes::End as Near;
use crate::hold::{Place, revocable};
use crate::identify;
use crate::net::Net;
use crate::reject::Reject;
use crate::speech::Speech;

/// A callee that is there, asked before its caller is told so.
pub(crate) struct Opened {
    place: Place,
    trial: Trial,
}

/// Serves a connection whose destination is fixed, in the protocol that the port speaks.
pub(crate) async fn serve<N: Net>(connection: Arc<Connection<N>>, near: Near, protocol: Protocol) {
    match protocol {
        Protocol::Tcp => opaque(&connection, Sniffing::new(near), Told::ByPort).await,
        Protocol::Auto => auto(connection, near).await,
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => http(connection, Sniffing::new(near)).await,
    }
}

/// Asks for the callee of a tunnel. Where its port speaks HTTP each request is judged for itself later; here it is asked
/// whether any could come to something.
pub(crate) async fn open<N: Net>(connection: &Arc<Connection<N>>, protocol: Protocol) -> Result<Opened, Reject> {
    let core = &connection.core;
    let place = core.enter();
    let trial = match protocol {
        Protocol::Tcp if asks_for_names(connection) => Trial::Later,
        Protocol::Tcp => Trial::Open(Box::new(tunnel::stream(connection, &place.hold, None).await?)),
        Protocol::Auto => tunnel::trial(connection, &place.hold).await?,
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => tunnel::probe(connection, &place.hold).await?,
    };
    Ok(Opened { place, trial })
}

/// Asks, for another node, whether the instance on this one is there; nothing is sent to it.
pub(crate) async fn probe<N: Net>(connection: &Arc<Connection<N>>) -> Result<Opened, Reject> {
    let core = &connection.core;
    let place = core.enter();
    let trial = tunnel::trial(connection, &place.hold).await?;
    Ok(Opened { place, trial })
}

/// Serves a tunnel whose callee has been asked for. Boxed: a tunnel may carry a connection on which there are tunnels.
pub(crate) fn serve_opened<N: Net>(
    connection: Arc<Connection<N>>,
    near: Near,
    protocol: Protocol,
    opened: Opened,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        match (protocol, opened.trial) {
            (Protocol::Tcp, Trial::Open(tunnel)) => {
                tunnel.join(near).await;
                drop(opened.place);
            }
            (Protocol::Tcp, Trial::Later) => {
                drop(opened.place);
                opaque(&connection, Sniffing::new(near), Told::ByPort).await;
            }
            (Protocol::Auto, trial) => either(connection, Sniffing::new(near), Opened { trial, ..opened }).await,
            _ => http(connection, Sniffing::new(near)).await,
        }
    })
}

/// A port that does not say what it speaks. The client's first bytes tell; while it is silent the server may be the one
/// to speak first, and is asked.
async fn auto<N: Net>(connection: Arc<Connection<N>>, near: Near) {
    let mut sniffing = Sniffing::new(near);
    match timeout(AUTO_BOUND, sniffing.speech()).await {
        Ok(Ok(speech)) => return super::speak(connection, sniffing, speech).await,
        Ok(Err(_)) => return,
        Err(_) => {}
    }
    let place = connection.core.enter();
    let trial = tokio::select! {
        biased;
        speech = sniffing.speech() => Err(speech),
        trial = tunnel::trial(&connection, &place.hold) => Ok(trial),
    };
    match trial {
        Err(Ok(speech)) => super::speak(connection, sniffing, speech).await,
        Err(Err(_)) => {}
        Ok(Err(_)) => sniffing.abort(),
        Ok(Ok(trial)) => either(connection, sniffing, Opened { place, trial }).await,
    }
}

/// Whoever speaks first tells what is spoken.
async fn either<N: Net>(connection: Arc<Connection<N>>, mut sniffing: Sniffing, opened: Opened) {
    let Opened { place, trial } = opened;
    let mut tunnel = match trial {
        Trial::Open(tunnel) => tunnel,
        Trial::Later => {
            drop(place);
            let silence_max = connection.core.shared.room.silence_max();
            if let Ok(Ok(speech)) = timeout(silence_max, sniffing.speech()).await {
                super::speak(connection, sniffing, speech).await;
            }
            return;
        }
    };
    let heard = {
        let first = pin!(async {
            tokio::select! {
                biased;
                speech = sniffing.speech() => Some(speech),
                () = tunnel.hear() => None,
            }
        });
        revocable(&place.hold, first).await
    };
    match heard {
        None => {
            sniffing.abort();
        }
        Some(Some(Ok(speech @ (Speech::Http1 | Speech::Http2)))) => {
            drop((tunnel, place));
            super::speak(connection, sniffing, speech).await;
        }
        Some(Some(Err(_))) => {}
        Some(None | Some(Ok(_))) => {
            let (near, first) = sniffing.into_near();
            tunnel.join_after(first, near).await;
        }
    }
}

/// A port that speaks HTTP. What is none is answered with what is wrong with it.
async fn http<N: Net>(connection: Arc<Connection<N>>, mut sniffing: Sniffing) {
    let silence_max = connection.core.shared.room.silence_max();
    match timeout(silence_max, sniffing.speech()).await {
        Ok(Ok(Speech::Http2)) => super::speak(connection, sniffing, Speech::Http2).await,
        Ok(Ok(_)) => super::speak(connection, sniffing, Speech::Http1).await,
        Ok(Err(_)) | Err(_) => {}
    }
}

/// How it is known that a stream is opaque.
pub(super) enum Told {
    ByPort,
    /// It must not turn out to be something else.
    ByBytes,
}

pub(super) async fn opaque<N: Net>(connection: &Arc<Connection<N>>, mut sniffing: Sniffing, told: Told) {
    let place = connection.core.enter();
    let hello = match asks_for_names(connection) {
        // Where a server speaks first its client is silent, and asks for no name.
        true => timeout(AUTO_BOUND, sniffing.hello()).await.unwrap_or(Ok(None)),
        false => Ok(None),
    };
    let Ok(hello) = hello else { return };
    let name = hello.as_ref().map(|hello| &*hello.server_name);
    let Ok(tunnel) = tunnel::stream(connection, &place.hold, name).await else { return sniffing.abort() };
    let (near, first) = sniffing.into_near();
    match told {
        Told::ByPort => tunnel.join_behind(first, near).await,
        Told::ByBytes => tunnel.join_after(first, near).await,
    }
}

/// Whether rules for the service ask what a stream of TLS asks for.
fn asks_for_names<N: Net>(connection: &Arc<Connection<N>>) -> bool {
    identify::leg(connection, None).is_ok_and(|leg| leg.relation.asks_for_names())
}

/// How long an `auto` port waits for first bytes before it asks the server: what a protocol in which the server speaks
/// first loses once a connection.
pub(super) const AUTO_BOUND: Duration = Duration::from_millis(300);
