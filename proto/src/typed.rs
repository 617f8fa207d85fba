//! Values of documents, read as what they should be.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// What is wrong with a document: the path of a field, and what would be right.
pub type Faults = Vec<(String, String)>;

/// Reads a value, or tells where in the document it is not what it should be.
pub(crate) fn typed<T: DeserializeOwned>(value: Value, prefix: &str) -> Result<T, Faults> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let inner = error.path().to_string();
        let path = match (prefix, inner.as_str()) {
            ("", ".") => String::new(),
            (prefix, ".") => prefix.to_owned(),
            ("", inner) => inner.to_owned(),
            (prefix, inner) => format!("{prefix}.{inner}"),
        };
        vec![(path, error.inner().to_string())]
    })
}
