//! The forward proxy: each exchange or tunnel names its service. HTTP, CONNECT and SOCKS5 (RFC 1928) on one port.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use weft_proto::service::Protocol;

use super::sniff::{Speech, sniff};
use super::{Connection, Destination, http1, http2, local};
use crate::identify;
use crate::net::{Net, Stream};

/// Serves a connection to the forward proxy.
pub(crate) async fn serve<N: Net, S>(connection: Arc<Connection<N>>, stream: S)
where
    S: Stream,
{
    let Ok((mut stream, speech)) = sniff(stream, FIRST_BYTES_TIMEOUT).await else { return };
    match speech {
        Speech::Http2 => http2::serve(connection, stream, None).await,
        Speech::Http1 | Speech::Opaque => http1::serve(connection, stream).await,
        Speech::Socks5 => {
            let asked = timeout(SOCKS_TIMEOUT, socks(&connection, &mut stream)).await;
            if let Ok(Ok(Some((connection, protocol)))) = asked {
                local::serve(connection, stream, protocol).await;
            }
        }
    }
}

/// The connection towards what a host and port name, and what is spoken there.
pub(crate) fn target<N: Net>(
    connection: &Connection<N>,
    host: &str,
    port: Option<u16>,
) -> Result<(Arc<Connection<N>>, Protocol), String> {
    let table = connection.worker.plane.table.load();
    let (service, port) = match host.parse::<Ipv4Addr>() {
        Ok(address) => by_address(&table, address, port),
        Err(_) => identify::named(&table, &crate::path::host(host), port).map_err(|reject| reject.explain()),
    }?;
    Ok((connection.towards(Destination::Fixed(service.name.clone(), port.port)), port.protocol))
}

fn by_address(
    table: &crate::table::Table,
    address: Ipv4Addr,
    port: Option<u16>,
) -> Result<(Arc<crate::table::Service>, weft_proto::service::ServicePort), String> {
    let service = table.services().find(|service| service.address == Some(address));
    let service = service.ok_or_else(|| format!("{address} is no service of the mesh\n"))?;
    let port = port.and_then(|number| service.port(number));
    Ok((service.clone(), port.ok_or_else(|| format!("{} has no such port\n", service.name))?))
}

async fn socks<N: Net, S>(
    connection: &Connection<N>,
    stream: &mut S,
) -> io::Result<Option<(Arc<Connection<N>>, Protocol)>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let [_, count] = read::<2>(stream).await?;
    let mut methods = vec![0; count.into()];
    stream.read_exact(&mut methods).await?;
    if !methods.contains(&NO_AUTHENTICATION) {
        stream.write_all(&[SOCKS5, NO_METHOD]).await?;
        return Ok(None);
    }
    stream.write_all(&[SOCKS5, NO_AUTHENTICATION]).await?;
    let [_, command, _, kind] = read::<4>(stream).await?;
    let host = match kind {
        IPV4 => Ipv4Addr::from(read::<4>(stream).await?).to_string(),
        DOMAIN => {
            let [length] = read::<1>(stream).await?;
            let mut name = vec![0; length.into()];
            stream.read_exact(&mut name).await?;
            String::from_utf8_lossy(&name).into_owned()
        }
        _ => {
            stream.write_all(&reply(KIND_NOT_SUPPORTED)).await?;
            return Ok(None);
        }
    };
    let port = u16::from_be_bytes(read::<2>(stream).await?);
    if command != CONNECT {
        stream.write_all(&reply(COMMAND_NOT_SUPPORTED)).await?;
        return Ok(None);
    }
    match target(connection, &host, Some(port)) {
        Ok(target) => {
            stream.write_all(&reply(SUCCEEDED)).await?;
            Ok(Some(target))
        }
        Err(_) => {
            stream.write_all(&reply(HOST_UNREACHABLE)).await?;
            Ok(None)
        }
    }
}

async fn read<const LENGTH: usize>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// An answer whose bound address is of no use to anyone, as RFC 1928 allows.
fn reply(code: u8) -> [u8; 10] {
    [SOCKS5, code, 0, IPV4, 0, 0, 0, 0, 0, 0]
}

const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(60);
const SOCKS_TIMEOUT: Duration = Duration::from_secs(10);
const SOCKS5: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const DOMAIN: u8 = 3;
const SUCCEEDED: u8 = 0;
const HOST_UNREACHABLE: u8 = 4;
const COMMAND_NOT_SUPPORTED: u8 = 7;
const KIND_NOT_SUPPORTED: u8 = 8;
