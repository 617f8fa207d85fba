//! For how long a certificate is to be trusted that was shown once.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::names;

/// Serial numbers of certificates that are not to be trusted before they end.
pub type Revoked = BTreeSet<Vec<u8>>;

/// How long the other end of a connection is trusted.
#[derive(Debug, Clone)]
pub(crate) struct Validity {
    ends: Instant,
    serial: Vec<u8>,
    revoked: watch::Receiver<Arc<Revoked>>,
}

impl Validity {
    /// Until the chain's leaf ends, or is revoked.
    pub(super) fn new(chain: &[CertificateDer<'_>], ends: Instant, revoked: watch::Receiver<Arc<Revoked>>) -> Self {
        Self { ends, serial: names::serial(chain).unwrap_or_default(), revoked }
    }

    /// Returns once it is over.
    pub(crate) async fn over(mut self) {
        let serial = &self.serial;
        tokio::select! {
            biased;
            Ok(_) = self.revoked.wait_for(|revoked| revoked.contains(serial)) => {}
            () = sleep_until(self.ends) => {}
        }
    }
}
