//! What proves to certificate authorities that names are ours (ACME): any gateway answers, whichever node has ordered.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::ServerConfig;
use weft_proto::kinds::issuer::ChallengeType;
use weft_proto::kinds::order::Challenge;

use crate::tls;

/// The proofs that are asked for at present: few, and for a few seconds.
#[derive(Debug, Default)]
pub(crate) struct Challenges {
    said: Vec<Challenge>,
    /// By host and token.
    answers: BTreeMap<(String, String), String>,
    /// By host.
    handshakes: BTreeMap<String, Arc<ServerConfig>>,
}

impl Challenges {
    /// Compiles them; the same as before are taken over whole.
    pub(super) fn compile(said: Vec<Challenge>, before: Option<&Arc<Self>>) -> Arc<Self> {
        if let Some(same) = before.filter(|before| before.said == said) {
            return same.clone();
        }
        let mut challenges = Self::default();
        for one in &said {
            let host = one.dns_name.to_ascii_lowercase();
            match one.r#type {
                ChallengeType::Http01 => {
                    challenges.answers.insert((host, one.token.clone()), one.key.clone());
                }
                ChallengeType::TlsAlpn01 => match tls::proof::server_config(&host, &one.key) {
                    Ok(config) => drop(challenges.handshakes.insert(host, config)),
                    Err(error) => tracing::error!(host, error, "a name cannot be proved over TLS"),
                },
            }
        }
        challenges.said = said;
        Arc::new(challenges)
    }

    /// The answer to a request for this path of this host (RFC 8555, 8.3).
    pub(crate) fn answer(&self, host: &str, path: &str) -> Option<&str> {
        let token = path.strip_prefix(WELL_KNOWN)?;
        self.answers.get(&(host.to_owned(), token.to_owned())).map(String::as_str)
    }

    /// What ends a handshake that asks for proof by this name (RFC 8737, 3).
    pub(crate) fn handshake(&self, host: &str) -> Option<&Arc<ServerConfig>> {
        self.handshakes.get(host)
    }
}

/// Where answers stand.
pub(crate) const WELL_KNOWN: &str = "/.well-known/acme-challenge/";
