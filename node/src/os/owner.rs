//! Which user owns the process at the other end of a local connection.
//!
//! The kernel is asked for exactly one socket: the client's end, whose source is their address and
//! whose destination is ours. A socket that its process has closed, or that only listens, has no
//! answer: the kernel would report user 0 for the one, and another's user for the other.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use netlink_packet_core::{
    Emitable as _, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader, NetlinkMessage, Parseable as _,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, SOCK_DIAG_BY_FAMILY, SockDiagMessage, TCP_LISTEN, TCP_SYN_RECV, TCP_TIME_WAIT,
};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use parking_lot::Mutex;
use weft_proxy::net::Process;

use super::netlink;

/// Looks up the owners of local connections. A lookup takes a lock, so give each runtime its own.
pub struct Owners {
    /// Absent where the kernel refuses it; then `/proc/net/tcp` is read, which takes longer the
    /// more connections there are.
    netlink: Option<Mutex<Netlink>>,
}

impl Owners {
    /// Makes ready, and finds out which way of asking works here.
    ///
    /// # Errors
    /// Fails when neither works.
    pub fn new() -> io::Result<Self> {
        let netlink = match Netlink::open() {
            Ok(mut netlink) => netlink.works().then(|| Mutex::new(netlink)),
            Err(error) => {
                tracing::debug!(%error, "no netlink socket for socket owners");
                None
            }
        };
        if netlink.is_none() {
            std::fs::File::open(PROC_TCP)?;
            tracing::info!("the kernel refuses to look up sockets by netlink; their owners are read from {PROC_TCP}");
        }
        Ok(Self { netlink })
    }

    /// The process that opened the connection which reached us at `ours` from `theirs`;
    /// `None` when it isn't of this host, is closed already, or the kernel does not say.
    pub fn owner(&self, ours: SocketAddr, theirs: SocketAddr) -> Option<Process> {
        let connection = Connection { source: canonical(theirs), destination: canonical(ours) };
        match &self.netlink {
            Some(netlink) => netlink.lock().owner(&connection).unwrap_or_else(|error| {
                tracing::debug!(%error, "a socket's owner was not found by netlink");
                proc_owner(&connection).map(Process::of_user)
            }),
            None => proc_owner(&connection).map(Process::of_user),
        }
    }
}

/// A connection as the client's socket sees it.
struct Connection {
    source: SocketAddr,
    destination: SocketAddr,
}

/// An IPv4 address is the same whether or not a socket of either end speaks IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => SocketAddr::new(v6.ip().to_canonical(), v6.port()),
        other => other,
    }
}

// ---- By netlink ------------------------------------------------------------------------------

struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: [u8; BUFFER_BYTES],
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let socket = netlink::open(NETLINK_SOCK_DIAG, ANSWER_TIME_MAX)?;
        Ok(Self { socket, sequence: 0, buffer: [0; BUFFER_BYTES] })
    }

    /// Whether it finds a connection of our own. A kernel without the module answers the same to
    /// every question as one that has it does when there is no such socket.
    fn works(&mut self) -> bool {
        let mut probe = || -> io::Result<Option<Process>> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let stream = TcpStream::connect(listener.local_addr()?)?;
            self.owner(&Connection { source: stream.local_addr()?, destination: stream.peer_addr()? })
        };
        matches!(probe(), Ok(Some(_)))
    }

    fn owner(&mut self, connection: &Connection) -> io::Result<Option<Process>> {
        self.ask(connection)?;
        for _ in 0..ANSWERS_MAX {
            let (bytes, from) = self.socket.recv_from(&mut &mut self.buffer[..], 0)?;
            if from.port_number() != 0 {
                continue;
            }
            let answer = self.buffer.get(..bytes).unwrap_or(&self.buffer);
            let message = NetlinkBuffer::new_checked(answer).map_err(io::Error::other)?;
            // An answer to a question that timed out.
            if message.sequence_number() != self.sequence {
                continue;
            }
            return match message.message_type() {
                SOCK_DIAG_BY_FAMILY => {
                    let found = InetResponseHeader::parse(message.payload()).map_err(io::Error::other)?;
                    let group = message.payload().get(HEADER_LENGTH..).and_then(group);
                    Ok(connection.owner_in(&found).map(|user| Process { user, group }))
                }
                NLMSG_ERROR => refusal(message.payload()),
                other => Err(io::Error::other(format!("an answer of type {other}"))),
            };
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    fn ask(&mut self, connection: &Connection) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(connection.request()).into());
        message.finalize();
        let length = message.buffer_len();
        message.emit(&mut self.buffer[..length]);
        self.socket.send(&self.buffer[..length], 0).map(drop)
    }
}

impl Connection {
    fn request(&self) -> InetRequest {
        let (family, interface_id) = match self.source {
            SocketAddr::V4(_) => (AF_INET, 0),
            SocketAddr::V6(source) => (AF_INET6, source.scope_id()),
        };
        InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: SocketId {
                source_port: self.source.port(),
                destination_port: self.destination.port(),
                source_address: self.source.ip(),
                destination_address: self.destination.ip(),
                interface_id,
                cookie: ANY_COOKIE,
            },
        }
    }

    fn owner_in(&self, found: &InetResponseHeader) -> Option<u32> {
        let id = &found.socket_id;
        let same = id.source_port == self.source.port()
            && id.destination_port == self.destination.port()
            && id.source_address.to_canonical() == self.source.ip()
            && id.destination_address.to_canonical() == self.destination.ip();
        (same && owned(found.state, found.inode.into())).then_some(found.uid)
    }
}

/// The number of the control group among the attributes of an answer (linux/inet_diag.h), Linux 5.8.
fn group(mut attributes: &[u8]) -> Option<u64> {
    while let [a, b, c, d, ..] = *attributes {
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
        let value = attributes.get(4..length)?;
        if kind == CGROUP_ID {
            return Some(u64::from_ne_bytes(value.get(..8)?.try_into().ok()?)).filter(|group| *group > 0);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// Length of what stands before the attributes, in bytes.
const HEADER_LENGTH: usize = 72;
/// `INET_DIAG_CGROUP_ID`
const CGROUP_ID: u16 = 21;

/// Whether a process holds the socket, so that its user is who opened it.
fn owned(state: u8, inode: u64) -> bool {
    inode != 0 && ![TCP_LISTEN, TCP_TIME_WAIT, TCP_SYN_RECV].contains(&state)
}

/// No such socket is an answer; anything else is not.
fn refusal(payload: &[u8]) -> io::Result<Option<Process>> {
    match netlink::outcome(payload) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(None),
    }
}

// ---- By /proc --------------------------------------------------------------------------------

fn proc_owner(connection: &Connection) -> Option<u32> {
    let Connection { source, destination } = connection;
    let by_family = |path, source: IpAddr, destination: IpAddr| {
        let file = std::fs::File::open(path).ok()?;
        let ports = (connection.source.port(), connection.destination.port());
        find(BufReader::new(file), &end(source, ports.0), &end(destination, ports.1))
    };
    if let (IpAddr::V4(source), IpAddr::V4(destination)) = (source.ip(), destination.ip()) {
        let mapped = |ip: Ipv4Addr| IpAddr::V6(ip.to_ipv6_mapped());
        return by_family(PROC_TCP, source.into(), destination.into())
            .or_else(|| by_family(PROC_TCP6, mapped(source), mapped(destination)));
    }
    by_family(PROC_TCP6, source.ip(), destination.ip())
}

/// One end as the kernel prints it: each 32 bits of the address as a number of this machine.
fn end(ip: IpAddr, port: u16) -> String {
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => Ipv6Addr::octets(&ip).to_vec(),
    };
    let mut text = String::new();
    for word in octets.as_chunks::<4>().0 {
        write!(text, "{:08X}", u32::from_ne_bytes(*word)).expect("a string takes what is written");
    }
    write!(text, ":{port:04X}").expect("a string takes what is written");
    text
}

/// Columns: number, local end, remote end, state, queues, timer, retransmits, user, timeout, inode.
fn find(table: impl BufRead, source: &str, destination: &str) -> Option<u32> {
    table.lines().map_while(Result::ok).find_map(|line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        if columns.next()? != source || columns.next()? != destination {
            return None;
        }
        let state = u8::from_str_radix(columns.next()?, 16).ok()?;
        let user = columns.nth(3)?.parse().ok()?;
        let inode = columns.nth(1)?.parse().ok()?;
        owned(state, inode).then_some(user)
    })
}

/// The kernel answers at once, or not at all.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(100);
/// Outdated answers that are skipped for one question.
const ANSWERS_MAX: usize = 16;
/// A question takes 72 bytes, an answer without extensions about 100.
const BUFFER_BYTES: usize = 1024;
/// Any socket of this connection (`INET_DIAG_NOCOOKIE`).
const ANY_COOKIE: [u8; 8] = [0xff; 8];
const PROC_TCP: &str = "/proc/net/tcp";
const PROC_TCP6: &str = "/proc/net/tcp6";

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use tokio::time::Instant;

    use super::*;

    fn ways() -> [Owners; 2] {
        [Owners::new().expect("made"), Owners { netlink: None }]
    }

    fn connect(to: &str) -> (TcpListener, TcpStream, TcpStream) {
        let listener = TcpListener::bind(to).expect("bound");
        let mut address = listener.local_addr().expect("an address");
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        let client = TcpStream::connect(address).expect("connected");
        let (server, _) = listener.accept().expect("accepted");
        (listener, client, server)
    }

    #[test]
    fn finds_the_client_over_both_families() {
        let own = nix::unistd::geteuid().as_raw();
        for owners in ways() {
            for to in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
                let (_listener, _client, server) = connect(to);
                let (ours, theirs) = (server.local_addr().expect("ours"), server.peer_addr().expect("theirs"));
                let found = owners.owner(ours, theirs).expect("somebody's");
                assert_eq!(found.user, own, "{to}");
                assert!(found.group.is_none_or(|group| Some(group) == own_group()), "{to}: {found:?}");
            }
        }
    }

    /// The control group of this process, where there are those of version 2.
    fn own_group() -> Option<u64> {
        let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
        let found = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|root| std::fs::metadata(format!("{root}{path}")));
        Some(std::os::unix::fs::MetadataExt::ino(&found.into_iter().find_map(Result::ok)?))
    }

    #[test]
    fn a_closed_or_listening_or_foreign_socket_has_no_owner() {
        for owners in ways() {
            let (_listener, client, server) = connect("127.0.0.1:0");
            let (ours, theirs) = (server.local_addr().expect("ours"), server.peer_addr().expect("theirs"));
            let elsewhere = "192.0.2.1:443".parse().expect("an address");
            assert_eq!(owners.owner(elsewhere, theirs), None);
            assert_eq!(owners.owner(elsewhere, ours), None, "a listener is nobody's client");
            drop(client);
            assert_eq!(owners.owner(ours, theirs), None, "closed");
            server.shutdown(Shutdown::Both).expect("shut down");
            drop(server);
            assert_eq!(owners.owner(ours, theirs), None, "waiting");
        }
    }

    #[test]
    fn outdated_answers_are_skipped() {
        let (_listener, _client, server) = connect("127.0.0.1:0");
        let (source, destination) = (server.peer_addr().expect("theirs"), server.local_addr().expect("ours"));
        let mut netlink = Netlink::open().expect("opened");
        netlink.ask(&Connection { source: destination, destination: source }).expect("asked");
        netlink.ask(&Connection { source: "192.0.2.1:1".parse().expect("an address"), destination }).expect("asked");
        let own = nix::unistd::geteuid().as_raw();
        let found = netlink.owner(&Connection { source, destination }).expect("answered");
        assert_eq!(found.map(|process| process.user), Some(own));
    }

    #[test]
    fn a_lookup_is_quick() {
        let owners = Owners::new().expect("made");
        let (_listener, _client, server) = connect("127.0.0.1:0");
        let (ours, theirs) = (server.local_addr().expect("ours"), server.peer_addr().expect("theirs"));
        let began = Instant::now();
        for _ in 0..LOOKUPS {
            owners.owner(ours, theirs).expect("found");
        }
        let each = began.elapsed() / LOOKUPS;
        println!("{each:?} a lookup, by netlink: {}", owners.netlink.is_some());
        assert!(each < Duration::from_millis(20));
    }

    const LOOKUPS: u32 = 1000;
}
