//! Calls made by curl, over TLS or to wherever it is sent on: the codes that it ends with are those that tasks expect.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Map, Value};
use tokio::process::Command;
use tokio::time::Instant;

use super::ask::{Came, PROXY, Secured};
use super::certificates::Certificates;

/// A call of curl.
pub(super) struct Call {
    words: Vec<String>,
}

/// How a call goes.
pub(super) enum Way {
    /// To what it names, from this address.
    Direct(String),
    /// Through the node's forward proxy.
    Proxy,
}

impl Call {
    /// Reads a request.
    pub(super) fn read(one: &Map<String, Value>, way: &Way, certificates: &Certificates) -> Result<Self, String> {
        let text = |name: &str| one.get(name).and_then(Value::as_str).unwrap_or_default();
        let mut words: Vec<String> = Vec::new();
        let mut add = |all: &[&str]| words.extend(all.iter().map(|word| (*word).to_owned()));
        add(&["-sS", "-v", "--max-time", "20"]);
        match way {
            Way::Direct(own) => add(&["--interface", own]),
            Way::Proxy => add(&["--suppress-connect-headers", "-x", &format!("http://{PROXY}")]),
        }
        if one.get("follow_redirects").and_then(Value::as_bool) == Some(true) {
            add(&["-L"]);
        }
        if one.contains_key("haproxy_protocol") {
            add(&["--haproxy-protocol"]);
        }
        match text("method") {
            "HEAD" => add(&["-I"]),
            "" | "GET" => {}
            method => add(&["-X", method]),
        }
        for (name, value) in one.get("headers").and_then(Value::as_object).into_iter().flatten() {
            add(&["-H", &format!("{name}: {}", value.as_str().unwrap_or_default())]);
        }
        if one.contains_key("resolve") {
            add(&["--resolve", text("resolve")]);
        }
        if one.get("insecure").and_then(Value::as_bool) == Some(true) {
            add(&["-k"]);
        }
        // In a certificate's place stands what it is where it is in no folder of its own.
        let by = |text: &str| match text.strip_prefix("a certificate signed by ").and_then(|by| by.split('/').next()) {
            Some(folder) => format!("{folder}/client.example.com.crt"),
            None => text.to_owned(),
        };
        let certificate = by(text("cert"));
        let key = if text("key") == "its key" { certificate.replace(".crt", ".key") } else { text("key").to_owned() };
        for (option, file) in [("--cacert", by(text("cacert"))), ("--cert", certificate), ("--key", key)] {
            if !file.is_empty() {
                add(&[option, &certificates.file(&file)?.display().to_string()]);
            }
        }
        add(&[text("url")]);
        Ok(Self { words })
    }

    /// Makes it in a network namespace; what came of it, each answer on the way included.
    pub(super) async fn make(&self, place: &str, scratch: &Path) -> Result<Vec<Came>, String> {
        let began = Instant::now();
        let (head, body) = (scratch.with_extension("head"), scratch.with_extension("body"));
        let mut command = Command::new("ip");
        command.args(["netns", "exec", place, "curl", "-w", "%{json}", "-D"]).arg(&head).arg("-o").arg(&body);
        command.args(&self.words).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.map_err(|error| format!("curl: {error}"))?;
        let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let heads = std::fs::read_to_string(&head).unwrap_or_default();
        let secured = Secured {
            exit: output.status.code().unwrap_or(-1),
            told: String::from_utf8_lossy(&output.stderr).into_owned(),
            version: told["http_version"].as_str().unwrap_or_default().to_owned(),
        };
        let came = |head: &str| Came {
            status: status_of(head),
            milliseconds: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            fields: fields_of(head),
            secured: Some(secured.clone()),
            ..Came::default()
        };
        let mut all: Vec<Came> = heads.split("\r\n\r\n").filter(|head| !head.is_empty()).map(came).collect();
        // Where it ended without an answer, whatever came before is none.
        if all.is_empty() || told["http_code"].as_u64() == Some(0) {
            all = vec![came("")];
        }
        if let Some(last) = all.last_mut() {
            last.body = std::fs::read_to_string(&body).unwrap_or_default();
            last.error = told["errormsg"].as_str().unwrap_or_default().to_owned();
        }
        for file in [head, body] {
            // What is not there was not written.
            let _ = std::fs::remove_file(file);
        }
        Ok(all)
    }
}

fn status_of(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|status| status.trim().parse().ok()).unwrap_or(0)
}

fn fields_of(head: &str) -> Vec<(String, String)> {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}
