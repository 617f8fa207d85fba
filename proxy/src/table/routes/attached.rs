//! Rules that are attached to a gateway.

use std::sync::Arc;

use http::StatusCode;

use super::index::Index;
use super::{Action, BackendRef, GatewayDocument, Redirect, RouteDocument, Routes, Rule, Seen, Source, gateway, istio};

/// How narrow a pattern of hosts is: a whole name goes before an end of names, a longer one before a shorter one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostRank(bool, usize);

impl HostRank {
    pub(crate) fn of(pattern: &str) -> Self {
        Self(!pattern.starts_with('*'), pattern.len())
    }
}

impl Routes {
    /// The rules for a host at a gateway of documents that are attached there, the oldest first.
    pub(in crate::table) fn of_istio(documents: &[Arc<RouteDocument>]) -> Self {
        istio::at_gateway(documents)
    }

    /// The same in the words of the Gateway API, each by how narrow the pattern is by which it is for the host.
    pub(in crate::table) fn of_gateway(documents: &[(HostRank, Arc<GatewayDocument>)]) -> Self {
        gateway::at_gateway(documents)
    }

    /// Every call is told to come by https.
    pub(in crate::table) fn to_https() -> Self {
        let redirect = Redirect {
            status: StatusCode::MOVED_PERMANENTLY,
            scheme: Some("https".into()),
            authority: None,
            port: Some(443),
            keeps_port: false,
            path: None,
        };
        let rule = Rule::only("httpsRedirect", Action::Redirect(redirect));
        Self::attached(vec![rule], Vec::new(), StatusCode::SERVICE_UNAVAILABLE)
    }

    pub(super) fn attached(rules: Vec<Rule>, backends: Vec<BackendRef>, missing: StatusCode) -> Self {
        Self { source: Source::Attached, seen: Seen::ByAll, index: Index::new(&rules), rules, backends, missing }
    }
}
