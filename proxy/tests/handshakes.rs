//! Who gets past a handshake on the mesh port, over TCP and over QUIC; and whom a caller's node accepts.

mod support {
    pub(crate) mod mesh;
}

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_proto::service::Protocol;
use weft_proxy::plane::Transport;
use weft_proxy::tls::{Clients, provider};

use support::mesh::{Authority, Leaf, Mesh, Setup, identity, soon};

/// Believes everybody: what is tested is the other end.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Shows this certificate, or none.
#[derive(Debug)]
struct Shows(Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

fn client(shows: Option<Arc<CertifiedKey>>, alpn: &[u8]) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_cert_resolver(Arc::new(Shows(shows)));
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

/// Whether the mesh port lets this client in over TCP: an HTTP/2 server then speaks.
async fn enters_over_tcp(address: SocketAddr, config: ClientConfig, name: &str) -> bool {
    let stream = TcpStream::connect(address).await.expect("connects");
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let Ok(mut stream) = TlsConnector::from(Arc::new(config)).connect(name, stream).await else { return false };
    matches!(soon("bytes or an end", stream.read(&mut [0; 1])).await, Ok(1))
}

/// The same over QUIC: a stream with a request is answered.
async fn enters_over_quic(address: SocketAddr, config: ClientConfig, name: &str) -> bool {
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("valid")).expect("a socket");
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).expect("TLS 1.3")));
    let connecting = endpoint.connect_with(config, address, name).expect("valid");
    let Ok(connection) = soon("a handshake", connecting).await else { return false };
    let Ok((mut send, mut receive)) = connection.open_bi().await else { return false };
    // A HEADERS frame that holds no request: only a member is told.
    let _ = send.write_all(&[1, 1, 0xff]).await;
    let answer = soon("a reset or an end", receive.read(&mut [0; 8])).await;
    matches!(answer, Err(quinn::ReadError::Reset(_)))
}

#[tokio::test]
async fn only_valid_certificates_of_the_mesh_enter() {
    let setup = Setup::over(Transport::Auto);
    let mesh = Mesh::start(&setup, &[(8080, Protocol::Http, support::mesh::free())]).await;
    let foreign = Authority::new();
    let front = identity("front");
    let good = Leaf::of(&front);
    let uri = |text: &str| Leaf { uris: vec![text.to_owned()], ..Leaf::of(&front) };
    let with = |change: fn(&mut Leaf)| {
        let mut leaf = Leaf::of(&front);
        change(&mut leaf);
        leaf
    };
    let (web, port) = ("web.default.mesh", "8080.web.default.mesh");
    let cases = [
        ("a service of the mesh", Some(mesh.authority.sign(&good)), web, true),
        ("a service, to a port", Some(mesh.authority.sign(&good)), port, true),
        ("a node of the mesh", Some(mesh.authority.sign(&uri("spiffe://mesh.test/node/a"))), web, true),
        ("nobody", None, web, false),
        ("another authority", Some(foreign.sign(&good)), web, false),
        ("expired", Some(mesh.authority.sign(&with(|leaf| leaf.to = -60))), web, false),
        ("not yet valid", Some(mesh.authority.sign(&with(|leaf| leaf.from = 600))), web, false),
        (
            "another trust domain",
            Some(mesh.authority.sign(&uri("spiffe://other.test/ns/default/sa/front"))),
            web,
            false,
        ),
        (
            "two identities",
            Some(mesh.authority.sign(&with(|leaf| leaf.uris.push("spiffe://mesh.test/ns/default/sa/db".into())))),
            web,
            false,
        ),
        ("no identity", Some(mesh.authority.sign(&with(|leaf| leaf.uris.clear()))), web, false),
        (
            "a DNS name instead",
            Some(mesh.authority.sign(&with(|leaf| {
                leaf.uris.clear();
                leaf.dns.push("front.default.mesh".into());
            }))),
            web,
            false,
        ),
        ("an authority as a leaf", Some(mesh.authority.sign(&with(|leaf| leaf.is_ca = true))), web, false),
        ("https instead", Some(mesh.authority.sign(&uri("https://mesh.test/ns/default/sa/front"))), web, false),
        ("with a port", Some(mesh.authority.sign(&uri("spiffe://mesh.test:1/ns/default/sa/front"))), web, false),
        ("with a query", Some(mesh.authority.sign(&uri("spiffe://mesh.test/ns/default/sa/front?a"))), web, false),
        ("with dots", Some(mesh.authority.sign(&uri("spiffe://mesh.test/ns/default/../sa/front"))), web, false),
        ("an empty segment", Some(mesh.authority.sign(&uri("spiffe://mesh.test/ns//sa/front"))), web, false),
        ("no path", Some(mesh.authority.sign(&uri("spiffe://mesh.test"))), web, false),
        ("to a service that is not there", Some(mesh.authority.sign(&good)), "db.default.mesh", false),
        ("to a name that is none", Some(mesh.authority.sign(&good)), "example.com", false),
        ("to a port that is none", Some(mesh.authority.sign(&good)), "0.web.default.mesh", false),
    ];
    for (who, certificate, name, expected) in cases {
        let over_tcp = enters_over_tcp(mesh.mesh_port, client(certificate.clone(), b"h2"), name).await;
        assert_eq!(over_tcp, expected, "{who}, over TCP");
        let over_quic = enters_over_quic(mesh.mesh_port, client(certificate, b"weft-exchange/1"), name).await;
        assert_eq!(over_quic, expected, "{who}, over QUIC");
    }
}

#[tokio::test]
async fn older_protocols_do_not_enter() {
    let setup = Setup::over(Transport::Auto);
    let mesh = Mesh::start(&setup, &[(8080, Protocol::Http, support::mesh::free())]).await;
    let certificate = mesh.authority.sign(&Leaf::of(&identity("front")));
    assert!(enters_over_tcp(mesh.mesh_port, client(Some(certificate.clone()), b"h2"), "web.default.mesh").await);
    assert!(!enters_over_tcp(mesh.mesh_port, client(Some(certificate.clone()), b"spdy/3"), "web.default.mesh").await);
    assert!(!enters_over_quic(mesh.mesh_port, client(Some(certificate), b"h3"), "web.default.mesh").await);
    let mut plain = TcpStream::connect(mesh.mesh_port).await.expect("connects");
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET / HTTP/1.1\r\nHost: web.mesh\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    let _ = soon("an end", plain.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"), "plain HTTP is not served: {}", answer.escape_ascii());
}

#[tokio::test]
async fn a_session_is_never_resumed() {
    let setup = Setup::over(Transport::Tcp);
    let mesh = Mesh::start(&setup, &[(8080, Protocol::Http, support::mesh::free())]).await;
    let config = Arc::new(client(Some(mesh.authority.sign(&Leaf::of(&identity("front")))), b"h2"));
    for _ in 0..2 {
        let stream = TcpStream::connect(mesh.mesh_port).await.expect("connects");
        let name = ServerName::try_from("web.default.mesh").expect("a name");
        let mut stream = TlsConnector::from(config.clone()).connect(name, stream).await.expect("enters");
        soon("bytes", stream.read(&mut [0; 1])).await.expect("served");
        let kind = stream.get_ref().1.handshake_kind();
        assert_eq!(kind, Some(rustls::HandshakeKind::Full));
        assert_eq!(stream.get_ref().1.tls13_tickets_received(), 0);
    }
}

/// A caller's node connects only to whom it means to call.
#[tokio::test]
async fn a_callee_must_be_who_was_called() {
    let authority = Authority::new();
    let foreign = Authority::new();
    let caller = authority.identities("a", &["front"]);
    let config = caller.client_config(&identity("front"), &identity("web"), &[b"h2"]).expect("held");
    let web = Leaf::of(&identity("web"));
    let cases = [
        ("the service", authority.sign(&web), true),
        ("another service", authority.sign(&Leaf::of(&identity("db"))), false),
        (
            "a node",
            authority.sign(&Leaf { uris: vec!["spiffe://mesh.test/node/b".into()], ..Leaf::of(&identity("web")) }),
            false,
        ),
        ("another authority", foreign.sign(&web), false),
        ("expired", authority.sign(&Leaf { to: -60, ..Leaf::of(&identity("web")) }), false),
        ("an authority", authority.sign(&Leaf { is_ca: true, ..Leaf::of(&identity("web")) }), false),
    ];
    for (who, certificate, expected) in cases {
        let callee = authority.identities("b", &[]);
        let mut set = (*callee.current()).clone();
        set.certificates.insert(identity("web"), certificate);
        callee.swap(set);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let acceptor = TlsAcceptor::from(callee.server_config(&[b"h2"], Clients::Required));
        let serving = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            acceptor.accept(stream).await.map(drop)
        });
        let stream = TcpStream::connect(address).await.expect("connects");
        let name = ServerName::try_from("web.default.mesh").expect("a name");
        let connected = TlsConnector::from(config.clone()).connect(name, stream).await;
        assert_eq!(connected.is_ok(), expected, "{who}");
        drop(connected);
        let _ = soon("the server ends", serving).await;
    }
}
