//! `/metrics`, `/livez` and `/readyz` on a plain listener of this host.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use weft_consensus::status::Role;

use crate::api::problems::KINDS;
use crate::node::Node;
use crate::telemetry;
use crate::world::World;

/// Connections served at once.
const CONNECTIONS_MAX: usize = 64;
/// Bound on reading a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves until the node stops. Whoever holds many connections open and asks nothing loses the oldest of them, so that
/// probes are always answered.
pub async fn serve<W: World>(node: Arc<Node<W>>, listener: TcpListener) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS_MAX
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let node = node.clone();
        let connection = tokio::spawn(async move {
            let service = hyper::service::service_fn(|request| {
                let response = respond(&node, &request);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
        open.push_back(connection.abort_handle());
    }
}

fn respond<W: World>(node: &Node<W>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, body) = match request.uri().path() {
        "/livez" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match node.readiness() {
            Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        "/metrics" => (StatusCode::OK, metrics(node)),
        _ => (StatusCode::NOT_FOUND, "/metrics, /livez and /readyz are served here\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(TEXT));
    response
}

fn metrics<W: World>(node: &Node<W>) -> String {
    let status = node.replica.status().borrow().clone();
    #[expect(clippy::cast_precision_loss, reason = "gauges of counts and indexes far below 2^53")]
    let set = |name: &'static str, value: u64| metrics::gauge!(name).set(value as f64);
    set("weft_raft_term", status.term);
    set("weft_raft_applied_index", status.applied);
    set("weft_raft_is_leader", u64::from(status.role == Role::Leader));
    set("weft_raft_voters", status.voters.len() as u64);
    set("weft_raft_leaderless_seconds", status.leaderless_since.map_or(0, |since| since.elapsed().as_secs()));
    set("weft_nodes_live", node.live().len() as u64);
    set("weft_nodes_admitted", node.state().nodes.len() as u64);
    let problems = node.problems();
    set("weft_problems", problems.len() as u64);
    for kind in KINDS {
        let count = problems.iter().filter(|problem| problem.kind == kind).count();
        #[expect(clippy::cast_precision_loss, reason = "a small count")]
        metrics::gauge!("weft_problem", "kind" => kind).set(count as f64);
    }
    let mut text = telemetry::render();
    node.plane().render_metrics(&mut text);
    let _ = writeln!(text);
    text
}
