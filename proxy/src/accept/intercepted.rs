//! Connections that the host's firewall sends here: those to the own ports of instances, and those of programs that call
//! somebody without knowing of the mesh.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::timeout;
use weft_proto::kinds::peer_authentication::Mode;
use weft_proto::service::{InstanceName, Protocol};

use super::local::{self, AUTO_BOUND, Told};
use super::sniff::Sniffing;
use crate::call::Destination;
use crate::connection::Connection;
use crate::core::Core;
use crate::decide::identify::known;
use crate::forward::bytes::End as Near;
use crate::identify;
use crate::net::{Accepted, Net};
use crate::room::Taken;
use crate::speech::Speech;

/// Serves a connection to the own port of an instance, in plain text: who calls is not known. What does not come by way of
/// the firewall, and what is for no instance of this node, is ended.
pub(crate) async fn inbound<N: Net>(core: Arc<Core<N>>, accepted: Accepted<N::Stream>, taken: Taken) {
    let Accepted { stream, ours, theirs } = accepted;
    let meant = core.shared.net.meant(&stream).filter(|meant| *meant != ours);
    let mut near = Near::io(stream);
    let Some((meant, called)) = meant.and_then(|meant| Some((meant, Called::find(&core, meant)?))) else {
        return near.abort();
    };
    let Called { destination, instance, protocol, mode } = called;
    let connection = Connection::plain(&core, destination, instance, (meant, theirs), taken);
    match mode {
        // As a stream it is refused before anything of it is read, and ended without an answer.
        Mode::Strict => local::opaque(&connection, Sniffing::new(near), Told::ByPort).await,
        _ => local::serve(connection, near, protocol).await,
    }
}

/// Serves a connection of a program of this host that knows nothing of the mesh. What is at its address is told from the table;
/// where that does not tell, by what it says first.
pub(crate) async fn outbound<N: Net>(core: Arc<Core<N>>, accepted: Accepted<N::Stream>, taken: Taken) {
    let Accepted { stream, ours, theirs } = accepted;
    let meant = core.shared.net.meant(&stream).filter(|meant| *meant != ours);
    let mut near = Near::io(stream);
    let Some(meant) = meant else { return near.abort() };
    let found = {
        let table = core.shared.table.load();
        let found = table.at(meant).or_else(|| table.endpoint_at(meant));
        found.map(|(name, port)| (Destination::Fixed(name.clone(), port.port), port.protocol))
    };
    let (destination, protocol) = found.unzip();
    let destination = destination.unwrap_or(Destination::Intercepted(meant));
    let connection = Connection::local(&core, destination, (meant, theirs), taken);
    match protocol {
        Some(protocol) => local::serve(connection, near, protocol).await,
        None => undeclared(connection, Sniffing::new(near), meant).await,
    }
}

/// Serves a connection to an address of which the mesh does not know. While the client is silent the server may be the one to
/// speak first.
async fn undeclared<N: Net>(connection: Arc<Connection<N>>, mut sniffing: Sniffing, meant: SocketAddr) {
    let speech = timeout(AUTO_BOUND, sniffing.speech()).await;
    match speech {
        // What a proxy is told that the program knows of is for that.
        Ok(Ok(speech @ (Speech::Http1 | Speech::Http2))) if !sniffing.begins_with(CONNECT) => {
            super::speak(connection, sniffing, speech).await;
        }
        Ok(Err(_)) => {}
        Ok(Ok(_)) | Err(_) => {
            let hello = if speech.is_ok() { timeout(AUTO_BOUND, sniffing.hello()).await } else { Ok(Ok(None)) };
            let Ok(hello) = hello.unwrap_or(Ok(None)) else { return };
            let named = hello.and_then(|hello| {
                let table = connection.core.shared.table.load();
                let caller = identify::caller(&connection, &table);
                let host = crate::path::host(&hello.server_name);
                known(&table, (&host, meant.port()), &caller).map(|named| named.called)
            });
            let connection = match named {
                Some((service, port)) => connection.towards(Destination::Fixed(service, port)),
                None => connection,
            };
            local::opaque(&connection, sniffing, Told::ByPort).await;
        }
    }
}

/// How a program begins that calls by way of a proxy of its own.
const CONNECT: &[u8] = b"CONNECT ";

/// What is called at the own port of an instance.
struct Called {
    destination: Destination,
    instance: InstanceName,
    protocol: Protocol,
    mode: Mode,
}

impl Called {
    fn find<N: Net>(core: &Core<N>, meant: SocketAddr) -> Option<Self> {
        let table = core.shared.table.load();
        let (service, own, port) = table.instance_at(meant)?;
        Some(Self {
            destination: Destination::Fixed(service.name.clone(), port.port),
            instance: own.description.id.name.clone(),
            protocol: port.protocol,
            mode: service.authorizations[own.group].mode(Some(port.target.port())),
        })
    }
}
