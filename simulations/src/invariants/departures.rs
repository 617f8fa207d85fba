//! What leaves the mesh leaves it by the hosts that may.

use std::net::IpAddr;

use super::Breach;
use crate::call::Call;
use crate::mesh::{Mesh, Role};
use crate::world::network::SimNet;

/// A call reached a server outside the mesh from an address: where there are gateways for that it is one of theirs.
pub fn left(peer: IpAddr, call: &Call, mesh: &Mesh, hosts: usize) -> Result<(), Breach> {
    let may = mesh.gateways(Role::Egress, hosts);
    let from = SimNet::host_of(peer);
    if may.is_empty() || from.is_some_and(|host| may.contains(&host)) {
        return Ok(());
    }
    let text = format!("{} left the mesh from {peer}, which is no gateway for it", call.describe(mesh));
    Err(Breach { invariant: "calls leave by gateways", text })
}
