//! Connections to services' loopback addresses, sent to one listener by the kernel: no service's port is listened on, so
//! none is taken from a program of the host.
//!
//! A table of nftables of this process' own does it, by TPROXY: the listener sees the address that was called as its own,
//! and no connection is tracked. The table belongs to the socket that made it (`NFT_TABLE_F_OWNER`, Linux 5.12): it is gone
//! with the process, however that ends, and of two nodes on one host the second finds that the range is taken.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use socket2::{Domain, Protocol, SockRef, Type};

use super::netlink;
use super::shelf::{CAPTURE_OWNER as OWNER, CAPTURE_PORT as PORT, Shelf};

/// What is captured, for as long as this lives.
pub(super) struct Capture {
    /// Where the listener is to be.
    pub(super) address: SocketAddr,
    /// Keeps the port while nobody listens on it.
    _reserved: socket2::Socket,
    /// Owns the table.
    _table: OwnedFd,
}

impl Capture {
    /// Sends what goes to the range to a port of this process.
    ///
    /// # Errors
    /// Fails without `CAP_NET_ADMIN`, where another process captures the range already, and where the kernel lacks a part.
    pub(super) fn open(range: (Ipv4Addr, u8), shelf: &Shelf) -> io::Result<Self> {
        if let Some((reserved, table)) = shelf.take(PORT).zip(shelf.take(OWNER)) {
            let reserved = socket2::Socket::from(reserved);
            let address = reserved.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
            return Ok(Self { address, _reserved: reserved, _table: table });
        }
        let reserved = socket2::Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        reserved.set_ip_transparent_v4(true)?;
        reserved.set_reuse_address(true)?;
        reserved.set_reuse_port(true)?;
        reserved.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let address = reserved.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let table = netlink::open(NETLINK_NETFILTER, ANSWER_TIME_MAX)?;
        let batch = Batch::new(&[
            (NEW_TABLE, NLM_F_CREATE | NLM_F_EXCL, new_table()),
            (NEW_CHAIN, NLM_F_CREATE, new_chain()),
            (NEW_RULE, NLM_F_CREATE, new_rule(range, address.port())),
        ]);
        batch.send(&table)?;
        // What arrives between two processes waits for the next one.
        let table = SockRef::from(&table).try_clone()?.into();
        shelf.keep(PORT, reserved.as_fd());
        shelf.keep(OWNER, OwnedFd::as_fd(&table));
        Ok(Self { address, _reserved: reserved, _table: table })
    }
}

/// Messages that are carried out together or not at all.
struct Batch {
    bytes: Vec<u8>,
    /// How many of them are answered.
    answered: u32,
}

impl Batch {
    /// Kinds of message, their flags, their attributes.
    fn new(messages: &[(u16, u16, Attributes)]) -> Self {
        let mut bytes = Vec::new();
        message(&mut bytes, (BATCH_BEGIN, NLM_F_REQUEST), 0, (0, SUBSYSTEM), &[]);
        for (sequence, (kind, flags, attributes)) in (1..).zip(messages) {
            let head = (SUBSYSTEM << 8 | kind, NLM_F_REQUEST | NLM_F_ACK | flags);
            message(&mut bytes, head, sequence, (FAMILY_IPV4, 0), &attributes.0);
        }
        message(&mut bytes, (BATCH_END, NLM_F_REQUEST), 0, (0, SUBSYSTEM), &[]);
        Self { bytes, answered: u32::try_from(messages.len()).unwrap_or(u32::MAX) }
    }

    /// Sends them and waits until all are answered.
    fn send(&self, socket: &Socket) -> io::Result<()> {
        socket.send(&self.bytes, 0)?;
        let mut buffer = [0; BUFFER_LENGTH];
        let mut answered = 0;
        while answered < self.answered {
            let (length, _) = socket.recv_from(&mut &mut buffer[..], 0)?;
            let mut rest = buffer.get(..length).unwrap_or(&buffer);
            while !rest.is_empty() {
                let answer = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
                if answer.message_type() == NLMSG_ERROR {
                    netlink::outcome(answer.payload())?;
                    answered += 1;
                }
                let step = (answer.length() as usize).next_multiple_of(ALIGNMENT).min(rest.len());
                rest = &rest[step..];
            }
        }
        Ok(())
    }
}

/// A message of nfnetlink: kind and flags, number, family and resource, attributes (linux/netfilter/nfnetlink.h).
fn message(into: &mut Vec<u8>, head: (u16, u16), sequence: u32, about: (u8, u16), attributes: &[u8]) {
    let length = u32::try_from(HEAD_LENGTH + attributes.len()).unwrap_or(u32::MAX);
    into.extend_from_slice(&length.to_ne_bytes());
    into.extend_from_slice(&head.0.to_ne_bytes());
    into.extend_from_slice(&head.1.to_ne_bytes());
    into.extend_from_slice(&sequence.to_ne_bytes());
    into.extend_from_slice(&0u32.to_ne_bytes());
    into.extend_from_slice(&[about.0, 0]);
    into.extend_from_slice(&about.1.to_be_bytes());
    into.extend_from_slice(attributes);
}

/// Attributes of a message, one behind the other, each aligned.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    fn nested(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// An expression of a rule.
    fn expression(self, name: &str, data: &Self) -> Self {
        self.nested(1, &Self::default().text(1, name).nested(2, data))
    }
}

// The numbers of attributes and their values are those of linux/netfilter/nf_tables.h.

fn new_table() -> Attributes {
    Attributes::default().text(1, TABLE).number(2, TABLE_OWNED)
}

fn new_chain() -> Attributes {
    let hook = Attributes::default().number(1, HOOK_PREROUTING).number(2, PRIORITY_MANGLE.cast_unsigned());
    Attributes::default().text(1, TABLE).text(3, CHAIN).nested(4, &hook).number(5, ACCEPT).text(7, "filter")
}

/// `iif lo ip daddr RANGE meta l4proto tcp tproxy to 127.0.0.1:PORT`.
fn new_rule((address, prefix): (Ipv4Addr, u8), port: u16) -> Attributes {
    let value = |bytes: &[u8]| Attributes::default().bytes(1, bytes);
    let compare = |bytes: &[u8]| Attributes::default().number(1, REGISTER).number(2, 0).nested(3, &value(bytes));
    let load = |key| Attributes::default().number(1, REGISTER).number(2, key);
    let set = |register, bytes: &[u8]| Attributes::default().number(1, register).nested(2, &value(bytes));
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
    let masked = Attributes::default().number(1, REGISTER).number(2, REGISTER).number(3, 4);
    let masked = masked.nested(4, &value(&mask.to_be_bytes())).nested(5, &value(&[0; 4]));
    let destination = Attributes::default().number(1, REGISTER).number(2, NETWORK_HEADER).number(3, 16).number(4, 4);
    let expressions = Attributes::default()
        .expression("meta", &load(META_INTERFACE))
        .expression("cmp", &compare(&LOOPBACK_INDEX.to_ne_bytes()))
        .expression("payload", &destination)
        .expression("bitwise", &masked)
        .expression("cmp", &compare(&(u32::from(address) & mask).to_be_bytes()))
        .expression("meta", &load(META_PROTOCOL))
        .expression("cmp", &compare(&[PROTOCOL_TCP]))
        .expression("immediate", &set(REGISTER, &Ipv4Addr::LOCALHOST.octets()))
        .expression("immediate", &set(OTHER_REGISTER, &port.to_be_bytes()))
        .expression(
            "tproxy",
            &Attributes::default().number(1, FAMILY_IPV4.into()).number(2, REGISTER).number(3, OTHER_REGISTER),
        );
    Attributes::default().text(1, TABLE).text(2, CHAIN).nested(4, &expressions)
}

const TABLE: &str = "weft";
const CHAIN: &str = "services";
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const FAMILY_IPV4: u8 = 2;
const NESTED: u16 = 0x8000;
const TABLE_OWNED: u32 = 2;
const HOOK_PREROUTING: u32 = 0;
const PRIORITY_MANGLE: i32 = -150;
const ACCEPT: u32 = 1;
const REGISTER: u32 = 8;
const OTHER_REGISTER: u32 = 9;
const NETWORK_HEADER: u32 = 1;
const META_INTERFACE: u32 = 4;
const META_PROTOCOL: u32 = 16;
const LOOPBACK_INDEX: u32 = 1;
const PROTOCOL_TCP: u8 = 6;
/// Heads of netlink and of nfnetlink, in bytes.
const HEAD_LENGTH: usize = 20;
const ALIGNMENT: usize = 4;
const BUFFER_LENGTH: usize = 8 << 10;
/// The kernel answers at once; it may have to load a module first.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_goes_to_the_range_arrives_at_one_place_and_knows_where_it_went() {
        let range = (Ipv4Addr::new(127, 200, 0, 0), 16);
        let capture = match Capture::open(range, &Shelf::default()) {
            Ok(capture) => capture,
            Err(error) => return eprintln!("SKIPPED: connections cannot be captured here: {error}"),
        };
        let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        socket.set_ip_transparent_v4(true).expect("transparent");
        socket.set_reuse_address(true).expect("shared");
        socket.set_reuse_port(true).expect("shared");
        socket.bind(&capture.address.into()).expect("the port is kept");
        socket.listen(8).expect("it listens");
        let listener = TcpListener::from(socket);
        // Whoever has the port on all addresses keeps it for all others.
        let mut free = (6_000..10_000).filter_map(|port| TcpListener::bind(("0.0.0.0", port)).ok());
        let other = free.next().expect("a port is free");
        let called = SocketAddr::from(([127, 200, 3, 4], other.local_addr().expect("bound").port()));
        let mut client = TcpStream::connect(called).expect("it is captured");
        let (mut server, theirs) = listener.accept().expect("it arrives");
        assert_eq!((server.local_addr().expect("ours"), theirs), (called, client.local_addr().expect("theirs")));
        client.write_all(b"x").expect("written");
        server.write_all(b"y").expect("written");
        let mut bytes = [0; 2];
        server.read_exact(&mut bytes[..1]).expect("read");
        client.read_exact(&mut bytes[1..]).expect("read");
        assert_eq!(&bytes, b"xy");
        drop(other);
        assert!(Capture::open(range, &Shelf::default()).is_err(), "one process a host");
        let outside = SocketAddr::from(([127, 201, 3, 4], called.port()));
        assert!(TcpStream::connect_timeout(&outside, ANSWER_TIME_MAX).is_err(), "nothing else is captured");
        drop(capture);
        drop(listener);
        assert!(TcpStream::connect_timeout(&called, ANSWER_TIME_MAX).is_err(), "it ends with what made it");
        Capture::open(range, &Shelf::default()).expect("the range is free again");
    }
}
