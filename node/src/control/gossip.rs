//! Gossip over control links.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use weft_consensus::gossip::GossipLink;
use weft_proto::wire::cluster::{self as wire, ControlRequest, control_request, control_response};
use weft_proxy::net::Net;
use weft_proxy::plane::Clock;

use super::Control;
use crate::book::Book;

/// Bound on the delivery of a gossip message.
const GOSSIP_TIMEOUT: Duration = Duration::from_secs(2);

/// The gossip's view of control links.
pub struct GossipLinks<N: Net> {
    control: Arc<Control<N>>,
    book: Arc<Book>,
    /// This node's own address, so that others know where a message came from.
    from: SocketAddr,
    clock: Clock,
}

impl<N: Net> GossipLinks<N> {
    /// Sends over these links, from this address.
    pub fn new(control: &Arc<Control<N>>, book: &Arc<Book>, from: SocketAddr, clock: Clock) -> Self {
        Self { control: control.clone(), book: book.clone(), from, clock }
    }
}

impl<N: Net> GossipLink for GossipLinks<N> {
    fn send(&self, to: SocketAddr, message: Bytes) -> BoxFuture<'static, io::Result<Bytes>> {
        let (control, book, from) = (self.control.clone(), self.book.clone(), self.from.to_string());
        let clock = self.clock.clone();
        Box::pin(async move {
            let name = book.name(to);
            let name =
                name.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("nobody is known at {to}")))?;
            let request = ControlRequest { kind: Some(control_request::Kind::Gossip(wire::Gossip { message, from })) };
            let asked = clock();
            let reply = control.exchange_within(&name, request, GOSSIP_TIMEOUT).await?;
            let Some(control_response::Kind::Gossip(reply)) = reply.kind else { return Ok(Bytes::new()) };
            // Halfway between question and answer, as NTP has it (RFC 5905, 8).
            let halfway = asked + clock().saturating_sub(asked) / 2;
            book.set_offset(name, reply.now.cast_signed().saturating_sub(halfway.cast_signed()));
            Ok(reply.message)
        })
    }
}
