//! Serves HTTP/1.1.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{CONNECTION, EXPECT};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::timeout;

use super::wire::{Notes, Wire, under};
use super::{local, named};
use crate::body::{Body, BodyError};
use crate::call::Destination;
use crate::connection::Connection;
use crate::exchange::{self, Outcome, Tracked};
use crate::fields::{self, HEAD_LENGTH_MAX};
use crate::forward::answer::AnswerBody;
use crate::forward::bytes::End as Near;
use crate::forward::refusal;
use crate::framing::Mark;
use crate::hold::Place;
use crate::net::{Net, Stream};
use crate::reject::Reject;
use crate::upgrade;

/// Serves a connection until it ends or the node drains.
pub(crate) async fn serve<N: Net, S>(connection: Arc<Connection<N>>, stream: S)
where
    S: Stream,
{
    let core = connection.core.clone();
    // One exchange at a time has the place of the connection.
    let place = Arc::new(core.enter());
    let handle = stream.handle();
    let (wire, notes) = Wire::new(stream);
    let noted = notes.clone();
    let heads = AtomicU64::new(0);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        let (connection, place, notes) = (connection.clone(), place.clone(), notes.clone());
        let head = heads.fetch_add(1, Ordering::Relaxed);
        for mark in notes.marks(head) {
            match mark {
                Mark::More(more) => fields::append(request.headers_mut(), more),
                mark => drop(request.extensions_mut().insert(mark)),
            }
        }
        // Boxed: between exchanges the connection holds no room for one.
        Box::pin(async move {
            let old = request.version() < Version::HTTP_11;
            let core = connection.core.clone();
            let mut response = respond::<N, S>(connection, place, (notes.clone(), head), request).await;
            if *core.shared.draining.borrow() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                // The next request goes to the process that follows this one (RFC 9112, 9.6).
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| Noted { body, notes: old.then_some(notes) }))
        })
    });
    let serving = builder().serve_connection(TokioIo::new(wire), service).with_upgrades();
    let mut serving = pin!(serving);
    let mut draining = core.shared.draining.subscribe();
    // A caller that has gone for certain leaves nothing to answer, whatever the callee is still about to say.
    let mut reset = handle.as_ref().map_or_else(|| Box::pin(pending()) as BoxFuture<'_, ()>, |handle| handle.reset());
    let drained = tokio::select! {
        biased;
        _ = serving.as_mut() => false,
        () = &mut reset => false,
        _ = draining.wait_for(|draining| *draining) => true,
    };
    if drained {
        // Whoever is about to ask is told that this connection ends, and does not find it ended.
        let ended = timeout(LEAVING, async {
            tokio::select! { biased; _ = serving.as_mut() => {}, () = &mut reset => {} }
        });
        if ended.await.is_err() {
            serving.as_mut().graceful_shutdown();
            tokio::select! { biased; _ = serving.as_mut() => {}, () = &mut reset => {} }
        }
    }
    if let Some(handle) = handle.filter(|_| noted.is_broken()) {
        handle.abort();
    }
}

/// The body of an answer. That of HTTP/1.0 may end with its connection, and broken off it would look whole.
struct Noted {
    body: Tracked,
    notes: Option<Arc<Notes>>,
}

impl HttpBody for Noted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let (Some(Err(_)), Some(notes)) = (&frame, &self.notes) {
            notes.broke();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        // What is longer has been refused below.
        .max_header_size(2 * HEAD_LENGTH_MAX)
        // A caller that has said all may close its half and wait for the answer (RFC 9112, 9.6).
        .half_close(true)
        .auto_date_header(false)
        .pipeline_flush(false);
    builder
}

async fn respond<N: Net, S: Stream>(
    connection: Arc<Connection<N>>,
    place: Arc<Place>,
    (notes, number): (Arc<Notes>, u64),
    mut request: Request<Incoming>,
) -> Response<Tracked> {
    if request.method() == Method::CONNECT {
        return Box::pin(tunnel::<N, S>(&connection, request)).await;
    }
    let upgrades = request.headers().contains_key(http::header::UPGRADE);
    let upgraded = upgrades.then(|| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let mut body = Body::http1(body);
    let expects = head.headers.contains_key(EXPECT) && matches!(body, Body::Http1(_));
    // With a body that is to be asked for first an offer is left lying.
    if upgrades && !expects && matches!(body, Body::Http1(_)) && upgrade::is_short(&head.headers) {
        match timeout(OFFER_TIMEOUT, body.whole()).await {
            Ok(Ok(whole)) => body = Body::full(whole),
            Ok(Err(error)) => return refused(&error.reject()),
            Err(_) => return refused(&Reject::BadRequest("the request's body did not come in time")),
        }
    }
    let Outcome { mut response, tunnel, wanted } = {
        // What came too late for an earlier exchange of the connection.
        drop(place.hold.interims.take());
        let mut exchanged = pin!(exchange::http(&connection, &place.hold, head, body));
        poll_fn(|cx| {
            let polled = exchanged.as_mut().poll(cx);
            place.hold.interims.take().iter().for_each(|interim| notes.inform(interim));
            polled
        })
        .await
    };
    if (expects && !wanted) || notes.is_unread(number) {
        // Its body may come all the same, or another request: the connection can't go on, and says so (RFC 9110, 10.1.1).
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    upgrade::tell_caller(&mut response);
    if let (Some(tunnel), Some(upgraded)) = (tunnel, upgraded) {
        tokio::spawn(async move {
            if let Some(stream) = upgraded.await.ok().and_then(under::<S>) {
                tunnel.join(Near::Io(stream)).await;
            }
            drop(place);
        });
    }
    response
}

/// `CONNECT` to a forward proxy: what follows is the service's own protocol.
async fn tunnel<N: Net, S: Stream>(
    connection: &Arc<Connection<N>>,
    mut request: Request<Incoming>,
) -> Response<Tracked> {
    if connection.destination != Destination::Named {
        return refused(&Reject::Method);
    }
    let authority = request.uri().authority().map(|authority| (authority.host().to_owned(), authority.port_u16()));
    let Some((host, port)) = authority else {
        return refused(&Reject::BadRequest("CONNECT names HOST:PORT"));
    };
    let (connection, protocol) = match named::target(connection, &host, port) {
        Ok(target) => target,
        Err(reject) => return refused(&reject),
    };
    let opened = match local::open(&connection, protocol).await {
        Ok(opened) => opened,
        Err(reject) => return refused(&reject),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Some(stream) = upgrade.await.ok().and_then(under::<S>) {
            local::serve_opened(connection, Near::Io(stream), protocol, opened).await;
        }
    });
    Response::new(Tracked::untracked(AnswerBody::default()))
}

fn refused(reject: &Reject) -> Response<Tracked> {
    refusal::response(reject, Version::HTTP_11, false, false).map(Tracked::untracked)
}

/// How long connections stay open, for one exchange more, when the node drains.
pub(crate) const LEAVING: Duration = Duration::from_millis(500);
/// How long a head may take to arrive, and a connection may be idle before it.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// Bound on the body of a request that offers an upgrade, which is at most 64 KiB.
const OFFER_TIMEOUT: Duration = Duration::from_secs(10);
