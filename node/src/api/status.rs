//! How documents stand on the live nodes.

use serde_json::{Value, json};
use weft_proto::facts::Live;
use weft_proto::identity::NodeName;
use weft_proto::kinds::Spec;
use weft_proto::kinds::service_entry::ServiceEntry;
use weft_proto::resource::Resource;
use weft_proto::service::ServiceName;
use weft_proto::wire::cluster::EnforcedReply;
use weft_proxy::table::Table;

use super::gateways;
use crate::analyze::Finding;
use crate::compile::Unenforced;

/// How a document stands, as the conditions of the Gateway API (its type `PolicyStatus` and those of routes). Its routes have
/// them for each parent too, and what is found in other documents is told with them.
pub(super) fn status(
    resource: &Resource,
    hints: &[String],
    told: &[(NodeName, EnforcedReply)],
    findings: &[&Finding],
) -> Value {
    let (mut lacking, mut enforcing) = (Vec::new(), 0);
    for (node, reply) in told {
        let unenforced = reply.unenforced.iter().cloned().map(Unenforced::from);
        match unenforced.into_iter().find(|one| one.key == resource.key) {
            Some(one) => lacking.push(format!("node {node}: {}", one.why)),
            None if reply.enforced >= resource.version => enforcing += 1,
            None if reply.lacks.is_empty() => lacking.push(format!("node {node} enforces index {}", reply.enforced)),
            None => lacking.push(format!("node {node}: {}", reply.lacks)),
        }
    }
    let accepted = match hints {
        [] => "the mesh keeps it".to_owned(),
        hints => hints.join("; "),
    };
    let count = format!("{enforcing} of {} live nodes enforce it", told.len());
    let (programmed, reason, message) = match lacking.as_slice() {
        [] => ("True", "Programmed", count),
        lacking => ("False", "NotEnforced", format!("{count}; {}", lacking.join("; "))),
    };
    let condition = |kind: &str, status: &str, reason: &str, message: String| {
        let generation = resource.version;
        json!({ "type": kind, "status": status, "reason": reason, "message": message, "observedGeneration": generation })
    };
    let programmed = condition("Programmed", programmed, reason, message);
    if resource.key.kind.group != ROUTES {
        let accepted = condition("Accepted", "True", "Accepted", accepted);
        let mut status = json!({ "conditions": [accepted, programmed] });
        if !findings.is_empty() {
            status["validationMessages"] = json!(findings);
        }
        return status;
    }
    of_route(resource, accepted, (programmed, findings), condition)
}

/// How a route stands, with the same for each of its parents, or a gateway.
fn of_route(
    resource: &Resource,
    accepted: String,
    (programmed, findings): (Value, &[&Finding]),
    condition: impl Fn(&str, &str, &str, String) -> Value,
) -> Value {
    let find = |code: &str, parents: bool| {
        findings.iter().find(|one| one.code == code && one.path.starts_with("spec.parentRefs") == parents)
    };
    let refused = [
        ("WFT101", "NoMatchingParent"),
        ("WFT103", "NoMatchingParent"),
        ("WFT107", "NoMatchingParent"),
        ("WFT108", "NotAllowedByListeners"),
        ("WFT110", "NoMatchingListenerHostname"),
    ];
    let accepted = match refused.iter().find_map(|(code, reason)| Some((reason, find(code, true)?))) {
        Some((reason, lacks)) => condition("Accepted", "False", reason, lacks.message.clone()),
        None => condition("Accepted", "True", "Accepted", accepted),
    };
    let refused = find("WFT105", false).map(|lacks| ("RefNotPermitted", lacks));
    let lacks = refused
        .or_else(|| find("WFT101", false).map(|lacks| ("BackendNotFound", lacks)))
        .or_else(|| find("WFT109", false).map(|lacks| ("InvalidCertificateRef", lacks)));
    let resolved = match lacks {
        Some((reason, lacks)) => {
            condition("ResolvedRefs", "False", reason, format!("{}: {}", lacks.path, lacks.message))
        }
        None => condition("ResolvedRefs", "True", "ResolvedRefs", "every backend is there".into()),
    };
    let conditions = json!([accepted, resolved, programmed]);
    let spec: Value = serde_json::from_str(&resource.spec).unwrap_or_default();
    let parent =
        |parent: &Value| json!({ "parentRef": parent, "controllerName": CONTROLLER, "conditions": conditions });
    let parents: Vec<Value> = spec["parentRefs"].as_array().into_iter().flatten().map(parent).collect();
    let mut status = json!({ "conditions": conditions });
    if resource.key.kind.name != "Gateway" {
        status["parents"] = json!(parents);
    }
    status
}

/// Adds which nodes serve a gateway: one that none serves is not programmed.
pub(super) fn serving(status: &mut Value, (resource, all): (&Resource, &[Resource]), live: &Live) {
    let served = gateways::served_by(resource, live);
    if served.is_empty()
        && let Some(conditions) = status["conditions"].as_array_mut()
    {
        let programmed = conditions.iter_mut().find(|one| one["type"] == "Programmed");
        if let Some(programmed) = programmed {
            programmed["status"] = json!("False");
            programmed["reason"] = json!("AddressNotAssigned");
            programmed["message"] = json!("no live node serves it: weft up --gateway NAME[=LABELS]");
        }
    }
    let addresses = served.iter().map(|(_, address)| json!({ "type": "IPAddress", "value": address }));
    status["addresses"] = addresses.collect();
    status["nodes"] = served.iter().map(|(node, _)| json!(node)).collect();
    if let Some(listeners) = gateways::listeners(all, resource, &status["conditions"]) {
        status["listeners"] = listeners;
    }
}

/// Adds at which loopback addresses hosts outside are called.
pub(super) fn on_loopback(status: &mut Value, resource: &Resource, table: &Table) {
    let hosts = ServiceEntry::of(resource).map(|entry| entry.hosts).unwrap_or_default();
    let address = |host: &String| table.service(&ServiceName::outside(host))?.loopback();
    let placed = hosts.iter().filter_map(|host| Some(json!({ "host": host, "value": address(host)? })));
    status["addresses"] = placed.collect();
}

/// The groups of kinds of gateways.
pub(super) const GATEWAYS: [&str; 2] = ["gateway.networking.k8s.io", "networking.istio.io"];
/// The group of routes.
const ROUTES: &str = "gateway.networking.k8s.io";
/// Whose conditions they are.
const CONTROLLER: &str = "weft.mesh/node";
