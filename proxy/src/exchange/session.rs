//! Sessions: calls that carry what an earlier answer gave go to the instance that gave it (the Gateway API's
//! `sessionPersistence`). What is carried is the hash of the instance and the second in which the session began: nothing is
//! kept, and every node of the mesh understands it.

use http::header::{HeaderMap, HeaderValue, SET_COOKIE};

use super::sticky::cookie;
use crate::connection::Connection;
use crate::decide::relation::Relation;
use crate::decide::route::Ruled;
use crate::identify;
use crate::lane::Leg;
use crate::net::Net;
use crate::table::routes::{Carrier, Session};

/// What a request says of its session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    instance: u64,
    /// Seconds since 1970.
    began: u64,
}

/// Where a session leads.
pub(super) struct Pinned {
    /// Which share of the rule.
    pub(super) share: usize,
    /// Which endpoint of that one's service.
    pub(super) endpoint: usize,
}

impl Token {
    /// That of a request, if it has one that still counts.
    pub(super) fn of(session: &Session, headers: &HeaderMap, now: u64) -> Option<Self> {
        let text = match &session.carrier {
            Carrier::Cookie { name, .. } => cookie(headers, name)?,
            Carrier::Header(name) => headers.get(name)?.to_str().ok()?,
        };
        let (instance, began) = text.split_once('-')?;
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let token = Self { instance: number(instance)?, began: number(began)? };
        // One that begins later than now is none of ours.
        let age = now.checked_sub(token.began)?;
        session.lasts.is_none_or(|lasts| age < lasts.as_secs()).then_some(token)
    }

    /// Where it leads; nothing where its instance is gone.
    pub(super) fn find<N: Net>(self, connection: &Connection<N>, leg: &Leg, ruled: &Ruled) -> Option<Pinned> {
        ruled.ways().enumerate().find_map(|(share, to)| {
            let way = identify::way(connection, leg, to)?.ok()?;
            let endpoint = way.relation.of_session(self.instance)?;
            Some(Pinned { share, endpoint })
        })
    }
}

/// Gives the caller what leads its next calls to the endpoint that answered, unless it has that.
pub(super) fn give(
    session: &Session,
    had: Option<Token>,
    (relation, endpoint): (&Relation, usize),
    now: u64,
    headers: &mut HeaderMap,
) {
    let instance = relation.session_of(endpoint);
    if had.is_some_and(|had| had.instance == instance) {
        return;
    }
    let value = format!("{instance:016x}-{now:x}");
    match &session.carrier {
        Carrier::Cookie { name, rest } => {
            let cookie = HeaderValue::from_str(&format!("{name}={value}{rest}"));
            headers.extend(cookie.ok().map(|cookie| (SET_COOKIE, cookie)));
        }
        Carrier::Header(name) => {
            headers.extend(HeaderValue::from_str(&value).ok().map(|value| (name.clone(), value)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_carried_is_read_until_it_is_too_old() {
        let cookie = Carrier::Cookie { name: "s".into(), rest: "".into() };
        let session = Session { carrier: cookie, lasts: Some(Duration::from_secs(10)) };
        let read = |text: &'static str, now: u64| {
            let headers = [(http::header::COOKIE, HeaderValue::from_static(text))].into_iter().collect();
            Token::of(&session, &headers, now).map(|token| (token.instance, token.began))
        };
        assert_eq!(read("a=b; s=ff-64", 109), Some((255, 100)));
        assert_eq!(read("s=ff-64", 110), None, "too old");
        assert_eq!(read("s=ff-64", 99), None, "of a time to come");
        for other in ["s=ff", "s=-", "s=x-64", "t=ff-64"] {
            assert_eq!(read(other, 100), None, "{other}");
        }
    }
}
