//! Copies of a request that go elsewhere too. Each is an exchange of its own: judged, recorded, without retries, and nobody
//! waits for it or gets its answer.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Version};
use http_body::Body as HttpBody;
use tokio::time::{Instant, timeout_at};

use super::authorize::authorize;
use super::tracked::Tracked;
use crate::attempt::attempt;
use crate::body::Body;
use crate::call::Asked;
use crate::connection::Connection;
use crate::core::Copying;
use crate::decide::route::Ruled;
use crate::forward::outgoing::{Answer, Outgoing};
use crate::hold::{Place, revocable};
use crate::inform::Informed;
use crate::lane::Leg;
use crate::net::Net;
use crate::record::Open;
use crate::reject::Reject;
use crate::request::Received;
use crate::upload::Upload;

/// A copy that is to be sent.
pub(super) struct Mirror<N: Net> {
    connection: Arc<Connection<N>>,
    leg: Arc<Leg>,
    ruled: Arc<Ruled>,
    asked: Asked,
    headers: HeaderMap,
    outgoing: Outgoing,
    place: Place,
    /// Of the call that it is a copy of.
    version: Version,
    _copying: Copying,
}

impl<N: Net> Mirror<N> {
    /// A copy of a request with the body that it will have; none where there are too many already.
    pub(super) fn new(
        connection: &Arc<Connection<N>>,
        (leg, ruled): (&Arc<Leg>, &Arc<Ruled>),
        received: &Received,
        body: Body,
    ) -> Option<Self> {
        let copying = connection.core.copying()?;
        let place = connection.core.enter();
        let copy = received.copy();
        let (asked, headers) = (copy.asked()?, copy.head.headers.clone());
        let informed = Informed::new(&place.hold, Version::HTTP_10, None);
        let outgoing = Outgoing::new(copy, Upload::new(body, &place.hold, false), informed);
        let (connection, leg, ruled) = (connection.clone(), leg.clone(), ruled.clone());
        let version = received.head.version;
        Some(Self { connection, leg, ruled, asked, headers, outgoing, place, version, _copying: copying })
    }

    /// Sends it, and reads the answer to its end.
    pub(super) async fn send(self) {
        let Self { connection, leg, ruled, asked, headers, mut outgoing, place, version, _copying } = self;
        let (core, hold) = (&connection.core, &place.hold);
        let mut open = Open::http(hold, &core.recorder, version, connection.is_link());
        open.mirrors(&ruled);
        let limit = leg.relation.service.settings.request_timeout.unwrap_or(TIME_MAX);
        let deadline = Instant::now() + limit;
        let sent = {
            let run = pin!(async {
                let mut route = authorize(&connection, (leg, None), Some((asked, &headers)), &mut open)?;
                route.once();
                let began = Instant::now();
                let tries = Box::pin(timeout_at(deadline, attempt(core, &route, &mut outgoing, &mut open, began)));
                tries.await.unwrap_or(Err(Reject::Timeout))
            });
            revocable(hold, run).await.unwrap_or(Err(Reject::Revoked))
        };
        match sent {
            Err(reject) => open.rejected(&hold.blame(reject)),
            Ok(Answer { response, by, .. }) => {
                open.answered(response.status().as_u16(), by);
                let mut body = Tracked::new(response.into_body(), open, Some(deadline));
                while let Some(Ok(_)) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {}
            }
        }
    }
}

/// Bound on a copy and its answer, unless the service sets one.
const TIME_MAX: Duration = Duration::from_secs(15);
