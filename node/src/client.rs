//! The API's client: JSON over HTTP/1.1 on the node's Unix socket. The command line and the demo use it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;
use weft_proto::Index;
use weft_proto::identity::NodeName;
use weft_proto::service::{InstanceName, ServiceName};

use crate::api::schema::{
    Applied, ApplyRequest, Certificate, Checked, Drained, Enforced, Error, ExplainRequest, Listen, Listened, Member,
    Reached, Removed, Service, ServiceSpec, Services, Status, Token, TokenCreated, TokenRequest,
};
use crate::intercept::{Intercept, Intercepted};

/// The API's socket within a data directory.
pub const SOCKET: &str = "weft.sock";
/// Bound on one call; longer than any decision that the node itself waits for.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// What a call may take beyond the wait that it asks the node for.
const WAIT_GRACE: Duration = Duration::from_secs(5);
/// Longest answer: 64 MiB.
const ANSWER_LENGTH_MAX: usize = 64 << 20;

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens on the socket.
    #[error("no weft node answers on {}: start one with `weft up`, or name its directory with --data-dir", .0.display())]
    Absent(PathBuf),
    /// The socket may not be opened.
    #[error("{} may not be opened: run this as the user that the node runs as", .0.display())]
    Forbidden(PathBuf),
    /// The connection broke, or took longer than its bound.
    #[error("the node on {} did not answer: {why}", .socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What went wrong.
        why: String,
    },
    /// The node answered with a failure.
    #[error("{}", .0.message)]
    Refused(Error),
}

type Called<T> = Result<T, ClientError>;

/// A client of one node.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The client of the node whose state lives in the directory. Every call is a connection of its own.
    pub fn new(data_dir: &Path) -> Self {
        Self { socket: data_dir.join(SOCKET) }
    }

    /// How the mesh looks from the node.
    pub async fn status(&self) -> Called<Status> {
        self.get("/v1/status").await
    }

    /// Every admitted node.
    pub async fn members(&self) -> Called<Vec<Member>> {
        self.get("/v1/members").await
    }

    /// Makes a join token.
    pub async fn create_token(&self, request: &TokenRequest) -> Called<TokenCreated> {
        self.post("/v1/tokens", request).await
    }

    /// Every join token.
    pub async fn tokens(&self) -> Called<Vec<Token>> {
        self.get("/v1/tokens").await
    }

    /// Gives an instance of the node's host no more calls, and waits until it has answered those that it has.
    pub async fn drain_service(
        &self,
        name: &ServiceName,
        only: Option<&InstanceName>,
        bound: Duration,
    ) -> Called<Drained> {
        let only = only.map(|name| format!("&instance={name}")).unwrap_or_default();
        let path =
            format!("/v1/services/{}/{}/drain?timeout_ms={}{only}", name.namespace(), name.name(), bound.as_millis());
        self.post(&path, &Value::Null).await
    }

    /// What the node finds of the way to the others, and back.
    pub async fn check(&self) -> Called<Checked> {
        self.get("/v1/check").await
    }

    /// What of the host's connections is sent to the node.
    pub async fn intercepted(&self) -> Called<Intercepted> {
        self.get("/v1/intercept").await
    }

    /// Sends something else of them to the node, or nothing.
    pub async fn intercept(&self, request: &Intercept) -> Called<Intercepted> {
        self.post("/v1/intercept", request).await
    }

    /// Revokes a join token; its id is letters and digits.
    pub async fn revoke_token(&self, id: &str) -> Called<Value> {
        self.delete(&format!("/v1/tokens/{id}")).await
    }

    /// Registers a service on the node's host.
    pub async fn add_service(&self, spec: &ServiceSpec) -> Called<Service> {
        self.post("/v1/services", spec).await
    }

    /// Listens on services' loopback addresses of the node's host, or no more.
    pub async fn listen(&self, request: &Listen) -> Called<Listened> {
        self.post("/v1/listen", request).await
    }

    /// Every service of the mesh.
    pub async fn services(&self) -> Called<Services> {
        self.get("/v1/services").await
    }

    /// Takes a service off the node's host, or one instance of it.
    pub async fn remove_service(&self, name: &ServiceName, only: Option<&InstanceName>) -> Called<Removed> {
        let only = only.map(|name| format!("?instance={name}")).unwrap_or_default();
        self.delete(&format!("/v1/services/{}/{}{only}", name.namespace(), name.name())).await
    }

    /// Takes a node out of the mesh.
    pub async fn remove_node(&self, name: &NodeName) -> Called<Applied> {
        self.delete(&format!("/v1/nodes/{name}")).await
    }

    /// Applies documents, all or none.
    pub async fn apply(&self, request: &ApplyRequest, dry_run: bool) -> Called<Applied> {
        self.post(if dry_run { "/v1/resources?dry_run=true" } else { "/v1/resources" }, request).await
    }

    /// Waits until the node has applied every decision that was acknowledged anywhere before.
    pub async fn index(&self) -> Called<Reached> {
        self.get("/v1/index").await
    }

    /// Documents of a kind, as any command line names it, with how they stand on every live node if `status` is asked
    /// for. Namespace and name are DNS labels; none means all.
    pub async fn resources(
        &self,
        kind: &str,
        namespace: Option<&str>,
        name: Option<&str>,
        status: bool,
    ) -> Called<Vec<Value>> {
        let mut path = format!("/v1/resources?kind={kind}&status={status}");
        for (field, value) in [("namespace", namespace), ("name", name)] {
            if let Some(value) = value {
                path.push_str(&format!("&{field}={value}"));
            }
        }
        self.get(&path).await
    }

    /// Deletes a document, where wished only if its version is the expected one.
    pub async fn delete_resource(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        expected: Option<Index>,
    ) -> Called<Applied> {
        let query = expected.map(|version| format!("?expected={version}")).unwrap_or_default();
        self.delete(&format!("/v1/resources/{kind}/{namespace}/{name}{query}")).await
    }

    /// Who enforces an index, waited for up to the bound.
    pub async fn enforced(&self, index: Index, bound: Duration) -> Called<Enforced> {
        let path = format!("/v1/enforced?index={index}&timeout_ms={}", bound.as_millis());
        self.call(Method::GET, &path, Bytes::new(), bound + WAIT_GRACE).await
    }

    /// What would happen to a call, and why.
    pub async fn explain(&self, request: &ExplainRequest) -> Called<Value> {
        self.post("/v1/explain", request).await
    }

    /// Certificates of gateways, and those of the node and its services.
    pub async fn certificates(&self) -> Called<Vec<Certificate>> {
        self.get("/v1/certificates").await
    }

    /// Renews every certificate of the node.
    pub async fn renew_certificates(&self) -> Called<Value> {
        self.post("/v1/certificates/renew", &Value::Object(serde_json::Map::new())).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Called<T> {
        self.call(Method::GET, path, Bytes::new(), CALL_TIMEOUT).await
    }

    async fn delete<T: DeserializeOwned>(&self, path: &str) -> Called<T> {
        self.call(Method::DELETE, path, Bytes::new(), CALL_TIMEOUT).await
    }

    async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Called<T> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(error))?;
        self.call(Method::POST, path, body.into(), CALL_TIMEOUT).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes, bound: Duration) -> Called<T> {
        let answer = timeout(bound, self.exchange(method, path, body)).await;
        let (status, body) =
            answer.map_err(|_| self.broken(format!("it took longer than {} s", bound.as_secs())))??;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| self.broken(format!("its answer cannot be read: {error}")));
        }
        let unread = |_| self.broken(format!("status {status}: {}", String::from_utf8_lossy(&body)));
        Err(serde_json::from_slice(&body).map_or_else(unread, ClientError::Refused))
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Called<(StatusCode, Bytes)> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.not_connected(&error))?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.broken(error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(error))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| self.broken(error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_LENGTH_MAX).collect().await.map_err(|error| self.broken(error))?;
            Ok((head.status, body.to_bytes()))
        };
        // The connection is driven for as long as the answer takes, and closed with it.
        tokio::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            _ = connection => answer.await,
        }
    }

    fn not_connected(&self, error: &io::Error) -> ClientError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::Absent(self.socket.clone()),
            io::ErrorKind::PermissionDenied => ClientError::Forbidden(self.socket.clone()),
            _ => self.broken(error),
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "errors are made where they are handed over")]
    fn broken(&self, why: impl ToString) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), why: why.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    async fn answer_once(listener: UnixListener, answer: String) -> String {
        let (mut stream, _) = listener.accept().await.expect("a client connects");
        let mut buffer = vec![0; 4096];
        let length = stream.read(&mut buffer).await.expect("it sends a request");
        stream.write_all(answer.as_bytes()).await.expect("it reads the answer");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    fn http(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn a_refusal_keeps_its_faults() {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join(SOCKET)).expect("a socket");
        let body = r#"{"reason":"bad-request","message":"nothing was applied","faults":["a: b"]}"#;
        let server = tokio::spawn(answer_once(listener, http("400 Bad Request", body)));
        let error = Client::new(directory.path()).delete_resource("Service", "prod", "web", Some(7)).await;
        let Err(ClientError::Refused(error)) = error else { panic!("{error:?}") };
        assert_eq!(error.faults, ["a: b"]);
        let request = server.await.expect("the server ends");
        assert!(request.starts_with("DELETE /v1/resources/Service/prod/web?expected=7 HTTP/1.1\r\n"), "{request}");
    }

    #[tokio::test]
    async fn an_absent_node_is_told_apart_from_a_broken_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let client = Client::new(directory.path());
        assert_eq!(client.status().await, Err(ClientError::Absent(directory.path().join(SOCKET))));
        let listener = UnixListener::bind(directory.path().join(SOCKET)).expect("a socket");
        let server = tokio::spawn(answer_once(listener, http("200 OK", "[]")));
        assert!(matches!(client.status().await, Err(ClientError::Broken { .. })));
        server.await.expect("the server ends");
        // A socket whose owner was killed stays on disk and refuses.
        assert!(matches!(client.status().await, Err(ClientError::Absent(_))));
    }
}
