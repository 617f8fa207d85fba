//! Calls of the load.

use serde::{Deserialize, Serialize};

use crate::mesh::Mesh;
use crate::mesh::assertion::{Caller, Calls, Claim};

/// A call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The host that it is made on.
    pub host: usize,
    /// Who calls.
    pub from: Caller,
    /// Which service, by its place.
    pub to: usize,
    /// Its method; empty on an opaque stream.
    pub method: String,
    /// Its path; empty on an opaque stream.
    pub path: String,
    /// The host of the gateway at which a stranger comes in.
    #[serde(default)]
    pub via: Option<usize>,
    /// Whether its answer comes in parts, for a while.
    pub long: bool,
    /// When it began.
    pub began: u64,
    /// When it ended, and with which status; none where there was no answer.
    pub ended: Option<(u64, Option<u16>)>,
}

impl Call {
    /// Whether it succeeded.
    pub fn succeeded(&self) -> bool {
        matches!(self.ended, Some((_, Some(200))))
    }

    /// Whether it speaks HTTP.
    pub fn is_http(&self) -> bool {
        !self.method.is_empty()
    }

    /// Whether it is no GET: what may have been acted on is not sent again.
    pub fn acts(&self) -> bool {
        self.method != "GET"
    }

    /// Whether it may reach an application only once, since no rule asks for more.
    pub fn only_once(&self, mesh: &Mesh) -> bool {
        self.acts() && self.claim_of_retries(mesh).is_none()
    }

    /// Whether it is one of these.
    pub fn is_one_of(&self, calls: &Calls) -> bool {
        calls.from == self.from
            && calls.to.is_none_or(|to| to == self.to)
            && calls.method.as_ref().is_none_or(|method| *method == self.method)
            && calls.path.as_ref().is_none_or(|path| *path == self.path)
    }

    /// The assertion that says how often calls like this one are tried again, by its place.
    pub fn claim_of_retries(&self, mesh: &Mesh) -> Option<usize> {
        mesh.assertions
            .iter()
            .position(|one| matches!(&one.claim, Claim::Retries { calls, .. } if self.is_one_of(calls)))
    }

    /// As people say it.
    pub fn describe(&self, mesh: &Mesh) -> String {
        let from = match self.from {
            Caller::Outside => "outside",
            Caller::Stranger => "a stranger",
            Caller::Service(service) => &mesh.services[service].name,
        };
        let what = format!("{} {}", self.method, self.path);
        let to = &mesh.services[self.to].name;
        format!("a call of {from} on n{} to {to} {}", self.host, what.trim()).trim_end().to_owned()
    }
}
