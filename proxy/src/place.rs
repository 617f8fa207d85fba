//! Where an instance is, and how it is reached: at an address, or by a name; plainly, or by TLS with a host outside the mesh; what is
//! said there first.

mod preamble;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use weft_proto::kinds::destination_rule::ProxyVersion;

use crate::net::Net;
use crate::tls::originate::Secure;

pub(crate) use preamble::SIGNATURE;

/// Where an instance is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// By this name, whose address then stands for nothing but the port.
    pub(crate) host: Option<Arc<str>>,
    pub(crate) address: SocketAddr,
    pub(crate) secure: Option<Secure>,
    /// What is said there first.
    pub(crate) preamble: Option<Said>,
}

/// What is said on a connection before all else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Said {
    /// Who calls, before TLS.
    Proxy(ProxyVersion, SocketAddr),
    /// Where it is to go on to, behind TLS.
    Connect(Arc<str>),
}

/// A connection to it.
pub(crate) enum Dialled<S> {
    Plain(S),
    Secure(Box<TlsStream<S>>),
}

impl Place {
    /// Connects. Of several addresses that a name has each connection begins with the next one, and goes on to those behind it.
    pub(crate) async fn dial<N: Net>(&self, net: &N) -> io::Result<Dialled<N::Stream>> {
        let mut stream = match &self.host {
            None => net.dial(self.address).await?,
            Some(host) => by_name(net, host, self.address.port()).await?,
        };
        if let Some(Said::Proxy(version, client)) = &self.preamble {
            stream.write_all(&preamble::proxy(*version, *client, self.address)).await?;
        }
        let Some(Secure { config, name, .. }) = &self.secure else {
            self.go_on(&mut stream).await?;
            return Ok(Dialled::Plain(stream));
        };
        let mut stream = TlsConnector::from(config.clone()).connect(name.clone(), stream).await?;
        self.go_on(&mut stream).await?;
        Ok(Dialled::Secure(Box::new(stream)))
    }

    async fn go_on(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
        match &self.preamble {
            Some(Said::Connect(target)) => preamble::connect(stream, target).await,
            Some(Said::Proxy(..)) | None => Ok(()),
        }
    }
}

async fn by_name<N: Net>(net: &N, host: &str, port: u16) -> io::Result<N::Stream> {
    let mut addresses: Vec<IpAddr> = net.resolve(host).await?;
    addresses.retain(|ip| is_elsewhere(*ip));
    let begin = TURN.fetch_add(1, Ordering::Relaxed) % addresses.len().max(1);
    addresses.rotate_left(begin);
    let mut failed = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for ip in addresses {
        match net.dial(SocketAddr::new(ip, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) => write!(f, "{host}:{}", self.address.port()),
            None => self.address.fmt(f),
        }
    }
}

/// Whether an address may be that of a host outside. On this host a node is another user than its callers: what they reach
/// through it would take them for the node.
pub(crate) fn is_elsewhere(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST))
}

/// Whose turn it is among the addresses of names.
static TURN: AtomicUsize = AtomicUsize::new(0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_no_host_outside() {
        for own in
            ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "224.0.0.1", "255.255.255.255"]
        {
            assert!(!is_elsewhere(own.parse().expect(own)), "{own}");
        }
        for other in ["192.0.2.1", "10.0.0.1", "2001:db8::1", "::ffff:192.0.2.1"] {
            assert!(is_elsewhere(other.parse().expect(other)), "{other}");
        }
    }
}
