//! What decisions do to the state, as golden scripts: `tests/scripts/`.

#[path = "../../proto/tests/support/golden.rs"]
mod golden;

use std::error::Error;
use std::fmt::Write;
use std::path::Path;

use weft_consensus::apply::apply;
use weft_consensus::state::State;
use weft_proto::command::{
    Admission, CertificateRecord, Command, Found, NodeKeys, Outcome, Proposal, ResourceAction, ResourceChange,
    TokenRecord,
};
use weft_proto::identity::{Identity, NodeName};
use weft_proto::resource::{KindName, Resource, ResourceKey};
use weft_proto::service::{ServiceName, ServicePort};

use golden::{Line, Told};

/// A state, decided upon line by line.
#[derive(Default)]
struct Script {
    state: State,
    index: u64,
    at: u64,
}

impl Script {
    fn run(&mut self, mut line: Line<'_>) -> Told {
        let command = match line.word()? {
            "show" => return self.show(line.word()?),
            "hours" => {
                self.at += line.word()?.parse::<u64>()? * HOUR_MS;
                return Ok(String::new());
            }
            name => command(name, &mut line)?,
        };
        line.end()?;
        self.index += 1;
        let key = u128::from(self.index).to_be_bytes();
        let (index, outcome) = apply(&mut self.state, self.index, &Proposal { key, at: self.at, command });
        let decoded = State::decode(&self.state.encode())?;
        assert_eq!(decoded, self.state, "what is written is what is read");
        Ok(format!("{index}: {}\n", told(outcome)))
    }
}

const HOUR_MS: u64 = 60 * 60 * 1000;

fn told(outcome: Outcome) -> String {
    match outcome {
        Outcome::Done => "done".into(),
        Outcome::Admitted { raft_id } => format!("admitted as {raft_id}"),
        Outcome::Declared { address } => format!("declared at {address}"),
        Outcome::Changed(lines) => lines.join(", "),
        Outcome::Refused(refusal) => format!("refused ({}): {refusal}", refusal.reason),
    }
}

fn command(name: &str, line: &mut Line<'_>) -> Result<Command, Box<dyn Error>> {
    Ok(match name {
        "found" => Command::Found(Found {
            trust_domain: line.word()?.parse()?,
            deny_by_default: false,
            root_certificate: vec![1],
            node: keys(line.word()?)?,
            sealed_authority: vec![2],
            version: 1,
        }),
        "token" => Command::CreateToken(TokenRecord {
            id: line.word()?.into(),
            secret_hash: [5; 32],
            services: line.word()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            expires: line.named("hours")?.unwrap_or(1) * HOUR_MS,
            uses: line.named("uses")?.unwrap_or(1),
        }),
        "revoke" => Command::RevokeToken { id: line.word()?.into() },
        "admit" => {
            let node = keys(line.word()?)?;
            Command::Admit(Admission { node, token_id: line.word()?.into(), secret_hash: [5; 32] })
        }
        "grant-authority" => Command::GrantAuthority { node: line.word()?.parse()?, sealed: vec![3] },
        "declare" => {
            let (node, service) = (line.word()?.parse()?, line.word()?.parse::<ServiceName>()?);
            let ports = line.word()?.split(',').map(port).collect::<Result<_, _>>()?;
            let account = line.named::<ServiceName>("account")?.unwrap_or_else(|| service.clone());
            Command::DeclareService { node, service, ports, account }
        }
        "withdraw" => Command::WithdrawService { node: line.word()?.parse()?, service: line.word()?.parse()? },
        "certify" => {
            let (node, identity): (NodeName, Identity) =
                (line.word()?.parse()?, format!("spiffe://{}", line.word()?).parse()?);
            let not_after = line.named("ends")?.unwrap_or(24) * HOUR_MS;
            let serial = line.named::<u8>("serial")?.unwrap_or(1);
            Command::RecordCertificate(CertificateRecord {
                node,
                identity,
                serial: vec![serial],
                not_before: 0,
                not_after,
            })
        }
        "put" => Command::ChangeResources(vec![ResourceChange {
            action: ResourceAction::Put(Resource {
                key: policy(line.word()?),
                api_version: "security.istio.io/v1".into(),
                labels: Default::default(),
                annotations: Default::default(),
                spec: line.word()?.into(),
                created: 0,
                version: 0,
            }),
            expected: line.named("expected")?,
        }]),
        "delete" => Command::ChangeResources(vec![ResourceChange {
            action: ResourceAction::Delete(policy(line.word()?)),
            expected: line.named("expected")?,
        }]),
        "remove-node" => Command::RemoveNode { node: line.word()?.parse()? },
        "raise" => Command::Raise { version: line.word()?.parse()? },
        other => return Err(format!("there is no command {other}").into()),
    })
}

fn keys(name: &str) -> Result<NodeKeys, Box<dyn Error>> {
    // The same name with a mark has other keys.
    let (plain, key) = name.strip_suffix('!').map_or((name, 1), |plain| (plain, 9));
    Ok(NodeKeys { name: plain.parse()?, fact_key: [key; 32], seal_key: [key; 32] })
}

fn port(text: &str) -> Result<ServicePort, Box<dyn Error>> {
    let (port, protocol) = text.split_once('/').ok_or("a port is PORT/PROTOCOL")?;
    Ok(ServicePort { port: port.parse()?, protocol: protocol.parse()? })
}

fn policy(name: &str) -> ResourceKey {
    let kind = KindName { group: "security.istio.io".into(), name: "AuthorizationPolicy".into() };
    ResourceKey { kind, namespace: "default".into(), name: name.into() }
}

impl Script {
    fn show(&self, what: &str) -> Told {
        let (state, mut text) = (&self.state, String::new());
        match what {
            "nodes" => {
                for (name, record) in &state.nodes {
                    let grants: Vec<String> = record.services.iter().map(ToString::to_string).collect();
                    let holds =
                        if state.sealed_authority.contains_key(name) { ", holds the authority's key" } else { "" };
                    writeln!(text, "{name}: Raft id {}, may run {}{holds}", record.raft_id, grants.join(" "))?;
                }
            }
            "services" => {
                for (name, record) in &state.services {
                    let ports: Vec<String> =
                        record.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect();
                    let nodes: Vec<&str> = record.declared.keys().map(NodeName::as_str).collect();
                    let (ports, nodes) = (ports.join(","), nodes.join(" "));
                    writeln!(text, "{name} at {} as {}: {ports} on {nodes}", record.address, record.account)?;
                }
                for (address, freed) in &state.freed {
                    writeln!(text, "{address} was {}'s", freed.service)?;
                }
            }
            "certificates" => {
                for (serial, record) in &state.certificates {
                    writeln!(text, "{serial:?}: {} on {}", record.identity, record.node)?;
                }
                for serial in state.revoked.keys() {
                    writeln!(text, "{serial:?}: revoked")?;
                }
            }
            "resources" => {
                for (key, resource) in &state.resources {
                    writeln!(text, "{key} version {}: {}", resource.version, resource.spec)?;
                }
            }
            other => return Err(format!("nothing is known of {other}").into()),
        }
        Ok(if text.is_empty() { "none\n".into() } else { text })
    }
}

#[test]
fn decisions_do_what_the_scripts_say() {
    golden::run(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts")), Script::run);
}
