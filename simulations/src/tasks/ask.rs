//! A caller in its host's namespace: it makes the calls that it is told of through the node's forward proxy, and tells what
//! came.

use std::io;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use super::{grpc, http};

/// Calls.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Asking {
    pub(super) method: String,
    pub(super) url: String,
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: String,
    pub(super) count: usize,
    pub(super) concurrency: usize,
    /// What is sent on an opaque stream, once for each line.
    pub(super) send: Vec<String>,
    /// Whether they go to what they name by themselves, and not through a node.
    pub(super) direct: bool,
    /// The address that they come from, where it matters.
    pub(super) own: Option<String>,
    /// Whether calls begin together, so many at once, and the next ones when all have ended.
    pub(super) rounds: bool,
}

/// What came of one.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Came {
    /// 0 where there was no answer.
    pub(super) status: u16,
    pub(super) milliseconds: u64,
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: String,
    /// Answers on an opaque stream.
    pub(super) replies: Vec<String>,
    /// What a call over TLS has come to.
    pub(super) secured: Option<Secured>,
    /// Why there was no answer.
    pub(super) error: String,
}

/// What a call over TLS has come to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Secured {
    /// What curl has ended with.
    pub(super) exit: i32,
    /// All that it has told.
    pub(super) told: String,
    /// `1.1`, `2`.
    pub(super) version: String,
}

/// Makes the calls of a line of standard input; a line of standard output tells what came.
pub async fn ask() -> Result<(), String> {
    let mut text = String::new();
    tokio::io::stdin().read_to_string(&mut text).await.map_err(|error| error.to_string())?;
    let asking: Asking = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let at_once = asking.concurrency.max(1);
    let mut came: Vec<Came> = Vec::with_capacity(asking.count);
    if asking.rounds {
        while came.len() < asking.count {
            let round = (0..at_once).map(|_| call(&asking));
            came.extend(futures_util::future::join_all(round).await);
        }
    } else {
        came = stream::iter(0..asking.count).map(|_| call(&asking)).buffered(at_once).collect().await;
    }
    let line = serde_json::to_string(&came).map_err(|error| error.to_string())?;
    tokio::io::stdout().write_all(line.as_bytes()).await.map_err(|error| error.to_string())
}

async fn call(asking: &Asking) -> Came {
    let began = Instant::now();
    let mut came = match asking.method.as_str() {
        _ if !asking.send.is_empty() => timeout(BOUND, stream_of(asking)).await,
        "GRPC" => timeout(BOUND, grpc_of(asking)).await,
        _ if asking.direct => timeout(BOUND, straight(asking)).await,
        _ => timeout(BOUND, get(&asking.method, &asking.url, &asking.fields, &asking.body)).await,
    }
    .unwrap_or_default();
    came.milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    came
}

/// A call through the forward proxy; where it has a Host of its own, in a tunnel to what the URL names.
pub(super) async fn get(method: &str, url: &str, fields: &[(String, String)], body: &str) -> Came {
    let run = async {
        let rest = url.strip_prefix("http://").unwrap_or(url);
        let host = rest.split('/').next().unwrap_or_default();
        let other = fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("host"));
        let mut stream = BufReader::new(TcpStream::connect(PROXY).await?);
        let mut head = match other {
            false => format!("{method} {url} HTTP/1.1\r\nHost: {host}\r\n"),
            true if !tunnel(&mut stream, &format!("{host}:80")).await? => return Ok(None),
            true => format!("{method} {} HTTP/1.1\r\n", &rest[host.len()..]),
        };
        head += "Connection: close\r\n";
        fields.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        if !body.is_empty() {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).await?;
        http::read_answer(&mut stream, method == "HEAD").await
    };
    let Ok(Some(answer)) = run.await else { return Came::default() };
    came_of(answer)
}

/// A call to what the URL names.
async fn straight(asking: &Asking) -> Came {
    let rest = asking.url.strip_prefix("http://").unwrap_or(&asking.url);
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let run = async {
        let place = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
        let mut stream = BufReader::new(connect(asking, &place).await?);
        let mut head = format!("{} /{path} HTTP/1.1\r\nConnection: close\r\n", asking.method);
        if !asking.fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head += &format!("Host: {authority}\r\n");
        }
        asking.fields.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        if !asking.body.is_empty() {
            head += &format!("Content-Length: {}\r\n", asking.body.len());
        }
        stream.write_all(format!("{head}\r\n{}", asking.body).as_bytes()).await?;
        http::read_answer(&mut stream, asking.method == "HEAD").await
    };
    match run.await {
        Ok(Some(answer)) => came_of(answer),
        Ok(None) => Came { error: "it ended without an answer".into(), ..Came::default() },
        Err(error) => Came { error: error.to_string(), ..Came::default() },
    }
}

async fn connect(asking: &Asking, place: &str) -> io::Result<TcpStream> {
    let Some(own) = &asking.own else { return TcpStream::connect(place).await };
    let socket = TcpSocket::new_v4()?;
    socket.bind(format!("{own}:0").parse().map_err(io::Error::other)?)?;
    socket.connect(place.parse().map_err(io::Error::other)?).await
}

fn came_of(answer: http::Message) -> Came {
    let status = answer.first.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    Came { status, fields: answer.fields, body, ..Came::default() }
}

/// Makes a connection to the forward proxy a tunnel; whether it has become one.
async fn tunnel(stream: &mut BufReader<TcpStream>, to: &str) -> io::Result<bool> {
    stream.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes()).await?;
    let answer = http::read(stream, false).await?;
    Ok(answer.is_some_and(|answer| answer.first.contains(" 200")))
}

/// A call of gRPC; its own status is in the body.
async fn grpc_of(asking: &Asking) -> Came {
    let Ok(called) = grpc::call(PROXY, &asking.url, &asking.fields).await else { return Came::default() };
    let body = format!("grpc-status: {}", called.grpc.as_deref().unwrap_or("none"));
    Came { status: called.status, fields: called.fields, body, ..Came::default() }
}

/// A stream through the forward proxy: a line is sent and its answer waited for, then the next.
async fn stream_of(asking: &Asking) -> Came {
    let host = asking.url.strip_prefix("tcp://").unwrap_or(&asking.url);
    let mut came = Came::default();
    let run = async {
        let mut stream = BufReader::new(TcpStream::connect(if asking.direct { host } else { PROXY }).await?);
        if !asking.direct && !tunnel(&mut stream, host).await? {
            return Ok(());
        }
        for one in &asking.send {
            stream.write_all(format!("{one}\n").as_bytes()).await?;
            let mut reply = String::new();
            if stream.read_line(&mut reply).await? == 0 {
                break;
            }
            came.replies.push(reply.trim_end().to_owned());
        }
        Ok::<(), io::Error>(())
    };
    // What breaks off has told as much as came.
    let _ = run.await;
    came
}

/// The node's forward proxy.
pub(super) const PROXY: &str = "127.0.0.1:15001";
/// Bound on one call.
const BOUND: Duration = Duration::from_secs(20);
