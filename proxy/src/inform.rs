//! Informational answers to the caller of an exchange.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, ready};

use http::{HeaderMap, Response, StatusCode, Version};

use crate::headers;
use crate::hold::Hold;
use crate::interim::Gate;
use crate::stream::{Answering, Fault, Heard, Source};

/// Informational answers without an end.
#[derive(Debug, thiserror::Error)]
#[error("too many informational answers, and no other")]
pub(crate) struct Endless;

/// The caller, as far as it is told of what comes before the answer.
#[derive(Debug, Clone)]
pub(crate) struct Informed {
    hold: Arc<Hold>,
    version: Version,
    /// What the request's body waits at.
    gate: Option<Arc<Gate>>,
}

impl Informed {
    pub(crate) fn new(hold: &Arc<Hold>, version: Version, gate: Option<Arc<Gate>>) -> Self {
        hold.interims.begin();
        Self { hold: hold.clone(), version, gate }
    }

    /// An informational answer has come. False where there are more of them than anybody means.
    pub(crate) fn heard(&self, status: StatusCode, fields: &HeaderMap) -> bool {
        if !self.hold.interims.count() {
            return false;
        }
        let go_on = status == StatusCode::CONTINUE && self.gate.is_some();
        if let Some(gate) = self.gate.as_ref().filter(|_| go_on) {
            gate.open();
        }
        // HTTP/1.0 knows none (RFC 9110, 15.2). On HTTP/1.1 the request's body is asked for when it is read.
        if self.version < Version::HTTP_11 || (go_on && self.version == Version::HTTP_11) {
            return true;
        }
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = fields.clone();
        headers::clean_response(response.headers_mut());
        self.hold.inform(response);
        true
    }

    /// The answer has come; the gate, if there is one.
    pub(crate) fn answered(&self, status: StatusCode) -> Option<Arc<Gate>> {
        let gate = self.gate.as_ref()?;
        gate.answered(status);
        Some(gate.clone())
    }

    /// Whether the body of the request was wanted, or nobody waits to be told.
    pub(crate) fn wants(&self) -> bool {
        self.gate.as_ref().is_none_or(|gate| !gate.is_shut())
    }

    /// Waits for the answer, and passes on what comes before it.
    pub(crate) async fn listen(&self, mut answering: Answering) -> Result<Response<Source>, Fault> {
        let response = poll_fn(|cx| {
            loop {
                match ready!(answering.poll_heard(cx))? {
                    Heard::Interim(interim) if self.heard(interim.status(), interim.headers()) => {}
                    Heard::Interim(_) => return Poll::Ready(Err(Fault::Endless)),
                    Heard::Final(response) => return Poll::Ready(Ok::<_, Fault>(response)),
                }
            }
        })
        .await?;
        self.answered(response.status());
        Ok(response)
    }
}
