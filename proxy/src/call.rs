//! The words of an exchange: which end, who, what for, what was asked.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method};
use weft_proto::identity::Identity;
use weft_proto::service::{InstanceName, ServiceName};

use crate::host::Host;

/// Which end of an exchange this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// The application that calls is on this host.
    Caller,
    /// The instance that is called is on this host, and another node asks.
    Callee,
}

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    /// A port of a service.
    Fixed(ServiceName, u16),
    /// Whatever each exchange names.
    Named,
    /// What each exchange names, where that is known, else whatever is at this address: a program has called it.
    Intercepted(SocketAddr),
    /// What a gateway has for each exchange.
    Gateway(Door),
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) enum Peer {
    /// A process of this host.
    Local,
    /// A holder of an SVID: another node, or anyone who calls over mutual TLS.
    Svid(Arc<Caller>),
    /// Somebody outside the mesh, at a gateway.
    Outside(Arc<Outside>),
    /// Somebody of whom nothing is known, in plain text at the own port of this instance.
    Plain(InstanceName),
}

/// Somebody outside the mesh.
#[derive(Debug, Default)]
pub(crate) struct Outside {
    /// What it has asked for by SNI.
    pub(crate) server_name: Box<str>,
    /// Who has called whoever stands before this node, where that has said so.
    pub(crate) behind: Option<IpAddr>,
    /// Whether it is told that it may speak HTTP/3 here.
    pub(crate) http3: bool,
}

/// Where a connection has come in at a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Door {
    pub(crate) port: u16,
    /// Where a caller of the mesh comes in: at which gateway, which it has named.
    pub(crate) gateway: Option<ServiceName>,
    /// Where TLS told several listeners apart: which one.
    pub(crate) listener: Option<Arc<str>>,
}

/// A holder of an SVID.
#[derive(Debug)]
pub(crate) struct Caller {
    /// Whom its certificate names.
    pub(crate) identity: Identity,
    /// What it asked for by SNI.
    pub(crate) server_name: Box<str>,
    /// The instance on this node that it has picked; none where it leaves that to this node.
    pub(crate) instance: Option<InstanceName>,
    /// SHA-256 of its certificate.
    pub(crate) certificate: [u8; 32],
}

/// Who calls whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Parties {
    pub(crate) end: End,
    pub(crate) caller: Identity,
    pub(crate) service: ServiceName,
    pub(crate) port: u16,
    /// At the callee's node: which of its instances; none asks for any.
    pub(crate) instance: Option<InstanceName>,
    /// At the caller's node: which of its instances, by the name of a subset; none: all.
    pub(crate) subset: Option<Arc<str>>,
    /// Of what comes in at a gateway of this node: which of its hosts is meant.
    pub(crate) entrance: Option<Arc<str>>,
    /// Who comes in, where that is not a caller of the mesh by a link, or a process of this host.
    pub(crate) guest: Option<Guest>,
    /// SHA-256 of the caller's certificate, where it has shown one.
    pub(crate) certificate: Option<[u8; 32]>,
}

/// Who comes in at a gateway, or at an instance's own port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Guest {
    /// Somebody outside at a gateway, of whom nothing is known.
    Outside,
    /// A caller of the mesh at a gateway.
    Mesh,
    /// Somebody in plain text at an instance's own port, of whom nothing is known.
    Plain,
}

impl Parties {
    /// Calls of any instance by a caller of this node.
    pub(crate) fn of_caller(caller: Identity, service: &ServiceName, port: u16) -> Self {
        Self {
            end: End::Caller,
            caller,
            service: service.clone(),
            port,
            instance: None,
            subset: None,
            entrance: None,
            guest: None,
            certificate: None,
        }
    }
}

/// How long an opaque stream may be silent, and last; none: without a bound.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bounds {
    pub(crate) idle: Option<Duration>,
    pub(crate) whole: Option<Duration>,
}

/// Both ends of a call, as the policies of the callee see them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Of the caller that is meant, where a proxy that is trusted stands between.
    pub(crate) remote: IpAddr,
}

/// What was asked, as far as judging it again and recording it need.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: PathAndQuery,
    pub(crate) host: Arc<Host>,
    pub(crate) trace: Option<HeaderValue>,
    /// Only where a policy asks for a header.
    pub(crate) headers: Option<HeaderMap>,
}

impl Asked {
    /// The same, without headers.
    pub(crate) fn copy(&self) -> Self {
        let (method, path, host) = (self.method.clone(), self.path.clone(), self.host.clone());
        Self { method, path, host, trace: self.trace.clone(), headers: None }
    }
}

/// What one link runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Tcp,
    Quic,
}

/// Whose answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answerer {
    /// That of the application.
    Application,
    /// That of a node: this one's, or that of the callee's, which refuses.
    Node,
}
