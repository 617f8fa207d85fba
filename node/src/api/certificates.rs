//! Certificates: those that gateways show, those of this node, and how those stand that the mesh orders.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use weft_consensus::state::State;
use weft_proto::UnixMillis;
use weft_proto::kinds::Spec;
use weft_proto::kinds::secret::Secret;
use weft_proto::resource::Resource;
use weft_proxy::tls::{self, credential_names, credential_validity};

use super::schema::Certificate;
use crate::acme::wish::{Wish, wishes};
use crate::node::Node;
use crate::world::World;

impl<W: World> Node<W> {
    /// `GET /v1/certificates`
    pub fn api_certificates(&self) -> Vec<Certificate> {
        let state = self.state();
        let wishes = wishes(&state);
        let secrets = state.resources.values().filter(|one| one.key.kind == Secret::KIND.key());
        let mut all: Vec<Certificate> = secrets.filter_map(|one| of_secret(one, &wishes)).collect();
        all.extend(wishes.iter().filter(|wish| wish.ends().is_none()).map(|wish| Certificate {
            kind: "order".into(),
            name: format!("{}/{}", wish.key.namespace, wish.spec.secret_name),
            names: wish.spec.names().into_iter().collect(),
            expires: 0,
            renews: wish.due().0,
        }));
        let held = self.identities.current();
        all.extend(held.certificates.iter().map(|(identity, key)| Certificate {
            kind: "svid".into(),
            name: identity.to_string(),
            names: Vec::new(),
            expires: tls::expiry(&key.cert).unwrap_or(0),
            renews: 0,
        }));
        all
    }
}

fn of_secret(one: &Arc<Resource>, wishes: &[Wish]) -> Option<Certificate> {
    let credential = Secret::of(one).ok()?.credential(&BTreeMap::new());
    credential.chain.as_ref()?;
    let ordered =
        wishes.iter().find(|wish| (&wish.key.namespace, &wish.spec.secret_name) == (&one.key.namespace, &one.key.name));
    Some(Certificate {
        kind: "secret".into(),
        name: format!("{}/{}", one.key.namespace, one.key.name),
        names: credential_names(&credential),
        expires: credential_validity(&credential).map_or(0, |(_, end)| end),
        renews: ordered.map_or(0, |wish| wish.due().0),
    })
}

/// Adds how a certificate stands that the mesh orders, in cert-manager's words.
pub(super) fn standing(status: &mut Value, (state, resource): (&State, &Resource), now: UnixMillis) {
    let Some(wish) = wishes(state).into_iter().find(|wish| wish.key == resource.key) else { return };
    let (met, (due, why)) = (wish.is_met(), wish.due());
    let (status_of, reason, message) = match (wish.ends(), &wish.order) {
        (Some(end), None) if met && end > now => ("True", "Ready", "it is up to date and has not ended".to_owned()),
        (Some(end), Some(order)) if met && end > now && order.failures == 0 => {
            ("True", "Ready", "it has not ended, and is being renewed".to_owned())
        }
        (Some(end), Some(order)) if met && end > now => {
            ("True", "Ready", format!("renewing it fails: {}", order.reason))
        }
        _ if wish.rival.is_some() => {
            let owner = wish.rival.as_deref().unwrap_or_default();
            ("False", "Conflict", format!("its secretName is that of Certificate {owner}"))
        }
        (_, Some(order)) if order.failures > 0 => ("False", "Failed", order.reason.clone()),
        _ => ("False", "Issuing", format!("it is ordered, since {why}")),
    };
    let ready = json!({
        "type": "Ready", "status": status_of, "reason": reason, "message": message,
        "observedGeneration": resource.version,
    });
    if let Some(conditions) = status["conditions"].as_array_mut() {
        conditions.push(ready);
    }
    if let Some(end) = wish.ends() {
        status["notAfter"] = json!(moment(end));
        status["renewalTime"] = json!(moment(due));
    }
    if wish.failures() > 0 {
        status["failedIssuanceAttempts"] = json!(wish.failures());
        status["lastFailureTime"] = json!(moment(wish.order.map_or(0, |order| order.tried)));
    }
}

/// What could not be ordered or renewed.
pub(super) fn failing(state: &State, now: UnixMillis) -> Vec<String> {
    let amiss = |wish: &Wish| wish.rival.is_some() || (wish.failures() > 0 && wish.is_wanted(now));
    let failing = wishes(state).into_iter().filter(amiss);
    let text = |wish: Wish| {
        if let Some(owner) = &wish.rival {
            return format!(
                "{} is not ordered, since its secretName is that of Certificate {owner}: give it another",
                wish.key
            );
        }
        let (reason, failures) =
            (wish.order.as_ref().map(|order| order.reason.clone()).unwrap_or_default(), wish.failures());
        let what = if wish.is_met() { "renewed" } else { "ordered" };
        let times = if failures == 1 { "once".to_owned() } else { format!("{failures} times") };
        format!(
            "{} could not be {what}, tried {times}: {reason}; it is tried again at {}, and at once when it is applied anew \
             with a change",
            wish.key,
            moment(wish.due().0)
        )
    };
    failing.map(text).collect()
}

/// A moment as RFC 3339 writes it, to the second.
fn moment(at: UnixMillis) -> String {
    let seconds = i64::try_from(at / 1000).unwrap_or(i64::MAX);
    let Ok(at) = time::OffsetDateTime::from_unix_timestamp(seconds) else { return String::new() };
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z", u8::from(month))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_others_write_them() {
        assert_eq!(moment(0), "1970-01-01T00:00:00Z");
        assert_eq!(moment(1_767_225_599_999), "2025-12-31T23:59:59Z");
    }
}
