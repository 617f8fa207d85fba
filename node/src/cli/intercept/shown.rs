//! How interception looks on this host, for people and for programs.

use serde::Serialize;

use crate::intercept::{Kept, WhenStopped};

/// How it looks on this host.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shown {
    pub(super) on: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kept: Option<Kept>,
    /// What is wrong, a line each.
    pub(super) problems: Vec<String>,
}

impl Shown {
    /// As people read it.
    pub(super) fn text(&self) -> String {
        let mut text = match &self.kept {
            None => "off: connections go as ever\n".to_owned(),
            Some(Kept { interception: one, confirmed, .. }) => {
                let list = |name: &str, values: Vec<String>| match values.is_empty() {
                    true => String::new(),
                    false => format!("{name:<18} {}\n", values.join(", ")),
                };
                let ports = |ports: &[u16]| ports.iter().map(ToString::to_string).collect::<Vec<_>>();
                let mut text =
                    if *confirmed { "on\n" } else { "on, and not confirmed: weft intercept confirm\n" }.to_owned();
                text.push_str(&list("ports", ports(&one.inbound)));
                text.push_str(&list("users", one.users.clone()));
                text.push_str(&list("units", one.units.clone()));
                text.push_str(&list("excluded ports", ports(&one.exclude_ports)));
                text.push_str(&list(
                    "excluded addresses",
                    one.exclude_addresses.iter().map(ToString::to_string).collect(),
                ));
                text.push_str(&list("excluded users", one.exclude_users.clone()));
                let stopped = match one.when_stopped {
                    WhenStopped::Refuse => "are refused",
                    WhenStopped::Pass => "pass as if there were no mesh",
                };
                text.push_str(&format!("while the node does not run such connections {stopped}\n"));
                text
            }
        };
        self.problems.iter().for_each(|problem| text.push_str(&format!("problem: {problem}\n")));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intercept::Interception;

    #[test]
    fn what_is_on_is_told_with_what_is_wrong() {
        let interception = Interception { inbound: vec![80], users: vec!["app".into()], ..Interception::default() };
        let kept = Kept { interception, confirmed: false, before: None, attempt: 1, node_port: 7946 };
        let told = (Shown { on: true, kept: Some(kept), problems: vec!["the rules are gone".into()] }).text();
        for part in
            ["not confirmed", "ports              80", "users              app", "are refused", "problem: the rules"]
        {
            assert!(told.contains(part), "{part} is missing in\n{told}");
        }
        assert!((Shown { on: false, kept: None, problems: vec![] }).text().starts_with("off"));
    }
}
