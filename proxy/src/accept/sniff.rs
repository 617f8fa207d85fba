//! What a connection speaks, told from its first bytes, which are then put in front again.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::server::Acceptor;
use tokio::time::{Instant, timeout_at};

use crate::forward::bytes::End as Near;
use crate::net::Stream;
use crate::net::rejoined::Rejoined;
use crate::speech::{Speech, is_likely, told};
use crate::tls::proof::ALPN_PROOF;

/// The near end of a connection that is being listened to.
pub(crate) struct Sniffing {
    near: Near,
    first: BytesMut,
    /// How long bytes that don't tell yet are waited on.
    until: Option<Instant>,
}

impl Sniffing {
    pub(crate) fn new(near: Near) -> Self {
        Self { near, first: BytesMut::new(), until: None }
    }

    /// Listens until the first bytes tell. Given up and asked again it goes on where it was.
    pub(crate) async fn speech(&mut self) -> io::Result<Speech> {
        loop {
            if let Some(speech) = told(&self.first) {
                return Ok(speech);
            }
            if self.first.is_empty() {
                if !poll_fn(|cx| self.near.poll_first(cx, &mut self.first)).await? {
                    return Ok(Speech::Opaque);
                }
                continue;
            }
            if !is_likely(&self.first) {
                return Ok(Speech::Opaque);
            }
            let until = *self.until.get_or_insert_with(|| Instant::now() + LINE_TIMEOUT);
            if !timeout_at(until, poll_fn(|cx| self.near.poll_first(cx, &mut self.first))).await.unwrap_or(Ok(false))? {
                return Ok(Speech::Opaque);
            }
        }
    }

    /// Whether what has come so far begins so.
    pub(crate) fn begins_with(&self, bytes: &[u8]) -> bool {
        self.first.starts_with(bytes)
    }

    /// What a stream of TLS asks for; nothing where it is none of TLS.
    pub(crate) async fn hello(&mut self) -> io::Result<Option<Hello>> {
        loop {
            if let Some(told) = hello(&self.first) {
                return Ok(told);
            }
            if self.first.len() > HELLO_MAX || !poll_fn(|cx| self.near.poll_first(cx, &mut self.first)).await? {
                return Ok(None);
            }
        }
    }

    /// The connection as a stream, with its first bytes in front.
    pub(crate) fn into_stream(self) -> Rejoined<Box<dyn Stream>> {
        Rejoined::new(self.first.freeze(), self.near.into_stream())
    }

    /// The connection as an end of an opaque stream, and its first bytes.
    pub(crate) fn into_near(self) -> (Near, Bytes) {
        (self.near, self.first.freeze())
    }

    /// Ends the connection abruptly.
    pub(crate) fn abort(mut self) {
        self.near.abort();
    }
}

/// What a stream of TLS asks for.
pub(crate) struct Hello {
    /// The name; empty where it asks for none.
    pub(crate) server_name: String,
    /// Whether it asks for proof that the name is ours.
    pub(crate) proof: bool,
}

/// What bytes ask for which begin as TLS does (RFC 8446, 4.1.2); nothing while they do not tell yet.
fn hello(bytes: &[u8]) -> Option<Option<Hello>> {
    if bytes.first()? != &HANDSHAKE {
        return Some(None);
    }
    let (mut acceptor, mut rest) = (Acceptor::default(), bytes);
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).is_err() {
            return Some(None);
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let asked = accepted.client_hello();
                let proof = asked.alpn().is_some_and(|mut offered| offered.any(|one| one == ALPN_PROOF));
                return Some(Some(Hello { server_name: asked.server_name().unwrap_or("").to_owned(), proof }));
            }
            Ok(None) => {}
            Err(_) => return Some(None),
        }
    }
    None
}

/// The type of a record that carries a handshake (RFC 8446, 5.1).
const HANDSHAKE: u8 = 22;
/// Bytes that the first message of TLS may have.
const HELLO_MAX: usize = 64 << 10;
/// How long a line that begins like a request line may take.
const LINE_TIMEOUT: Duration = Duration::from_secs(5);
