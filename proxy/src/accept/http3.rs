//! Connections from outside that speak HTTP/3, at the ports of gateways where TLS ends.

use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::time::timeout;

use crate::body::Body;
use crate::call::{Door, Outside};
use crate::connection::Connection;
use crate::core::Core;
use crate::exchange;
use crate::forward::refusal;
use crate::net::Net;
use crate::quic::http3::{Arriving, Http3Error, Http3Receiver, Http3Sender, Shaken};
use crate::quic::{QuicLink, QuicServer};
use crate::reject::Reject;
use crate::room::Owner;
use crate::shared::Shared;
use crate::stream::Source;
use crate::table::gateways::Port;

/// Finds the certificate of whoever is asked for, as the table has it then.
struct Certificates<N: Net> {
    shared: Arc<Shared<N>>,
    port: u16,
}

impl<N: Net> fmt::Debug for Certificates<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("port", &self.port).finish_non_exhaustive()
    }
}

impl<N: Net> ResolvesServerCert for Certificates<N> {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let port = port(&self.shared, self.port)?;
        let name = hello.server_name().unwrap_or_default().to_ascii_lowercase();
        let (_, ending) = port.secure(&name)?;
        ending.config.cert_resolver.resolve(hello)
    }
}

/// The port of that number, where HTTP/3 is spoken.
fn port<N: Net>(shared: &Shared<N>, number: u16) -> Option<Arc<Port>> {
    let table = shared.table.load();
    let door = Door { port: number, gateway: None, listener: None };
    table.speaks_http3(number).then(|| table.gateways.port(&door).cloned()).flatten()
}

/// Takes connections at an address until it is given up.
pub(crate) async fn listen<N: Net>(core: Arc<Core<N>>, address: SocketAddr, server: QuicServer, number: u16) {
    while let Some(incoming) = server.accept().await {
        let (core, arriving) = (core.clone(), Arriving::new(incoming));
        tokio::spawn(serve(core, arriving, (address, number)));
    }
}

/// Listens at an address, for the port of that number.
pub(crate) fn bind<N: Net>(core: &Core<N>, address: SocketAddr, number: u16) -> std::io::Result<QuicServer> {
    let certificates = Certificates { shared: core.shared.clone(), port: number };
    QuicServer::edge(&core.shared.net, address, Arc::new(certificates))
}

async fn serve<N: Net>(core: Arc<Core<N>>, arriving: Arriving, (address, number): (SocketAddr, u16)) {
    let theirs = arriving.from();
    let Some(shaken) = arriving.shake().await else { return };
    // Before that anybody may be called the sender.
    let taken = core.shared.room.take(|| Owner::Address(theirs.ip().to_canonical()));
    let Some(taken) = taken else { return shaken.refuse() };
    let name = shaken.server_name.clone();
    let listener = port(&core.shared, number).and_then(|port| Some(port.secure(&name)?.0.clone()));
    let Some(listener) = listener else { return };
    let ours = SocketAddr::new(shaken.called().unwrap_or(address.ip()), address.port());
    let door = Door { port: number, gateway: None, listener: Some(listener) };
    let outside = Outside { server_name: name, behind: None, http3: false };
    let connection = Connection::outside(&core, door, outside, (ours, theirs), taken);
    requests(connection, shaken).await;
}

async fn requests<N: Net>(connection: Arc<Connection<N>>, shaken: Shaken) {
    let aside = shaken.aside();
    let Some(mut http3) = shaken.begin().await else { return };
    let mut draining = connection.core.shared.draining.subscribe();
    let mut leaving = false;
    let lost = Arc::new(AtomicUsize::new(0));
    loop {
        let arrived = tokio::select! {
            biased;
            arrived = http3.accept() => Some(arrived),
            () = async { let _ = draining.wait_for(|draining| *draining).await; }, if !leaving => None,
        };
        match arrived {
            None => {
                leaving = true;
                http3.leave().await;
            }
            Some(None) => return,
            Some(Some(unread)) => {
                let (connection, aside, lost) = (connection.clone(), aside.clone(), lost.clone());
                tokio::spawn(async move {
                    let _counted = connection.core.over_quic.clone();
                    let read = timeout(HEAD_TIMEOUT, unread.read()).await;
                    let Ok(Ok((request, receiver, sender))) = read else {
                        // The library remembers each for as long as the connection lasts.
                        if lost.fetch_add(1, Ordering::Relaxed) >= LOST_MAX {
                            aside.close();
                        }
                        return;
                    };
                    if let Err(error) = exchange(connection, aside, request, (receiver, sender)).await {
                        tracing::trace!(%error, "a response was not sent in full");
                    }
                });
            }
        }
    }
}

/// Serves one exchange to its end, or that of its connection.
async fn exchange<N: Net>(
    connection: Arc<Connection<N>>,
    aside: QuicLink,
    request: Request<()>,
    (receiver, mut sender): (Http3Receiver, Http3Sender),
) -> Result<(), Http3Error> {
    if request.method() == Method::CONNECT {
        let response = refusal::response(&Reject::Method, request.version(), false, false);
        return send(sender, response, &aside).await;
    }
    let core = &connection.core;
    let place = core.enter();
    let (head, ()) = request.into_parts();
    let body = Body::stream(Source::Http3(Box::new(receiver)));
    let outcome = {
        let mut exchanged = pin!(exchange::http(&connection, &place.hold, head, body));
        let mut closed = pin!(aside.closed());
        loop {
            let mut interims = Vec::new();
            let polled = poll_fn(|cx| {
                let polled = exchanged.as_mut().poll(cx);
                interims = place.hold.interims.take();
                match polled {
                    Poll::Ready(outcome) => Poll::Ready(Some(Some(outcome))),
                    Poll::Pending if !interims.is_empty() => Poll::Ready(Some(None)),
                    Poll::Pending => closed.as_mut().poll(cx).map(|()| None),
                }
            })
            .await;
            for interim in interims {
                sender.head(interim).await?;
            }
            match polled {
                // The caller is gone.
                None => return Ok(()),
                Some(None) => {}
                Some(Some(outcome)) => break outcome,
            }
        }
    };
    send(sender, outcome.response, &aside).await
}

/// Sends an answer. Given up before its end it is reset.
async fn send(
    mut sender: Http3Sender,
    response: Response<impl HttpBody<Data = Bytes> + Unpin>,
    aside: &QuicLink,
) -> Result<(), Http3Error> {
    let (parts, mut body) = response.into_parts();
    sender.head(Response::from_parts(parts, ())).await?;
    loop {
        let next = tokio::select! {
            biased;
            next = body.frame() => next,
            // The caller is gone.
            () = aside.closed() => return Ok(()),
        };
        let Some(frame) = next else { break };
        let Ok(frame) = frame else { return Ok(()) };
        match frame.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) => sender.data(data).await?,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    sender.trailers(trailers).await?;
                }
            }
        }
    }
    sender.end().await
}

/// Streams that bring no head in time, or none at all, after which a connection is given up.
const LOST_MAX: usize = 100;
/// Bound on a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
