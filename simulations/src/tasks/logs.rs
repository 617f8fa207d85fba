//! What access records say, held against the lines of Envoy's log that tasks expect: by the same facts under Weft's names.

use serde_json::{Map, Value};

use super::miss::{Miss, matches};

/// Whether one of the records says all that is expected.
pub(super) fn hold(records: &[Value], wanted: &Value) -> Result<(), Miss> {
    let known = ["of", "fields"];
    let asked = wanted.as_object().into_iter().flatten();
    if let Some((other, _)) = asked.clone().find(|(key, _)| !known.contains(&key.as_str())) {
        return Err(Miss::Unknown(format!("expect.log.{other}")));
    }
    let none = Map::new();
    let fields = wanted.get("fields").and_then(Value::as_object).unwrap_or(&none);
    for record in records {
        if fields
            .iter()
            .map(|(name, value)| says(record, name, value))
            .collect::<Result<Vec<_>, _>>()?
            .iter()
            .all(|is| *is)
        {
            return Ok(());
        }
    }
    Err(Miss::Failed(format!("none of {} records says {wanted}; the last one: {:?}", records.len(), records.last())))
}

/// Whether a record says a fact.
fn says(record: &Value, name: &str, wanted: &Value) -> Result<bool, Miss> {
    let text = |name: &str| record[name].as_str();
    Ok(match name {
        "method" => matches(wanted, text("method")),
        "path" => matches(wanted, text("path")),
        "status" | "response_code" => record["code"] == *wanted,
        "authority" | "requested_server_name" => matches(wanted, text("host")),
        "upstream_cluster" => {
            let words: Vec<&str> = wanted.as_str().unwrap_or_default().split('|').collect();
            let ["outbound", port, _, host] = words[..] else {
                return Err(Miss::Unknown(format!("the cluster {wanted}")));
            };
            record["port"].as_u64() == port.parse().ok() && text("destination") == Some(host)
        }
        other => return Err(Miss::Unknown(format!("expect.log.fields.{other}"))),
    })
}
