//! `weft check`: whether this host and its way to the others are fit for the mesh, before it joins and after.

mod host;
mod way;

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::{Context, Done, Ended, FAILURE, Output, Stopped, json};
use crate::api::schema::{Checked, CheckedNode};
use crate::client::ClientError;
use crate::join::read_line;

#[derive(Debug, Args)]
pub(super) struct Command {
    /// Before it joins: the line with which it will, or the HOST:PORT of a node; whether that is reached
    #[arg(value_name = "LINE|HOST:PORT")]
    to: Option<String>,
}

/// What was looked at, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at.
    what: String,
    /// Whether it is as it should be.
    level: Level,
    /// What was found, and what to do about it.
    text: String,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Good,
    /// Something is less than it could be.
    Warning,
    /// Something will not work.
    Bad,
}

impl Finding {
    fn good(what: &str, text: impl Into<String>) -> Self {
        Self { what: what.to_owned(), level: Level::Good, text: text.into() }
    }

    fn warning(what: &str, text: impl Into<String>) -> Self {
        Self { what: what.to_owned(), level: Level::Warning, text: text.into() }
    }

    fn bad(what: &str, text: impl Into<String>) -> Self {
        Self { what: what.to_owned(), level: Level::Bad, text: text.into() }
    }
}

impl Command {
    pub(super) async fn execute(self, data_dir: &Path, context: &Context) -> Ended {
        let node = match context.client.status().await {
            Ok(status) => Some(status),
            Err(ClientError::Absent(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let mut findings = host::all(data_dir, node.is_some());
        match (&node, &self.to) {
            (Some(_), Some(_)) => {
                return Err(Stopped::usage(
                    "this host runs a node already: `weft check` alone looks at all it should reach",
                ));
            }
            (Some(status), None) => {
                findings.push(match status.no_leader_for_s {
                    None => Finding::good(
                        "mesh",
                        format!("{} of {} nodes are live", status.nodes_live, status.nodes_admitted),
                    ),
                    Some(seconds) => {
                        Finding::bad("mesh", format!("no leader for {seconds} s: a majority of voters is not reached"))
                    }
                });
                let services = context.client.services().await?.services;
                let named = services.iter().find(|one| !one.address.is_empty());
                findings.extend(named.map(|one| host::names(&one.name, &one.address)));
                findings.extend(status.problems.iter().map(|problem| Finding::bad("node", problem.clone())));
                let checked: Checked = context.client.check().await?;
                findings.extend(checked.nodes.iter().flat_map(peer));
            }
            (None, Some(to)) => {
                for address in addresses(to)? {
                    findings.extend(way::to(&address).await);
                }
            }
            (None, None) => findings.push(Finding::warning(
                "mesh",
                "no node runs here: `weft check LINE` looks whether the nodes of a join line are reached",
            )),
        }
        let bad = findings.iter().any(|one| one.level == Level::Bad);
        let code = if bad { FAILURE } else { 0 };
        let done = match context.output {
            Output::Json => Done::text(json(&findings)?),
            Output::Text => Done::text(text(&findings)),
        };
        Ok(Done { code, ..done })
    }
}

/// Where the nodes are that a line, or somebody, names.
fn addresses(to: &str) -> Result<Vec<String>, Stopped> {
    match read_line(to) {
        Ok(line) => Ok(line.addresses),
        Err(_) if to.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => Ok(vec![to.to_owned()]),
        Err(error) => Err(Stopped::usage(format!("{error}; and HOST:PORT it is not"))),
    }
}

/// What a node was found to be reached by, and to reach this one by.
fn peer(node: &CheckedNode) -> Vec<Finding> {
    let mut findings = Vec::new();
    let CheckedNode { node: name, address, there, back, clock_ms, problem } = node;
    let mut one = |what: String, direction: &str, failed: Option<&String>, open: &str| {
        findings.push(match failed {
            None => Finding::good(&what, direction.to_owned()),
            Some(why) => Finding::bad(&what, format!("{direction}: {why}; {open}")),
        });
    };
    let port = address.rsplit_once(':').map_or("", |(_, port)| port);
    let firewall =
        |transport: &str, to: &str| format!("let a firewall between them pass {transport} to port {port} of {to}");
    one(format!("{name} tcp"), &format!("to {address}"), there.tcp.as_ref(), &firewall("TCP", name));
    one(format!("{name} udp"), &format!("to {address}"), there.udp.as_ref(), &firewall("UDP", name));
    if let Some(back) = back {
        let firewall = |transport: &str| format!("let a firewall between them pass {transport} to this node's port");
        one(format!("{name} tcp"), "from there", back.tcp.as_ref(), &firewall("TCP"));
        one(format!("{name} udp"), "from there", back.udp.as_ref(), &firewall("UDP"));
    }
    if let Some(problem) = problem {
        findings.push(Finding::bad(&format!("{name} back"), problem.clone()));
    }
    if let Some(off) = clock_ms {
        findings.push(clock(name, *off));
    }
    findings
}

/// How far another node's clock is off: certificates hold a few minutes before they are made, and end by the clock.
fn clock(name: &str, off: i64) -> Finding {
    let what = format!("{name} clock");
    #[expect(clippy::cast_precision_loss, reason = "shown in seconds")]
    let seconds = off as f64 / 1000.0;
    match off.unsigned_abs() {
        0..=2_000 => Finding::good(&what, format!("{seconds:+.3} s")),
        2_001..=60_000 => Finding::warning(
            &what,
            format!("{seconds:+.1} s: let both hosts ask a time server (systemd-timesyncd, chrony)"),
        ),
        _ => Finding::bad(
            &what,
            format!("{seconds:+.1} s, and certificates are judged by it: let both hosts ask a time server"),
        ),
    }
}

fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|one| one.what.len()).max().unwrap_or(0);
    let line = |one: &Finding| {
        let level = match one.level {
            Level::Good => "ok  ",
            Level::Warning => "warn",
            Level::Bad => "BAD ",
        };
        format!("{level} {:<width$}  {}\n", one.what, one.text)
    };
    let bad = findings.iter().filter(|one| one.level == Level::Bad).count();
    let last = match bad {
        0 => "all that was looked at is fit\n".to_owned(),
        1 => "1 thing is not as it should be\n".to_owned(),
        many => format!("{many} things are not as they should be\n"),
    };
    findings.iter().map(line).collect::<String>() + &last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::schema::Way;

    #[test]
    fn each_way_is_told_with_its_remedy() {
        let node = CheckedNode {
            node: "b".into(),
            address: "10.0.0.2:7946".into(),
            there: Way { tcp: None, udp: Some("no answer within 2 s".into()) },
            back: Some(Way { tcp: None, udp: None }),
            clock_ms: Some(90_000),
            problem: None,
        };
        let told = text(&peer(&node));
        assert!(told.contains("BAD  b udp    to 10.0.0.2:7946: no answer within 2 s; let a firewall between them pass UDP to port 7946 of b"), "{told}");
        assert!(told.contains("ok   b tcp    from there"), "{told}");
        assert!(told.contains("BAD  b clock  +90.0 s"), "{told}");
        assert!(told.ends_with("2 things are not as they should be\n"), "{told}");
    }

    #[test]
    fn a_place_is_a_line_or_an_address() {
        assert_eq!(addresses("a.example:7946").ok(), Some(vec!["a.example:7946".to_owned()]));
        assert!(addresses("nonsense").is_err());
    }
}
