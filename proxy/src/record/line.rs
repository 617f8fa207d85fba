//! The line that an exchange leaves in the access log.

use serde::Serialize;

/// What is known of one exchange after its end. The writer adds the time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// `outbound` at the caller's node, `inbound` at the callee's.
    pub direction: &'static str,
    /// The caller: `namespace/name` of a service, else its principal.
    pub source: String,
    /// At a gateway: who has come in there, a caller of the mesh by its principal, anybody else by its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The callee, `namespace/name`; empty where none was found.
    pub destination: String,
    /// The callee's port.
    pub port: u16,
    /// `http/1.1`, `h2`, `quic` or `tcp`: what the exchange came over; `tcp` of an opaque stream.
    pub protocol: &'static str,
    /// HTTP method; empty on an opaque stream.
    pub method: String,
    /// Path without its query.
    pub path: String,
    /// Host that was asked for: of an opaque stream of TLS by SNI, where a rule asks for that, or the host
    /// outside that it goes to.
    pub host: String,
    /// HTTP status; 0 on an opaque stream that was let through.
    pub code: u16,
    /// Why Weft ended it; empty where the application answered.
    pub reason: &'static str,
    /// Who has to do something about it: `caller`, `policy` or `callee`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub fault: &'static str,
    /// What a person needs to know of the reason.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The rule that allowed or denied it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The rule of the service's routes that it fell under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Whether it is a copy that the rule makes, whose answer nobody gets.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub mirror: bool,
    /// What policies said that decide nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub noted: Vec<String>,
    /// The node that it was sent to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The instance on that node, or on this one, where it has a name of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Bytes of the request body.
    pub request_bytes: u64,
    /// Bytes of the response body.
    pub response_bytes: u64,
    /// From its first to its last moment.
    pub duration_us: u64,
    /// W3C trace id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}
