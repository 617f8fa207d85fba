//! Tasks of Istio's documentation as cases: documents are applied unchanged to a mesh of real nodes, calls are made, and what
//! came is held against what is expected.

pub mod application;
pub mod ask;
mod certificates;
mod change;
mod documents;
mod expect;
mod form;
mod gateways;
mod grpc;
mod http;
mod internet;
mod logs;
mod miss;
mod outside;
mod stage;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep};

use ask::{Asking, Came};
use documents::stands;
use expect::{Outcome, judge, variation};
use form::{Step, Task};
use gateways::Ports;
use miss::Miss;
use outside::{Call, Way};
use stage::Stage;

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It did what it should.
    Passed,
    /// It did not, and why.
    Failed(String),
    /// It was not tried, and why.
    Skipped(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Failed(why) => write!(f, "FAILED: {why}"),
            Self::Skipped(why) => write!(f, "skipped: {why}"),
        }
    }
}

/// A task under way.
struct Run<'a> {
    stage: &'a Stage,
    /// Where its files are.
    folder: &'a Path,
    /// Ports of the gateways that documents have made last.
    ports: Mutex<Ports>,
}

/// Runs a task, and tells of each step as it ends. An error is none of the mesh's.
pub async fn run(file: &Path, weft: &Path, mut told: impl FnMut(&str, &str, &Verdict)) -> Result<(), String> {
    let task = Task::read(file)?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let stage = Stage::make(weft, &task.services, &gateways::of(&task, folder)).await?;
    let run = Run { stage: &stage, folder, ports: Mutex::default() };
    let entries = internet::entries(&task);
    if !entries.is_empty() {
        run.put("hosts outside", entries).await?;
    }
    if stage.has_strangers() {
        run.configure(&serde_json::json!({ "meshConfig": {} }), "the mesh").await?;
    }
    for step in &task.steps {
        let verdict = run.step(step).await;
        told(&step.id, &step.what, &verdict);
    }
    Ok(())
}

impl Run<'_> {
    async fn step(&self, step: &Step) -> Verdict {
        let namespace = step.namespace.as_deref().unwrap_or("default");
        let known = ["origin", "notes", "optional", "namespace", "expect_yaml_error"];
        if let Some(other) = step.others.keys().find(|key| !known.contains(&key.as_str())) {
            return Verdict::Skipped(format!("there is no {other} here"));
        }
        let done = if step.apply.is_some() || step.apply_file.is_some() {
            self.apply(step, namespace).await
        } else if let Some(credentials) = &step.credential {
            self.give(credentials.all(), &step.id).await
        } else if let Some(what) = &step.delete {
            self.delete(&what.list(), namespace).await
        } else if let Some(config) = &step.mesh_config {
            self.configure(config, &step.id).await
        } else {
            return self.check(step, namespace).await;
        };
        match done {
            Ok(()) => Verdict::Passed,
            Err(why) => Verdict::Failed(why),
        }
    }

    /// A check is retried as a whole until it holds, for as long as a change may take.
    async fn check(&self, step: &Step, namespace: &str) -> Verdict {
        let (Some(requests), Some(expected)) = (&step.requests, &step.expect) else {
            return Verdict::Skipped("neither a change nor a check".into());
        };
        let bound = expected.get("eventually_s").and_then(Value::as_u64).map_or(HOLDS, Duration::from_secs);
        let expected: Map<String, Value> =
            expected.iter().filter(|(key, _)| *key != "eventually_s").map(|(a, b)| (a.clone(), b.clone())).collect();
        let deadline = Instant::now() + bound;
        loop {
            let missed = match self.once(step, requests, (&expected, namespace)).await {
                Ok(()) => return Verdict::Passed,
                Err(Miss::Unknown(what)) => return Verdict::Skipped(format!("this does not judge {what}")),
                Err(Miss::Failed(why)) => why,
            };
            if Instant::now() >= deadline {
                return match step.optional {
                    Some(_) => Verdict::Skipped(format!("optional, and not so: {missed}")),
                    None => Verdict::Failed(missed),
                };
            }
            sleep(AGAIN).await;
        }
    }

    async fn once(
        &self,
        step: &Step,
        requests: &Value,
        (expected, namespace): (&Map<String, Value>, &str),
    ) -> Result<(), Miss> {
        let all = match requests {
            Value::Array(all) => all.clone(),
            one => vec![one.clone()],
        };
        // A log that is read without a call is that of the calls before.
        let reads_log = all.iter().any(|one| one.get("read_log_of").is_some());
        if !reads_log {
            self.stage.forget();
        }
        let mut came = Vec::new();
        for one in &all {
            let one = one.as_object().ok_or_else(|| Miss::Unknown("requests".into()))?;
            if let Some(matrix) = expected.get("matrix") {
                return self.matrix(step, one, matrix).await;
            }
            if let Some(what) = one.get("read") {
                let namespace = one.get("namespace").and_then(Value::as_str).unwrap_or(namespace);
                return self.read(what, (expected, namespace)).await;
            }
            if one.contains_key("read_log_of") {
                continue;
            }
            let filled = self.ports.lock().fill(&Value::Object(one.clone()).to_string(), self.stage);
            let one: Map<String, Value> =
                serde_json::from_str(&filled).map_err(|error| Miss::Failed(error.to_string()))?;
            came.extend(self.calls(step, &one).await?);
        }
        // What copies bring comes a little later.
        sleep(SETTLED).await;
        let seen = self.stage.seen();
        let (at, records) = (|peer: &str| self.stage.at(peer), |of: &str| self.stage.records(of));
        judge(expected, &Outcome { came: &came, seen: &seen, at: &at, records: &records })
    }

    async fn calls(&self, step: &Step, one: &Map<String, Value>) -> Result<Vec<Came>, Miss> {
        if let Some(other) = one.keys().find(|key| !REQUESTS.contains(&key.as_str())) {
            return Err(Miss::Unknown(format!("requests.{other}")));
        }
        let text = |name: &str| one.get(name).and_then(Value::as_str).unwrap_or_default();
        let from = text("from");
        if text("url").contains('$') {
            return Err(Miss::Unknown(format!("the place {}", text("url"))));
        }
        let follows = one.get("follow_redirects").and_then(Value::as_bool) == Some(true);
        if follows || one.contains_key("haproxy_protocol") || text("url").starts_with("https://") {
            return self.secured(one, from).await;
        }
        let locality = one.get("from_locality").and_then(Value::as_str);
        let at = match from.starts_with("outside") {
            true => Some(self.stage.beyond()),
            false => self.stage.find(from, locality),
        };
        let at = at.ok_or_else(|| Miss::Unknown(format!("the caller {from}")))?;
        let gateway = self.stage.gateway_address();
        let pause = one.get("after_ms").and_then(Value::as_u64).unwrap_or(0)
            + 1000 * one.get("wait_s").and_then(Value::as_u64).unwrap_or(0);
        sleep(Duration::from_millis(pause)).await;
        let varied = one.get("variation").map(|_| variation(text("variation"))).transpose()?;
        if let Some((version, variation)) = &varied {
            self.stage.vary(version, Some(*variation)).map_err(Miss::Failed)?;
        }
        let fields = one.get("headers").and_then(Value::as_object).into_iter().flatten();
        // The session of the shop: its cookie names the user.
        let session = one.get("user").and_then(Value::as_str).filter(|_| one.contains_key("login"));
        let session = session.map(|user| ("Cookie".to_owned(), format!("session={user}")));
        let count = |name: &str| one.get(name).and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok());
        let lines = if text("send").contains("five lines") { 5 } else { usize::from(one.contains_key("send")) };
        let asking = Asking {
            method: text("method").to_owned(),
            url: text("url").to_owned(),
            fields: fields
                .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
                .chain(session)
                .collect(),
            body: text("body").to_owned(),
            count: count("count").unwrap_or(1),
            concurrency: count("concurrency").unwrap_or(1),
            send: (0..lines).map(|line| format!("line {line}")).collect(),
            rounds: one.contains_key("rounds"),
            direct: gateway.is_some_and(|address| text("url").contains(&address))
                || self.stage.is_stranger(at)
                || self.stage.is_intercepted(at),
            own: (from == "outside-2").then(stage::second),
        };
        let came = self.stage.ask(at, &asking).await;
        if let Some((version, _)) = &varied {
            self.stage.vary(version, None).map_err(Miss::Failed)?;
        }
        came.map_err(|error| Miss::Failed(format!("{}: {error}", step.id)))
    }

    /// One call for each pair: it is answered with a status, or ended without an answer.
    async fn matrix(&self, step: &Step, one: &Map<String, Value>, matrix: &Value) -> Result<(), Miss> {
        for row in matrix.as_array().into_iter().flatten() {
            let said = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default();
            let url = one.get("url").and_then(Value::as_str).unwrap_or_default();
            // The place of who is called: `httpbin.<to>` of `httpbin.foo`.
            let (name, namespace) = said("to").split_once('.').unwrap_or(("", said("to")));
            let url = url.replace(&format!("{name}.<to>"), said("to")).replace("<to>", namespace);
            let mut call = one.clone();
            call.insert("from".into(), said("from").into());
            call.insert("url".into(), url.into());
            let came = self.calls(step, &call).await?;
            let wanted = row.get("expect").unwrap_or(&Value::Null);
            let holds = |came: &Came| match wanted.as_u64() {
                Some(status) => u64::from(came.status) == status,
                None => came.status == 0,
            };
            if let Some(wrong) = came.iter().find(|came| !holds(came)) {
                let text = format!("{row}: {} {}", wrong.status, wrong.error);
                return Err(Miss::Failed(text.trim_end().to_owned()));
            }
        }
        Ok(())
    }

    /// Calls of curl: over TLS, or to wherever it is sent on.
    async fn secured(&self, one: &Map<String, Value>, from: &str) -> Result<Vec<Came>, Miss> {
        let (at, way) = match from {
            "outside" => (self.stage.beyond(), Way::Direct(stage::first())),
            "outside-2" => (self.stage.beyond(), Way::Direct(stage::second())),
            _ => {
                let at = self.stage.find(from, None).ok_or_else(|| Miss::Unknown(format!("the caller {from}")))?;
                (at, Way::Proxy)
            }
        };
        let call = Call::read(one, &way, &self.stage.certificates).map_err(Miss::Unknown)?;
        let count = one.get("count").and_then(Value::as_u64).unwrap_or(1);
        let (place, mut came) = (self.stage.place(at), Vec::new());
        let varied = one.get("variation").and_then(Value::as_str).map(variation).transpose()?;
        if let Some((version, variation)) = &varied {
            self.stage.vary(version, Some(*variation)).map_err(Miss::Failed)?;
        }
        for _ in 0..count {
            came.extend(call.make(&place, &self.stage.scratch()).await.map_err(Miss::Failed)?);
        }
        if let Some((version, _)) = &varied {
            self.stage.vary(version, None).map_err(Miss::Failed)?;
        }
        Ok(came)
    }

    /// Documents as they are kept.
    async fn read(&self, what: &Value, (expected, namespace): (&Map<String, Value>, &str)) -> Result<(), Miss> {
        let wanted = expected.get("resource").and_then(Value::as_object);
        let wanted = wanted.ok_or_else(|| Miss::Unknown("a look at what is no document".into()))?;
        let known = ["count", "exists", "spec_equals_applied", "order_kept", "defaults", "conditions", "status"];
        if let Some(other) = wanted.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(Miss::Unknown(format!("expect.resource.{other}")));
        }
        for one in what.as_array().into_iter().flatten().filter_map(Value::as_str) {
            if let Some(kind) = one.strip_suffix(" (all namespaces)") {
                let kept = self.stage.client(0).resources(kind, None, None, true).await;
                let count = kept.map_err(|error| Miss::Failed(format!("{one}: {error}")))?.len();
                match wanted.get("count").and_then(Value::as_u64) {
                    Some(expected) if expected == count as u64 => continue,
                    Some(_) => return Err(Miss::Failed(format!("there are {count} {one}"))),
                    None => return Err(Miss::Unknown(format!("reading {one}"))),
                }
            }
            let (kind, name) = one.split_once('/').ok_or_else(|| Miss::Unknown(format!("reading {one}")))?;
            let namespace = Some(namespace);
            let kept = self.stage.client(0).resources(kind, namespace, Some(name), true).await;
            let kept = kept.map_err(|error| Miss::Failed(format!("{one}: {error}")))?;
            let Some(document) = kept.first() else { return Err(Miss::Failed(format!("there is no {one}"))) };
            stands(document, wanted)?;
        }
        Ok(())
    }
}

/// Every file of a folder that is a task, or the file itself.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let listed = std::fs::read_dir(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut files: Vec<PathBuf> = listed.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    files.retain(|path| path.extension() == Some("yaml".as_ref()));
    files.sort();
    Ok(files)
}

/// What a request may say.
const REQUESTS: [&str; 22] = [
    "haproxy_protocol",
    "from",
    "method",
    "url",
    "headers",
    "body",
    "count",
    "concurrency",
    "after_ms",
    "send",
    "variation",
    "rounds",
    "from_locality",
    "wait_s",
    "resolve",
    "cacert",
    "cert",
    "key",
    "insecure",
    "follow_redirects",
    "login",
    "user",
];
/// How long a check may take to hold after a change.
const HOLDS: Duration = Duration::from_secs(10);
/// Pause before it is tried again.
const AGAIN: Duration = Duration::from_millis(250);
/// How long what comes beside answers may take.
const SETTLED: Duration = Duration::from_millis(200);
