//! What does not change while a node runs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use weft_proto::identity::NodeName;
use weft_proto::kinds::Kinds;
use weft_proto::service::ServiceName;
use weft_proxy::table::description::Bind;

use crate::config::Loopback;

/// What does not change while a node runs.
#[derive(Debug, Clone)]
pub struct Site {
    /// This node.
    pub node: NodeName,
    /// Where its links arrive, as others see it.
    pub address: SocketAddr,
    /// Its zone.
    pub zone: String,
    /// Which services' loopback addresses to listen on.
    pub loopback: Loopback,
    /// Where connections to them arrive, if they all arrive at one place.
    pub captured: Option<SocketAddr>,
    /// Further listeners.
    pub binds: Vec<Bind>,
    /// Where gateways listen: the address, and other ports than those that documents say.
    pub gateway_ip: IpAddr,
    /// See there.
    pub gateway_ports: BTreeMap<u16, u16>,
    /// The kinds of documents that this build knows.
    pub kinds: Kinds,
}

impl Site {
    /// Which services callers of this host reach at their loopback addresses, for a person.
    pub fn loopback(&self, listened: &BTreeSet<ServiceName>) -> String {
        let names =
            |names: &BTreeSet<ServiceName>| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let said = match (&self.loopback, self.captured) {
            (Loopback::Off, _) => "off".to_owned(),
            (Loopback::Auto | Loopback::All, Some(_)) => "every service; no port is listened on".to_owned(),
            (Loopback::Auto, None) if listened.is_empty() => {
                "none without CAP_NET_ADMIN: `weft listen NAME`, or the forward proxy".to_owned()
            }
            (Loopback::Auto, None) => return names(listened),
            (Loopback::All, None) => "every service".to_owned(),
            (Loopback::Only(services), _) => names(services),
        };
        if listened.is_empty() || self.captures_all() { said } else { format!("{said}; {}", names(listened)) }
    }

    /// Whether every service is called at its address without a port being listened on.
    pub fn captures_all(&self) -> bool {
        self.captured.is_some() && matches!(self.loopback, Loopback::Auto | Loopback::All)
    }

    /// Whether callers of this host reach a service at its loopback address.
    pub(super) fn serves(&self, service: &ServiceName) -> bool {
        self.captures_all() || self.loopback.listens(service)
    }
}
