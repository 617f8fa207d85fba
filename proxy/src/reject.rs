//! Why an exchange ended without an answer of the application: status, whose fault, whether another try may help.

use std::borrow::Cow;

use http::StatusCode;
use http::header::{HeaderName, HeaderValue};

use crate::path;

/// Set on an answer that this node made itself, read and removed by the caller's node.
pub(crate) const REASON_HEADER: HeaderName = HeaderName::from_static("x-weft-reason");

/// Who has to do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The caller.
    Caller,
    /// The mesh's rules.
    Policy,
    /// The callee or the way to it.
    Callee,
}

impl Fault {
    /// Its name in access records.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Policy => "policy",
            Self::Callee => "callee",
        }
    }
}

/// Why an exchange ended without an answer of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reject {
    /// A request that servers read in different ways, or that is none.
    BadRequest(&'static str),
    /// A request target without a normal form.
    Path(path::Refusal),
    /// The request target is longer than 16 KiB.
    UriTooLong,
    /// A header section that is longer than 64 KiB.
    HeadTooLong,
    /// The same of the instance's answer.
    AnswerTooLong,
    /// OPTIONS that is to be answered by whoever has it now (RFC 9110, 7.6.2).
    LastHop,
    /// A method that is not passed on.
    Method,
    /// A host that names no service of the mesh.
    UnknownHost(String),
    /// The service has no such port.
    UnknownPort(String),
    /// No policy allows it, or one denies it.
    Denied,
    /// The calling service has no certificate on this node yet.
    NoCertificate(String),
    /// No rule of the service's routes matches.
    NoRoute,
    /// The rule leads to a service, port or subset that is not there, which is answered so.
    NoBackend(StatusCode),
    /// No healthy instance.
    NoInstance,
    /// There are as many calls under way, and waiting, as there may be.
    Overflow,
    /// The instance has more calls than it can answer in time.
    Overloaded,
    /// No instance could be reached.
    Unreachable(String),
    /// The link or the instance ended before its answer did.
    Broken(String),
    /// The deadline passed.
    Timeout,
    /// The caller went away.
    Gone,
    /// The instance did not take the upgrade.
    NotUpgraded,
    /// A policy changed, and now it is denied.
    Revoked,
    /// The service's settings cannot be understood here.
    Misconfigured,
}

impl Reject {
    /// HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::Path(_) => StatusCode::BAD_REQUEST,
            Self::LastHop => StatusCode::OK,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLong => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Denied | Self::Revoked => StatusCode::FORBIDDEN,
            Self::UnknownHost(_) | Self::UnknownPort(_) | Self::Broken(_) | Self::NotUpgraded | Self::AnswerTooLong => {
                StatusCode::BAD_GATEWAY
            }
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NoBackend(status) => *status,
            Self::NoCertificate(_) | Self::NoInstance | Self::Overflow | Self::Overloaded | Self::Unreachable(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Misconfigured => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Gone => StatusCode::from_u16(CLIENT_CLOSED).expect("three digits"),
        }
    }

    /// Name in records, metrics and between nodes.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad-request",
            Self::Path(_) => "path-refused",
            Self::LastHop => "last-hop",
            Self::UriTooLong => "uri-too-long",
            Self::HeadTooLong => "head-too-long",
            Self::AnswerTooLong => "answer-head-too-long",
            Self::Method => "method-refused",
            Self::UnknownHost(_) => "unknown-host",
            Self::UnknownPort(_) => "unknown-port",
            Self::Denied => "denied",
            Self::NoCertificate(_) => "no-certificate",
            Self::NoRoute => "no-route",
            Self::NoBackend(_) => "no-backend",
            Self::NoInstance => NO_INSTANCE,
            Self::Overflow => "overflow",
            Self::Overloaded => OVERLOADED,
            Self::Unreachable(_) => UNREACHABLE,
            Self::Broken(_) => BROKEN,
            Self::Timeout => "timeout",
            Self::Gone => "caller-gone",
            Self::NotUpgraded => "not-upgraded",
            Self::Revoked => "revoked",
            Self::Misconfigured => "misconfigured",
        }
    }

    /// Who has to do something about it.
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::BadRequest(_) | Self::Path(_) | Self::UriTooLong | Self::Method | Self::Gone => Fault::Caller,
            Self::UnknownHost(_) | Self::UnknownPort(_) | Self::HeadTooLong | Self::LastHop => Fault::Caller,
            Self::NoRoute => Fault::Caller,
            Self::NoBackend(_) | Self::Overflow => Fault::Policy,
            Self::Denied | Self::Revoked | Self::NoCertificate(_) | Self::Misconfigured => Fault::Policy,
            _ => Fault::Callee,
        }
    }

    /// gRPC status (grpc/doc/http-grpc-status-mapping.md).
    pub(crate) fn grpc_status(&self) -> &'static str {
        match self {
            Self::Denied | Self::Revoked => "7",
            Self::NoRoute => "12",
            Self::Timeout => "4",
            Self::Gone => "1",
            Self::BadRequest(_) | Self::Path(_) | Self::UriTooLong | Self::HeadTooLong | Self::Method => "13",
            _ => "14",
        }
    }

    /// What went wrong, for a person. A denial names no policy.
    pub(crate) fn text(&self) -> Cow<'static, str> {
        match self {
            Self::BadRequest(why) => (*why).into(),
            Self::Path(refusal) => refusal.to_string().into(),
            Self::LastHop => "Max-Forwards lets this request go no further than the mesh".into(),
            Self::UriTooLong => "the request target is longer than 16 KiB".into(),
            Self::HeadTooLong => "the request's header section is longer than 64 KiB".into(),
            Self::AnswerTooLong => "the header section of the service's answer is longer than 64 KiB".into(),
            Self::Method => "this method is not passed on".into(),
            Self::UnknownHost(host) => {
                let host: String = host.chars().take(HOST_SHOWN_MAX).collect();
                format!("{host:?} is no service of the mesh; services are named name.namespace.mesh or name.mesh")
                    .into()
            }
            Self::UnknownPort(why) | Self::NoCertificate(why) => why.clone().into(),
            // As Istio has it: clients and checks know it by that.
            Self::Denied => "RBAC: access denied".into(),
            Self::NoRoute => "no rule of the service's routes matches".into(),
            Self::NoBackend(_) => "the route leads to a service or subset that is not there".into(),
            Self::NoInstance => "no healthy instance of the service".into(),
            Self::Overflow => "more calls of the service are under way than there may be".into(),
            Self::Overloaded => "the service has more calls than it can answer in time: try again later".into(),
            Self::Unreachable(_) => "no instance of the service could be reached".into(),
            Self::Broken(_) => "the connection to the service broke".into(),
            Self::Timeout => "the service did not answer in time".into(),
            Self::Gone => "the caller went away".into(),
            Self::NotUpgraded => "the service did not take the upgrade".into(),
            Self::Revoked => "RBAC: access denied by a change of policy".into(),
            Self::Misconfigured => {
                "the settings of the service cannot be understood on this node: see `weft status`".into()
            }
        }
    }

    /// What only the record is told.
    pub(crate) fn detail(&self) -> Option<&str> {
        match self {
            // Who asks for it knows it; so does whoever reads the record of what was refused.
            Self::UnknownHost(why) | Self::Unreachable(why) | Self::Broken(why) => Some(why),
            _ => None,
        }
    }
}

/// Why its application has seen nothing of the request, where another node's own answer says so.
pub(crate) fn untouched(reason: &HeaderValue) -> Option<Reject> {
    match reason.as_bytes() {
        name if name == OVERLOADED.as_bytes() => Some(Reject::Overloaded),
        name if name == NO_INSTANCE.as_bytes() || name == UNREACHABLE.as_bytes() => Some(Reject::NoInstance),
        _ => None,
    }
}

/// Whether another node's own answer says that its application broke off.
pub(crate) fn broken(reason: &HeaderValue) -> bool {
    reason == BROKEN
}

const BROKEN: &str = "broken";
const NO_INSTANCE: &str = "no-instance";
const OVERLOADED: &str = "overloaded";
const UNREACHABLE: &str = "unreachable";
/// Never sent; what records and metrics show of a caller that went away.
const CLIENT_CLOSED: u16 = 499;
/// Characters shown of a host that is not known.
const HOST_SHOWN_MAX: usize = 100;
