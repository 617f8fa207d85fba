//! Names of services over DNS, for this host: what ends in `mesh`, and the names that manifests use (`svc.cluster.local`). It knows
//! nothing else and asks nobody, and answers from the table in force, with or without a majority of voters.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, PTR, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use weft_proto::kinds::istio::{instance_of, service_of};
use weft_proto::service::{DEFAULT_NAMESPACE, ServiceName, ServicePort};
use weft_proxy::table::{Service, Table};

/// How long an answer is good: an address stays a service's for as long as that is there, and nobody else's for an hour after.
const LIFE_S: u32 = 30;
/// How long it is good that there is no such name, which may come to be at any moment.
const LIFE_OF_NOTHING_S: u32 = 2;
/// Longest answer over UDP to whoever does not say how much it takes (RFC 1035, 4.2.1), and to anybody (dnsflagday.net/2020).
const UDP_LENGTH: u16 = 512;
const UDP_LENGTH_MAX: u16 = 1232;
/// Connections at once, and how long each may be silent.
const CONNECTIONS_MAX: usize = 64;
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What is known of names.
pub(crate) struct Known {
    /// The newest table.
    pub(crate) table: Arc<Table>,
    /// Whether the kernel sends calls of all loopback addresses to the node: an instance is called at its own by that alone.
    pub(crate) captured: bool,
}

impl Known {
    /// What is called so, the service that it is or is an instance of, and its address on this host, where it has one here.
    fn service(&self, text: &str) -> Option<(ServiceName, &Service, Option<Ipv4Addr>)> {
        let is_ours = |service: &&Arc<Service>| !service.name.is_outside();
        if let Some(name) = service_of(text, DEFAULT_NAMESPACE)
            && let Some(service) = self.table.service(&name).filter(is_ours)
        {
            return Some((name, service, service.loopback()));
        }
        let name = instance_of(text, DEFAULT_NAMESPACE)?;
        let (service, address) = self.table.instance(&name)?;
        Some((name, service, address.filter(|_| self.captured)))
    }
}

/// Sockets that are listened on.
pub(crate) struct Listening {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Listening {
    /// Listens, on UDP and TCP.
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        Ok(Self { udp: UdpSocket::bind(tcp.local_addr()?).await?, tcp })
    }

    /// Answers until the node stops, from what is known then.
    pub(crate) async fn run(self, known: impl Fn() -> Known + Send + Sync + 'static) {
        let known = Arc::new(known);
        let Self { udp, tcp } = self;
        tokio::spawn(over_tcp(tcp, known.clone()));
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = match udp.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    // That of an answer that nobody took.
                    tracing::debug!(%error, "a query was not received");
                    continue;
                }
            };
            if let Some(answer) = answer(&known(), &buffer[..length], true) {
                let _ = udp.try_send_to(&answer, from);
            }
        }
    }
}

async fn over_tcp(listener: TcpListener, known: Arc<impl Fn() -> Known + Send + Sync + 'static>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let known = known.clone();
                tokio::spawn(async move {
                    let _ = queries(stream, &*known).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection for names could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Each with its length before it (RFC 1035, 4.2.2).
async fn queries(mut stream: TcpStream, known: &(impl Fn() -> Known + Sync)) -> io::Result<()> {
    loop {
        let length = timeout(SILENCE_MAX, stream.read_u16()).await??;
        let mut query = vec![0; usize::from(length)];
        timeout(SILENCE_MAX, stream.read_exact(&mut query)).await??;
        let Some(answer) = answer(&known(), &query, false) else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        timeout(SILENCE_MAX, stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())).await??;
    }
}

/// The answer to a message; none to what is no query.
fn answer(known: &Known, bytes: &[u8], udp: bool) -> Option<Vec<u8>> {
    // Whoever answers answers would answer another one like itself without end.
    if bytes.len() < 12 || bytes[2] & 0x80 != 0 {
        return None;
    }
    let id = u16::from_be_bytes([bytes[0], bytes[1]]);
    let Ok(query) = Message::from_vec(bytes) else {
        return Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok();
    };
    let mut message = Message::new(id, MessageType::Response, query.metadata.op_code);
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.add_queries(query.queries.iter().cloned());
    let mut length = if udp { UDP_LENGTH } else { u16::MAX };
    if let Some(asked) = &query.edns {
        if udp {
            length = asked.max_payload().clamp(UDP_LENGTH, UDP_LENGTH_MAX);
        }
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_LENGTH_MAX);
        message.set_edns(edns);
    }
    match (query.metadata.op_code, &query.queries[..]) {
        (OpCode::Query, [one]) if one.query_class() == DNSClass::IN => {
            fill(&mut message, known, &one.name().to_lowercase(), one.query_type());
        }
        (OpCode::Query, [_]) => message.metadata.response_code = ResponseCode::Refused,
        (OpCode::Query, _) => message.metadata.response_code = ResponseCode::FormErr,
        _ => message.metadata.response_code = ResponseCode::NotImp,
    }
    let whole = message.to_vec().ok()?;
    if whole.len() <= usize::from(length) { Some(whole) } else { message.truncate().to_vec().ok() }
}

fn fill(message: &mut Message, known: &Known, name: &Name, kind: RecordType) {
    let text = name.to_ascii();
    let text = text.trim_end_matches('.');
    let Some(zone) = ZONES.into_iter().find(|zone| text == *zone || text.ends_with(&format!(".{zone}"))) else {
        message.metadata.response_code = ResponseCode::Refused;
        return;
    };
    message.metadata.authoritative = true;
    let found = if text == zone { Some(Vec::new()) } else { records(known, text, name, kind) };
    match found {
        Some(found) if !found.is_empty() => drop(message.add_answers(found)),
        found => {
            if found.is_none() {
                message.metadata.response_code = ResponseCode::NXDomain;
            }
            // How long that is good (RFC 2308, 5).
            message.add_authority(authority(zone));
        }
    }
}

/// What is known of a name; none where there is none.
fn records(known: &Known, text: &str, name: &Name, kind: RecordType) -> Option<Vec<Record>> {
    let is = |wanted: RecordType| kind == wanted || kind == RecordType::ANY;
    if let Some(reversed) = text.strip_suffix(".in-addr.arpa") {
        let parts: Vec<u8> = reversed.split('.').rev().map(str::parse).collect::<Result<_, _>>().ok()?;
        let address = Ipv4Addr::from(<[u8; 4]>::try_from(parts).ok()?);
        let target = Name::from_str(&format!("{}.", known.table.called_at(address)?.host())).ok()?;
        let record = Record::from_rdata(name.clone(), LIFE_S, RData::PTR(PTR(target)));
        return Some(if is(RecordType::PTR) { vec![record] } else { Vec::new() });
    }
    let labels: Vec<&str> = text.splitn(3, '.').collect();
    if let [port, "_tcp", rest] = labels[..]
        && let Some(port) = port.strip_prefix('_')
    {
        let (called, service, address) = known.service(rest)?;
        let meant = |one: &&ServicePort| one.protocol.to_string() == port || one.port.to_string() == port;
        let target = Name::from_str(&format!("{}.", called.host())).ok()?;
        let ports: Vec<u16> =
            service.ports.iter().filter(meant).map(|one| one.port).filter(|_| address.is_some()).collect();
        if ports.is_empty() {
            return None;
        }
        let record = |port| Record::from_rdata(name.clone(), LIFE_S, RData::SRV(SRV::new(0, 0, port, target.clone())));
        return Some(if is(RecordType::SRV) { ports.into_iter().map(record).collect() } else { Vec::new() });
    }
    let (_, _, address) = known.service(text)?;
    let record = |address| Record::from_rdata(name.clone(), LIFE_S, RData::A(A(address)));
    Some(address.filter(|_| is(RecordType::A)).map(record).into_iter().collect())
}

/// Who says that there is nothing.
fn authority(zone: &str) -> Record {
    let name = |text: &str| Name::from_str(text).unwrap_or_else(|_| Name::root());
    let life = i32::try_from(LIFE_OF_NOTHING_S).unwrap_or(1);
    let said = SOA::new(name("localhost."), name("nobody.invalid."), 1, life, life, life, LIFE_OF_NOTHING_S);
    Record::from_rdata(name(&format!("{zone}.")), LIFE_OF_NOTHING_S, RData::SOA(said))
}

/// What it answers for.
const ZONES: [&str; 3] = ["mesh", "svc.cluster.local", "127.in-addr.arpa"];
