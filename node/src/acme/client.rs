//! HTTP to ACME servers, over the world's sockets: a connection a request, since there are ten in two months.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use weft_proxy::net::Net;

/// Bound on a request with its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Bound on a connection to one of its addresses.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer: 1 MiB.
const ANSWER_LENGTH_MAX: usize = 1 << 20;

/// Asks over TLS.
pub(super) struct Client<N> {
    net: N,
    config: Arc<ClientConfig>,
}

impl<N: Net> Client<N> {
    /// One that trusts these authorities, PEM.
    pub(super) fn new(net: N, authorities: &[u8]) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for one in CertificateDer::pem_slice_iter(authorities) {
            let one = one.map_err(|error| format!("an authority of the server cannot be read: {error}"))?;
            // Hosts trust some that are not as they should be, and are not needed.
            let _ = roots.add(one);
        }
        if roots.is_empty() {
            return Err("there is no authority that the server could be trusted by".into());
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| error.to_string())?.with_root_certificates(roots);
        Ok(Self { net, config: Arc::new(builder.with_no_client_auth()) })
    }
}

type Asking = Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>>;

impl<N: Net> HttpClient for Client<N> {
    fn request(&self, request: Request<BodyWrapper<Bytes>>) -> Asking {
        let (net, config) = (self.net.clone(), self.config.clone());
        Box::pin(async move {
            let uri = request.uri().clone();
            let asked = timeout(REQUEST_TIMEOUT, ask(net, config, request)).await;
            let failed = |why: String| Error::Other(format!("{uri}: {why}").into());
            asked.unwrap_or_else(|_| Err("it did not answer in time".into())).map_err(failed)
        })
    }
}

async fn ask<N: Net>(
    net: N,
    config: Arc<ClientConfig>,
    mut request: Request<BodyWrapper<Bytes>>,
) -> Result<BytesResponse, String> {
    let uri = request.uri().clone();
    if uri.scheme_str() != Some("https") {
        return Err("it is not of https".into());
    }
    let authority = uri.authority().ok_or("it names no host")?;
    let (host, port) = (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(443));
    let addresses = match host.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => net.resolve(host).await.map_err(|error| error.to_string())?,
    };
    let mut dialled = Err(format!("{host} has no address"));
    for address in addresses {
        // One that leads nowhere must not take the time of those behind it.
        dialled = match timeout(DIAL_TIMEOUT, net.dial((address, port).into())).await {
            Ok(dialled) => dialled.map_err(|error| format!("{address}: {error}")),
            Err(_) => Err(format!("{address}: no connection within {DIAL_TIMEOUT:?}")),
        };
        if dialled.is_ok() {
            break;
        }
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(config).connect(name, dialled?).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let own = HeaderValue::from_str(authority.as_str()).map_err(|error| error.to_string())?;
    request.headers_mut().insert(header::HOST, own);
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_LENGTH_MAX).collect().await.map_err(|error| error.to_string())?;
    Ok(BytesResponse { parts, body: Box::new(body.to_bytes()) })
}
