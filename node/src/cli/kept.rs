//! Options of `weft up` that hold at the next start too: what an operator said once of a host need not be said again.

use std::path::Path;
use std::{fs, io};

use super::Stopped;
use crate::os::services::write_whole;

/// Where they are kept, under the data directory: an option and its value on each line.
pub(crate) const FILE: &str = "up.options";
/// Where `weft init` and `weft join` leave what the node is to begin with, under the data directory: a word a line.
pub(super) const BEGIN: &str = "begin";
/// Options that say something of the host.
const KEPT: [&str; 15] = [
    "--advertise",
    "--listen",
    "--zone",
    "--proxy",
    "--metrics",
    "--dns",
    "--loopback",
    "--bind",
    "--gateway",
    "--egress-gateway",
    "--gateway-port",
    "--transport",
    "--workers",
    "--access-sample",
    "--voters",
];

/// An option and its value.
pub(crate) type Said = (String, String);

/// Those of them that a command line gives.
pub(super) fn given(mut arguments: impl Iterator<Item = String>) -> Vec<Said> {
    let mut said = Vec::new();
    while let Some(argument) = arguments.next() {
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (argument, None),
        };
        if KEPT.contains(&name.as_str())
            && let Some(value) = value.or_else(|| arguments.next())
        {
            said.push((name, value));
        }
    }
    said
}

/// What was said before and is not said otherwise now, with what is.
pub(super) fn with_former(data_dir: &Path, given: Vec<Said>) -> Result<Vec<Said>, Stopped> {
    let path = data_dir.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(given),
        Err(error) => return Err(Stopped::failed(format!("{}: {error}", path.display()))),
    };
    let former = text.lines().filter_map(|line| line.split_once(' ')).filter(|(name, _)| KEPT.contains(name));
    let former: Vec<Said> = former.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Ok(joined(&former, &given))
}

/// What the first say of options of which the second do not, with those.
pub(super) fn joined(first: &[Said], second: &[Said]) -> Vec<Said> {
    let others = first.iter().filter(|(name, _)| second.iter().all(|(other, _)| other != name));
    others.chain(second).cloned().collect()
}

/// Keeps them for the next start.
pub(crate) fn keep(data_dir: &Path, said: &[Said]) -> io::Result<()> {
    let text: String = said.iter().map(|(name, value)| format!("{name} {value}\n")).collect();
    let path = data_dir.join(FILE);
    if fs::read_to_string(&path).is_ok_and(|before| before == text) || (text.is_empty() && !path.exists()) {
        return Ok(());
    }
    write_whole(&path, &text)
}

/// The node has begun: nothing of that is needed any more, and a join line is a secret.
pub(crate) fn begun(data_dir: &Path) {
    match fs::remove_file(data_dir.join(BEGIN)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "the file {BEGIN} of the data directory stays: remove it");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> Vec<Said> {
        given(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn what_was_said_of_a_host_holds_until_it_is_said_otherwise() {
        let directory = tempfile::TempDir::new().expect("a directory");
        let first =
            said("weft up --init --advertise h --zone=z --bind 127.0.0.1:1=a:1 --bind 127.0.0.1:2=b:2 --log debug");
        assert_eq!(first.len(), 4);
        keep(directory.path(), &first).expect("kept");
        let Ok(next) = with_former(directory.path(), said("weft up --zone y")) else { panic!("it is readable") };
        let values: Vec<&str> = next.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["h", "127.0.0.1:1=a:1", "127.0.0.1:2=b:2", "y"]);
    }
}
