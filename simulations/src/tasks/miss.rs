//! Why a check does not hold, and how texts are held against what is expected.

use regex::Regex;
use serde_json::Value;

/// Why a check does not hold.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Miss {
    /// Something else came.
    Failed(String),
    /// This cannot be judged.
    Unknown(String),
}

/// A text, or those of a list.
pub(super) fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_str().into_iter().chain(value.as_array().into_iter().flatten().filter_map(Value::as_str))
}

/// Whether a value is as wanted: a text, or what an object of operators says.
pub(super) fn matches(wanted: &Value, value: Option<&str>) -> bool {
    let text = |wanted: &Value| wanted.as_str().map_or_else(|| wanted.to_string(), str::to_owned);
    match wanted {
        Value::Object(fields) => fields.iter().all(|(name, wanted)| match name.as_str() {
            "absent" => wanted.as_bool() == Some(value.is_none()),
            // Some lists say what an own name may be.
            "one_of" | "any_of" => match value {
                Some(value) => texts(wanted).any(|one| one == value),
                None => texts(wanted).any(|one| one.starts_with("absent")),
            },
            "matches" => value.is_some_and(|value| Regex::new(&text(wanted)).is_ok_and(|regex| regex.is_match(value))),
            "contains" => value.is_some_and(|value| value.contains(&text(wanted))),
            _ => value == Some(text(wanted).as_str()),
        }),
        wanted => value == Some(text(wanted).as_str()),
    }
}
