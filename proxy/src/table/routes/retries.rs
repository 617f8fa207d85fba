//! When a try is repeated, as a rule says it.

use std::time::Duration;

use http::{HeaderMap, StatusCode};

/// When a try is repeated, beyond those that the callee cannot have acted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RetryPolicy {
    /// Tries after the first one; none: as the service's settings say.
    pub(crate) attempts: Option<u8>,
    /// Bound on one try.
    pub(crate) per_try: Option<Duration>,
    pub(crate) on: RetryOn,
    /// Whether an instance that failed may be tried again though there are others.
    pub(crate) previous: bool,
    /// Whether instances elsewhere than those that failed go first.
    pub(crate) remote: bool,
    /// What the first pause is taken from; none: Weft's own.
    pub(crate) backoff: Option<Duration>,
}

/// What a try is repeated after.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RetryOn {
    /// The try broke off, or took too long.
    pub(crate) reset: bool,
    /// These answers, by the first digit or whole.
    server_errors: bool,
    statuses: Vec<u16>,
    /// These statuses of gRPC, by their numbers.
    grpc: Vec<u8>,
}

impl RetryOn {
    /// Reads Istio's list, whose words were checked.
    pub(crate) fn read(list: &str) -> Self {
        let list = if list.is_empty() { DEFAULT } else { list };
        let mut on = Self::default();
        for word in list.split(',') {
            match word {
                "5xx" => (on.reset, on.server_errors) = (true, true),
                "gateway-error" => {
                    on.reset = true;
                    on.statuses.extend([502, 503, 504]);
                }
                "reset" => on.reset = true,
                "retriable-4xx" => on.statuses.push(409),
                "cancelled" => on.grpc.push(1),
                "deadline-exceeded" => on.grpc.push(4),
                "resource-exhausted" => on.grpc.push(8),
                "internal" => on.grpc.push(13),
                "unavailable" => on.grpc.push(14),
                number => on.statuses.extend(number.parse::<u16>().ok()),
            }
        }
        on
    }

    /// These answers and nothing else.
    pub(crate) fn statuses(statuses: Vec<u16>) -> Self {
        Self { statuses, ..Self::default() }
    }

    /// Whether an answer of the application is one to try again after.
    pub(crate) fn wants(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        if (self.server_errors && status.is_server_error()) || self.statuses.contains(&status.as_u16()) {
            return true;
        }
        let told = || headers.get("grpc-status")?.to_str().ok()?.parse::<u8>().ok();
        !self.grpc.is_empty() && told().is_some_and(|number| self.grpc.contains(&number))
    }

    /// Whether it asks for anything beyond what the callee cannot have acted on.
    pub(crate) fn is_any(&self) -> bool {
        *self != Self::default()
    }
}

/// What is meant where nothing is said.
const DEFAULT: &str = "connect-failure,refused-stream,unavailable,cancelled";
