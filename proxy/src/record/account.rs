//! What is told of an exchange that has ended.

use http::HeaderValue;
use weft_proto::service::ServiceName;

use super::metrics::Finished;
use super::{Open, Record, micros};
use crate::decide::relation::{Current, Relation};
use crate::table::authz::verb;
use crate::table::endpoints::Endpoint;

impl Open {
    pub(super) fn record(&mut self, current: Option<&Current>, finished: &Finished) -> Record {
        let relation = current.map(|current| &current.relation);
        let key = &self.series.as_ref().unwrap_or(&self.recorder.unmatched).key.clone();
        let asked = current.and_then(|current| current.asked.as_ref());
        let endpoint = relation.and_then(|relation| relation.service.endpoints.get(self.endpoint?));
        Record {
            direction: key.direction,
            source: key.source.clone(),
            destination: key.destination.clone(),
            port: relation.map_or(0, |relation| relation.port.port),
            protocol: self.protocol,
            method: asked.map(|asked| asked.method.to_string()).unwrap_or_default(),
            path: asked.map(|asked| asked.path.path().to_owned()).unwrap_or_default(),
            client: current.and_then(client),
            host: match asked {
                Some(asked) => asked.host.compare.to_string(),
                None => self.host_of_stream(relation.map(|relation| &relation.service.name)),
            },
            code: finished.code,
            reason: finished.reason,
            fault: self.fault,
            detail: self.detail.take().unwrap_or_default(),
            policy: self.noting.by.as_ref().map(ToString::to_string),
            rule: self
                .ruled
                .as_ref()
                .map(|ruled| &ruled.rule().name)
                .or(self.falls.as_ref().map(|falls| &falls.rule))
                .map(ToString::to_string),
            mirror: self.copy,
            noted: self.noting.noted.iter().map(|noted| format!("{} {}", noted.policy, verb(noted.says))).collect(),
            node: endpoint.map(|endpoint| endpoint.description.node.to_string()),
            instance: relation.and_then(|relation| instance(relation, endpoint)),
            request_bytes: finished.request_bytes,
            response_bytes: finished.response_bytes,
            duration_us: micros(finished.duration),
            trace_id: asked.and_then(|asked| asked.trace.as_ref()).and_then(trace_id),
        }
    }
}

impl Open {
    /// What an opaque stream asks for: by SNI where a rule asks for that, else the host outside that it goes to.
    fn host_of_stream(&self, callee: Option<&ServiceName>) -> String {
        let asked = self.falls.as_ref().map(|falls| &*falls.name).filter(|name| !name.is_empty());
        let outside = || callee.filter(|name| name.is_outside()).map(ServiceName::name);
        asked.or_else(outside).unwrap_or_default().to_owned()
    }
}

/// Who has come in at a gateway: a caller of the mesh by its principal, anybody else by the address that is meant.
fn client(current: &Current) -> Option<String> {
    let comes_in = || current.relation.is_gate() || current.relation.is_plain();
    let entered = current.gate.as_deref().or_else(|| comes_in().then_some(current))?;
    let known = entered.relation.known_caller().map(|caller| caller.identity().to_string());
    Some(known.unwrap_or_else(|| entered.addresses.remote.to_string()))
}

fn instance(relation: &Relation, endpoint: Option<&Endpoint>) -> Option<String> {
    let own = || relation.instance.map(|own| &relation.service.instances[own].description.id.name);
    let name = endpoint.map(|endpoint| &endpoint.description.instance).or_else(own);
    name.filter(|name| !name.is_default()).map(ToString::to_string)
}

fn trace_id(traceparent: &HeaderValue) -> Option<String> {
    traceparent.to_str().ok()?.split('-').nth(1).map(str::to_owned)
}
