//! How the demo says things.

use std::io::{self, Write};
use std::time::Duration;

use tokio::time::Instant;

use crate::api::schema::Member;

pub(super) fn is_voter(member: &Member) -> bool {
    member.role == "voter" || member.role == "leader"
}

pub(super) fn roles(members: &[Member]) -> String {
    let state =
        |member: &Member| format!("{} {} {}", member.name, if member.live { "live" } else { "not live" }, member.role);
    members.iter().map(state).collect::<Vec<_>>().join(", ")
}

pub(super) fn instance(service: &str, node: &str) -> String {
    format!("{service} on {node}")
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` takes")]
pub(super) fn text(error: impl ToString) -> String {
    error.to_string()
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

pub(super) fn seconds(since: Instant) -> String {
    format!("{:.2} s", since.elapsed().as_secs_f64())
}

pub(super) fn step(number: u8, line: &str) {
    say(&format!("{number}. {line}"));
}

pub(super) fn measured(line: &str) {
    say(&format!("   {line}"));
}

/// A reader that has gone away does not end the demo.
pub(super) fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
