//! Whether documents stand as a task expects.

use serde_json::{Map, Value};

use super::miss::Miss;

/// Whether a document stands as it should.
pub(super) fn stands(document: &Value, wanted: &Map<String, Value>) -> Result<(), Miss> {
    for (kind, value) in wanted.get("conditions").and_then(Value::as_object).into_iter().flatten() {
        let all = document.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
        if !all.iter().any(|one| one["type"] == *kind && one["status"] == *value) {
            return Err(Miss::Failed(format!("{kind} is not {value}: {}", document["status"])));
        }
    }
    for (path, value) in wanted.get("status").and_then(Value::as_object).into_iter().flatten() {
        let pointer = format!("/status/{}", path.replace('[', "/").replace(']', "").replace('.', "/"));
        let found = document.pointer(&pointer);
        if found.is_none() || (value != "present" && found != Some(value)) {
            return Err(Miss::Failed(format!("status.{path} is {found:?}, not {value}")));
        }
    }
    Ok(())
}
