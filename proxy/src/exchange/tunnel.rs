//! An opaque stream, step by step: identify → authorize → route → balance → connect → forward → record.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::bytes::{Bytes, BytesMut};
use http::HeaderValue;
use http::uri::Authority;

use crate::accept::Connection;
use crate::accept::disguise::Disguise;
use crate::connect::StreamUpstream;
use crate::forward::bytes::{self, Begun, End as Far, Passed};
use crate::forward::http::Taken;
use crate::forward::multiplexed::Purpose;
use crate::net::Net;
use crate::record::Open;
use crate::reject::Reject;
use crate::retry::{Failure, Tries};
use crate::revoke::{Hold, revocable};
use crate::route::Route;
use crate::{authorize, balance, connect, forward, identify, route};

/// An opaque stream to the callee that waits for its near end.
pub(crate) struct Tunnel {
    far: Far,
    open: Open,
    hold: Arc<Hold>,
    idle_timeout: Option<Duration>,
    /// What an upgraded connection speaks.
    pub(crate) protocol: Option<HeaderValue>,
    /// What the callee has said before both ends were joined.
    heard: Option<io::Result<Option<Bytes>>>,
}

/// An opaque stream, up to its far end.
pub(crate) async fn stream<N: Net>(connection: &Arc<Connection<N>>, hold: &Arc<Hold>) -> Result<Tunnel, Reject> {
    open(connection, Open::new(hold, "tcp"), Purpose::Stream).await.map_err(|(mut open, reject)| {
        open.rejected(&reject);
        reject
    })
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
    /// Nothing that is known forbids every request, but an opaque stream may not pass.
    HttpOnly,
}

async fn ask<N: Net>(connection: &Arc<Connection<N>>, hold: &Arc<Hold>, purpose: Purpose) -> Result<Trial, Reject> {
    let mut open = Open::new(hold, "tcp");
    open.on_trial();
    match self::open(connection, open, purpose).await {
        Ok(tunnel) => Ok(Trial::Open(Box::new(tunnel))),
        Err((_, Reject::Denied)) if connection.is_judged_by_http() => Ok(Trial::HttpOnly),
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
) -> Result<Tunnel, (Open, Reject)> {
    let hold = open.shared_hold();
    let result = {
        let run = pin!(run_stream(connection, &mut open, purpose));
        revocable(&hold, run).await.unwrap_or(Err(Reject::Revoked))
    };
    match result {
        Ok((far, idle_timeout)) => Ok(Tunnel { far, open, hold, idle_timeout, protocol: None, heard: None }),
        Err(reject) => Err((open, reject)),
    }
}

async fn run_stream<N: Net>(
    connection: &Arc<Connection<N>>,
    open: &mut Open,
    purpose: Purpose,
) -> Result<(Far, Option<Duration>), Reject> {
    let relation = identify::relation(connection, None)?;
    let permit = authorize::stream(connection, relation.clone(), open)?;
    let route = route::choose(permit);
    let mut tries = Tries::new(&route);
    let worker = &connection.worker;
    loop {
        let chosen = balance::choose(&route, &tries, &worker.recorder.random)?;
        tries.begin(&chosen);
        open.sent_to(&chosen);
        let failure = match connect::stream(worker, &route, &chosen).await {
            Err(failure) => failure,
            Ok(StreamUpstream::Instance(stream)) => {
                open.streaming(&relation.series);
                return Ok((Far::io(stream), route.settings().idle_timeout));
            }
            Ok(StreamUpstream::Link(ticket)) => match over_link(ticket, &route, purpose).await {
                Ok(far) => {
                    open.streaming(&relation.series);
                    return Ok((far, route.settings().idle_timeout));
                }
                Err(failure) => {
                    chosen.blame(&failure);
                    failure
                }
            },
        };
        tries.again(failure, &worker.recorder.random).await?;
    }
}

async fn over_link(mut ticket: connect::link::Ticket, route: &Route, purpose: Purpose) -> Result<Far, Failure> {
    let relation = route.relation();
    let authority = format!("{}:{}", relation.service.name.host(), route.port().port);
    let authority: Authority = authority.parse().expect("a host name and a port are an authority");
    let far = forward::multiplexed::connect(&mut ticket, &authority, purpose).await?;
    Ok(far.with(ticket))
}

impl Tunnel {
    /// What an HTTP exchange has become.
    pub(super) fn new(taken: Taken, open: Open, hold: &Arc<Hold>, idle_timeout: Option<Duration>) -> Self {
        Self { far: taken.far, open, hold: hold.clone(), idle_timeout, protocol: taken.protocol, heard: None }
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

    /// The same, where these bytes of the near end have been read to tell what it speaks.
    pub(crate) async fn join_after(self, first: Bytes, near: Far) {
        self.carry(near, Begun { there: first, back: Bytes::new(), disguise: Some(Disguise::new()) }).await;
    }

    async fn carry(self, mut near: Far, mut begun: Begun) {
        let Self { far, mut open, hold, idle_timeout, heard, .. } = self;
        open.certain();
        match heard {
            None | Some(Ok(None)) => {}
            Some(Ok(Some(bytes))) => begun.back = bytes,
            Some(Err(_)) => return near.abort(),
        }
        let mut passed = Passed::default();
        let ended = {
            let copied = pin!(bytes::copy((near, far), begun, idle_timeout, &mut passed));
            revocable(&hold, copied).await
        };
        open.streamed(passed.there, passed.back);
        if let Some(Ok(())) = ended {
            open.whole();
        }
    }
}
