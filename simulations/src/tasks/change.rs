//! What a step changes: documents, certificates, settings of the mesh.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};
use weft::api::schema::{ApplyRequest, Text};
use weft::client::ClientError;
use weft_proto::Index;

use super::form::{Credential, Step};
use super::{AGAIN, Run};

impl Run<'_> {
    /// Gives gateways certificates.
    pub(super) async fn give(&self, credentials: &[Credential], source: &str) -> Result<(), String> {
        let mut text = String::new();
        for one in credentials {
            let mut data = Map::new();
            for (name, file) in &one.keys {
                let path = self.stage.certificates.file(file)?;
                let read = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                data.insert(name.clone(), json!(read));
            }
            let metadata = json!({ "name": one.name, "namespace": one.namespace });
            let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data });
            text += &format!("---\n{secret}\n");
        }
        self.put(source, text).await
    }

    /// Applies a text, and waits until it is in force.
    pub(super) async fn put(&self, source: &str, text: String) -> Result<(), String> {
        let request = ApplyRequest { texts: vec![Text { source: source.to_owned(), text }] };
        let applied = self.stage.client(0).apply(&request, false).await.map_err(|error| told(&error))?;
        self.in_force(applied.index).await
    }

    /// Says what holds for the whole mesh.
    pub(super) async fn configure(&self, config: &Value, source: &str) -> Result<(), String> {
        let metadata = json!({ "name": "default", "namespace": "istio-system" });
        let mut spec = config["meshConfig"].clone();
        // Where there are workloads without a node, plain text is taken unless a document says otherwise, as Istio does.
        if self.stage.has_strangers() {
            spec["peerAuthentication"] = json!({ "mtls": { "mode": "PERMISSIVE" } });
        }
        let document = json!({ "apiVersion": "weft/v1", "kind": "MeshConfig", "metadata": metadata, "spec": spec });
        self.put(source, document.to_string()).await
    }

    /// Applies one file after the other.
    pub(super) async fn apply(&self, step: &Step, namespace: &str) -> Result<(), String> {
        let mut texts: Vec<String> = step.apply.iter().cloned().collect();
        for file in step.apply_file.iter().flat_map(|files| files.list()) {
            let path = self.folder.join(file);
            texts.push(std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?);
        }
        let mut index = None;
        for text in texts {
            let text = self.ports.lock().fill(&text, self.stage);
            let read: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|error| error.to_string())?;
            let mut documents: Vec<Value> = read.into_iter().filter(|document| !document.is_null()).collect();
            documents.iter().for_each(|document| self.ports.lock().learn(document));
            for document in &mut documents {
                let metadata = document.get_mut("metadata").and_then(Value::as_object_mut);
                metadata.map(|metadata| metadata.entry("namespace").or_insert_with(|| json!(namespace)));
            }
            if documents.is_empty() {
                continue;
            }
            let text = documents.iter().map(|document| format!("---\n{document}\n")).collect();
            let request = ApplyRequest { texts: vec![Text { source: step.id.clone(), text }] };
            let applied = self.stage.client(0).apply(&request, false).await.map_err(|error| told(&error))?;
            index = Some(applied.index);
        }
        match index {
            Some(index) => self.in_force(index).await,
            None => Ok(()),
        }
    }

    /// Waits until every node enforces it; one that has just come may not be known to all yet.
    async fn in_force(&self, index: Index) -> Result<(), String> {
        let deadline = Instant::now() + IN_FORCE;
        loop {
            let enforced = self.stage.client(0).enforced(index, IN_FORCE).await.map_err(|error| error.to_string())?;
            if enforced.lagging.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!("not in force everywhere after {IN_FORCE:?}: {:?}", enforced.lagging));
            }
            sleep(AGAIN).await;
        }
    }

    pub(super) async fn delete(&self, what: &[&str], namespace: &str) -> Result<(), String> {
        for one in what {
            let mut words = one.split_whitespace();
            let named = words.next().unwrap_or_default();
            let namespace = words.nth(1).unwrap_or(namespace);
            let (kind, name) = named.split_once('/').ok_or_else(|| format!("{one}: write KIND/NAME"))?;
            let deleted = self.stage.client(0).delete_resource(kind, namespace, name, None).await;
            self.in_force(deleted.map_err(|error| format!("{one}: {error}"))?.index).await?;
        }
        Ok(())
    }
}

/// An error with all its faults.
fn told(error: &ClientError) -> String {
    match error {
        ClientError::Refused(refused) => format!("{error}: {}", refused.faults.join("; ")),
        error => error.to_string(),
    }
}

/// How long a change may take to be in force everywhere.
const IN_FORCE: Duration = Duration::from_secs(20);
