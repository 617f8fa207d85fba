//! What the instance that is called knows of who calls it.

use std::fmt::Write as _;

use http::HeaderValue;
use weft_proto::kinds::peer_authentication::Mode;

use crate::call::{End, Guest, Parties};
use crate::table::Service;

/// At the callee's node: which of its instances is called; none where it has not the one that is asked for.
pub(super) fn instance(parties: &Parties, service: &Service) -> Option<usize> {
    match parties.entrance {
        Some(_) => (!service.instances.is_empty()).then_some(0),
        None => parties.instance.as_ref().and_then(|name| service.instance(name)),
    }
}

/// Whether the callee takes whoever calls for nobody that is known, also by a link: its documents say DISABLE.
pub(super) fn is_disguised(parties: &Parties, service: &Service, instance: Option<usize>) -> bool {
    if service.outside().is_some() || parties.entrance.is_some() {
        return false;
    }
    let mode = |group: usize, port| service.authorizations[group].mode(port);
    match (parties.end, instance) {
        (End::Callee, Some(own)) => {
            let own = &service.instances[own];
            mode(own.group, own.port(parties.port).map(|port| port.target.port())) == Mode::Disable
        }
        (End::Callee, None) => false,
        // At which ports others' instances listen is not known here.
        (End::Caller, _) => {
            let mut groups = service.endpoints.iter().map(|endpoint| endpoint.group).peekable();
            groups.peek().is_some() && groups.all(|group| mode(group, None) == Mode::Disable)
        }
    }
}

/// What the instance is told of both ends, in the words of Envoy.
pub(super) fn forwarded((parties, guest): (&Parties, Option<Guest>), service: &Service) -> Option<HeaderValue> {
    // A host outside is not told who calls, and of a caller who is not known there is nothing to tell.
    if service.outside().is_some() || guest == Some(Guest::Plain) {
        return None;
    }
    let mut text = format!("By={};", service.identity);
    if let Some(certificate) = parties.certificate {
        text.push_str("Hash=");
        for byte in certificate {
            let _ = write!(text, "{byte:02x}");
        }
        text.push_str(";Subject=\"\";");
    }
    let _ = write!(text, "URI={}", parties.caller);
    HeaderValue::from_str(&text).ok()
}
