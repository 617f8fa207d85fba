//! Certificates that the mesh orders: issued, renewed, by whoever leads, proved by whichever gateway is asked.

#![expect(clippy::disallowed_methods, unreachable_pub, reason = "tests of processes live in real time")]
#![allow(dead_code, reason = "each test file uses its own part")]

#[path = "support/acme.rs"]
mod acme;
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use acme::{Acme, Places};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use support::{BOUND, Node, file, free_port, here, until};

/// A node that serves a gateway, and where: plain HTTP, TLS.
fn gateway(name: &str, line: &str) -> (Node, (SocketAddr, SocketAddr)) {
    let (mut node, plain, secure) = (Node::new(name), free_port(), free_port());
    let ports = [format!("80={plain}"), format!("443={secure}")];
    node.up(&["--join", line, "--gateway", "ingress", "--gateway-port", &ports[0], "--gateway-port", &ports[1]]);
    (node, ((here(), plain).into(), (here(), secure).into()))
}

fn documents(server: &Acme, names: &str) -> String {
    format!(
        "
apiVersion: cert-manager.io/v1
kind: ClusterIssuer
metadata: {{name: ca}}
spec:
  acme:
    server: {url}
    email: ops@example.com
    caBundle: {bundle}
    privateKeySecretRef: {{name: account}}
    solvers:
    - http01: {{ingress: {{class: istio}}}}
    - {{selector: {{dnsNames: [www.example.com]}}, tlsAlpn01: {{}}}}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {{name: shop}}
spec:
  secretName: shop
  dnsNames: [{names}]
  issuerRef: {{name: ca, kind: ClusterIssuer}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: shop}}
spec:
  selector: {{app: ingress}}
  servers:
  - port: {{number: 80, name: http, protocol: HTTP}}
    hosts: ['*.example.com']
    tls: {{httpsRedirect: true}}
  - port: {{number: 443, name: https, protocol: HTTPS}}
    hosts: ['*.example.com']
    tls: {{mode: SIMPLE, credentialName: shop}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: shop}}
spec:
  hosts: ['*.example.com']
  gateways: [shop]
  http:
  - directResponse: {{status: 200, body: {{string: hello}}}}
",
        url = server.url,
        bundle = server.bundle(),
    )
}

/// Calls a gateway by a name that its certificate must be for; answers that certificate.
fn call(place: SocketAddr, name: &str, authority: &str) -> Result<Vec<u8>, String> {
    let mut roots = RootCertStore::empty();
    let all = CertificateDer::pem_slice_iter(authority.as_bytes());
    all.flatten().for_each(|one| roots.add(one).expect("an authority"));
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().expect("versions");
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    let server = ServerName::try_from(name.to_owned()).expect("a name");
    let connection = ClientConnection::new(config, server).map_err(|error| error.to_string())?;
    let stream = TcpStream::connect_timeout(&place, BOUND).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(BOUND)).map_err(|error| error.to_string())?;
    let mut stream = StreamOwned::new(connection, stream);
    let request = format!("GET / HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
    match answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello") {
        true => Ok(stream.conn.peer_certificates().expect("shown")[0].to_vec()),
        false => Err(answer),
    }
}

#[test]
fn certificates_are_ordered_renewed_and_proved_by_any_gateway() {
    let mut a = Node::new("a");
    a.up(&["--init"]);
    let line = a.json(&["token", "create", "--uses", "2"])["line"].as_str().expect("a line").to_owned();
    let (b, at_b) = gateway("b", &line);
    let (c, at_c) = gateway("c", &line);
    let places = [("shop.example.com", at_b), ("www.example.com", at_c), ("new.example.com", at_c)];
    let places: Places = places.map(|(name, at)| (name.to_owned(), at)).into();
    let server = Acme::start(places, Duration::from_secs(15));
    until("three voters", || a.json(&["status"])["voters"].as_array().is_some_and(|voters| voters.len() == 3));
    let documents_of = |names: &str| file(&b.data_dir(), "documents.yaml", &documents(&server, names));
    let first = documents_of("shop.example.com, www.example.com");
    a.ok(&["apply", "-f", &first, "--wait"]);
    let call = |place, name| call(place, name, &server.authority);
    until("a certificate on every gateway", || {
        call(at_b.1, "shop.example.com").is_ok() && call(at_c.1, "www.example.com").is_ok()
    });
    let shown = call(at_b.1, "www.example.com").expect("a call");

    // At two thirds of its life, and nobody sees that.
    until("a renewed certificate", || call(at_b.1, "shop.example.com").expect("no call fails") != shown);
    assert_eq!(server.accounts(), 1);

    // What fails is said on every node, and tried again when it is said anew.
    let lacking = documents_of("shop.example.com, nowhere.example.com");
    a.ok(&["apply", "-f", &lacking, "--wait"]);
    until("a failure that is told of", || {
        let problems = c.json(&["status"])["problems"].to_string();
        problems.contains("Certificate default/shop") && problems.contains("no address of nowhere.example.com")
    });
    assert!(c.ok(&["get", "certificate", "shop", "-o", "yaml"]).contains("Failed"));

    // Whoever leads next orders, from the same account.
    let leader = b.json(&["status"])["leader"].as_str().expect("a leader").to_owned();
    assert_eq!(leader, "a", "the first one leads while nothing happens to it");
    a.kill();
    let last = documents_of("shop.example.com, new.example.com");
    until("a decision of those that are left", || b.weft(&["apply", "-f", &last]).status.success());
    until("a certificate for the new name", || call(at_b.1, "new.example.com").is_ok());
    assert_eq!(server.accounts(), 1);
    assert!(server.signed() >= 3);
    let status = c.ok(&["status"]);
    assert!(!status.contains("Certificate default/shop"), "{status}");
    let orders = c.ok(&["get", "orders"]);
    assert!(!orders.contains("default"), "{orders}");
}
