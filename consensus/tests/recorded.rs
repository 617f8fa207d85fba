//! Bytes that version 1 of the mesh has written, as they lie on disks and as other nodes send them: they are read for ever.
//!
//! A file holds one message in hexadecimal digits. `WEFT_RECORD=1 cargo test --test recorded` writes those that are not
//! there; one that is there is never written again.

use std::fs;
use std::path::PathBuf;

use prost::Message;
use weft_consensus::apply::apply;
use weft_consensus::state::State;
use weft_proto::command::{
    Admission, CertificateRecord, Command, Found, NodeKeys, Proposal, ResourceAction, ResourceChange, TokenRecord,
};
use weft_proto::facts::NodeFacts;
use weft_proto::identity::Identity;
use weft_proto::resource::{KindName, Resource, ResourceKey};
use weft_proto::service::{Grant, Instance, InstanceId, InstanceName, Labels, Protocol, ServiceName, ServicePort};
use weft_proto::wire::{cluster, mesh};

fn keys(name: &str) -> NodeKeys {
    NodeKeys { name: name.parse().expect("a name"), fact_key: [1; 32], seal_key: [2; 32] }
}

fn policy() -> Resource {
    let kind = KindName { group: "security.istio.io".into(), name: "AuthorizationPolicy".into() };
    Resource {
        key: ResourceKey { kind, namespace: "default".into(), name: "web".into() },
        api_version: "security.istio.io/v1".into(),
        labels: [("team".to_owned(), "shop".to_owned())].into(),
        annotations: [("note".to_owned(), "kept".to_owned())].into(),
        spec: "{\"action\":\"DENY\",\"rules\":[{}]}".into(),
        created: 0,
        version: 0,
    }
}

fn commands() -> Vec<Command> {
    let ports = vec![ServicePort { port: 8080, protocol: Protocol::Http }];
    let (a, b) = (keys("a"), keys("b"));
    let (service, trust_domain): (ServiceName, _) =
        ("web".parse().expect("a name"), "mesh.local".parse().expect("a name"));
    let identity = Identity::service("mesh.local".parse().expect("a name"), "web".parse().expect("a name"));
    let put = ResourceChange { action: ResourceAction::Put(policy()), expected: Some(0) };
    let unknown = KindName { group: "example.org".into(), name: "Gizmo".into() };
    let delete = ResourceKey { kind: unknown, namespace: "default".into(), name: "x".into() };
    vec![
        Command::Found(Found {
            trust_domain,
            deny_by_default: true,
            root_certificate: vec![3; 8],
            node: a.clone(),
            sealed_authority: vec![4; 8],
            version: 1,
        }),
        Command::CreateToken(TokenRecord {
            id: "t".into(),
            secret_hash: [5; 32],
            expires: 1_900_000_000_000,
            uses: 3,
            services: vec![Grant::Every],
        }),
        Command::Admit(Admission { token_id: "t".into(), secret_hash: [5; 32], node: b.clone() }),
        Command::GrantAuthority { node: b.name.clone(), sealed: vec![6; 8] },
        Command::DeclareService { node: b.name.clone(), account: service.clone(), service, ports },
        Command::ChangeResources(vec![put]),
        Command::ChangeResources(vec![ResourceChange { action: ResourceAction::Delete(delete), expected: None }]),
        Command::RecordCertificate(CertificateRecord {
            node: b.name.clone(),
            identity,
            serial: vec![7; 16],
            not_before: 1_800_000_000_000,
            not_after: 1_800_086_400_000,
        }),
        Command::RevokeToken { id: "t".into() },
        Command::WithdrawService { node: a.name, service: "gone".parse().expect("a name") },
        Command::Raise { version: 1 },
        Command::RemoveNode { node: b.name },
    ]
}

fn proposals() -> impl Iterator<Item = (u8, Proposal)> {
    (1u8..).zip(commands()).map(|(n, command)| (n, Proposal { key: [n; 16], at: 1_800_000_000_000, command }))
}

fn state() -> State {
    let mut state = State::default();
    proposals().for_each(|(n, proposal)| drop(apply(&mut state, u64::from(n), &proposal)));
    state
}

fn facts() -> NodeFacts {
    let ports = vec![ServicePort { port: 8080, protocol: Protocol::Http }];
    NodeFacts {
        name: "b".parse().expect("a name"),
        raft_id: 2,
        generation: 1_800_000_000_000,
        sequence: 3,
        address: "10.0.0.2:7946".into(),
        zone: "one".into(),
        version: "0.1.0".into(),
        refused: String::new(),
        instances: vec![
            Instance {
                id: InstanceId { service: "web".parse().expect("a name"), name: InstanceName::default() },
                labels: Labels::new(),
                ports: ports.clone(),
                targets: Vec::new(),
                healthy: true,
                weight: 100,
            },
            Instance {
                id: InstanceId { service: "web".parse().expect("a name"), name: "v2".parse().expect("a name") },
                labels: [("version".to_owned(), "v2".to_owned())].into(),
                ports,
                targets: Vec::new(),
                healthy: false,
                weight: 1,
            },
        ],
        draining: false,
        commands: 1,
    }
}

fn control() -> Vec<(&'static str, Vec<u8>)> {
    use cluster::{control_request, entry, follow_event};
    let proposal = proposals().next().map(|(_, proposal)| mesh::Proposal::from(proposal)).expect("one");
    let id = Some(cluster::LogId { term: 2, index: 5 });
    let entry = cluster::Entry { id, payload: Some(entry::Payload::Proposal(proposal)) };
    let vote = Some(cluster::Vote { term: 2, node: 1, committed: true });
    let append = cluster::AppendEntries { vote, previous: id, entries: vec![entry.clone()], committed: id };
    let consensus = cluster::Consensus { to: 2, kind: Some(cluster::consensus::Kind::Append(append)) };
    let request = cluster::ControlRequest { kind: Some(control_request::Kind::Consensus(consensus)) };
    let enforced = cluster::EnforcedRequest { index: 7, wait: 1000 };
    let enforced = cluster::ControlRequest { kind: Some(control_request::Kind::Enforced(enforced)) };
    let entries = cluster::FollowEntries { entries: vec![entry], committed: 5, leader: "a".into() };
    let event = cluster::FollowEvent { kind: Some(follow_event::Kind::Entries(entries)) };
    let join = mesh::JoinRequest {
        token_id: "t".into(),
        token_secret: vec![8; 16].into(),
        node: Some(keys("b").into()),
        csr: vec![9; 4].into(),
        key: vec![10; 16].into(),
    };
    let joined = mesh::JoinResponse {
        error: String::new(),
        raft_id: 2,
        certificate_chain: vec![vec![11; 4].into()],
        roots: vec![vec![3; 8].into()],
        addresses: vec!["10.0.0.1:7946".into()],
        now: 1_800_000_000_000,
    };
    vec![
        ("control-append", request.encode_to_vec()),
        ("control-enforced", enforced.encode_to_vec()),
        ("follow-entries", event.encode_to_vec()),
        ("join-request", join.encode_to_vec()),
        ("join-response", joined.encode_to_vec()),
    ]
}

/// The recorded bytes; those given where they are to be recorded.
fn recorded(name: &str, now: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recorded")).join(format!("{name}.hex"));
    if std::env::var_os("WEFT_RECORD").is_some() && !path.exists() {
        let digits: String = now.iter().map(|byte| format!("{byte:02x}")).collect();
        let lines: Vec<&[u8]> = digits.as_bytes().chunks(100).collect();
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(&path, [lines.join(&b'\n'), b"\n".to_vec()].concat()).expect("written");
    }
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hexadecimal");
    digits.chunks(2).map(byte).collect()
}

#[test]
fn every_command_is_read_as_it_was_meant() {
    for (n, proposal) in proposals() {
        let now = mesh::Proposal::from(proposal.clone()).encode_to_vec();
        let bytes = recorded(&format!("proposal-{n:02}"), &now);
        let message = mesh::Proposal::decode(bytes.as_slice()).expect("readable");
        assert_eq!(Proposal::try_from(message), Ok(proposal));
        assert_eq!(now, bytes, "proposal {n} would be written otherwise, and older nodes read it");
    }
}

#[test]
fn a_snapshot_is_read_as_it_was_meant() {
    let bytes = recorded("state", &state().encode());
    assert_eq!(State::decode(&bytes).expect("readable"), state());
}

#[test]
fn facts_and_control_messages_are_read_as_they_were_meant() {
    let bytes = recorded("facts", &mesh::NodeFacts::from(facts()).encode_to_vec());
    let message = mesh::NodeFacts::decode(bytes.as_slice()).expect("readable");
    assert_eq!(NodeFacts::try_from(message), Ok(facts()));
    for (name, now) in control() {
        assert_eq!(recorded(name, &now), now, "{name} would be written otherwise, and older nodes read it");
    }
}

#[test]
fn a_snapshot_of_a_later_version_is_refused_with_the_remedy() {
    let later = State { version: 99, ..state() };
    let error = State::decode(&later.encode()).expect_err("refused");
    assert!(error.contains("version 99") && error.contains("upgrade weft"), "{error}");
}
