//! Interception: what of a host's connections its firewall sends to its node, so that programs that know nothing of the mesh
//! are part of it.

pub mod rules;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weft_proxy::table::description::Intercepts;

/// Where connections to the own ports of instances are sent, unless set.
pub const INBOUND_PORT: u16 = 15_006;
/// Where connections of programs that call somebody are sent, unless set.
pub const OUTBOUND_PORT: u16 = 15_007;

/// What of a host's connections is sent to its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Interception {
    /// TCP ports of this host: what others connect to there is sent to the node.
    #[serde(default)]
    pub inbound: Vec<u16>,
    /// Users of this host, by name or number: what their programs connect to is sent to the node.
    #[serde(default)]
    pub users: Vec<String>,
    /// The same of units of systemd.
    #[serde(default)]
    pub units: Vec<String>,
    /// Ports to which connections go as ever.
    #[serde(default)]
    pub exclude_ports: Vec<u16>,
    /// Addresses to which connections go as ever, and from which they come as ever.
    #[serde(default)]
    pub exclude_addresses: Vec<IpNet>,
    /// Users whose programs connect as ever, though a unit of theirs is named.
    #[serde(default)]
    pub exclude_users: Vec<String>,
    /// What becomes of such connections while the node does not run.
    #[serde(default)]
    pub when_stopped: WhenStopped,
    /// Where the node takes those to ports of this host.
    #[serde(default = "inbound_port")]
    pub inbound_at: u16,
    /// Where it takes those of programs.
    #[serde(default = "outbound_port")]
    pub outbound_at: u16,
}

/// What becomes of connections that would be sent to a node that does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum WhenStopped {
    /// They are refused.
    #[default]
    Refuse,
    /// They pass as if there were no mesh.
    Pass,
}

/// What is kept of it in the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kept {
    /// What is intercepted.
    pub interception: Interception,
    /// Whether it stays: what is not confirmed does not come back after a reboot.
    #[serde(default)]
    pub confirmed: bool,
    /// What was confirmed before, and holds again where this is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Interception>,
    /// Tells one time that it was switched on from another.
    #[serde(default)]
    pub attempt: u64,
    /// The node's own port, which is never intercepted.
    #[serde(default)]
    pub node_port: u16,
}

/// What of this host's connections is to be sent to the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intercept {
    /// That; none: nothing.
    pub kept: Option<Kept>,
}

/// What of this host's connections is sent to the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intercepted {
    /// That; none: nothing.
    pub kept: Option<Kept>,
    /// Those of its ports at which no instance of a service of this host listens.
    pub idle: Vec<u16>,
}

/// The file in the data directory.
pub const FILE: &str = "intercept.json";

fn inbound_port() -> u16 {
    INBOUND_PORT
}

fn outbound_port() -> u16 {
    OUTBOUND_PORT
}

impl Default for Interception {
    fn default() -> Self {
        Self {
            inbound: Vec::new(),
            users: Vec::new(),
            units: Vec::new(),
            exclude_ports: Vec::new(),
            exclude_addresses: Vec::new(),
            exclude_users: Vec::new(),
            when_stopped: WhenStopped::default(),
            inbound_at: INBOUND_PORT,
            outbound_at: OUTBOUND_PORT,
        }
    }
}

impl Interception {
    /// Whether programs are intercepted that call somebody.
    pub fn is_outbound(&self) -> bool {
        !self.users.is_empty() || !self.units.is_empty()
    }

    /// Where the node takes what is sent to it: what others send on every address, since it arrives at the one that they have
    /// called, and what programs of this host send on that of loopback.
    pub fn listened(&self, has_ipv6: bool) -> Intercepts {
        let all: IpAddr = if has_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let own = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        let own = own.into_iter().filter(|ip| has_ipv6 || ip.is_ipv4());
        Intercepts {
            inbound: if self.inbound.is_empty() { Vec::new() } else { vec![SocketAddr::new(all, self.inbound_at)] },
            outbound: own.filter(|_| self.is_outbound()).map(|ip| SocketAddr::new(ip, self.outbound_at)).collect(),
        }
    }
}
