//! Whether a node is reached: by fresh connections, which tell what kept ones do not.

use std::time::Duration;

use tokio::time::timeout;
use weft_proto::identity::NodeName;
use weft_proto::wire::cluster::{ControlRequest, ProbeReply, ProbeRequest, control_request, control_response};
use weft_proxy::net::Net;
use weft_proxy::tls::{ALPN_CONTROL, Target};

use super::{CONNECT_TIMEOUT, Control};

/// Bound on what another node tells, which reaches back first.
const ASKED_TIMEOUT: Duration = Duration::from_secs(6);

/// What became of two handshakes with a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// Over TCP.
    pub tcp: Result<(), String>,
    /// Over UDP.
    pub udp: Result<(), String>,
}

impl<N: Net> Control<N> {
    /// Reaches a node over TCP and over UDP.
    pub async fn probe(&self, to: &NodeName) -> Reached {
        let Some(address) = self.book.address(to) else {
            let unknown = || Err("no address is known".to_owned());
            return Reached { tcp: unknown(), udp: unknown() };
        };
        let late = || format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
        let tcp = async {
            match timeout(CONNECT_TIMEOUT, self.open_tls(to, address)).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(late()),
            }
        };
        let udp = async {
            let name = Target::Node(to.clone()).server_name().to_str().into_owned();
            let expect = self.node(to);
            let attempt = self.quic.connect(address, (&self.me, &expect), &name, ALPN_CONTROL);
            match timeout(CONNECT_TIMEOUT, attempt).await {
                Ok(Ok(connection)) => {
                    connection.close(0u32.into(), b"probed");
                    Ok(())
                }
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(late()),
            }
        };
        let (tcp, udp) = tokio::join!(tcp, udp);
        Reached { tcp, udp }
    }

    /// Asks a node whether it reaches this one, and what time it is there.
    pub async fn ask_to_probe(&self, to: &NodeName) -> Result<ProbeReply, String> {
        let request = ControlRequest { kind: Some(control_request::Kind::Probe(ProbeRequest {})) };
        match self.exchange_within(to, request, ASKED_TIMEOUT).await.map_err(|error| error.to_string())?.kind {
            Some(control_response::Kind::Probe(reply)) => Ok(reply),
            Some(control_response::Kind::Error(text)) => Err(text),
            _ => Err("it answered something else than was asked".to_owned()),
        }
    }
}
