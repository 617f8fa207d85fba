//! The services of the demo: small HTTP servers that know nothing of the mesh.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections that one server holds at once.
const CONNECTIONS_MAX: usize = 256;
/// Bound on reading a request's head, and on waiting for the next.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Servers that run until they are dropped.
#[derive(Default)]
pub(super) struct Applications {
    servers: JoinSet<()>,
}

impl Applications {
    /// Starts one; it answers every path with the text, so that callers see who it was.
    pub(super) async fn serve(&mut self, address: SocketAddr, text: String) -> Result<(), String> {
        let listener =
            TcpListener::bind(address).await.map_err(|error| format!("{text} cannot listen on {address}: {error}"))?;
        self.servers.spawn(run(listener, Bytes::from(text)));
        Ok(())
    }
}

async fn run(listener: TcpListener, text: Bytes) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else { continue };
        let text = text.clone();
        connections.spawn(async move {
            let service = service_fn(move |_: Request<Incoming>| {
                let response = Response::new(Full::new(text.clone()));
                async move { Ok::<_, Infallible>(response) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
            drop(permit);
        });
    }
}
