//! A small ACME server (RFC 8555): it checks signatures, nonces and URLs, looks at what proves names (HTTP-01 and TLS-ALPN-01, RFC 8737)
//! at addresses that it is given, and signs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{BOUND, here};

/// Where a name's gateway answers: plain HTTP, TLS.
pub type Places = BTreeMap<String, (SocketAddr, SocketAddr)>;

/// The server.
pub struct Acme {
    /// Its directory.
    pub url: String,
    /// Its own authority and that of what it signs, PEM.
    pub authority: String,
    shared: Arc<Shared>,
}

struct Shared {
    url: String,
    places: Places,
    /// How long what it signs lives.
    life: Duration,
    issuer: Issuer<'static, KeyPair>,
    root: String,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    nonces: BTreeSet<String>,
    counter: usize,
    /// Public keys, and their thumbprints.
    accounts: Vec<(Vec<u8>, String)>,
    orders: Vec<Order>,
    proofs: Vec<Proof>,
}

struct Order {
    names: Vec<String>,
    proofs: Vec<usize>,
    chain: Option<String>,
}

struct Proof {
    name: String,
    token: String,
    thumb: String,
    done: Option<Result<(), String>>,
}

impl Acme {
    /// Starts one that finds names at these places.
    pub fn start(places: Places, life: Duration) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).expect("a root").pem();
        let issuer = Issuer::new(params, key);
        let own = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new(vec![here().to_string()]).expect("a name");
        let leaf = leaf.signed_by(&own, &issuer).expect("signed").der().clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_no_client_auth();
        let key = PrivatePkcs8KeyDer::from(own.serialize_der()).into();
        let config = Arc::new(config.with_single_cert(vec![leaf], key).expect("a certificate"));
        let listener = TcpListener::bind((here(), 0)).expect("a free port");
        let url = format!("https://{}", listener.local_addr().expect("bound"));
        let known = Mutex::default();
        let shared = Arc::new(Shared { url: url.clone(), places, life, issuer, root: root.clone(), known });
        let serving = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, shared) = (config.clone(), serving.clone());
                thread::spawn(move || shared.serve(config, stream));
            }
        });
        Self { url: format!("{url}/directory"), authority: root, shared }
    }

    /// How many accounts there are.
    pub fn accounts(&self) -> usize {
        self.shared.known.lock().expect("held").accounts.len()
    }

    /// How many certificates have been signed.
    pub fn signed(&self) -> usize {
        self.shared.known.lock().expect("held").orders.iter().filter(|order| order.chain.is_some()).count()
    }

    /// The authorities as documents have them.
    pub fn bundle(&self) -> String {
        STANDARD.encode(&self.authority)
    }
}

/// Status, where something new stands, and what is answered.
type Answer = (u16, Option<String>, Value);

impl Shared {
    fn serve(&self, config: Arc<ServerConfig>, stream: TcpStream) {
        let _ = stream.set_read_timeout(Some(BOUND));
        let connection = ServerConnection::new(config).expect("a configuration");
        let mut reader = BufReader::new(StreamOwned::new(connection, stream));
        let (mut line, mut length) = (String::new(), 0);
        let _ = reader.read_line(&mut line);
        let mut words = line.split_whitespace().map(str::to_owned);
        let (Some(method), Some(path)) = (words.next(), words.next()) else { return };
        loop {
            let mut field = String::new();
            let _ = reader.read_line(&mut field);
            let Some((name, value)) = field.trim_end().split_once(": ") else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let (status, location, value) = self.answer(&method, &path, &body);
        let (kind, text) = match value {
            Value::String(chain) => ("application/pem-certificate-chain", chain),
            other if status >= 400 => ("application/problem+json", other.to_string()),
            other => ("application/json", other.to_string()),
        };
        let place = location.map(|path| format!("location: {}{path}\r\n", self.url)).unwrap_or_default();
        let head = format!(
            "HTTP/1.1 {status} x\r\nreplay-nonce: {}\r\n{place}content-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            self.nonce(),
            text.len()
        );
        let stream = reader.get_mut();
        let text = if method == "HEAD" { String::new() } else { text };
        let _ = stream.write_all(format!("{head}{text}").as_bytes());
        stream.conn.send_close_notify();
        let _ = stream.flush();
    }

    fn nonce(&self) -> String {
        let mut known = self.known.lock().expect("held");
        known.counter += 1;
        let nonce = format!("nonce-{}", known.counter);
        known.nonces.insert(nonce.clone());
        nonce
    }

    fn answer(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match (method, &parts[..]) {
            ("GET", ["directory"]) => {
                let at = |name: &str| format!("{}/{name}", self.url);
                (200, None, json!({ "newNonce": at("nonce"), "newAccount": at("account"), "newOrder": at("order") }))
            }
            ("HEAD" | "GET", ["nonce"]) => (200, None, Value::Null),
            ("POST", parts) => match self.signed(path, body) {
                Ok((account, payload)) => self.post(parts, &account, &payload),
                Err(why) => problem(why),
            },
            _ => problem("malformed"),
        }
    }

    /// Checks a request (RFC 8555, 6.2 to 6.5); answers the account's key with its thumbprint, and the payload.
    fn signed(&self, path: &str, body: &[u8]) -> Result<((Vec<u8>, String), Value), &'static str> {
        let body: Value = serde_json::from_slice(body).map_err(|_| "malformed")?;
        let part = |name: &str| body[name].as_str().ok_or("malformed");
        let (protected, payload) = (part("protected")?, part("payload")?);
        let raw = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| "malformed");
        let head: Value = serde_json::from_slice(&raw(protected)?).map_err(|_| "malformed")?;
        if head["alg"] != "ES256" || head["url"] != format!("{}{path}", self.url) {
            return Err("unauthorized");
        }
        let mut known = self.known.lock().expect("held");
        // The first one that is shown is not taken, as when it is too old.
        let fresh = head["nonce"].as_str().is_some_and(|nonce| known.nonces.remove(nonce) && nonce != "nonce-1");
        if !fresh {
            return Err("badNonce");
        }
        let account = match head["jwk"].as_object() {
            Some(jwk) => {
                let part = |name: &str| jwk[name].as_str().unwrap_or_default();
                let key = [vec![4], raw(part("x"))?, raw(part("y"))?].concat();
                let text = format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#, part("x"), part("y"));
                (key, URL_SAFE_NO_PAD.encode(digest(&SHA256, text.as_bytes())))
            }
            None => {
                let kid = head["kid"].as_str().and_then(|kid| kid.strip_prefix(&format!("{}/account/", self.url)));
                let at = kid.and_then(|at| at.parse::<usize>().ok()).ok_or("accountDoesNotExist")?;
                known.accounts.get(at).cloned().ok_or("accountDoesNotExist")?
            }
        };
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &account.0);
        let text = format!("{protected}.{payload}");
        key.verify(text.as_bytes(), &raw(part("signature")?)?).map_err(|_| "unauthorized")?;
        let payload = raw(payload)?;
        let payload =
            if payload.is_empty() { Value::Null } else { serde_json::from_slice(&payload).unwrap_or_default() };
        Ok((account, payload))
    }

    fn post(&self, parts: &[&str], account: &(Vec<u8>, String), payload: &Value) -> Answer {
        let mut known = self.known.lock().expect("held");
        let number = |text: &str| text.parse::<usize>().unwrap_or(usize::MAX);
        match parts {
            ["account"] => {
                let before = known.accounts.iter().position(|one| one.0 == account.0);
                if before.is_none() {
                    known.accounts.push(account.clone());
                }
                let at = before.unwrap_or(known.accounts.len() - 1);
                (if before.is_some() { 200 } else { 201 }, Some(format!("/account/{at}")), json!({ "status": "valid" }))
            }
            ["order"] => {
                let names = payload["identifiers"].as_array().into_iter().flatten();
                let names: Vec<String> = names.filter_map(|one| Some(one["value"].as_str()?.to_owned())).collect();
                let mut proofs = Vec::new();
                for name in &names {
                    let token = format!("token-{}", known.proofs.len());
                    proofs.push(known.proofs.len());
                    known.proofs.push(Proof { name: name.clone(), token, thumb: account.1.clone(), done: None });
                }
                known.orders.push(Order { names, proofs, chain: None });
                let at = known.orders.len() - 1;
                (201, Some(format!("/order/{at}")), self.order(&known, at))
            }
            ["order", at] => (200, None, self.order(&known, number(at))),
            ["authorization", at] => (200, None, self.authorization(&known.proofs[number(at)], number(at))),
            ["challenge", at, how] => {
                let at = number(at);
                let (name, key) = (known.proofs[at].name.clone(), key_of(&known.proofs[at]));
                let token = known.proofs[at].token.clone();
                drop(known);
                let done = match (self.places.get(&name), *how) {
                    (None, _) => Err(format!("no address of {name} is known")),
                    (Some((place, _)), "http") => by_http(*place, &name, &token, &key),
                    (Some((_, place)), _) => by_tls(*place, &name, &key),
                };
                let mut known = self.known.lock().expect("held");
                known.proofs[at].done = Some(done);
                (200, None, challenge(&self.url, &known.proofs[at], at, how))
            }
            ["finalize", at] => {
                let at = number(at);
                if self.order(&known, at)["status"] != "ready" {
                    return problem("orderNotReady");
                }
                let request = URL_SAFE_NO_PAD.decode(payload["csr"].as_str().unwrap_or_default()).expect("base64url");
                let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request));
                let mut request = request.expect("a request");
                let wanted: BTreeSet<String> = request.params.subject_alt_names.iter().map(name_of).collect();
                if wanted != known.orders[at].names.iter().cloned().collect() {
                    return problem("badCSR");
                }
                let now = SystemTime::now();
                request.params.not_before = (now - Duration::from_secs(1)).into();
                request.params.not_after = (now + self.life).into();
                request.params.use_authority_key_identifier_extension = true;
                let leaf = request.signed_by(&self.issuer).expect("signed").pem();
                known.orders[at].chain = Some(format!("{leaf}{}", self.root));
                (200, None, self.order(&known, at))
            }
            ["certificate", at] => (200, None, Value::String(known.orders[number(at)].chain.clone().expect("signed"))),
            _ => problem("malformed"),
        }
    }

    fn order(&self, known: &Known, at: usize) -> Value {
        let order = &known.orders[at];
        let proofs = || order.proofs.iter().map(|at| &known.proofs[*at].done);
        let status = match &order.chain {
            Some(_) => "valid",
            None if proofs().any(|done| matches!(done, Some(Err(_)))) => "invalid",
            None if proofs().all(Option::is_some) => "ready",
            None => "pending",
        };
        let url = |name: &str, at: usize| format!("{}/{name}/{at}", self.url);
        let mut said = json!({
            "status": status, "finalize": url("finalize", at),
            "identifiers": order.names.iter().map(|name| json!({ "type": "dns", "value": name })).collect::<Vec<_>>(),
            "authorizations": order.proofs.iter().map(|at| url("authorization", *at)).collect::<Vec<_>>(),
        });
        if order.chain.is_some() {
            said["certificate"] = json!(url("certificate", at));
        }
        said
    }

    fn authorization(&self, proof: &Proof, at: usize) -> Value {
        let status = match &proof.done {
            None => "pending",
            Some(Ok(())) => "valid",
            Some(Err(_)) => "invalid",
        };
        let challenges = ["http", "tls"].map(|how| challenge(&self.url, proof, at, how));
        json!({ "status": status, "identifier": { "type": "dns", "value": proof.name }, "challenges": challenges })
    }
}

fn challenge(url: &str, proof: &Proof, at: usize, how: &str) -> Value {
    let kind = if how == "http" { "http-01" } else { "tls-alpn-01" };
    let mut said = json!({ "type": kind, "url": format!("{url}/challenge/{at}/{how}"), "token": proof.token });
    said["status"] = match &proof.done {
        None => json!("pending"),
        Some(Ok(())) => json!("valid"),
        Some(Err(why)) => {
            said["error"] = json!({ "type": "urn:ietf:params:acme:error:connection", "detail": why, "status": 403 });
            json!("invalid")
        }
    };
    said
}

fn problem(kind: &str) -> Answer {
    let status = 400;
    (status, None, json!({ "type": format!("urn:ietf:params:acme:error:{kind}"), "detail": kind, "status": status }))
}

/// The key authorization (RFC 8555, 8.1).
fn key_of(proof: &Proof) -> String {
    format!("{}.{}", proof.token, proof.thumb)
}

fn name_of(name: &rcgen::SanType) -> String {
    match name {
        rcgen::SanType::DnsName(name) => name.as_str().to_owned(),
        other => format!("{other:?}"),
    }
}

/// RFC 8555, 8.3.
fn by_http(place: SocketAddr, name: &str, token: &str, key: &str) -> Result<(), String> {
    let mut stream = TcpStream::connect_timeout(&place, BOUND).map_err(|error| format!("{place}: {error}"))?;
    let _ = stream.set_read_timeout(Some(BOUND));
    let path = format!("/.well-known/acme-challenge/{token}");
    let text = format!("GET {path} HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
    let good = answer.starts_with("HTTP/1.1 200") && answer.ends_with(&format!("\r\n\r\n{key}"));
    if good { Ok(()) } else { Err(format!("{path}: {answer:?}")) }
}

/// RFC 8737, 3.
fn by_tls(place: SocketAddr, name: &str, key: &str) -> Result<(), String> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().expect("versions").dangerous();
    let mut config = config.with_custom_certificate_verifier(Arc::new(Anyone)).with_no_client_auth();
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let server = ServerName::try_from(name.to_owned()).expect("a name");
    let connection = ClientConnection::new(Arc::new(config), server).map_err(|error| error.to_string())?;
    let stream = TcpStream::connect_timeout(&place, BOUND).map_err(|error| format!("{place}: {error}"))?;
    let _ = stream.set_read_timeout(Some(BOUND));
    let mut stream = StreamOwned::new(connection, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).map_err(|error| format!("handshake: {error}"))?;
    }
    if stream.conn.alpn_protocol() != Some(b"acme-tls/1") {
        return Err("acme-tls/1 is not spoken".into());
    }
    let leaf = stream.conn.peer_certificates().and_then(|chain| chain.first()).ok_or("there is no certificate")?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
    let own = leaf.subject_alternative_name().ok().flatten().ok_or("it has no name")?;
    let names: Vec<String> = own.value.general_names.iter().map(ToString::to_string).collect();
    let said = leaf.extensions().iter().find(|one| one.oid.to_id_string() == "1.3.6.1.5.5.7.1.31");
    let said = said.ok_or("it has no acmeIdentifier")?;
    let expected = [&[4, 32], digest(&SHA256, key.as_bytes()).as_ref()].concat();
    match names.len() == 1 && names[0].contains(name) && said.critical && said.value == expected {
        true => Ok(()),
        false => Err(format!("it is for {names:?} and says {:?}", said.value)),
    }
}

/// Takes every certificate: it is looked at afterwards.
#[derive(Debug)]
struct Anyone;

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
