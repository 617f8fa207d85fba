//! Rules for calls, through both nodes and to applications: where a call goes, what it is by then, and what comes back.

mod support {
    pub(crate) mod mesh;
}

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use weft_proto::service::Protocol;
use weft_proxy::explain::Spoken;
use weft_proxy::plane::Transport;

use support::mesh::{Mesh, Setup, TestInstance, identity, localhost, service, soon};

const HTTP: u16 = 8080;
const STREAM: Spoken<'_> = Spoken::Stream { server_name: None };

/// Two versions of `web` on the other node, each of which tells what it was asked.
struct Stage {
    mesh: Mesh,
    setup: Setup,
    asked: Arc<AtomicUsize>,
}

impl Stage {
    async fn over(transport: Transport) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let (v1, v2) = (application("v1", &asked).await, application("v2", &asked).await);
        let setup = Setup::over(transport);
        let mut mesh = Mesh::start(&setup, &[(HTTP, Protocol::Http, v1)]).await;
        mesh.instances = vec![
            TestInstance { name: "default", labels: &[("version", "v1")], node: "b", target: Some(v1) },
            TestInstance { name: "v2", labels: &[("version", "v2")], node: "b", target: Some(v2) },
        ];
        mesh.enforce("", &setup);
        Self { mesh, setup, asked }
    }

    /// Puts these rules in force, for subsets by version.
    fn rules(&mut self, rules: &str) {
        let document = format!("{SUBSETS}---\n{ROUTES}{}", rules.replace('\n', "\n  "));
        self.mesh.enforce(&document, &self.setup);
    }

    async fn call(&self, path: &str, fields: &[(&str, &str)]) -> (StatusCode, HeaderMap, String) {
        self.send(Request::get(path), fields, "").await
    }

    async fn send(
        &self,
        mut request: http::request::Builder,
        fields: &[(&str, &str)],
        body: &'static str,
    ) -> (StatusCode, HeaderMap, String) {
        let address = self.mesh.ways_in[&HTTP];
        soon("an answer", async {
            let stream = TcpStream::connect(address).await.expect("connects");
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
            tokio::spawn(connection);
            request = request.header("host", "web.mesh");
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let request = request.body(Full::new(Bytes::from_static(body.as_bytes()))).expect("valid");
            let response = sender.send_request(request).await.expect("an answer");
            let (head, body) = response.into_parts();
            let body = body.collect().await.expect("a body").to_bytes();
            (head.status, head.headers, String::from_utf8_lossy(&body).into_owned())
        })
        .await
    }
}

const SUBSETS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec:
  host: web
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
";
const ROUTES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  ";

/// An application that tells its name, the target, the host, the fields that begin with `x-m` and the body. It never
/// answers `/slow`; of `/flaky` it answers the first two that both are asked with 503, and of `/cut` it breaks them off.
async fn application(name: &'static str, asked: &Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind(localhost(0)).await.expect("an address");
    let (address, asked) = (listener.local_addr().expect("it has one"), asked.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let asked = asked.clone();
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let count = asked.fetch_add(1, Ordering::Relaxed);
                answer(name, count, request)
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

async fn answer(
    name: &'static str,
    count: usize,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    let mut status = StatusCode::OK;
    match head.uri.path() {
        "/slow" => std::future::pending::<()>().await,
        "/flaky" if count < 2 => status = StatusCode::SERVICE_UNAVAILABLE,
        "/cut" if count < 2 => return Err(std::io::ErrorKind::ConnectionReset.into()),
        _ => {}
    }
    let fields = head.headers.iter().filter(|(name, _)| name.as_str().starts_with("x-m"));
    let fields: Vec<String> = fields.map(|(name, value)| format!("{name}={}", value.to_str().unwrap_or("?"))).collect();
    let host = head.headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or("none");
    let told = format!("{name} {} {host} {}{}", head.uri, fields.join(" "), String::from_utf8_lossy(&body));
    Ok(Response::builder().status(status).body(Full::new(Bytes::from(told))).expect("valid"))
}

#[tokio::test]
async fn calls_go_by_weight_and_by_what_they_say() {
    for transport in [Transport::Tcp, Transport::Quic] {
        let mut stage = Stage::over(transport).await;
        stage.rules(
            "- match: [{headers: {end-user: {exact: jason}}}]
  route: [{destination: {host: web, subset: v2}}]
- route:
  - {destination: {host: web, subset: v1}, weight: 3}
  - {destination: {host: web, subset: v2}, weight: 1}
",
        );
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..200 {
            *seen.entry(stage.call("/", &[]).await.2[..2].to_owned()).or_default() += 1;
        }
        // 150 are expected, with a deviation of 6.
        assert!((120..=180).contains(&seen["v1"]) && seen["v1"] + seen["v2"] == 200, "{seen:?}");
        for _ in 0..20 {
            assert!(stage.call("/", &[("end-user", "jason")]).await.2.starts_with("v2"));
        }
        // All that is moved is moved at once.
        stage.rules("- route: [{destination: {host: web, subset: v2}}]\n");
        for _ in 0..20 {
            assert!(stage.call("/", &[]).await.2.starts_with("v2"));
        }
        let record = stage.mesh.a.record(|record| record.direction == "outbound").await;
        assert_eq!(record.rule.as_deref(), Some("default/web[1]"));
    }
}

#[tokio::test]
async fn requests_and_answers_are_changed() {
    let mut stage = Stage::over(Transport::Tcp).await;
    stage.rules(
        "- match: [{uri: {prefix: /old/}}]
  rewrite: {uri: /new/, authority: web.example}
  headers:
    request: {set: {x-me: rule}, remove: [x-mine]}
    response: {set: {x-answer: rule}, remove: [date]}
  route:
  - destination: {host: web, subset: v1}
    headers: {request: {add: {x-me: share}}}
- match: [{uri: {exact: /moved}}]
  redirect: {uri: /there, redirectCode: 308}
- match: [{uri: {exact: /empty}}]
  directResponse: {status: 204}
- directResponse: {status: 418, body: {string: no coffee}}
",
    );
    let (status, headers, body) = stage.call("/old/a?b=c", &[("x-mine", "1")]).await;
    assert_eq!((status.as_u16(), &*body), (200, "v1 /new/a?b=c web.example x-me=rule x-me=share"));
    assert_eq!(headers.get("x-answer").expect("set"), "rule");
    let (status, headers, _) = stage.call("/moved", &[]).await;
    assert_eq!((status.as_u16(), &headers["location"]), (308, &HeaderValue::from_static("http://web.mesh/there")));
    let asked = stage.asked.load(Ordering::Relaxed);
    let (status, headers, body) = stage.call("/empty", &[]).await;
    assert_eq!((status.as_u16(), &*body, headers.get("content-length")), (204, "", None));
    let (status, _, body) = stage.call("/else", &[]).await;
    assert_eq!((status.as_u16(), &*body), (418, "no coffee"));
    assert_eq!(stage.asked.load(Ordering::Relaxed), asked, "the application was not asked");
}

#[tokio::test]
async fn faults_are_made_and_time_is_bounded() {
    let mut stage = Stage::over(Transport::Tcp).await;
    stage.rules(
        "- match: [{uri: {exact: /abort}}]
  fault: {abort: {percentage: {value: 100}, httpStatus: 500}}
  route: [{destination: {host: web, subset: v1}}]
- match: [{uri: {exact: /delay}}]
  fault: {delay: {percentage: {value: 100}, fixedDelay: 700ms}}
  timeout: 0.5s
  route: [{destination: {host: web, subset: v1}}]
- timeout: 0.3s
  route: [{destination: {host: web, subset: v1}}]
",
    );
    let (status, _, body) = stage.call("/abort", &[]).await;
    assert_eq!((status.as_u16(), &*body, stage.asked.load(Ordering::Relaxed)), (500, "fault filter abort", 0));
    let began = Instant::now();
    let (status, ..) = stage.call("/delay", &[]).await;
    // The delay is none of the callee's: it does not count against the bound.
    assert_eq!(status.as_u16(), 200);
    assert!(began.elapsed() >= Duration::from_millis(700));
    assert_eq!(stage.call("/slow", &[]).await.0.as_u16(), 504);
}

#[tokio::test]
async fn a_delay_that_is_made_is_none_of_the_instance() {
    let mut stage = Stage::over(Transport::Tcp).await;
    stage.rules(
        "- fault: {delay: {percentage: {value: 100}, fixedDelay: 900ms}}
  route: [{destination: {host: web, subset: v1}}]
",
    );
    // The connection has to be made the first time, which is measured apart.
    for _ in 0..2 {
        assert_eq!(stage.call("/", &[]).await.0.as_u16(), 200);
    }
    let told = stage.mesh.a.plane.explain(&identity("front"), &service("web"), None, STREAM);
    let latency = told.expect("there is web").candidates.iter().find_map(|candidate| candidate.latency_us);
    assert!(latency.is_some_and(|latency| latency < 800_000), "{latency:?}");
}

#[tokio::test]
async fn a_rule_that_leads_back_keeps_no_former_table() {
    let mut stage = Stage::over(Transport::Tcp).await;
    stage.rules("- route: [{destination: {host: web}}]\n");
    let former = Arc::downgrade(stage.mesh.a.plane.table().service(&service("web")).expect("there is web"));
    assert_eq!(stage.call("/", &[]).await.0.as_u16(), 200);
    stage.rules("- timeout: 9s\n  route: [{destination: {host: web}}]\n");
    assert_eq!(stage.call("/", &[]).await.0.as_u16(), 200);
    soon("the end of the former form", async {
        while former.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_no_rule_matches_and_what_is_not_there_is_told() {
    let mut stage = Stage::over(Transport::Tcp).await;
    stage.rules(
        "- match: [{uri: {exact: /a}}]
  route: [{destination: {host: nobody}}]
- match: [{uri: {exact: /b}}]
  route: [{destination: {host: web, subset: v9}}]
",
    );
    for (path, status, reason) in [("/a", 503, "no-backend"), ("/b", 503, "no-backend"), ("/c", 404, "no-route")] {
        assert_eq!(stage.call(path, &[]).await.0.as_u16(), status, "{path}");
        let record = stage.mesh.a.record(|record| record.path == path).await;
        assert_eq!((record.code, record.reason), (status, reason));
    }
    assert_eq!(stage.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn tries_are_repeated_as_the_rule_says() {
    for transport in [Transport::Tcp, Transport::Quic] {
        // A rule that does not ask for it leaves the answer as it is.
        let mut stage = Stage::over(transport).await;
        stage.rules("- retries: {attempts: 3}\n  route: [{destination: {host: web}}]\n");
        assert_eq!(stage.call("/flaky", &[]).await.0.as_u16(), 503);
        assert_eq!(stage.asked.load(Ordering::Relaxed), 1);
        for (on, path, attempts, status) in [
            ("5xx", "/flaky", 3, 200),
            ("gateway-error", "/flaky", 2, 200),
            ("503", "/flaky", 1, 503),
            ("500", "/flaky", 3, 503),
            ("reset", "/cut", 3, 200),
            ("503", "/cut", 3, 502),
        ] {
            stage.asked.store(0, Ordering::Relaxed);
            stage.rules(&format!(
                "- retries: {{attempts: {attempts}, retryOn: \"{on}\", backoff: 1ms}}\n  route: [{{destination: {{host: web}}}}]\n"
            ));
            let (found, _, body) = stage.send(Request::post(path), &[], "a body").await;
            assert_eq!(found.as_u16(), status, "{on} {path}");
            assert!(status != 200 || body.ends_with("a body"), "{on} {path}: {body}");
        }
    }
}

#[tokio::test]
async fn calls_of_a_session_go_to_the_same_instance_over_weights() {
    for transport in [Transport::Tcp, Transport::Quic] {
        let mut stage = Stage::over(transport).await;
        let version = |name: &str| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web-{name}}}\n\
                 spec: {{selector: {{app: web, version: {name}}}, ports: [{{port: {HTTP}}}]}}\n"
            )
        };
        let route = |path: &str, session: &str| {
            let to = |name: &str| format!("{{name: web-{name}, port: {HTTP}}}");
            let (one, two) = (to("v1"), to("v2"));
            format!(
                "- {{matches: [{{path: {{value: {path}}}}}], backendRefs: [{one}, {two}], sessionPersistence: {{{session}}}}}"
            )
        };
        let document = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web}}\n\
             spec:\n  parentRefs: [{{kind: Service, name: web}}]\n  rules:\n  {}\n  {}\n{}{}",
            route("/cookie", "sessionName: shop, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}"),
            route("/field", "type: Header, sessionName: x-session"),
            version("v1"),
            version("v2"),
        );
        stage.mesh.enforce(&document, &stage.setup);
        for (path, given, carried) in [("/cookie", "set-cookie", "cookie"), ("/field", "x-session", "x-session")] {
            let mut seen: BTreeMap<String, usize> = BTreeMap::new();
            for _ in 0..8 {
                let (_, headers, first) = stage.call(path, &[]).await;
                let told = headers[given].to_str().expect("text");
                assert!(path == "/field" || told.ends_with("; Path=/; Max-Age=3600; HttpOnly"), "{told}");
                let token = told.split(';').next().expect("a value");
                for _ in 0..6 {
                    let (_, headers, body) = stage.call(path, &[(carried, token)]).await;
                    assert_eq!(body[..2], first[..2], "{path} {token}");
                    assert!(!headers.contains_key(given), "it has it already");
                }
                *seen.entry(first[..2].to_owned()).or_default() += 1;
            }
            assert_eq!(seen.len(), 2, "new sessions go anywhere: {seen:?}");
            // What is not of this mesh is a session that is over: another one begins.
            let (_, headers, _) = stage.call(path, &[(carried, "shop=0000000000000000-0-0")]).await;
            assert!(headers.contains_key(given));
        }
    }
}

#[tokio::test]
async fn streams_go_by_weight() {
    for transport in [Transport::Tcp, Transport::Quic] {
        let (mut mesh, setup) = greeters(transport).await;
        let enforce = |mesh: &mut Mesh, rules: &str| mesh.enforce(&format!("{SUBSETS}---\n{rules}"), &setup);
        let istio = |rules: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web}}\n\
                 spec: {{hosts: [web], tcp: {rules}}}\n"
            )
        };
        enforce(
            &mut mesh,
            &istio(
                "[{match: [{port: 9}], route: [{destination: {host: nobody}}]}, {route: [\
                 {destination: {host: web, subset: v1}, weight: 80}, {destination: {host: web, subset: v2}, weight: 20}]}]",
            ),
        );
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..100 {
            *seen.entry(greeted(mesh.ways_in[&HTTP]).await).or_default() += 1;
        }
        // 80 are expected, with a deviation of 4.
        assert!((64..=96).contains(&seen["one"]) && seen["one"] + seen["two"] == 100, "{seen:?}");
        let record = mesh.a.record(|record| record.rule.is_some()).await;
        assert_eq!((record.rule.as_deref(), record.protocol), (Some("default/web[1]"), "tcp"));
        let told = mesh.a.plane.explain(&identity("front"), &service("web"), None, STREAM);
        assert_eq!(told.expect("there is web").rule.as_deref(), Some("default/web[1]"));
        // What leads nowhere is closed.
        enforce(&mut mesh, &istio("[{route: [{destination: {host: web, subset: v9}}]}]"));
        assert_eq!(greeted(mesh.ways_in[&HTTP]).await, "");
        let record = mesh.a.record(|record| record.reason == "no-backend").await;
        assert_eq!(record.port, HTTP);
        // In the words of the Gateway API, which go before those of Istio.
        let second = "---\napiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {name: web}\n\
            spec: {parentRefs: [{kind: Service, name: web}], rules: [{backendRefs: [{name: web-v2}]}]}\n---\n\
            apiVersion: v1\nkind: Service\nmetadata: {name: web-v2}\n\
            spec: {selector: {app: web, version: v2}, ports: [{port: 80}]}\n";
        enforce(&mut mesh, &(istio("[{route: [{destination: {host: web, subset: v1}}]}]") + second));
        assert_eq!(greeted(mesh.ways_in[&HTTP]).await, "two");
    }
}

#[tokio::test]
async fn streams_of_tls_go_by_the_name_that_they_ask_for() {
    for transport in [Transport::Tcp, Transport::Quic] {
        let (mut mesh, setup) = greeters(transport).await;
        let rules = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\n\
            spec:\n  hosts: [web, web.default.svc.cluster.local]\n  tls:\n\
            \x20 - match: [{sniHosts: [web.default.svc.cluster.local]}]\n    route: [{destination: {host: web, subset: v2}}]\n\
            \x20 tcp: [{route: [{destination: {host: web, subset: v1}}]}]\n";
        mesh.enforce(&format!("{SUBSETS}---\n{rules}"), &setup);
        let address = mesh.ways_in[&HTTP];
        assert_eq!(greeted_after(address, &hello("web.default.svc.cluster.local")).await, "two");
        assert_eq!(greeted_after(address, &hello("other.example")).await, "one");
        assert_eq!(greeted_after(address, b"\x16 is no TLS").await, "one");
        assert_eq!(greeted(address).await, "one", "who says nothing asks for nothing");
        // In the words of the Gateway API: the longest end, and nothing where no route is for it.
        let route = |name: &str, host: &str, to: &str| {
            format!(
                "---\napiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {{name: {name}}}\n\
                 spec: {{parentRefs: [{{kind: Service, name: web}}], hostnames: [\"{host}\"], rules: [{{backendRefs: [{{name: {to}}}]}}]}}\n\
                 ---\napiVersion: v1\nkind: Service\nmetadata: {{name: web-{name}}}\n\
                 spec: {{selector: {{app: web, version: {name}}}, ports: [{{port: 80}}]}}\n"
            )
        };
        let routes = route("v1", "*.example", "web-v1") + &route("v2", "*.sub.example", "web-v2");
        mesh.enforce(&format!("{SUBSETS}{routes}"), &setup);
        assert_eq!(greeted_after(address, &hello("a.example")).await, "one");
        assert_eq!(greeted_after(address, &hello("a.sub.example")).await, "two");
        let asks = Spoken::Stream { server_name: Some("a.sub.example") };
        let told = mesh.a.plane.explain(&identity("front"), &service("web"), None, asks);
        assert_eq!(told.expect("there is web").rule.as_deref(), Some("default/v2[0]"));
        assert_eq!(greeted_after(address, &hello("example.org")).await, "");
        let record = mesh.a.record(|record| record.reason == "no-backend").await;
        assert_eq!(record.port, HTTP);
    }
}

/// How a client of TLS begins that asks for a name.
fn hello(name: &str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty());
    let name = name.to_owned().try_into().expect("a name");
    let mut client =
        rustls::ClientConnection::new(Arc::new(config.with_no_client_auth()), name).expect("a configuration");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("memory takes all");
    bytes
}

/// A service of two versions on the other node, which say `one` and `two`.
async fn greeters(transport: Transport) -> (Mesh, Setup) {
    let (one, two) = (greeter("one").await, greeter("two").await);
    let setup = Setup::over(transport);
    let mut mesh = Mesh::start(&setup, &[(HTTP, Protocol::Tcp, one)]).await;
    mesh.instances = vec![
        TestInstance { name: "default", labels: &[("version", "v1")], node: "b", target: Some(one) },
        TestInstance { name: "v2", labels: &[("version", "v2")], node: "b", target: Some(two) },
    ];
    (mesh, setup)
}

/// An application that says its name and ends.
async fn greeter(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(localhost(0)).await.expect("an address");
    let address = listener.local_addr().expect("it has one");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(name.as_bytes()).await?;
                stream.shutdown().await?;
                // Closed with bytes unread it would be reset in front of what was said.
                tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
            });
        }
    });
    address
}

async fn greeted(address: SocketAddr) -> String {
    greeted_after(address, &[]).await
}

/// The same where the caller has said something first.
async fn greeted_after(address: SocketAddr, first: &[u8]) -> String {
    soon("the end of the stream", async {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream.write_all(first).await.expect("it is open");
        stream.shutdown().await.expect("it is open");
        let mut said = String::new();
        // One that is refused is reset.
        let _ = stream.read_to_string(&mut said).await;
        said
    })
    .await
}

#[tokio::test]
async fn copies_go_elsewhere_and_nobody_waits_for_them() {
    for transport in [Transport::Tcp, Transport::Quic] {
        let mut stage = Stage::over(transport).await;
        stage.rules(
            "- match: [{uri: {exact: /slow-copy}}]
  route: [{destination: {host: web, subset: v1}}]
  mirror: {host: web, subset: v2}
- route: [{destination: {host: web, subset: v1}}]
  mirror: {host: web, subset: v2}
  mirrorPercentage: {value: 100}
",
        );
        let (status, _, body) = stage.send(Request::post("/a?b=c"), &[("x-me", "1")], "a body").await;
        assert_eq!((status.as_u16(), &*body), (200, "v1 /a?b=c web.mesh x-me=1a body"));
        let copy = stage.mesh.a.record(|record| record.mirror).await;
        assert_eq!((copy.code, copy.request_bytes, copy.method.as_str()), (200, 6, "POST"), "{transport:?}");
        assert_eq!(copy.instance.as_deref(), Some("v2"));
        // It is told what the call was, and its answer is dropped: both have the same length but for the names.
        assert_eq!(copy.response_bytes, body.len() as u64);
        let (status, ..) = stage.call("/slow-copy", &[]).await;
        assert_eq!(status.as_u16(), 200);
    }
}

#[tokio::test]
async fn calls_at_once_are_bounded() {
    let mut stage = Stage::over(Transport::Tcp).await;
    let policy = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec:
  host: web
  trafficPolicy:
    connectionPool:
      tcp: {maxConnections: 1}
      http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}
";
    stage.mesh.enforce(policy, &stage.setup);
    // One never ends, one waits, and the third is refused at once.
    let open = async { stage.call("/slow", &[]).await };
    let waiting = async {
        soon("the first", async {
            while stage.asked.load(Ordering::Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        stage.call("/", &[]).await
    };
    let refused = async {
        let explain = || {
            let told = stage.mesh.a.plane.explain(&identity("front"), &service("web"), None, STREAM);
            told.expect("there is web").limits.join("; ")
        };
        soon("one that waits", async {
            while !explain().contains("at most 1 calls that wait, 1 now") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        stage.call("/third", &[]).await
    };
    tokio::select! {
        _ = open => panic!("it never ends"),
        _ = waiting => panic!("it waits"),
        (status, headers, _) = refused => {
            assert_eq!((status.as_u16(), &headers["x-envoy-overloaded"]), (503, &HeaderValue::from_static("true")));
        }
    }
    let record = stage.mesh.a.record(|record| record.path == "/third").await;
    assert_eq!((record.code, record.reason), (503, "overflow"));
}

#[tokio::test]
async fn one_try_has_a_bound_of_its_own() {
    let mut stage = Stage::over(Transport::Tcp).await;
    stage.rules(
        "- retries: {attempts: 2, retryOn: 5xx, perTryTimeout: 100ms, backoff: 1ms}
  route: [{destination: {host: web}}]
",
    );
    assert_eq!(stage.call("/slow", &[]).await.0.as_u16(), 504);
    assert_eq!(stage.asked.load(Ordering::Relaxed), 3);
}
