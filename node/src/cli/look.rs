//! `weft status`, `weft members` and `weft explain`: looking at the mesh.

use clap::Args;
use serde_json::Value;

use super::table::{count, moment, pairs, span, table};
use super::values::{self, Callee};
use super::{Context, Ended};
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
    /// Who calls: a service (web, prod/web), a node (node/a) or a SPIFFE ID
    from: String,
    /// What is called; its first port unless one is given
    #[arg(value_name = "TO[:PORT]", value_parser = values::callee)]
    to: Callee,
    /// Method of an HTTP request; an opaque stream unless given
    #[arg(requires = "path")]
    method: Option<String>,
    /// Path of the request
    path: Option<String>,
    /// Header of the request; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", requires = "method")]
    header: Vec<String>,
    /// Name that a stream of TLS asks for
    #[arg(long, value_name = "NAME", conflicts_with = "method")]
    sni: Option<String>,
}

impl Explain {
    pub(super) async fn execute(self, context: &Context) -> Ended {
        let request = ExplainRequest {
            from: self.from,
            to: self.to.service.to_string(),
            port: self.to.port,
            method: self.method,
            path: self.path,
            headers: self.header,
            sni: self.sni,
        };
        let explanation = context.client.explain(&request).await?;
        context.render(&explanation, explanation_text)
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
}
