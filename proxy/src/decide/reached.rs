//! Where an instance is, and by what TLS it is reached.

use std::net::SocketAddr;

use weft_proto::service::Protocol;

use super::relation::Relation;
use crate::place::{Place, Said};
use crate::reject::Reject;
use crate::table::description::LocalPort;

impl Relation {
    /// Why a call has nowhere to go: to a host outside that only rules name it could go by those alone.
    pub(crate) fn nowhere(&self) -> Reject {
        match self.service.outside().is_some() && self.service.endpoints.is_empty() {
            true => Reject::UnknownHost(self.service.name.to_string()),
            false => Reject::NoInstance,
        }
    }

    /// Where an instance of this node is at a port, or an instance of a host outside; an error says why it cannot be reached.
    /// `client` is who calls.
    pub(crate) fn place(&self, instance: usize, port: LocalPort, client: SocketAddr) -> Result<Place, String> {
        let host = self.service.instances[instance].description.host.clone();
        let outside = self.service.outside().zip(self.treatment.tls.as_ref());
        let origination = outside.and_then(|(outside, tls)| outside.origination(tls));
        let secure = origination.map(|made| {
            let http2 = matches!(self.port.protocol, Protocol::Http2 | Protocol::Grpc);
            made.as_ref().map_err(Clone::clone)?.towards(self.service.name.name(), http2)
        });
        let secure = secure.transpose().map_err(|why| format!("TLS towards {}: {why}", self.service.name))?;
        let preamble = self.treatment.tells_callers().map(|version| Said::Proxy(version, client));
        Ok(Place { host, address: port.target, secure, preamble })
    }
}
