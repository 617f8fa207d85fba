//! The node's API: what the command line asks, answered from this node's state or proposed to the mesh.
//!
//! It listens on a Unix socket that only the node's own user may open. [`schema`] lists the calls.

mod certificates;
mod check;
mod drain;
mod gateways;
mod look;
pub mod operations;
pub mod problems;
mod resources;
pub mod schema;
mod status;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::node::Node;
use crate::world::World;
use operations::Failure;

/// Longest body of a request: 8 MiB.
const BODY_LENGTH_MAX: usize = 8 << 20;
/// Bound on reading a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

type Answer = Result<Bytes, Failure>;

/// Serves one connection of the API.
pub async fn serve<W: World>(node: Arc<Node<W>>, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    let service = hyper::service::service_fn(move |request| {
        let node = node.clone();
        async move { Ok::<_, Infallible>(respond(&node, request).await) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    // An error is the client's going away, which needs no answer.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn respond<W: World>(node: &Node<W>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, body) = match route(node, request).await {
        Ok(body) => (StatusCode::OK, body),
        Err(failure) => (failure.status, json(&failure.error).unwrap_or_default()),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

async fn route<W: World>(node: &Node<W>, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let path: Vec<String> = parts.uri.path().split('/').skip(1).map(str::to_owned).collect();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let query = query(parts.uri.query().unwrap_or_default());
    match (&parts.method, path.as_slice()) {
        (&Method::GET, ["v1", "status"]) => json(&node.api_status()),
        (&Method::GET, ["v1", "check"]) => json(&node.api_check().await),
        (&Method::GET, ["v1", "members"]) => json(&node.api_members().await),
        (&Method::GET, ["v1", "tokens"]) => json(&node.api_tokens()),
        (&Method::POST, ["v1", "tokens"]) => json(&node.api_create_token(read(body).await?).await?),
        (&Method::DELETE, ["v1", "tokens", id]) => json(&node.api_revoke_token(id).await?),
        (&Method::GET, ["v1", "services"]) => json(&node.api_services()),
        (&Method::POST, ["v1", "services"]) => json(&node.api_add_service(read(body).await?).await?),
        (&Method::DELETE, ["v1", "services", namespace, name]) => {
            json(&node.api_remove_service(&format!("{namespace}/{name}"), query.get("instance"))?)
        }
        (&Method::POST, ["v1", "services", namespace, name, "drain"]) => {
            json(&node.api_drain(&format!("{namespace}/{name}"), &query).await?)
        }
        (&Method::DELETE, ["v1", "nodes", name]) => json(&node.api_remove_node(name).await?),
        (&Method::POST, ["v1", "listen"]) => json(&node.api_listen(&read(body).await?)?),
        (&Method::GET, ["v1", "intercept"]) => json(&node.api_intercepted()),
        (&Method::POST, ["v1", "intercept"]) => json(&node.api_intercept(&read(body).await?)?),
        (&Method::GET, ["v1", "index"]) => json(&node.api_index().await?),
        (&Method::GET, ["v1", "resources"]) => json(&node.api_resources(&query).await?),
        (&Method::POST, ["v1", "resources"]) => {
            let dry_run = query.get("dry_run").is_some_and(|value| value == "true");
            json(&node.api_apply(read(body).await?, dry_run).await?)
        }
        (&Method::DELETE, ["v1", "resources", kind, namespace, name]) => {
            json(&node.api_delete(kind, namespace, name, query.get("expected")).await?)
        }
        (&Method::GET, ["v1", "enforced"]) => json(&node.api_enforced(&query).await?),
        (&Method::POST, ["v1", "explain"]) => json(&node.api_explain(&read(body).await?)?),
        (&Method::GET, ["v1", "certificates"]) => json(&node.api_certificates()),
        (&Method::POST, ["v1", "certificates", "renew"]) => json(&node.api_renew().await?),
        (method, _) => Err(Failure::not_found(format!("there is no {method} {}", parts.uri.path()))),
    }
}

async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, Failure> {
    let body = Limited::new(body, BODY_LENGTH_MAX).collect().await;
    let body = body.map_err(|error| Failure::bad(format!("the body cannot be read: {error}")))?.to_bytes();
    let mut deserializer = serde_json::Deserializer::from_slice(&body);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| Failure::bad(error.to_string()))
}

fn json(value: &impl Serialize) -> Answer {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| Failure::internal(error.to_string()))
}

/// Reads a query string; names and values here need no percent-encoding.
fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
