//! What is looked at in every cycle: the nodes by their own interfaces, and what operators, callers and applications were
//! told.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;
use weft::api::schema::Status;
use weft::client::{Client, ClientError};
use weft_proto::identity::NodeName;
use weft_proto::kinds::Kinds;
use weft_proto::resource::ResourceKey;

use super::{Answer, Chaos, Stop};
use crate::application::Arrived;
use crate::invariants::{Breach, Decisions, admission, waiting};
use crate::trace::Kind;

/// How long a node has to tell what it has.
const LOOK_TIMEOUT: Duration = Duration::from_millis(700);

/// What a node tells of its decisions.
pub(super) struct View {
    /// Before its resources were read.
    pub(super) status: Status,
    versions: BTreeMap<ResourceKey, u64>,
    /// The index that it had applied after they were read.
    after: u64,
}

/// The decisions of a [`View`] at one of its two ends.
struct At<'a>(&'a View, u64);

impl Decisions for At<'_> {
    fn index(&self) -> u64 {
        self.1
    }

    fn version(&self, key: &ResourceKey) -> Option<u64> {
        self.0.versions.get(key).copied()
    }
}

impl View {
    async fn of(client: &Client) -> Result<Self, ClientError> {
        let status = client.status().await?;
        let mut versions = BTreeMap::new();
        for kind in Kinds::ALL.iter() {
            for document in client.resources(kind.name, None, None, false).await? {
                let text = |field: &str| document["metadata"][field].as_str().map(str::to_owned);
                let key = text("namespace").zip(text("name"));
                let key = key.map(|(namespace, name)| ResourceKey { kind: kind.key(), namespace, name });
                let version = text("resourceVersion").and_then(|version| version.parse().ok());
                versions.extend(key.zip(version));
            }
        }
        let after = client.status().await?.applied;
        Ok(Self { status, versions, after })
    }
}

impl Chaos {
    /// What every node that runs has.
    pub(super) async fn views(&self) -> Vec<Option<View>> {
        let view = |host: usize| {
            let (client, up) = (self.client(host), self.stage.is_up(host));
            async move {
                if !up {
                    return None;
                }
                timeout(LOOK_TIMEOUT, View::of(&client)).await.ok().and_then(Result::ok)
            }
        };
        futures_util::future::join_all((0..self.setup.nodes).map(view)).await
    }

    /// The nodes themselves.
    pub(super) async fn look(&mut self) -> Result<(), Stop> {
        let views = self.views().await;
        let now = self.now();
        self.looked = now;
        for (host, view) in views.into_iter().enumerate() {
            let Some(view) = view else {
                if self.stage.is_up(host) {
                    self.claims.unknown(host, now);
                }
                continue;
            };
            let Status { role, term, applied, enforced, .. } = &view.status;
            let name: NodeName = view.status.node.parse().map_err(|error| format!("n{host}: {error}"))?;
            if role == "leader" && self.leadership.saw(*term, &name)? {
                self.trace.add(now, Some(host), Kind::Node, format!("leads in term {term}"));
            }
            self.claims.saw(host, &At(&view, view.after), *enforced, now);
            self.durability.check(host, &At(&view, *applied))?;
        }
        Ok(())
    }

    /// What an operator was told.
    pub(super) async fn answered(&mut self, answer: Answer) -> Result<(), Stop> {
        let (now, mesh) = (self.now(), self.setup.mesh.clone());
        match answer {
            Answer::Read { host, wanted, index } => self.reads.check(host, wanted, index)?,
            Answer::Nothing => self.decisions.1 += 1,
            Answer::Refused { switch, present } => self.durability.refused(&mesh.switches[switch].key, present),
            Answer::Acknowledged { switch, present, index } => {
                self.decisions.0 += 1;
                self.reads.acknowledged(index);
                let key = &mesh.switches[switch].key;
                let what = if present { "there" } else { "gone" };
                self.trace.add(now, None, Kind::Decision, format!("{} is {what} at index {index}", key.name));
                self.durability.acknowledged(key, present, index);
            }
            Answer::Waited { index, began, absent } => {
                let mut tables = Vec::new();
                for host in 0..self.setup.nodes {
                    // One that was started since begins with what its disk has.
                    let told = !absent.contains(&format!("n{host}")) && self.started[host] < began;
                    if told && self.stage.is_up(host) && !self.frozen.contains(&host) {
                        let status = timeout(LOOK_TIMEOUT, self.client(host).status()).await;
                        if let Ok(Ok(status)) = status {
                            tables.push((status.node, status.enforced));
                        }
                    }
                }
                waiting::check(index, &tables)?;
                self.trace.add(now, None, Kind::Decision, format!("index {index} is in force on {}", tables.len()));
            }
        }
        Ok(())
    }

    /// A call reached an application, or more of its answer was taken there.
    pub(super) fn arrived(&mut self, host: usize, arrived: Arrived, at: u64) -> Result<(), Breach> {
        let Some(call) = self.load.get(arrived.number) else { return Ok(()) };
        let mesh = &self.setup.mesh;
        if arrived.service != call.to {
            let text = format!("{} reached {}", call.describe(mesh), mesh.services[arrived.service].name);
            return Err(Breach { invariant: "calls reach whom they are for", text });
        }
        if !arrived.goes_on && call.only_once(mesh) {
            self.once.arrived(arrived.number)?;
        }
        admission::arrived(host, call, mesh)?;
        self.claims.arrived(host, call, at)
    }

    /// A call ended.
    pub(super) fn call_ended(
        &mut self,
        host: usize,
        number: u64,
        (at, status): (u64, Option<u16>),
    ) -> Result<(), Breach> {
        let (kind, place) = match status {
            Some(200) => (Kind::Allowed, 0),
            Some(403) => (Kind::Denied, 1),
            _ => (Kind::Failed, 2),
        };
        self.outcomes[place] += 1;
        let Some(call) = self.load.ended(number, at, status) else { return Ok(()) };
        let text = format!("{}: {}", call.describe(&self.setup.mesh), end_of(status));
        self.trace.add(at, Some(host), kind, text);
        self.claims.answered(call, status)
    }
}

fn end_of(status: Option<u16>) -> Value {
    status.map_or_else(|| "no answer".into(), Value::from)
}
