//! Gateways of a task: which there are, and what stands for their places in its texts.

use std::path::Path;

use serde_json::Value;

use super::form::{Service, Task};
use super::stage::{self, Stage};

/// The gateways that a task has: those among its services, and one for each `Gateway` of the Gateway API, as Istio makes
/// them.
pub(super) fn of(task: &Task, folder: &Path) -> Vec<Service> {
    let mut gateways: Vec<Service> =
        task.services.iter().filter(|service| service.protocol == "gateway").cloned().collect();
    for step in &task.steps {
        let files = step.apply_file.iter().flat_map(|files| files.list());
        let read = files.filter_map(|file| std::fs::read_to_string(folder.join(file)).ok());
        for text in step.apply.iter().cloned().chain(read) {
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap_or_default();
            let namespace = step.namespace.as_deref().unwrap_or("default");
            gateways.extend(documents.iter().filter_map(|document| standard(document, namespace)));
        }
    }
    let outside = |step: &super::form::Step| {
        step.requests.as_ref().is_some_and(|asked| asked.to_string().contains("$INGRESS_HOST"))
    };
    if gateways.iter().all(|gateway| gateway.protocol != "gateway") && task.steps.iter().any(outside) {
        gateways.push(Service {
            name: "istio-ingressgateway".into(),
            namespace: "istio-system".into(),
            labels: [("istio".to_owned(), "ingressgateway".to_owned())].into(),
            ..Service::default()
        });
    }
    let mut seen = std::collections::BTreeSet::new();
    gateways.retain(|gateway| seen.insert((gateway.namespace.clone(), gateway.name.clone())));
    gateways
}

fn standard(document: &Value, namespace: &str) -> Option<Service> {
    let text = |path: &str| document.pointer(path).and_then(Value::as_str);
    let is = text("/kind")? == "Gateway" && text("/apiVersion")?.starts_with("gateway.networking.k8s.io/");
    let name = text("/metadata/name").filter(|_| is)?;
    Some(Service {
        name: format!("{name}-istio"),
        namespace: text("/metadata/namespace").unwrap_or(namespace).to_owned(),
        ..Service::default()
    })
}

/// Ports of the gateways that documents have made last.
#[derive(Debug, Default)]
pub(super) struct Ports {
    plain: Option<u64>,
    secured: Option<u64>,
    streams: Option<u64>,
}

impl Ports {
    /// Takes up the ports of a document, if it is a gateway.
    pub(super) fn learn(&mut self, document: &Value) {
        let list = |path: &str| document.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
        let istio = list("/spec/servers")
            .into_iter()
            .map(|one| (one["port"]["number"].clone(), one["port"]["protocol"].clone()));
        let standard = list("/spec/listeners").into_iter().map(|one| (one["port"].clone(), one["protocol"].clone()));
        for (port, protocol) in istio.chain(standard) {
            let place = match protocol.as_str() {
                Some("HTTPS" | "TLS") => &mut self.secured,
                Some("TCP") => &mut self.streams,
                _ => &mut self.plain,
            };
            *place = port.as_u64();
        }
    }

    /// A text with the places of gateways in it.
    pub(super) fn fill(&self, text: &str, stage: &Stage) -> String {
        let Some(address) = stage.gateway_address() else { return text.to_owned() };
        let port = |port: Option<u64>, default: u64| port.unwrap_or(default).to_string();
        text.replace("$SECURE_INGRESS_PORT", &port(self.secured, 443))
            .replace("$TCP_INGRESS_PORT", &port(self.streams, 31_400))
            .replace("$INGRESS_PORT", &port(self.plain, 80))
            .replace("$INGRESS_HOST", &address)
            .replace("$CLIENT_IP", &stage::first())
    }
}
