//! Applications behind a node: HTTP of every kind on one port, and opaque streams.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// An HTTP application, and what it tells of itself.
pub(crate) struct Application {
    pub(crate) address: SocketAddr,
    pub(crate) events: mpsc::UnboundedReceiver<String>,
}

/// Serves HTTP/1.1 and HTTP/2 on one port.
pub(crate) async fn http() -> Application {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (sender, events) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(request, sender.clone()));
                let builder = Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
            });
        }
    });
    Application { address, events }
}

async fn answer(request: Request<Incoming>, events: mpsc::UnboundedSender<String>) -> Result<Answer, Infallible> {
    let text = |text: String| Response::new(Full::from(text).map_err(|never| match never {}).boxed_unsync());
    Ok(match request.uri().path() {
        "/echo" => {
            let headers = request.headers().clone();
            let mut response = Response::new(request.into_body().map_err(std::io::Error::other).boxed_unsync());
            if let Some(content_type) = headers.get("content-type") {
                response.headers_mut().insert("content-type", content_type.clone());
            }
            response
        }
        "/who" => {
            let who = request.headers().get("x-forwarded-client-cert").and_then(|value| value.to_str().ok());
            text(who.unwrap_or("nobody").to_owned())
        }
        "/trailers" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "7".parse().expect("valid"));
            let frames = vec![Ok(Frame::data(Bytes::from_static(b"data"))), Ok(Frame::trailers(trailers))];
            Response::new(Frames(frames.into()).boxed_unsync())
        }
        // Half of what it promises.
        "/breaks" => Response::new(
            Half { sent: false, timer: Box::pin(tokio::time::sleep(Duration::from_millis(100))) }.boxed_unsync(),
        ),
        // Answers slowly for as long as it is listened to.
        "/endless" => {
            Response::new(Endless { events, timer: Box::pin(tokio::time::sleep(Duration::ZERO)) }.boxed_unsync())
        }
        // Answers nothing at all, and tells when nobody waits any more.
        "/waits" => {
            let _ = events.send("asked".into());
            let gone = Gone(events);
            std::future::pending::<()>().await;
            drop(gone);
            unreachable!()
        }
        "/silent" => {
            let gone = Gone(events);
            std::future::pending::<()>().await;
            drop(gone);
            unreachable!()
        }
        "/empty" => {
            let mut response = text(String::new());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        "/socket" => {
            let key = request.headers().get("sec-websocket-key").cloned();
            tokio::spawn(async move {
                let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
                let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
            let mut response = text(String::new());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let accept = accept(key.as_ref().map_or(b"", |key| key.as_bytes()));
            let headers = response.headers_mut();
            headers.insert("connection", "upgrade".parse().expect("valid"));
            headers.insert("upgrade", "websocket".parse().expect("valid"));
            headers.insert("sec-websocket-accept", accept.parse().expect("valid"));
            response
        }
        other => {
            let mut response = text(format!("no {other}"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
    })
}

fn accept(key: &[u8]) -> String {
    use base64::Engine;
    let text = [key, b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &text);
    base64::prelude::BASE64_STANDARD.encode(digest)
}

struct Frames(std::collections::VecDeque<Result<Frame<Bytes>, std::io::Error>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Poll::Ready(self.0.pop_front())
    }
}

struct Half {
    sent: bool,
    timer: Pin<Box<tokio::time::Sleep>>,
}

impl Body for Half {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if !std::mem::replace(&mut self.sent, true) {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"half")))));
        }
        std::task::ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(std::io::Error::other("broken"))))
    }
}

struct Endless {
    events: mpsc::UnboundedSender<String>,
    timer: Pin<Box<tokio::time::Sleep>>,
}

impl Body for Endless {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        std::task::ready!(self.timer.as_mut().poll(cx));
        self.timer = Box::pin(tokio::time::sleep(Duration::from_millis(20)));
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"tick")))))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        let _ = self.events.send("gone".to_owned());
    }
}

struct Gone(mpsc::UnboundedSender<String>);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = self.0.send("gone".to_owned());
    }
}

/// An opaque application: reads all, and answers with it backwards once the other side has ended its half.
pub(crate) async fn backwards() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                if stream.read_to_end(&mut all).await.is_ok() {
                    all.reverse();
                    let _ = stream.write_all(&all).await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
    address
}

/// An opaque application that speaks first and then repeats what it hears.
pub(crate) async fn greeter() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"hello").await?;
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    address
}

/// An opaque application that says its name, of two bytes, and then repeats what it hears.
pub(crate) async fn says(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(name.as_bytes()).await?;
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    address
}

/// Answers every request over HTTP/1.1 with its name.
pub(crate) async fn named(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(move |_| async move {
                Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(name.as_bytes()))))
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    address
}
