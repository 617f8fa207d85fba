//! Names of services over DNS, from the shipped binary.

#![expect(clippy::disallowed_methods, unreachable_pub, reason = "tests of processes live in real time")]
#![allow(dead_code, reason = "each test file uses its own part")]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use support::{BOUND, Node, free_port, here, server, until};

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_str(name).expect("a name"), kind));
    message
}

fn over_udp(place: SocketAddr, bytes: &[u8]) -> Message {
    let socket = UdpSocket::bind((here(), 0)).expect("a socket");
    socket.set_read_timeout(Some(BOUND)).expect("set");
    socket.send_to(bytes, place).expect("sent");
    let mut buffer = [0; 4096];
    let (length, _) = socket.recv_from(&mut buffer).expect("an answer");
    Message::from_vec(&buffer[..length]).expect("a message")
}

fn ask(place: SocketAddr, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let asked = query(name, kind);
    let answer = over_udp(place, &asked.to_vec().expect("encodes"));
    assert_eq!(answer.metadata.id, asked.metadata.id);
    let text = |data: &RData| match data {
        RData::A(address) => address.to_string(),
        RData::SRV(srv) => format!("{} {}", srv.port, srv.target),
        RData::PTR(name) => name.to_string(),
        other => format!("{other:?}"),
    };
    (answer.metadata.response_code, answer.answers.iter().map(|record| text(&record.data)).collect())
}

#[test]
fn names_are_answered_for_what_is_there_and_for_nothing_else() {
    let (mut node, port) = (Node::new("a"), free_port());
    let place: SocketAddr = (here(), port).into();
    node.up(&["--init", "--dns", &place.to_string()]);
    let web = server("web");
    node.ok(&["service", "add", "web", "--port", &format!("8080:{web}/http")]);
    // Without an address on this host there is nothing to tell, and no denial of the name either.
    until("the service is known", || ask(place, "web.mesh.", RecordType::A).0 == ResponseCode::NoError);
    assert_eq!(ask(place, "web.mesh.", RecordType::A), (ResponseCode::NoError, vec![]));
    node.ok(&["listen", "web"]);
    until("it has an address", || !ask(place, "web.mesh.", RecordType::A).1.is_empty());
    let (_, addresses) = ask(place, "web.mesh.", RecordType::A);
    let listed = node.ok(&["service", "list"]);
    assert!(listed.contains(&addresses[0]), "{addresses:?}: {listed}");
    for name in ["WEB.Mesh.", "web.default.mesh.", "web.default.svc.cluster.local."] {
        assert_eq!(ask(place, name, RecordType::A), (ResponseCode::NoError, addresses.clone()), "{name}");
    }
    assert_eq!(ask(place, "web.mesh.", RecordType::AAAA), (ResponseCode::NoError, vec![]));
    assert_eq!(
        ask(place, "_http._tcp.web.mesh.", RecordType::SRV),
        (ResponseCode::NoError, vec!["8080 web.default.mesh.".into()])
    );
    assert_eq!(ask(place, "_grpc._tcp.web.mesh.", RecordType::SRV).0, ResponseCode::NXDomain);
    let parts: Vec<&str> = addresses[0].split('.').rev().collect();
    let reversed = format!("{}.in-addr.arpa.", parts.join("."));
    assert_eq!(ask(place, &reversed, RecordType::PTR), (ResponseCode::NoError, vec!["web.default.mesh.".into()]));
    assert_eq!(ask(place, "gone.mesh.", RecordType::A).0, ResponseCode::NXDomain);

    // An instance has a name, and an address only where the kernel sends calls of all of them to the node.
    for name in ["a.web.mesh.", "a.web.default.mesh.", "a.web.default.svc.cluster.local."] {
        assert_eq!(ask(place, name, RecordType::A), (ResponseCode::NoError, vec![]), "{name}");
    }
    assert_eq!(ask(place, "b.web.mesh.", RecordType::A).0, ResponseCode::NXDomain);
    assert_eq!(ask(place, "example.com.", RecordType::A).0, ResponseCode::Refused);

    // What is no query is not answered as one, and no answer at all.
    let mut bytes = query("web.mesh.", RecordType::A).to_vec().expect("encodes");
    bytes.truncate(20);
    assert_eq!(over_udp(place, &bytes).metadata.response_code, ResponseCode::FormErr);

    let asked = query("web.mesh.", RecordType::A).to_vec().expect("encodes");
    let mut stream = TcpStream::connect(place).expect("a connection");
    stream.set_read_timeout(Some(BOUND)).expect("set");
    for _ in 0..2 {
        let length = u16::try_from(asked.len()).expect("short").to_be_bytes();
        stream.write_all(&[&length[..], &asked].concat()).expect("sent");
        let mut length = [0; 2];
        stream.read_exact(&mut length).expect("an answer");
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(Message::from_vec(&answer).expect("a message").answers.len(), 1);
    }
}
