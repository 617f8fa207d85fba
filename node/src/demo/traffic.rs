//! Calls from an application: single ones, and a load that is counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Bound on one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Callers of a load, each with a connection of its own.
pub(super) const CALLERS: usize = 8;
/// Pause of a caller between two calls.
const PAUSE: Duration = Duration::from_millis(4);
/// Longest answer that is read.
const ANSWER_LENGTH_MAX: usize = 64 << 10;

type Sender = SendRequest<Empty<Bytes>>;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) text: String,
}

/// One call over a connection of its own. To a proxy the URI is absolute, to a service it need not be.
pub(super) async fn call(to: SocketAddr, method: Method, uri: &Uri) -> Result<Answer, String> {
    call_with(to, method, uri, &[]).await
}

/// The same with these fields.
pub(super) async fn call_with(
    to: SocketAddr,
    method: Method,
    uri: &Uri,
    fields: &[(&str, &str)],
) -> Result<Answer, String> {
    let called = async { exchange(&mut connect(to).await?, method, uri, fields).await };
    timeout(CALL_TIMEOUT, called)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", CALL_TIMEOUT.as_secs())))
}

async fn connect(to: SocketAddr) -> Result<Sender, String> {
    let stream = TcpStream::connect(to).await.map_err(|error| format!("no connection: {error}"))?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|error| error.to_string())?;
    // It ends with its sender.
    tokio::spawn(connection);
    Ok(sender)
}

async fn exchange(sender: &mut Sender, method: Method, uri: &Uri, fields: &[(&str, &str)]) -> Result<Answer, String> {
    sender.ready().await.map_err(|error| error.to_string())?;
    let host = uri.authority().map_or("localhost", |authority| authority.as_str());
    let request = Request::builder().method(method).uri(uri).header(header::HOST, host);
    let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let request = request.body(Empty::new());
    let response = sender.send_request(request.map_err(|error| error.to_string())?).await;
    let (head, body) = response.map_err(|error| error.to_string())?.into_parts();
    let body = Limited::new(body, ANSWER_LENGTH_MAX).collect().await.map_err(|error| error.to_string())?;
    Ok(Answer { status: head.status, text: String::from_utf8_lossy(&body.to_bytes()).into_owned() })
}

/// What a load has seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    /// Calls answered with 200.
    pub(super) served: u64,
    /// Those of them by who answered.
    pub(super) by_instance: BTreeMap<String, u64>,
    /// All other calls.
    pub(super) failed: u64,
    /// Those by what went wrong.
    pub(super) failures: BTreeMap<String, u64>,
    /// Calls served since the last failure.
    pub(super) served_in_a_row: u64,
    /// The last failure.
    pub(super) failed_last: Option<Instant>,
}

impl Tally {
    fn note(&mut self, outcome: &Result<Answer, String>, now: Instant) {
        let failure = match outcome {
            Ok(answer) if answer.status == StatusCode::OK => {
                self.served += 1;
                self.served_in_a_row += 1;
                *self.by_instance.entry(answer.text.clone()).or_default() += 1;
                return;
            }
            Ok(answer) => format!("answered {}", answer.status.as_u16()),
            Err(error) => error.clone(),
        };
        self.failed += 1;
        self.served_in_a_row = 0;
        self.failed_last = Some(now);
        *self.failures.entry(failure).or_default() += 1;
    }

    /// What went wrong and how often, in words; empty where nothing did.
    pub(super) fn failures_text(&self) -> String {
        self.failures.iter().map(|(failure, number)| format!("{number} x {failure}")).collect::<Vec<_>>().join(", ")
    }
}

/// Callers that go on until they are stopped.
pub(super) struct Load {
    tally: Arc<Mutex<Tally>>,
    callers: JoinSet<()>,
}

impl Load {
    /// Starts the callers, all through one proxy.
    pub(super) fn start(proxy: SocketAddr, uri: &Uri) -> Self {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            callers.spawn(call_on_and_on(proxy, uri.clone(), tally.clone()));
        }
        Self { tally, callers }
    }

    /// What was seen so far.
    pub(super) fn tally(&self) -> Tally {
        self.tally.lock().clone()
    }

    /// Ends the callers; a call that is open is not counted.
    pub(super) async fn stop(mut self) -> Tally {
        self.callers.shutdown().await;
        self.tally()
    }
}

async fn call_on_and_on(proxy: SocketAddr, uri: Uri, tally: Arc<Mutex<Tally>>) {
    let mut kept: Option<Sender> = None;
    loop {
        let called = async {
            let mut sender = match kept.take().filter(|sender| !sender.is_closed()) {
                Some(sender) => sender,
                None => connect(proxy).await?,
            };
            exchange(&mut sender, Method::GET, &uri, &[]).await.map(|answer| (answer, sender))
        };
        let outcome = timeout(CALL_TIMEOUT, called).await.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        let outcome = outcome.map(|(answer, sender)| {
            kept = Some(sender);
            answer
        });
        tally.lock().note(&outcome, Instant::now());
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::applications::Applications;
    use super::super::stage::{Ports, local};
    use super::*;

    #[tokio::test]
    async fn a_load_counts_what_is_served_and_what_is_not() {
        let free = local(Ports::new().take().expect("a port"));
        let mut applications = Applications::default();
        applications.serve(free, "web on a".to_owned()).await.expect("it listens");
        let uri: Uri = "http://web.mesh/x".parse().expect("a URI");
        let answer = call(free, Method::POST, &uri).await.expect("an answer");
        assert_eq!(answer, Answer { status: StatusCode::OK, text: "web on a".into() });
        let load = Load::start(free, &uri);
        let reached = async |enough: fn(&Tally) -> bool| {
            while !enough(&load.tally()) {
                sleep(PAUSE).await;
            }
        };
        let bound = Duration::from_secs(10);
        timeout(bound, reached(|tally| tally.served > 20)).await.expect("calls are served");
        assert_eq!(load.tally().failed, 0);
        drop(applications);
        timeout(bound, reached(|tally| tally.failed > 20)).await.expect("calls fail");
        let tally = load.stop().await;
        assert_eq!((tally.by_instance["web on a"], tally.served_in_a_row), (tally.served, 0));
        assert!(tally.failures_text().contains("no connection"), "{}", tally.failures_text());
    }
}
