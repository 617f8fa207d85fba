//! What runs behind the nodes: applications that answer, and tell what reaches them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use weft_proxy::net::{Listener, Net};

use crate::mesh::Protocol;

/// What callers and applications saw since they were last asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seen {
    /// A call's answer: its number and status; none where there was no answer.
    Answered(u64, Option<u16>),
    /// A call reached an application.
    Arrived(Arrived),
    /// A stranger was answered with this first byte, or with none.
    Stranger(Option<u8>),
}

/// A call, as an application sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrived {
    /// Its number.
    pub number: u64,
    /// The service that it reached, by place.
    pub service: usize,
    /// Whether this is a later part of an answer that goes on.
    pub goes_on: bool,
    /// Where its connection comes from.
    pub peer: IpAddr,
}

/// How long an application takes for what is not a GET.
const WORK: Duration = Duration::from_millis(40);
/// How long an application takes for what fails: calls for `/failing`.
pub const FAILING_WORK: Duration = Duration::from_millis(500);
/// The path of calls that applications answer with 503.
const FAILING: &str = "/failing";
/// Parts of an answer that goes on.
pub const LONG_PARTS: u32 = 40;
/// Time between them.
pub const LONG_PAUSE: Duration = Duration::from_millis(250);

/// One application.
#[derive(Clone)]
pub struct Application<N> {
    /// Its host's network.
    pub net: N,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its service, by place.
    pub service: usize,
    /// What it speaks.
    pub protocol: Protocol,
    /// Where it tells what it sees.
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

impl<N: Net> Application<N> {
    /// Serves while it is to be open.
    pub async fn serve(self, mut open: watch::Receiver<bool>) {
        while open.wait_for(|open| *open).await.is_ok() {
            let Ok(mut listener) = self.net.listen(self.address) else { return };
            loop {
                tokio::select! {
                    biased;
                    _ = open.wait_for(|open| !*open) => break,
                    accepted = listener.accept() => match accepted {
                        Err(_) => return,
                        Ok(accepted) => {
                            let peer = accepted.theirs.ip();
                            drop(tokio::spawn(self.clone().answer(accepted.stream, peer)));
                        }
                    },
                }
            }
        }
    }

    async fn answer(self, stream: N::Stream, peer: IpAddr) {
        match self.protocol {
            Protocol::Http => self.http(stream, peer).await,
            Protocol::Tcp => self.opaque(stream, peer).await,
        }
    }

    fn saw(&self, number: u64, goes_on: bool, peer: IpAddr) {
        self.seen.lock().push(Seen::Arrived(Arrived { number, service: self.service, goes_on, peer }));
    }

    /// A line with a number, answered by a line.
    async fn opaque(self, mut stream: N::Stream, peer: IpAddr) {
        let mut line = String::new();
        while !line.ends_with('\n') {
            let Ok(byte) = stream.read_u8().await else { return };
            line.push(char::from(byte));
        }
        let Ok(number) = line.trim().parse() else { return };
        self.saw(number, false, peer);
        tokio::time::sleep(WORK).await;
        // Who asked may be gone.
        let _ = stream.write_all(b"ok\n").await;
    }

    async fn http(self, mut stream: N::Stream, peer: IpAddr) {
        let mut head = Vec::new();
        loop {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
            if !head.ends_with(b"\r\n\r\n") {
                continue;
            }
            let text = String::from_utf8_lossy(&std::mem::take(&mut head)).into_owned();
            let Some(Request { method, path, number, long }) = Request::read(&text) else { return };
            self.saw(number, false, peer);
            if long {
                return self.go_on(stream, (number, peer)).await;
            }
            let (work, status) = match (path, method) {
                (FAILING, _) => (FAILING_WORK, "503 Service Unavailable"),
                (_, "GET") => (Duration::ZERO, "200 OK"),
                _ => (WORK, "200 OK"),
            };
            if !work.is_zero() {
                tokio::time::sleep(work).await;
            }
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    /// An answer in parts, until it is whole or nobody takes it any more.
    async fn go_on(self, mut stream: N::Stream, (number, peer): (u64, IpAddr)) {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LONG_PARTS}\r\n\r\n");
        if stream.write_all(head.as_bytes()).await.is_err() {
            return;
        }
        let mut input = [0; 16];
        for _ in 0..LONG_PARTS {
            tokio::select! {
                biased;
                // The other end says nothing more; that it ends is how a broken exchange shows.
                read = stream.read(&mut input) => if !matches!(read, Ok(1..)) { return },
                () = tokio::time::sleep(LONG_PAUSE) => {}
            }
            if stream.write_all(b".").await.is_err() {
                return;
            }
            self.saw(number, true, peer);
        }
    }
}

/// `METHOD PATH?NUMBER[&long]`
struct Request<'h> {
    method: &'h str,
    path: &'h str,
    number: u64,
    long: bool,
}

impl<'h> Request<'h> {
    fn read(head: &'h str) -> Option<Self> {
        let mut words = head.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        let (path, query) = target.split_once('?')?;
        let (number, long) = query.split_once('&').map_or((query, false), |(number, _)| (number, true));
        Some(Self { method, path, number: number.parse().ok()?, long })
    }
}
