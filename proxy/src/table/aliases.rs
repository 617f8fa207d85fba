//! Further names of instances of services: whose they are, and what documents say of calls by them.

use std::sync::Arc;

use weft_proto::service::ServiceName;

use super::description::AliasDescription;
use super::destinations::{self, Asker, Treatment};
use super::routes::{Called, Routes, StreamRoutes};

/// A further name, compiled.
#[derive(Debug)]
pub(crate) struct Alias {
    pub(crate) description: AliasDescription,
    name: ServiceName,
    /// Rules for calls by it, of which the first document counts that the caller sees.
    pub(crate) routes: Vec<Arc<Routes>>,
    /// The same for opaque streams.
    pub(crate) stream_routes: Vec<Arc<StreamRoutes>>,
}

impl Alias {
    /// Compiles one; what did not change is taken over. A document whose name no service can have names nothing.
    pub(super) fn compile(description: AliasDescription, before: &[Arc<Self>]) -> Option<Arc<Self>> {
        if let Some(same) = before.iter().find(|alias| alias.description == description) {
            return Some(same.clone());
        }
        let key = &description.document.key;
        let name = ServiceName::new(&key.namespace, &key.name).ok()?;
        let known = before.iter().find(|alias| alias.name == name);
        let known = known.map(|alias| &alias.routes[..]).unwrap_or_default();
        let calls = &description.calls;
        let called = Called { service: &name, entry: None };
        let routes = Routes::compile((&calls.routes, &calls.gateway_routes), &called, known);
        let stream_routes = StreamRoutes::compile(&calls.routes, &calls.stream_routes, &called);
        Some(Arc::new(Self { routes, stream_routes, name, description }))
    }

    pub(super) fn is(&self, name: &ServiceName) -> bool {
        self.name == *name
    }

    /// How a port of it is called by a caller, where documents about it say that.
    pub(crate) fn treatment(&self, port: u16, caller: Asker<'_>) -> Option<Treatment> {
        let subsets = &self.description.calls.subsets;
        (!subsets.is_empty()).then(|| destinations::treatment(subsets, self.name.namespace(), caller, (None, port)))
    }
}
