//! `weft debug bundle`: what whoever looks into a problem asks for first, in one file and without secrets.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};

use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Context, Done, Ended, Stopped, VERSION, kept};
use crate::api::schema::Status;
use crate::client::ClientError;

/// What stands for nothing.
const NOTHING: &str = "(nothing)";
/// Most bytes of a file or of what a program tells that are taken: its end.
const TAKEN: u64 = 2 << 20;

#[derive(Debug, Subcommand)]
pub(super) enum Debug {
    /// Collect what a report of a problem needs, in one file: no keys, tokens or certificates' secrets are in it
    Bundle(Bundle),
}

#[derive(Debug, Args)]
pub(super) struct Bundle {
    /// Where it is written [default: weft-NODE-TIME.tar.gz here]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Leave out access records, which name callers, hosts and paths
    #[arg(long)]
    without_records: bool,
}

impl Debug {
    pub(super) async fn execute(self, data_dir: &Path, context: &Context) -> Ended {
        let Self::Bundle(bundle) = self;
        bundle.execute(data_dir, context).await
    }
}

/// Files of a bundle, by name.
#[derive(Default)]
struct Files(Vec<(String, String)>);

impl Files {
    fn add(&mut self, name: &str, text: &str) {
        let text = if text.trim().is_empty() { NOTHING } else { text };
        self.0.push((name.to_owned(), without_secrets(text)));
    }

    /// What to look at first: when and where it was made, what is amiss, and what there is.
    fn summarize(&mut self, now: u64, status: &Result<Status, ClientError>) {
        let seconds = i64::try_from(now / 1000).unwrap_or_default();
        let when = time::OffsetDateTime::from_unix_timestamp(seconds).map(|when| when.to_string()).unwrap_or_default();
        let mut text = format!("made {when} ({now} ms after 1970) by weft {VERSION}\n");
        match status {
            Ok(status) => {
                text += &format!(
                    "of node {} of mesh {}, which runs {}\n\n",
                    status.node, status.trust_domain, status.version
                );
                text += if status.problems.is_empty() {
                    "all is well as this node sees it\n"
                } else {
                    "what is amiss as this node sees it:\n"
                };
                text.extend(status.problems.iter().map(|problem| format!("- {problem}\n")));
            }
            Err(error) => text += &format!("the node does not answer: {error}\n"),
        }
        text += "\nA call has two ends: where one fails, the caller's host has a bundle of its own to tell of. Times in files are ms after 1970.\n\n";
        text.extend(self.0.iter().map(|(name, text)| format!("{:>9} bytes  {name}\n", text.len())));
        self.add("summary.txt", &text);
    }

    /// What a node has answered, or why it has not.
    fn answer<T: Serialize>(&mut self, name: &str, answer: Result<T, impl std::fmt::Display>) {
        let text = match answer {
            Ok(answer) => serde_json::to_string_pretty(&answer).unwrap_or_else(|error| error.to_string()),
            Err(error) => format!("not answered: {error}"),
        };
        self.add(name, &text);
    }

    /// What a program of the host tells.
    fn told(&mut self, name: &str, words: &[&str]) {
        let output =
            words.split_first().map(|(program, rest)| Program::new(program).args(rest).stdin(Stdio::null()).output());
        let text = match output {
            Some(Ok(output)) => format!("{}{}", end(&output.stdout), String::from_utf8_lossy(&output.stderr)),
            Some(Err(error)) => format!("{}: {error}", words.join(" ")),
            None => String::new(),
        };
        self.add(name, &text);
    }

    /// The end of a file.
    fn file(&mut self, name: &str, path: &Path) {
        let read = || {
            let mut file = fs::File::open(path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAKEN)))?;
            let mut bytes = Vec::new();
            file.take(TAKEN).read_to_end(&mut bytes)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_else(|error| format!("{}: {error}", path.display()));
        self.add(name, &text);
    }
}

impl Bundle {
    async fn execute(self, data_dir: &Path, context: &Context) -> Ended {
        let mut files = Files::default();
        files.add("version.txt", &format!("weft {VERSION}\n"));
        let status = context.client.status().await;
        let (node, metrics) = match &status {
            Ok(status) => (status.node.clone(), status.metrics.clone()),
            Err(_) => ("none".to_owned(), None),
        };
        files.answer("status.json", status.as_ref());
        files.answer("members.json", context.client.members().await);
        files.answer("services.json", context.client.services().await);
        files.answer("certificates.json", context.client.certificates().await);
        files.answer("intercept.json", context.client.intercepted().await);
        files.answer("check.json", context.client.check().await);
        for kind in weft_proto::kinds::Kinds::ALL.iter().filter(|kind| kind.name != "Secret") {
            let group = if kind.group.is_empty() { "core" } else { kind.group };
            let name = format!("{}.{group}", kind.plural);
            let kept = context.client.resources(&name, None, None, false).await;
            if kept.as_ref().map_or(true, |all| !all.is_empty()) {
                files.answer(&format!("resources/{name}.json"), kept);
            }
        }
        let told = match metrics {
            Some(metrics) => fetch(&metrics).await.unwrap_or_else(|error| format!("{metrics}: {error}")),
            None => "the node tells none (--metrics)".to_owned(),
        };
        files.add("metrics.txt", &told);
        if !self.without_records {
            files.file("access.log", &data_dir.join("access.log"));
        }
        files.file("options.txt", &data_dir.join(kept::FILE));
        let declared = fs::read_dir(data_dir.join("services.d")).into_iter().flatten().flatten();
        for path in
            declared.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|kind| kind == "yaml"))
        {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.file(&format!("services.d/{name}"), &path);
        }
        files.file("weft.yaml", Path::new("/etc/weft/weft.yaml"));
        files.file("host/os-release", Path::new("/etc/os-release"));
        for (name, words) in TOLD {
            files.told(name, words);
        }
        files.summarize(context.now, &status);
        let file = self.file.unwrap_or_else(|| PathBuf::from(format!("weft-{node}-{}.tar.gz", context.now / 1000)));
        write(&file, &files).map_err(|error| Stopped::failed(format!("{}: {error}", file.display())))?;
        let text = format!(
            "{}: {} files. Keys, tokens and the contents of Secrets are not in it; names, addresses and paths of yours are: look before you send it\n",
            file.display(),
            files.0.len()
        );
        Ok(Done::text(text))
    }
}

/// What programs of the host tell, and under which names.
const TOLD: [(&str, &[&str]); 10] = [
    (
        "journal.txt",
        &["journalctl", "--unit", "weft.service", "--lines", "5000", "--no-pager", "--output", "short-iso-precise"],
    ),
    ("host/unit.txt", &["systemctl", "show", "weft.service"]),
    ("host/units.txt", &["systemctl", "--no-pager", "--all", "list-units", "weft*"]),
    ("host/kernel.txt", &["uname", "-a"]),
    ("host/addresses.txt", &["ip", "address"]),
    ("host/routes.txt", &["ip", "route"]),
    ("host/sockets.txt", &["ss", "-tulnp"]),
    ("host/firewall.txt", &["nft", "list", "ruleset"]),
    ("host/disks.txt", &["df", "-h"]),
    ("host/clock.txt", &["timedatectl", "status"]),
];

async fn fetch(address: &str) -> std::io::Result<String> {
    let fetched = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or(text))
    };
    tokio::time::timeout(std::time::Duration::from_secs(5), fetched).await?
}

/// The end of what was told, not more than is taken.
fn end(bytes: &[u8]) -> String {
    let most = usize::try_from(TAKEN).unwrap_or(usize::MAX);
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(most)..]).into_owned()
}

/// A text in which nothing is left that lets anybody in: it should not be there, and if it is it goes no further.
fn without_secrets(text: &str) -> String {
    let mut lines = Vec::new();
    let mut within = false;
    for line in text.lines() {
        if line.contains("-----BEGIN") && line.contains("PRIVATE KEY") {
            within = true;
        }
        let ends = line.contains("-----END");
        lines.push(if within { HIDDEN.to_owned() } else { words(line) });
        within &= !ends;
    }
    lines.join("\n") + "\n"
}

/// A line without join lines and credentials of requests.
fn words(line: &str) -> String {
    let hidden = |word: &str| word.contains(JOIN_LINE);
    let lower = line.to_ascii_lowercase();
    if lower.contains("bearer ") || lower.contains("authorization:") {
        return HIDDEN.to_owned();
    }
    match line.split([' ', '"', '=']).any(hidden) {
        true => line.split_inclusive([' ', '"', '=']).map(|word| if hidden(word) { HIDDEN } else { word }).collect(),
        false => line.to_owned(),
    }
}

/// What stands in the place of a secret.
const HIDDEN: &str = "[hidden]";
/// How join lines begin.
const JOIN_LINE: &str = "weft1.";

/// Writes them into one file, which only who wrote it may read.
fn write(file: &Path, files: &Files) -> std::io::Result<()> {
    let directory = std::env::temp_dir().join(format!("weft-bundle-{}", std::process::id()));
    let whole = directory.join("weft");
    let made = || -> std::io::Result<()> {
        for (name, text) in &files.0 {
            let path = whole.join(name);
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::write(&path, text)?;
        }
        let packed = Program::new("tar").arg("-czf").arg(file).arg("-C").arg(&directory).arg("weft").output()?;
        match packed.status.success() {
            true => Ok(()),
            false => Err(std::io::Error::other(String::from_utf8_lossy(&packed.stderr).trim().to_owned())),
        }
    };
    let mut builder = fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700).create(&directory)?;
    let outcome = made().and_then(|()| fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600)));
    // What is left of it is of no use to anybody.
    let _ = fs::remove_dir_all(&directory);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_lets_anybody_in_is_left() {
        let text = "a line\ntoken=\"weft1.abcDEF\" for b\nAuthorization: Bearer abc\n-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\nthe end";
        let told = without_secrets(text);
        for secret in ["abcDEF", "Bearer abc", "MIIE"] {
            assert!(!told.contains(secret), "{secret} is in {told}");
        }
        assert!(told.starts_with("a line\ntoken=\"[hidden] for b\n") && told.ends_with("the end\n"), "{told}");
    }
}
