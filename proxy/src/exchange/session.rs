//! Sessions: calls that carry what an earlier answer gave go to the instance that gave it (the Gateway API's
//! `sessionPersistence`). What is carried is the hash of the instance, the second in which the session began and
//! that of its last call: nothing is kept, and every node of the mesh understands it.

use std::time::Duration;

use http::header::{HeaderMap, HeaderValue, SET_COOKIE};

use super::sticky::cookie;
use crate::connection::Connection;
use crate::core::Core;
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
    last: u64,
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
        let mut parts = text.splitn(3, '-').map(|part| u64::from_str_radix(part, 16).ok());
        let mut next = || parts.next().flatten();
        let token = Self { instance: next()?, began: next()?, last: next()? };
        // One of a time to come is none of ours.
        let (age, rest) = (now.checked_sub(token.began)?, now.checked_sub(token.last)?);
        let within = |age: u64, most: Option<Duration>| most.is_none_or(|most| age < most.as_secs());
        (within(age, session.lasts) && within(rest, session.rests)).then_some(token)
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

/// Since 1970, by which sessions end.
pub(super) fn seconds<N: Net>(core: &Core<N>) -> u64 {
    (core.shared.settings.clock)() / 1000
}

/// Gives the caller what leads its next calls to the endpoint that answered, unless it has that and its last call does not
/// matter.
pub(super) fn give(
    session: &Session,
    had: Option<Token>,
    (relation, endpoint): (&Relation, usize),
    now: u64,
    headers: &mut HeaderMap,
) {
    renew(session, had, relation.session_of(endpoint), now, headers);
}

fn renew(session: &Session, had: Option<Token>, instance: u64, now: u64, headers: &mut HeaderMap) {
    let had = had.filter(|had| had.instance == instance);
    if had.is_some_and(|had| session.rests.is_none() || had.last == now) {
        return;
    }
    let began = had.map_or(now, |had| had.began);
    let value = format!("{instance:016x}-{began:x}-{now:x}");
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
    use super::*;

    #[test]
    fn what_is_carried_is_read_until_it_is_too_old() {
        let cookie = Carrier::Cookie { name: "s".into(), rest: "".into() };
        let (lasts, rests) = (Some(Duration::from_secs(10)), Some(Duration::from_secs(5)));
        let session = Session { carrier: cookie, lasts, rests };
        let read = |text: &'static str, now: u64| {
            let headers = [(http::header::COOKIE, HeaderValue::from_static(text))].into_iter().collect();
            Token::of(&session, &headers, now).map(|token| (token.instance, token.began, token.last))
        };
        assert_eq!(read("a=b; s=ff-64-69", 109), Some((255, 100, 105)));
        assert_eq!(read("s=ff-64-69", 110), None, "too old");
        assert_eq!(read("s=ff-64-64", 105), None, "unused for too long");
        assert_eq!(read("s=ff-64-64", 99), None, "of a time to come");
        for other in ["s=ff", "s=--", "s=ff-64", "s=x-64-64", "t=ff-64-64", "s=ff-64-64-64"] {
            assert_eq!(read(other, 100), None, "{other}");
        }
        let given = |had: &'static str, now: u64| {
            let headers = [(http::header::COOKIE, HeaderValue::from_static(had))].into_iter().collect();
            let (had, mut answer) = (Token::of(&session, &headers, now), HeaderMap::new());
            renew(&session, had, 255, now, &mut answer);
            answer.get(SET_COOKIE).map(|value| value.to_str().expect("text").to_owned())
        };
        assert_eq!(given("s=ff-64-64", 103).as_deref(), Some("s=00000000000000ff-64-67"), "used now");
        assert_eq!(given("s=ff-64-64", 100), None, "it has it already");
        assert_eq!(given("s=fe-64-64", 103).as_deref(), Some("s=00000000000000ff-67-67"), "another instance");
    }
}
