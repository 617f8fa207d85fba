//! What a node was not admitted for it does not get: no certificate, and no call of others.

use weft_consensus::state::State;
use weft_proto::identity::Identity;

use super::Breach;
use crate::call::Call;
use crate::mesh::Mesh;

/// Every certificate that is recorded is one that its node may have.
pub fn certificates(state: &State) -> Result<(), Breach> {
    for certificate in state.certificates.values() {
        let grants = state.nodes.get(&certificate.node).map(|node| node.services.as_slice()).unwrap_or_default();
        let may = match &certificate.identity {
            Identity::Node { name, .. } => *name == certificate.node,
            Identity::Service { service, .. } => grants.iter().any(|grant| grant.covers(service)),
            Identity::Foreign { .. } => false,
        };
        if !may {
            let text = format!("{} has a certificate of {}", certificate.node, certificate.identity);
            return Err(Breach { invariant: "certificates only as admitted", text });
        }
    }
    Ok(())
}

/// A call reached an application on `host`, whose node was admitted for the service or not.
pub fn arrived(host: usize, call: &Call, mesh: &Mesh) -> Result<(), Breach> {
    // A host's own callers may use what runs there.
    if mesh.admits(host, call.to) || host == call.host {
        return Ok(());
    }
    let text = format!("{} reached n{host}, which was not admitted for the service", call.describe(mesh));
    Err(Breach { invariant: "instances only as admitted", text })
}
