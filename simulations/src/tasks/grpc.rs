//! gRPC as simple as it gets: HTTP/2 in clear with empty messages, for callers and applications that must not share the node's
//! own code.

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::net::TcpStream;

/// A length-prefixed message of no bytes.
const EMPTY: Bytes = Bytes::from_static(&[0; 5]);

/// What a call came to: the status of HTTP and that of gRPC, which is in the trailers, or beside the status where nothing follows.
#[derive(Debug, Default)]
pub(super) struct Called {
    pub(super) status: u16,
    pub(super) grpc: Option<String>,
    pub(super) fields: Vec<(String, String)>,
}

/// A call that arrives.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) host: String,
    pub(super) fields: Vec<(String, String)>,
    /// Which one it is on its connection.
    pub(super) nth: usize,
}

/// Answers every call with an empty message and OK.
pub(super) async fn serve(stream: TcpStream, mut note: impl FnMut(Arrived)) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(stream).await?;
    let mut nth = 0;
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted?;
        nth += 1;
        let (head, body) = request.into_parts();
        note(Arrived {
            method: head.method.to_string(),
            path: head.uri.path().to_owned(),
            host: head.uri.authority().map(ToString::to_string).unwrap_or_default(),
            fields: texts(&head.headers),
            nth,
        });
        tokio::spawn(async move {
            // Whoever goes away is served no more.
            let _ = drained(body).await;
            let answer = Response::builder().header("content-type", "application/grpc").body(()).unwrap_or_default();
            let Ok(mut body) = respond.send_response(answer, false) else { return };
            let trailers =
                HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
            let _ = body.send_data(EMPTY, false).and_then(|()| body.send_trailers(trailers));
        });
    }
    Ok(())
}

/// A call through the forward proxy at an address, of `http://HOST:PORT/SERVICE/METHOD`.
pub(super) async fn call(proxy: &str, url: &str, fields: &[(String, String)]) -> Result<Called, String> {
    let failed = |error: h2::Error| error.to_string();
    let stream = TcpStream::connect(proxy).await.map_err(|error| error.to_string())?;
    let (sender, connection) = h2::client::handshake(stream).await.map_err(failed)?;
    // It ends with the last of its streams.
    let driver = tokio::spawn(connection);
    let mut request = Request::post(url).header("content-type", "application/grpc").header("te", "trailers");
    for (name, value) in fields {
        request = request.header(name, value);
    }
    let request = request.body(()).map_err(|error| error.to_string())?;
    let mut sender = sender.ready().await.map_err(failed)?;
    let (answer, mut body) = sender.send_request(request, false).map_err(failed)?;
    body.send_data(EMPTY, true).map_err(failed)?;
    let (head, body) = answer.await.map_err(failed)?.into_parts();
    let trailers = drained(body).await.map_err(failed)?;
    driver.abort();
    let status =
        |fields: &HeaderMap| fields.get("grpc-status").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let grpc = trailers.as_ref().and_then(status).or_else(|| status(&head.headers));
    Ok(Called { status: head.status.as_u16(), grpc, fields: texts(&head.headers) })
}

/// Reads a body to its end, and its trailers.
async fn drained(mut body: RecvStream) -> Result<Option<HeaderMap>, h2::Error> {
    while let Some(part) = body.data().await {
        body.flow_control().release_capacity(part?.len())?;
    }
    body.trailers().await
}

fn texts(fields: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    fields.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}
