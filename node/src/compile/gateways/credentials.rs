//! Certificates that listeners need, and what they make of TLS there.

use std::collections::BTreeSet;

use weft_proto::kinds::secret::Credential;
use weft_proxy::tls::{EdgeClients, EdgeTls};

use super::{Ground, Held, Source};

/// What listeners need of certificates, and what of it is held.
pub(super) struct Wanted<'a> {
    held: &'a Held,
    pub(super) sources: BTreeSet<Source>,
}

/// What is asked of callers.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) clients: EdgeClients,
    /// Where their authorities come from, in their order; none: from the certificates of the listener.
    pub(super) authorities: Vec<Source>,
}

impl<'a> Wanted<'a> {
    pub(super) fn new(ground: &Ground<'a>) -> Self {
        Self { held: ground.held, sources: BTreeSet::new() }
    }

    /// What is held of a source; none where it is not there.
    fn of(&mut self, source: &Source) -> Result<Credential, String> {
        self.sources.insert(source.clone());
        match self.held.0.get(source) {
            Some(held) => held.clone(),
            None => Err("its certificate is not here yet".into()),
        }
    }

    /// TLS that ends with these certificates, and what is asked of callers.
    pub(super) fn tls(&mut self, sources: &[Source], asked: &Asked, http: bool) -> EdgeTls {
        let mut edge = EdgeTls { old: true, new: true, clients: asked.clients, http, ..EdgeTls::default() };
        let mut fill = || -> Result<(), String> {
            for source in sources {
                edge.credentials.push(self.of(source)?);
            }
            if asked.clients != EdgeClients::Unasked {
                let own = edge.credentials.iter().find(|one| one.authorities.is_some()).cloned();
                let given = asked.authorities.iter().map(|source| self.of(source)).collect::<Vec<_>>();
                // Of several places where they may be those count that are there.
                let found: Vec<Credential> =
                    given.iter().flatten().filter(|one| one.authorities.is_some()).cloned().collect();
                let all = if found.is_empty() { own.into_iter().collect() } else { found };
                for one in &all {
                    edge.authorities.extend(one.authorities.iter().flatten());
                    edge.revoked.extend(one.revoked.iter().flatten());
                }
                if all.is_empty() {
                    return Err(given.into_iter().find_map(Result::err).unwrap_or_else(|| MISSING.into()));
                }
            }
            Ok(())
        };
        edge.lacks = fill().err();
        edge
    }
}

const MISSING: &str =
    "the authorities of callers are missing: ca.crt in its Secret, or a Secret of its name with -cacert";
