//! The forward proxy: each exchange or tunnel names its service. HTTP, CONNECT and SOCKS5 (RFC 1928) on one port.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use weft_proto::service::Protocol;

use super::local;
use super::local::Opened;
use super::sniff::Sniffing;
use crate::call::Destination;
use crate::connection::Connection;
use crate::decide::identify::{addressed, named};
use crate::forward::bytes::End as Near;
use crate::identify;
use crate::net::Net;
use crate::reject::Reject;
use crate::speech::Speech;

/// Serves a connection to the forward proxy.
pub(crate) async fn serve<N: Net>(connection: Arc<Connection<N>>, near: Near) {
    let mut sniffing = Sniffing::new(near);
    let silence_max = connection.core.shared.room.silence_max();
    let Ok(Ok(speech)) = timeout(silence_max, sniffing.speech()).await else { return };
    match speech {
        Speech::Http2 => super::speak(connection, sniffing, Speech::Http2).await,
        // What is none is answered with what is wrong with it.
        Speech::Http1 | Speech::Opaque => super::speak(connection, sniffing, Speech::Http1).await,
        Speech::Socks5 => {
            let mut stream = sniffing.into_stream();
            let asked = timeout(SOCKS_TIMEOUT, socks(&connection, &mut stream)).await;
            if let Ok(Ok(Some((connection, protocol, opened)))) = asked {
                local::serve_opened(connection, Near::io(stream), protocol, opened).await;
            }
        }
    }
}

/// The connection towards what a host and port name.
pub(crate) fn target<N: Net>(
    connection: &Connection<N>,
    host: &str,
    port: Option<u16>,
) -> Result<(Arc<Connection<N>>, Protocol), Reject> {
    let table = connection.core.shared.table.load();
    let ((name, number), protocol) = match host.parse::<Ipv4Addr>() {
        Ok(address) if address.is_loopback() => {
            let (name, port) = addressed(&table, address, port)?;
            ((name, port.port), port.protocol)
        }
        _ => {
            let caller = identify::caller(connection, &table);
            let named = named(&table, (&crate::path::host(host), port), &caller)?;
            (named.called, named.port.protocol)
        }
    };
    Ok((connection.towards(Destination::Fixed(name, number)), protocol))
}

async fn socks<N: Net, S>(
    connection: &Connection<N>,
    stream: &mut S,
) -> io::Result<Option<(Arc<Connection<N>>, Protocol, Opened)>>
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
    let opened = match target(connection, &host, Some(port)) {
        Ok((target, protocol)) => local::open(&target, protocol).await.map(|opened| (target, protocol, opened)),
        Err(reject) => Err(reject),
    };
    match opened {
        Ok(opened) => {
            stream.write_all(&reply(SUCCEEDED)).await?;
            Ok(Some(opened))
        }
        Err(reject) => {
            stream.write_all(&reply(code(&reject))).await?;
            Ok(None)
        }
    }
}

/// Why, as far as SOCKS can tell it (RFC 1928, 6).
fn code(reject: &Reject) -> u8 {
    match reject {
        Reject::Denied | Reject::Revoked | Reject::NoCertificate(_) => NOT_ALLOWED,
        Reject::UnknownHost(_) => HOST_UNREACHABLE,
        Reject::UnknownPort(_) | Reject::NoInstance | Reject::Unreachable(_) => REFUSED,
        _ => FAILED,
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

const SOCKS_TIMEOUT: Duration = Duration::from_secs(10);
const SOCKS5: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const DOMAIN: u8 = 3;
const SUCCEEDED: u8 = 0;
const FAILED: u8 = 1;
const NOT_ALLOWED: u8 = 2;
const REFUSED: u8 = 5;
const HOST_UNREACHABLE: u8 = 4;
const COMMAND_NOT_SUPPORTED: u8 = 7;
const KIND_NOT_SUPPORTED: u8 = 8;
