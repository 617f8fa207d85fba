//! Applications that behave as the tasks say: the book shop, an echo of HTTP, a greeting, an echo of lines.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::ask;
use super::grpc::{self, Arrived};
use super::http::{self, Message};

/// What an application is.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// Its service.
    pub service: String,
    /// Its version.
    pub version: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether it is at the same name over TLS, and says so.
    pub moved: bool,
    /// Where it writes what it has seen, a line each.
    pub seen: PathBuf,
    /// Where it ends TLS itself: its certificate and key, PEM.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The authority of its callers' certificates, PEM, where it answers nobody else.
    pub callers: Option<PathBuf>,
    /// What it answers, whatever it is asked for.
    pub page: Option<String>,
}

/// What an instance received.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) service: String,
    /// That of its host: it does not know it itself.
    #[serde(default)]
    pub(super) namespace: String,
    pub(super) version: String,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) host: String,
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: String,
    /// Calls under way, this one included.
    pub(super) in_flight: usize,
    /// Which call it was on its connection.
    pub(super) nth: usize,
    /// What is known of the connection.
    #[serde(flatten)]
    pub(super) connection: Connected,
}

/// What an application knows of a connection.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Connected {
    /// The address that it comes from.
    #[serde(default)]
    pub(super) peer: String,
    /// The port at which it has come in.
    #[serde(default)]
    pub(super) port: u16,
    /// Where it is of TLS: the name that was asked for.
    #[serde(default)]
    pub(super) sni: Option<String>,
    /// The names in the certificate of its caller.
    #[serde(default)]
    pub(super) certificate: Option<String>,
}

/// Another behaviour for a while, in a file beside what was seen.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Variation {
    pub(super) status: u16,
    pub(super) milliseconds: u64,
    /// Whether it asks for certificates of its callers.
    #[serde(default)]
    pub(super) asks: bool,
}

/// Serves until it is ended.
pub async fn serve(behaviour: Behaviour) -> Result<(), String> {
    let listener = TcpListener::bind(behaviour.listen).await.map_err(|error| error.to_string())?;
    let (behaviour, flying) = (Arc::new(behaviour), Arc::new(AtomicUsize::new(0)));
    let acceptor = |asks| behaviour.tls.as_ref().map(|files| secured(files, asks, &behaviour)).transpose();
    let acceptors = acceptor(false)?.zip(acceptor(true)?);
    loop {
        let Ok((stream, from)) = listener.accept().await else { continue };
        let (behaviour, flying) = (behaviour.clone(), flying.clone());
        let connected =
            Connected { peer: from.ip().to_string(), port: behaviour.listen.port(), ..Connected::default() };
        if let Some((plain, asking)) = &acceptors {
            let asks = behaviour.callers.is_some() || variation(&behaviour).is_some_and(|one| one.asks);
            let acceptor = if asks { asking } else { plain }.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let session = stream.get_ref().1;
                    let leaf = session.peer_certificates().and_then(|chain| chain.first());
                    let sni = Some(session.server_name().unwrap_or_default().to_owned());
                    let connected = Connected { sni, certificate: leaf.map(names_of), ..connected };
                    // Whoever goes away is served no more.
                    drop(converse(stream, (&behaviour, &connected), &flying).await);
                }
            });
            continue;
        }
        tokio::spawn(async move {
            let served = match behaviour.service.as_str() {
                "tcp-echo" => echo(stream, &behaviour).await,
                _ if speaks_http2(&stream).await => {
                    // What cannot be noted is not seen, and its check fails.
                    let served = grpc::serve(stream, |call| {
                        let Arrived { method, path, host, fields, nth } = call;
                        drop(note(&behaviour, Seen { method, path, host, fields, nth, ..Seen::default() }));
                    });
                    let served = served.await;
                    served.map_err(std::io::Error::other)
                }
                _ => converse(stream, (&behaviour, &connected), &flying).await,
            };
            // Whoever goes away is served no more.
            drop(served);
        });
    }
}

/// Whether a caller begins as one of HTTP/2 does (RFC 9113, 3.4); no method of HTTP/1.1 begins so.
async fn speaks_http2(stream: &TcpStream) -> bool {
    let mut first = [0; 3];
    stream.peek(&mut first).await.is_ok_and(|count| first[..count] == *b"PRI")
}

async fn echo(mut stream: TcpStream, behaviour: &Behaviour) -> std::io::Result<()> {
    let prefix = if behaviour.version == "v2" { "two" } else { "one" };
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        let seen = Seen { method: "TCP".into(), body: line.clone(), ..Seen::default() };
        note(behaviour, seen)?;
        writer.write_all(format!("{prefix} {line}\n").as_bytes()).await?;
    }
    Ok(())
}

/// TLS as any server ends it.
fn secured((certificate, key): &(PathBuf, PathBuf), asks: bool, own: &Behaviour) -> Result<TlsAcceptor, String> {
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let chain = CertificateDer::pem_file_iter(certificate).map_err(|error| told(&error))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|error| told(&error))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| told(&error))?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(chain.clone());
    if let Some(authority) = &own.callers {
        let read = CertificateDer::from_pem_file(authority).map_err(|error| told(&error))?;
        roots.add_parsable_certificates([read]);
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).allow_unauthenticated();
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| told(&error))?;
    let builder = match asks {
        true => builder.with_client_cert_verifier(verifier.build().map_err(|error| told(&error))?),
        false => builder.with_no_client_auth(),
    };
    let config = builder.with_single_cert(chain, key).map_err(|error| told(&error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The names in a certificate: texts that read like names of hosts, wherever they stand in it.
fn names_of(certificate: &CertificateDer<'_>) -> String {
    let readable = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    let parts = certificate.split(|byte| !readable(byte)).filter(|part| part.contains(&b'.') && part.len() > 3);
    parts.map(|part| String::from_utf8_lossy(part).into_owned()).collect::<Vec<_>>().join(" ")
}

async fn converse<S>(
    stream: S,
    (behaviour, connected): (&Behaviour, &Connected),
    flying: &AtomicUsize,
) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = BufReader::new(reader);
    let mut nth = 0;
    while let Some(request) = http::read(&mut reader, false).await? {
        nth += 1;
        let in_flight = flying.fetch_add(1, Ordering::Relaxed) + 1;
        let mut words = request.first.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let seen = Seen {
            method: method.into(),
            path: path.into(),
            host: request.field("host").unwrap_or_default().into(),
            fields: request.fields.clone(),
            body: String::from_utf8_lossy(&request.body).into_owned(),
            in_flight,
            nth,
            connection: connected.clone(),
            ..Seen::default()
        };
        note(behaviour, seen)?;
        let unproven = behaviour.callers.is_some() && connected.certificate.is_none();
        let (status, text) = match variation(behaviour).filter(|one| !one.asks) {
            Some(variation) => {
                sleep(Duration::from_millis(variation.milliseconds)).await;
                (variation.status, "varied".to_owned())
            }
            None if behaviour.moved => (301, String::new()),
            None if unproven => (400, "No required SSL certificate was sent\n".into()),
            None => answer(behaviour, &request, path).await,
        };
        flying.fetch_sub(1, Ordering::Relaxed);
        let server = if behaviour.tls.is_some() { "Server: nginx\r\n" } else { "" };
        let place =
            request.field("host").filter(|_| status == 301).map(|host| format!("Location: https://{host}{path}\r\n"));
        let head = format!(
            "HTTP/1.1 {status} -\r\n{server}{}Content-Length: {}\r\nContent-Type: text/plain\r\n\r\n",
            place.unwrap_or_default(),
            text.len()
        );
        // An answer to HEAD has no body.
        let body = if method == "HEAD" { "" } else { &text };
        writer.write_all((head + body).as_bytes()).await?;
    }
    Ok(())
}

/// What is different for a while.
fn variation(behaviour: &Behaviour) -> Option<Variation> {
    let text = std::fs::read(behaviour.seen.with_extension("variation")).ok()?;
    serde_json::from_slice(&text).ok()
}

fn note(behaviour: &Behaviour, seen: Seen) -> std::io::Result<()> {
    let seen = Seen { service: behaviour.service.clone(), version: behaviour.version.clone(), ..seen };
    let line = serde_json::to_string(&seen).map_err(std::io::Error::other)? + "\n";
    // One short line at once: nobody waits for it long.
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&behaviour.seen)?;
    std::io::Write::write_all(&mut file, line.as_bytes())
}

async fn answer(behaviour: &Behaviour, request: &Message, path: &str) -> (u16, String) {
    if let Some(page) = &behaviour.page {
        return (200, page.clone());
    }
    match behaviour.service.as_str() {
        "productpage" => (200, page(request).await),
        "details" => (200, json!({"id": 0, "author": "William Shakespeare"}).to_string()),
        "ratings" => (200, json!({"id": 0, "ratings": {"Reviewer1": 5, "Reviewer2": 4}}).to_string()),
        "reviews" => (200, reviews(behaviour, request).await),
        "helloworld" => {
            let version = &behaviour.version;
            (200, format!("Hello version: {version}, instance: helloworld-{version}\n"))
        }
        "echo" => (200, "{}".into()),
        "my-nginx" => (200, "<h1>Welcome to nginx!</h1>\n".into()),
        _ => match page_of(request) {
            Some(page) => (200, page.to_owned()),
            None => echo_of_http(request, path).await,
        },
    }
}

/// The first page of an encyclopaedia, whichever of its hosts is asked for it.
fn page_of(request: &Message) -> Option<&'static str> {
    match request.field("host")? {
        "en.wikipedia.org" => Some("<title>Wikipedia, the free encyclopedia</title>\n"),
        "de.wikipedia.org" => Some("<title>Wikipedia – Die freie Enzyklopädie</title>\n"),
        _ => None,
    }
}

/// Fields that the shop passes on.
fn passed_on(request: &Message) -> Vec<(String, String)> {
    let names = ["end-user", "x-request-id", "traceparent", "tracestate", "user-agent", "cookie", "authorization"];
    let passed = |(name, _): &&(String, String)| names.iter().any(|known| name.eq_ignore_ascii_case(known));
    // Who is logged in is told to the other services.
    let user = request.field("cookie").and_then(|cookie| cookie.split("session=").nth(1));
    let user = user.and_then(|rest| rest.split(';').next()).map(|user| ("end-user".to_owned(), user.to_owned()));
    let others = request
        .fields
        .iter()
        .filter(passed)
        .filter(|(name, _)| user.is_none() || !name.eq_ignore_ascii_case("end-user"));
    others.cloned().chain(user.clone()).collect()
}

async fn reviews(behaviour: &Behaviour, request: &Message) -> String {
    let (colour, bound) = match behaviour.version.as_str() {
        "v2" => ("black", Duration::from_secs(10)),
        "v3" => ("red", Duration::from_millis(2500)),
        _ => return json!({"podname": "reviews-v1", "reviews": [{}, {}]}).to_string(),
    };
    let fields = passed_on(request);
    let call = ask::get("GET", "http://ratings:9080/ratings/0", &fields, "");
    let rated = timeout(bound, call).await.is_ok_and(|came| came.status == 200);
    let rating = match rated {
        true => json!({"stars": 5, "color": colour}),
        false => json!({"error": "Ratings service is currently unavailable"}),
    };
    let name = format!("reviews-{}", behaviour.version);
    json!({"podname": name, "reviews": [{"rating": rating}, {"rating": rating}]}).to_string()
}

async fn page(request: &Message) -> String {
    let fields = passed_on(request);
    let mut page = "<title>Simple Bookstore App</title> William Shakespeare\n".to_owned();
    let details = ask::get("GET", "http://details:9080/details/0", &fields, "").await;
    page += if details.status == 200 { "Book Details\n" } else { "Error fetching product details\n" };
    for _ in 0..2 {
        let call = ask::get("GET", "http://reviews:9080/reviews/0", &fields, "");
        let Ok(came) = timeout(Duration::from_secs(3), call).await else { continue };
        if came.status == 200 {
            page += "Book Reviews\n";
            let stars = [("black", "glyphicon glyphicon-star black\n"), ("red", "glyphicon glyphicon-star red\n")];
            stars.iter().filter(|(colour, _)| came.body.contains(colour)).for_each(|(_, text)| page += text);
            if came.body.contains("unavailable") {
                page += "Ratings service is currently unavailable\n";
            }
            return page;
        }
    }
    page + "Error fetching product reviews\nSorry, product reviews are currently unavailable for this book.\n"
}

async fn echo_of_http(request: &Message, path: &str) -> (u16, String) {
    let mut parts = path.split('?').next().unwrap_or_default().trim_start_matches('/').split('/');
    let (what, number) = (parts.next().unwrap_or_default(), parts.next());
    match (what, number) {
        ("status", Some("418")) => (418, "I'm a teapot!\n".into()),
        ("status", Some(status)) => (status.parse().unwrap_or(400), String::new()),
        ("delay", Some(seconds)) => {
            let seconds: f64 = seconds.parse().unwrap_or(0.0);
            sleep(Duration::from_secs_f64(seconds.clamp(0.0, 10.0))).await;
            (200, "{}".into())
        }
        ("headers" | "get" | "post" | "ip" | "anything" | "", _) => {
            let fields = request.fields.iter().map(|(name, value)| (name.clone(), json!([value])));
            let fields: serde_json::Map<_, _> = fields.collect();
            (200, json!({"headers": fields, "data": String::from_utf8_lossy(&request.body)}).to_string())
        }
        _ => (404, String::new()),
    }
}
