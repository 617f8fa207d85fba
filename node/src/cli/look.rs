//! `weft status`, `weft members` and `weft explain`: looking at the mesh.

use clap::Args;
use serde_json::Value;
use weft_proto::service::ServiceName;

use super::table::{count, moment, pairs, span, table};
use super::values::{self, Callee};
use super::{Context, Ended, Stopped};
use crate::api::schema::{ExplainRequest, Member, Status};

/// Shown first, in this order, of what an explanation holds.
const EXPLAINED_FIRST: [&str; 4] = ["verdict", "status", "reason", "policy"];

pub(super) async fn status(context: &Context) -> Ended {
    let status = context.client.status().await?;
    context.render(&status, |status| status_text(status, context.now))
}

pub(super) async fn members(context: &Context) -> Ended {
    let members = context.client.members().await?;
    context.render(&members, |members| members_text(members, context.now))
}

#[derive(Debug, Args)]
pub(super) struct Explain {
    /// FROM TO[:PORT] [METHOD PATH]: who calls, a service (web, prod/web), a node (node/a) or a SPIFFE ID; what is called, its first
    /// port unless one is given; an HTTP request, or an opaque stream unless that is given. With --gateway
    /// HOST[:PORT] [METHOD PATH]
    #[arg(required = true, num_args = 1..=4, value_name = "FROM TO[:PORT] [METHOD PATH]")]
    call: Vec<String>,
    /// It comes from outside, at this gateway, which the node that is asked serves
    #[arg(long, value_name = "NAME")]
    gateway: Option<ServiceName>,
    /// The address that it comes from
    #[arg(long, value_name = "ADDRESS", requires = "gateway", default_value = "192.0.2.1")]
    from: std::net::IpAddr,
    /// Header of the request; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    header: Vec<String>,
    /// Name that a stream of TLS asks for
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
}

impl Explain {
    pub(super) async fn execute(self, context: &Context) -> Ended {
        let request = self.request().map_err(Stopped::usage)?;
        let explanation = context.client.explain(&request).await?;
        context.render(&explanation, explanation_text)
    }
}

impl Explain {
    fn request(self) -> Result<ExplainRequest, String> {
        let Self { call, gateway, from, header, sni } = self;
        let mut words = call.into_iter();
        let (from, to, port) = match &gateway {
            Some(_) => {
                let host = words.next().unwrap_or_default();
                let (name, port) =
                    host.rsplit_once(':').map_or((host.as_str(), None), |(name, port)| (name, Some(port)));
                let port =
                    port.map(|port| port.parse().map_err(|_| format!("{host:?} is not HOST[:PORT]"))).transpose()?;
                (from.to_string(), name.to_owned(), port)
            }
            None => {
                let from = words.next().unwrap_or_default();
                let to = words.next().ok_or("who is called? write FROM TO[:PORT] [METHOD PATH]")?;
                let Callee { service, port } = values::callee(&to)?;
                (from, service.to_string(), port)
            }
        };
        let (method, path) = (words.next(), words.next());
        if method.is_some() && path.is_none() {
            return Err("METHOD and PATH go together".into());
        }
        if method.is_some() && sni.is_some() {
            return Err("--sni is of an opaque stream: it goes without METHOD and PATH".into());
        }
        if method.is_none() && !header.is_empty() {
            return Err("--header goes with METHOD and PATH".into());
        }
        let gateway = gateway.map(|name| name.to_string());
        Ok(ExplainRequest { from, to, gateway, port, method, path, headers: header, sni })
    }
}

fn status_text(status: &Status, now: u64) -> String {
    let leader = match (&status.leader, status.no_leader_for_s) {
        (Some(leader), _) => format!("{leader} (term {})", status.term),
        (None, Some(seconds)) => format!("none for {} (term {})", span(seconds), status.term),
        (None, None) => format!("not known (term {})", status.term),
    };
    let behind = match status.applied.saturating_sub(status.enforced) {
        0 if status.leader.is_none() => format!("{}, the newest that is known here", status.enforced),
        0 => format!("{}, the newest", status.enforced),
        behind => format!("{}, {behind} behind what is applied", status.enforced),
    };
    let off = || "off".to_owned();
    let mut text = pairs(&[
        ("node", format!("{} ({})", status.node, status.role)),
        ("mesh", status.trust_domain.clone()),
        ("nodes", format!("{} live of {} admitted", status.nodes_live, status.nodes_admitted)),
        ("leader", leader),
        ("voters", status.voters.join(", ")),
        ("enforced index", behind),
        ("certificates", moment(status.certificate_expires, now).replacen("in ", "first expires in ", 1)),
        ("links", status.address.clone()),
        ("forward proxy", status.proxy.clone().unwrap_or_else(off)),
        ("loopback", status.loopback.clone()),
        ("metrics", status.metrics.clone().unwrap_or_else(off)),
        ("version", status.version.clone()),
    ]);
    match status.problems.len() {
        0 => text.push_str("\nall is well\n"),
        problems => text.push_str(&format!("\n{}:\n", count(problems, "problem"))),
    }
    for problem in &status.problems {
        text.push_str(&format!("  {problem}\n"));
    }
    text
}

fn members_text(members: &[Member], now: u64) -> String {
    let row = |member: &Member| {
        let state = if member.live { "live" } else { "not live" };
        let live = |text: String| if member.live { text } else { String::new() };
        [
            member.name.clone(),
            state.to_owned(),
            member.role.clone(),
            member.zone.clone(),
            member.address.clone(),
            live(if member.enforced == 0 { "?".into() } else { member.enforced.to_string() }),
            moment(member.certificate_expires, now),
            member.version.clone(),
            member.services.join(" "),
        ]
    };
    let heading = ["NODE", "STATE", "ROLE", "ZONE", "ADDRESS", "INDEX", "CERTIFICATE", "VERSION", "SERVICES"];
    let mut text = table(heading, &members.iter().map(row).collect::<Vec<_>>());
    for member in members.iter().filter(|member| !member.refused.is_empty()) {
        text.push_str(&format!("! {} does not enforce a newer index: {}\n", member.name, member.refused));
    }
    text
}

/// The verdict first, then everything else under its own name.
fn explanation_text(explanation: &Value) -> String {
    let Value::Object(fields) = explanation else { return format!("{}\n", inline(explanation)) };
    let first = EXPLAINED_FIRST.iter().filter_map(|name| fields.get_key_value(*name));
    let others = fields.iter().filter(|(name, _)| !EXPLAINED_FIRST.contains(&name.as_str()));
    let mut text = String::new();
    for (name, value) in first.chain(others) {
        let name = name.replace('_', " ");
        match value {
            Value::Null => {}
            Value::Array(values) if values.is_empty() => text.push_str(&format!("{name}: none\n")),
            Value::Array(values) => {
                text.push_str(&format!("{name}:\n"));
                values.iter().for_each(|value| text.push_str(&format!("  {}\n", inline(value))));
            }
            value => text.push_str(&format!("{name}: {}\n", inline(value))),
        }
    }
    text
}

fn inline(value: &Value) -> String {
    let joined = |parts: Vec<String>| parts.join(", ");
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) => joined(values.iter().map(inline).collect()),
        Value::Object(fields) => {
            let shown = fields.iter().filter(|(_, value)| !value.is_null());
            joined(shown.map(|(name, value)| format!("{} {}", name.replace('_', " "), inline(value))).collect())
        }
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Command;
    use crate::cli::tests::parse;

    fn example() -> Status {
        Status {
            node: "a".into(),
            trust_domain: "mesh.local".into(),
            version: "0.1.0".into(),
            role: "leader".into(),
            leader: Some("a".into()),
            term: 3,
            voters: vec!["a".into(), "b".into()],
            applied: 42,
            enforced: 42,
            no_leader_for_s: None,
            nodes_live: 2,
            nodes_admitted: 3,
            address: "10.0.0.1:7946".into(),
            proxy: None,
            loopback: "every service".into(),
            metrics: None,
            certificate_expires: 1 + 3_600_000,
            problems: Vec::new(),
        }
    }

    #[test]
    fn status_is_a_line_a_fact() {
        let mut status = example();
        let text = status_text(&status, 1);
        for line in [
            "node            a (leader)",
            "nodes           2 live of 3 admitted",
            "enforced index  42, the newest",
            "certificates    first expires in 1h",
            "forward proxy   off",
            "loopback        every service",
            "all is well",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line:?} is not in\n{text}");
        }
        (status.leader, status.no_leader_for_s, status.enforced) = (None, Some(75), 40);
        status.problems = vec!["no leader".into()];
        let text = status_text(&status, 1);
        assert!(
            text.contains("none for 1m 15s")
                && text.contains("2 behind")
                && text.ends_with("1 problem:\n  no leader\n"),
            "{text}"
        );
    }

    #[test]
    fn explanations_put_the_verdict_first() {
        let explanation = serde_json::json!({
            "candidates": [{ "node": "b", "healthy": true }],
            "picked": null,
            "policies": [],
            "verdict": "denied",
        });
        assert_eq!(
            explanation_text(&explanation),
            "verdict: denied\ncandidates:\n  healthy true, node b\npolicies: none\n"
        );
    }

    fn asked(line: &str) -> Result<ExplainRequest, String> {
        let Ok(Command::Explain(explain)) = parse(line) else { panic!("{line:?} is not explain") };
        explain.request()
    }

    #[test]
    fn calls_are_said_in_words() {
        for line in [
            "weft explain web",
            "weft explain a b GET",
            "weft explain a b GET / --sni x",
            "weft explain a b -H a:b",
            "weft explain --gateway edge a.com:x GET /",
        ] {
            assert!(asked(line).is_err(), "{line:?} was accepted");
        }
        let within = asked("weft explain a b:80 GET /x").expect("good");
        assert_eq!((within.to.as_str(), within.port, within.gateway), ("default/b", Some(80), None));
        let outside = asked("weft explain --gateway edge a.com:8443 GET /x --from 198.51.100.7").expect("good");
        assert_eq!((outside.from.as_str(), outside.to.as_str(), outside.port), ("198.51.100.7", "a.com", Some(8443)));
        assert_eq!(outside.gateway.as_deref(), Some("default/edge"));
    }
}
