//! The firewall of the host, by its own tool.

use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

use super::super::Stopped;
use crate::intercept::rules::TABLE;

/// Makes the rules that a text says, all or none.
pub(super) fn apply(text: &str) -> Result<(), Stopped> {
    run(&["-f", "-"], text).map(drop)
}

/// Whether the rules could be made.
pub(super) fn check(text: &str) -> Result<(), Stopped> {
    run(&["-c", "-f", "-"], text).map(drop)
}

/// Whether the table is there.
pub(super) fn is_there() -> bool {
    comment().is_ok_and(|comment| comment.is_some())
}

/// What the table's comment says; none where it is not there.
pub(super) fn comment() -> Result<Option<String>, Stopped> {
    let listed = ask(&["list", "table", "inet", TABLE], "").map_err(|error| missing(&error))?;
    if !listed.status.success() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("comment \""));
    Ok(Some(line.map(|line| line.trim_end_matches('"').to_owned()).unwrap_or_default()))
}

fn run(arguments: &[&str], input: &str) -> Result<Output, Stopped> {
    let output = ask(arguments, input).map_err(|error| missing(&error))?;
    if output.status.success() {
        return Ok(output);
    }
    let why = String::from_utf8_lossy(&output.stderr);
    let why = why.lines().next().unwrap_or("it gives no reason").trim();
    Err(Stopped::failed(format!("the firewall does not take the rules, and none was changed: {why}")))
}

fn ask(arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut pipe) = child.stdin.take() {
        // What ends before it has read all says why.
        let _ = pipe.write_all(input.as_bytes());
    }
    child.wait_with_output()
}

fn missing(error: &io::Error) -> Stopped {
    Stopped::failed(match error.kind() {
        io::ErrorKind::NotFound => "nft is not on this host: apt install nftables".to_owned(),
        _ => format!("nft: {error}"),
    })
}
