//! An opaque stream, step by step: identify → route → authorize → balance → connect → forward → record.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::sync::Arc;

use ::bytes::{Bytes, BytesMut};
use http::{HeaderValue, StatusCode};

use super::authorize::{authorize, enter};
use super::gate;
use crate::attempt::{Opening, attempt};
use crate::call::Bounds;
use crate::connection::Connection;
use crate::decide::route;
use crate::forward::bytes::{self, Begun, End as Far, Passed};
use crate::forward::disguise::Disguise;
use crate::forward::multiplexed::Purpose;
use crate::forward::outgoing::Taken;
use crate::hold::{Hold, revocable};
use crate::identify;
use crate::net::Net;
use crate::record::Open;
use crate::reject::Reject;

/// An opaque stream to the callee that waits for its near end.
pub(crate) struct Tunnel {
    far: Far,
    open: Open,
    hold: Arc<Hold>,
    bounds: Bounds,
    /// What an upgraded connection speaks.
    pub(crate) protocol: Option<HeaderValue>,
    /// What the callee has said before both ends were joined.
    heard: Option<io::Result<Option<Bytes>>>,
}

/// An opaque stream, up to its far end; of TLS with the name that it asks for.
pub(crate) async fn stream<N: Net>(
    connection: &Arc<Connection<N>>,
    hold: &Arc<Hold>,
    tls: Option<&str>,
) -> Result<Tunnel, Reject> {
    open(connection, Open::new(hold, &connection.core.recorder, "tcp"), Purpose::Stream, tls).await.map_err(
        |(mut open, reject)| {
            open.rejected(&reject);
            reject
        },
    )
}

/// An opaque stream to a callee that may not be spoken to in one: it counts and is recorded only if it is used.
pub(crate) async fn trial<N: Net>(connection: &Arc<Connection<N>>, hold: &Arc<Hold>) -> Result<Trial, Reject> {
    ask(connection, hold, Purpose::Stream).await
}

/// Whether a callee that is spoken to in HTTP is there.
pub(crate) async fn probe<N: Net>(connection: &Arc<Connection<N>>, hold: &Arc<Hold>) -> Result<Trial, Reject> {
    ask(connection, hold, Purpose::Probe).await
}

/// What came of a trial.
pub(crate) enum Trial {
    /// The stream is open.
    Open(Box<Tunnel>),
    /// What is known forbids nothing, or not every request: what the near end says tells.
    Later,
}

async fn ask<N: Net>(connection: &Arc<Connection<N>>, hold: &Arc<Hold>, purpose: Purpose) -> Result<Trial, Reject> {
    let relation = &identify::leg(connection, None)?.relation;
    // Where requests go, only they tell, and the same of streams of TLS.
    let later = match purpose {
        Purpose::Probe => relation.routes.is_some(),
        Purpose::Stream => relation.asks_for_names(),
    };
    if later {
        return Ok(Trial::Later);
    }
    let mut open = Open::new(hold, &connection.core.recorder, "tcp");
    open.on_trial();
    match self::open(connection, open, purpose, None).await {
        Ok(tunnel) => Ok(Trial::Open(Box::new(tunnel))),
        Err((_, Reject::Denied)) if connection.is_judged_by_http() => Ok(Trial::Later),
        Err((mut open, reject)) => {
            open.certain();
            open.rejected(&reject);
            Err(reject)
        }
    }
}

async fn open<N: Net>(
    connection: &Arc<Connection<N>>,
    mut open: Open,
    purpose: Purpose,
    tls: Option<&str>,
) -> Result<Tunnel, (Open, Reject)> {
    let hold = open.shared_hold();
    let result = {
        let run = pin!(run_stream(connection, &mut open, purpose, tls));
        revocable(&hold, run).await.unwrap_or(Err(Reject::Revoked))
    };
    match result {
        Ok((far, bounds)) => Ok(Tunnel { far, open, hold, bounds, protocol: None, heard: None }),
        Err(reject) => Err((open, reject)),
    }
}

async fn run_stream<N: Net>(
    connection: &Arc<Connection<N>>,
    open: &mut Open,
    purpose: Purpose,
    tls: Option<&str>,
) -> Result<(Far, Bounds), Reject> {
    let mut leg = identify::leg(connection, None)?;
    gate::pass(connection, &leg, None, open)?;
    let ruled = route::stream(&leg.relation, (called(connection), tls), || connection.core.recorder.random.share());
    if let Some(ruled) = ruled {
        open.falls_under(ruled.rule, tls);
        let missing = Reject::NoBackend(StatusCode::SERVICE_UNAVAILABLE);
        let to = ruled.to.and_then(|to| identify::way(connection, &leg, to)).unwrap_or(Err(missing));
        leg = to.inspect_err(|_| enter(&leg, leg.relation.own_addresses(), None, open))?;
    }
    if leg.relation.is_gate() {
        enter(&leg, leg.relation.own_addresses(), None, open);
        return Err(Reject::NoRoute);
    }
    let route = authorize(connection, (leg, None), None, open)?;
    let began = open.started();
    let far =
        attempt(&connection.core, &route, &mut Opening { purpose, client: connection.client() }, open, began).await?;
    open.streaming();
    Ok((far, route.leg().relation.bounds()))
}

/// The address that was called, where it was any: not that of the forward proxy, which takes calls by name.
fn called<N: Net>(connection: &Connection<N>) -> Option<IpAddr> {
    let own = connection.ours.ip().to_canonical();
    (own != IpAddr::V4(Ipv4Addr::LOCALHOST) && own != IpAddr::V6(Ipv6Addr::LOCALHOST)).then_some(own)
}

impl Tunnel {
    /// What an HTTP exchange has become.
    pub(super) fn new(taken: Taken, open: Open, hold: &Arc<Hold>, bounds: Bounds) -> Self {
        Self { far: taken.far, open, hold: hold.clone(), bounds, protocol: taken.protocol, heard: None }
    }

    /// Ends when the callee says something, or ends.
    pub(crate) async fn hear(&mut self) {
        if self.heard.is_none() {
            let mut buffer = BytesMut::new();
            self.heard = Some(poll_fn(|cx| self.far.poll_read(cx, &mut buffer)).await);
        }
    }

    /// Joins both ends until both directions have ended, or the exchange is denied.
    pub(crate) async fn join(self, near: Far) {
        self.carry(near, Begun::default()).await;
    }

    /// The same behind these bytes of the near end.
    pub(crate) async fn join_behind(self, first: Bytes, near: Far) {
        self.carry(near, Begun { there: first, ..Begun::default() }).await;
    }

    /// The same, where these bytes of the near end have been read to tell what it speaks.
    pub(crate) async fn join_after(self, first: Bytes, near: Far) {
        self.carry(near, Begun { there: first, back: Bytes::new(), disguise: Some(Disguise::new()) }).await;
    }

    async fn carry(self, mut near: Far, mut begun: Begun) {
        let Self { far, mut open, hold, bounds, heard, .. } = self;
        open.certain();
        match heard {
            None | Some(Ok(None)) => {}
            Some(Ok(Some(bytes))) => begun.back = bytes,
            Some(Err(_)) => return near.abort(),
        }
        let mut passed = Passed::default();
        let ended = {
            let copied = pin!(bytes::copy((near, far), begun, bounds, &mut passed));
            revocable(&hold, copied).await
        };
        open.streamed(passed.there, passed.back);
        if let Some(Ok(())) = ended {
            open.whole();
        }
    }
}
