//! Active checks of this host's instances. An instance that stops answering is reported within two seconds.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use weft_proto::service::InstanceId;
use weft_proxy::net::Net;

use crate::world::World;

/// From the start of one check to the start of the next.
const INTERVAL: Duration = Duration::from_millis(500);
/// Bound on one check. An interval and [`FAILURES`] of these stay below two seconds.
const TIMEOUT: Duration = Duration::from_millis(700);
/// Failures in a row after which a healthy instance is not healthy any more. One success makes it healthy again.
const FAILURES: u32 = 2;
/// Longest body of an answer that is read before the connection is closed: 64 KiB.
const BODY_LENGTH_MAX: usize = 64 << 10;
/// Bound on reading it, since an answer's head is all that counts.
const BODY_TIMEOUT: Duration = Duration::from_millis(100);

/// How the health of an instance is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Every port takes a connection.
    Tcp,
    /// The first port answers `GET path` with a status that is expected.
    Http {
        /// Path and perhaps query, with the leading slash.
        path: String,
        /// What `Host` says; `localhost` unless given.
        host: String,
        /// Statuses, each from one to another; 200 to 399 unless given.
        codes: Vec<(u16, u16)>,
    },
}

/// Statuses that are expected where a check names none.
const CODES: (u16, u16) = (200, 399);
const HOST: &str = "localhost";

impl Check {
    /// Reads `tcp`, or `http:[//HOST]/path[=CODES]` such as `http:/healthz`, `http://shop.example/up` or
    /// `http:/healthz=200-299,401`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let error = || {
            format!(
                "{text:?} is not a check: write tcp, or http:[//HOST]/path[=CODES] such as http:/healthz, http://shop.example/up or http:/healthz=200-299,401"
            )
        };
        if text == "tcp" {
            return Ok(Self::Tcp);
        }
        let rest = text.strip_prefix("http:").ok_or_else(error)?;
        let (host, rest) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_at_checked(rest.find('/').ok_or_else(error)?).ok_or_else(error)?,
            None => (HOST, rest),
        };
        let authority: http::uri::Authority = host.parse().map_err(|_| error())?;
        let (path, codes) = match rest.rsplit_once('=') {
            Some((path, codes)) if !path.contains('?') => {
                (path, codes.split(',').map(codes_of).collect::<Option<Vec<_>>>().ok_or_else(error)?)
            }
            _ => (rest, vec![CODES]),
        };
        if !path.starts_with('/') || path.starts_with("//") {
            return Err(error());
        }
        let path: http::uri::PathAndQuery = path.parse().map_err(|_| error())?;
        Ok(Self::Http { path: path.to_string(), host: authority.to_string(), codes })
    }
}

/// `401`, or `200-299`.
fn codes_of(text: &str) -> Option<(u16, u16)> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let (from, to) = (from.parse().ok()?, to.parse().ok()?);
    (100 <= from && from <= to && to <= 599).then_some((from, to))
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Http { path, host, codes } = self else { return f.write_str("tcp") };
        match host.as_str() {
            HOST => write!(f, "http:{path}")?,
            host => write!(f, "http://{host}{path}")?,
        }
        if *codes == [CODES] {
            return Ok(());
        }
        for (index, (from, to)) in codes.iter().enumerate() {
            f.write_str(if index == 0 { "=" } else { "," })?;
            if from == to { write!(f, "{from}")? } else { write!(f, "{from}-{to}")? }
        }
        Ok(())
    }
}

/// The health of an instance, told when it is first known and whenever it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The instance.
    pub instance: InstanceId,
    /// Whether it may be called.
    pub healthy: bool,
    /// Why not; empty when it may.
    pub problem: String,
}

/// Checks an instance until nobody takes its reports any more. Nothing is reported before the first result.
pub async fn watch<N: Net>(
    net: N,
    instance: InstanceId,
    targets: Vec<SocketAddr>,
    check: Check,
    reports: mpsc::Sender<Report>,
) {
    let mut health = Health::default();
    let mut ticks = Ticks::new(INTERVAL, phase(&instance));
    while ticks.next(&reports).await {
        let Some(known) = health.note(run(&net, &targets, &check).await) else { continue };
        if reports.send(Report::new(&instance, known)).await.is_err() {
            return;
        }
    }
}

impl Report {
    fn new(instance: &InstanceId, health: Result<(), String>) -> Self {
        Self { instance: instance.clone(), healthy: health.is_ok(), problem: health.err().unwrap_or_default() }
    }
}

/// Where within an interval an instance is checked: hundreds on one host are not all to be asked in one moment.
fn phase(instance: &InstanceId) -> Duration {
    INTERVAL.mul_f64(f64::from(instance.hash32()) / f64::from(u32::MAX))
}

/// When to look, for as long as somebody takes reports: at once, and then at every interval from the phase on.
struct Ticks {
    begun: bool,
    rest: Interval,
}

impl Ticks {
    fn new(every: Duration, phase: Duration) -> Self {
        let mut rest = interval_at(Instant::now() + phase, every);
        rest.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { begun: false, rest }
    }

    /// Waits for the next moment; false when nobody takes reports any more.
    async fn next(&mut self, reports: &mpsc::Sender<Report>) -> bool {
        if !std::mem::replace(&mut self.begun, true) {
            return !reports.is_closed();
        }
        tokio::select! {
            biased;
            () = reports.closed() => false,
            _ = self.rest.tick() => true,
        }
    }
}

/// What is known of an instance. Unknown until the first result.
#[derive(Debug, Default)]
struct Health {
    known: Option<Result<(), String>>,
    failures: u32,
}

impl Health {
    /// Takes the result of one check; gives what is known from now on, where that has changed.
    fn note(&mut self, result: Result<(), String>) -> Option<Result<(), String>> {
        self.failures = if result.is_ok() { 0 } else { self.failures.saturating_add(1) };
        let doubted = self.known == Some(Ok(())) && (1..FAILURES).contains(&self.failures);
        if doubted || self.known.as_ref() == Some(&result) {
            return None;
        }
        self.known = Some(result.clone());
        Some(result)
    }
}

/// One check, within its bound.
async fn run<N: Net>(net: &N, targets: &[SocketAddr], check: &Check) -> Result<(), String> {
    let checked = async {
        match check {
            Check::Tcp => {
                for target in targets {
                    dial(net, *target).await?;
                }
                Ok(())
            }
            Check::Http { path, host, codes } => match targets.first() {
                Some(target) => {
                    let status = get(dial(net, *target).await?, *target, (path, host)).await?;
                    let expected = codes.iter().any(|(from, to)| (*from..=*to).contains(&status.as_u16()));
                    if expected { Ok(()) } else { Err(format!("GET {path} on {target} answered {}", status.as_u16())) }
                }
                None => Err("it has no port".to_owned()),
            },
        }
    };
    timeout(TIMEOUT, checked)
        .await
        .unwrap_or_else(|_| Err(format!("check {check}: no answer within {} ms", TIMEOUT.as_millis())))
}

async fn dial<N: Net>(net: &N, target: SocketAddr) -> Result<N::Stream, String> {
    net.dial(target).await.map_err(|error| format!("{target} takes no connection: {error}"))
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    target: SocketAddr,
    (path, host): (&str, &str),
) -> Result<StatusCode, String> {
    let failed = |error: hyper::Error| format!("GET {path} on {target} failed: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "weft-check")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("GET {path}: {error}"))?;
    let answer = async {
        let (head, body) = sender.send_request(request).await.map_err(failed)?.into_parts();
        // Read to its end, so that the application sees an orderly close. What it says does not matter.
        let _ = timeout(BODY_TIMEOUT, Limited::new(body, BODY_LENGTH_MAX).collect()).await;
        Ok::<StatusCode, String>(head.status)
    };
    tokio::pin!(answer);
    tokio::select! {
        biased;
        status = &mut answer => status,
        _ = connection => answer.await,
    }
}

/// Looks whether anything listens where an instance without a check is said to be, without connecting to it.
pub async fn watch_listening<W: World>(
    world: W,
    instance: InstanceId,
    targets: Vec<SocketAddr>,
    reports: mpsc::Sender<Report>,
) {
    let mut known = None;
    let mut ticks = Ticks::new(LISTENING_INTERVAL, phase(&instance));
    while ticks.next(&reports).await {
        let silent = targets.iter().find(|target| world.listens(**target) == Some(false)).copied();
        if known == Some(silent) {
            continue;
        }
        known = Some(silent);
        let health = silent.map_or(Ok(()), |target| Err(format!("nothing listens on {target}")));
        if reports.send(Report::new(&instance, health)).await.is_err() {
            return;
        }
    }
}

/// How often it is looked whether an instance without a check is there.
const LISTENING_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU8, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;
    use weft_proto::service::InstanceName;
    use weft_proxy::net::{Accepted, Listener};

    use super::*;

    const WELL: u8 = 0;
    const FAILING: u8 = 1;
    const REFUSING: u8 = 2;
    const SILENT: u8 = 3;

    /// An application whose mood the test sets.
    #[derive(Clone, Default)]
    struct Application(Arc<AtomicU8>);

    struct Nothing;

    impl Listener for Nothing {
        type Stream = DuplexStream;

        async fn accept(&mut self) -> io::Result<Accepted<DuplexStream>> {
            std::future::pending().await
        }

        fn local_address(&self) -> io::Result<SocketAddr> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    impl Net for Application {
        type Stream = DuplexStream;
        type Listener = Nothing;

        fn listen(&self, _: SocketAddr) -> io::Result<Nothing> {
            Ok(Nothing)
        }

        async fn dial(&self, _: SocketAddr) -> io::Result<DuplexStream> {
            let mood = self.0.load(Ordering::Relaxed);
            if mood == REFUSING {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (ours, mut theirs) = duplex(4096);
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let length = theirs.read(&mut head).await.unwrap_or(0);
                assert!(head[..length].starts_with(b"GET /healthz?deep HTTP/1.1\r\nhost: localhost\r\n"));
                let answer: &[u8] = match mood {
                    WELL => b"HTTP/1.1 204 No Content\r\n\r\n",
                    FAILING => b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\nno",
                    _ => std::future::pending().await,
                };
                let _ = theirs.write_all(answer).await;
            });
            Ok(ours)
        }

        fn datagrams(&self, _: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn owner(&self, _: SocketAddr, _: SocketAddr) -> Option<weft_proxy::net::Process> {
            None
        }
    }

    fn start(application: &Application) -> mpsc::Receiver<Report> {
        let (sender, reports) = mpsc::channel(4);
        let check = Check::parse("http:/healthz?deep").expect("a check");
        let web = InstanceId { service: "web".parse().expect("a name"), name: InstanceName::default() };
        let target = "127.0.0.1:80".parse().expect("an address");
        tokio::spawn(watch(application.clone(), web, vec![target], check, sender));
        reports
    }

    #[tokio::test(start_paused = true)]
    async fn every_way_to_stop_is_reported_within_two_seconds_and_so_is_recovery() {
        let application = Application::default();
        let mut reports = start(&application);
        assert!(reports.recv().await.expect("a first report").healthy);
        for (mood, problem) in
            [(FAILING, "answered 500"), (REFUSING, "takes no connection"), (SILENT, "no answer within 700 ms")]
        {
            // Just after a check has passed is the latest moment for a failure to be seen.
            tokio::time::sleep(Duration::from_millis(1)).await;
            application.0.store(mood, Ordering::Relaxed);
            let changed = Instant::now();
            let report = reports.recv().await.expect("a report");
            assert!(!report.healthy && report.problem.contains(problem), "{report:?}");
            assert!(changed.elapsed() < Duration::from_secs(2), "{report:?} after {:?}", changed.elapsed());
            application.0.store(WELL, Ordering::Relaxed);
            let changed = Instant::now();
            assert!(reports.recv().await.expect("a report").healthy);
            // A check that hangs when the instance recovers is waited for first.
            assert!(changed.elapsed() <= TIMEOUT + INTERVAL, "{:?}", changed.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_that_fails_from_the_start_is_reported_with_its_problem() {
        let application = Application::default();
        application.0.store(REFUSING, Ordering::Relaxed);
        let report = start(&application).recv().await.expect("a report");
        assert!(!report.healthy && report.problem.contains("takes no connection"), "{report:?}");
    }

    #[test]
    fn one_failure_between_successes_changes_nothing() {
        let mut health = Health::default();
        let bad = || Err("down".to_owned());
        let notes = [Ok(()), bad(), Ok(()), bad(), bad(), bad(), Err("other".to_owned()), Ok(())]
            .map(|result| health.note(result));
        assert_eq!(notes, [Some(Ok(())), None, None, None, Some(bad()), None, Some(Err("other".into())), Some(Ok(()))]);
    }

    #[test]
    fn checks_are_read() {
        for text in ["tcp", "http:/", "http:/healthz?deep=1", "http://shop.example/x", "http://h:81/x=200-299,401"] {
            assert_eq!(Check::parse(text).expect(text).to_string(), text);
        }
        for text in
            ["", "http", "http:healthz", "http://host", "http:/x=2", "http:/x=300-200", "https:/x", "http:/a b", "udp"]
        {
            assert!(Check::parse(text).is_err(), "{text:?} was accepted");
        }
    }
}
