//! What a link runs over: TCP or QUIC, and the other where the first choice does not connect.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use weft_proto::identity::Identity;

use super::link::{LinkError, LinkSlot, Shared, Way};
use super::{Dialer, carry};
use crate::call::Over;
use crate::net::Net;
use crate::place::Dialled;
use crate::quic::{self, QuicError, QuicLink};
use crate::tls::{ALPN_EXCHANGE, ALPN_H2};

/// What links to other nodes run over. A node takes both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// TCP within a zone, QUIC between zones; the other one where the first does not connect.
    #[default]
    Auto,
    /// HTTP/2 over TCP alone.
    Tcp,
    /// QUIC alone.
    Quic,
}

/// What a node is reached over, the first choice first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Transports {
    Tcp,
    Quic,
    TcpThenQuic,
    QuicThenTcp,
}

impl Transports {
    pub(crate) fn of(transport: Transport, same_zone: bool) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Quic => Self::Quic,
            Transport::Auto if same_zone => Self::TcpThenQuic,
            Transport::Auto => Self::QuicThenTcp,
        }
    }

    fn choices(self) -> (Over, Option<Over>) {
        match self {
            Self::Tcp => (Over::Tcp, None),
            Self::Quic => (Over::Quic, None),
            Self::TcpThenQuic => (Over::Tcp, Some(Over::Quic)),
            Self::QuicThenTcp => (Over::Quic, Some(Over::Tcp)),
        }
    }
}

impl LinkSlot {
    /// A new connection. Where there are two ways to make it, the second is tried as soon as the first has failed or
    /// takes long, and the first to connect is it (as RFC 8305 does between address families).
    pub(super) async fn connect<N: Net>(&self, dialer: &Arc<Dialer<N>>) -> Result<Arc<Shared>, LinkError> {
        let transports = match &self.way {
            Way::Mutual { transports, .. } => transports,
            Way::Instance(place) => {
                let failed = |error: std::io::Error| LinkError::io(place, &error);
                return match place.dial(&dialer.net).await.map_err(failed)? {
                    Dialled::Plain(stream) => carry::http2(dialer, stream, None).await.map_err(failed),
                    Dialled::Secure(stream) => carry::http2(dialer, *stream, None).await.map_err(failed),
                };
            }
        };
        let (first, Some(second)) = transports.choices() else {
            return mutual(dialer, &self.way, transports.choices().0).await;
        };
        let swapped = self.is_swapped();
        let (first, second) = if swapped { (second, first) } else { (first, second) };
        let mut early = pin!(mutual(dialer, &self.way, first));
        let failed = match timeout(HEAD_START, &mut early).await {
            Ok(Ok(shared)) => return Ok(shared),
            Ok(Err(error @ LinkError::NoCertificate(_))) => return Err(error),
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        let mut late = pin!(mutual(dialer, &self.way, second));
        let won_late = match failed {
            Some(error) => late.await.map_err(|other| error.and(&other)),
            None => tokio::select! {
                biased;
                won = &mut early => match won {
                    Ok(shared) => return Ok(shared),
                    Err(error) => late.await.map_err(|other| error.and(&other)),
                },
                won = &mut late => match won {
                    Ok(shared) => Ok(shared),
                    Err(error) => return early.await.map_err(|other| other.and(&error)),
                },
            },
        }?;
        tracing::info!(way = %self.way.address(), ?first, ?second, "a link was made over the second choice");
        self.swap((!swapped).then(|| Instant::now() + SWAPPED));
        Ok(won_late)
    }
}

/// A link with a node.
async fn mutual<N: Net>(dialer: &Arc<Dialer<N>>, way: &Way, over: Over) -> Result<Arc<Shared>, LinkError> {
    let Way::Mutual { from, to, server_name, address, .. } = way else {
        return Err(LinkError::Unreachable("instances are not reached by links".into()));
    };
    match over {
        Over::Tcp => over_tcp(dialer, (from, to), server_name, *address).await,
        Over::Quic => {
            let connecting = dialer.quic.connect(*address, (from, to), server_name, ALPN_EXCHANGE).await;
            let connection = connecting.map_err(|error| match error {
                QuicError::Tls(error) => LinkError::tls(&error),
                other => LinkError::Unreachable(format!("{address} over QUIC: {other}").into()),
            })?;
            let validity = dialer.identities.validity(&quic::chain(&connection));
            Ok(carry::quic(dialer, QuicLink::new(connection), validity))
        }
    }
}

async fn over_tcp<N: Net>(
    dialer: &Arc<Dialer<N>>,
    (from, to): (&Identity, &Identity),
    server_name: &str,
    address: SocketAddr,
) -> Result<Arc<Shared>, LinkError> {
    let fail = |error: io::Error| LinkError::io(address, &error);
    let config = dialer.identities.client_config(from, to, &[ALPN_H2]).map_err(|error| LinkError::tls(&error))?;
    let name = ServerName::try_from(server_name.to_owned()).expect("links are named by host names");
    let stream = dialer.net.dial(address).await.map_err(fail)?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(fail)?;
    let session = stream.get_ref().1;
    if session.alpn_protocol() != Some(ALPN_H2) {
        return Err(fail(io::Error::other("it does not speak HTTP/2 on links")));
    }
    let validity = dialer.identities.validity(session.peer_certificates().unwrap_or_default());
    carry::http2(dialer, stream, Some(validity)).await.map_err(fail)
}

/// How long the first choice of two has to itself (RFC 8305, 8: the connection attempt delay).
const HEAD_START: Duration = Duration::from_millis(250);
/// How long the second choice is the first after the first has failed.
const SWAPPED: Duration = Duration::from_secs(60);
