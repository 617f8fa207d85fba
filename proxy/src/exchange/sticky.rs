//! The key of a call whose instance is found by one, and the cookie that a caller gets who has none.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::{COOKIE, HeaderValue};

use crate::decide::hash;
use crate::table::destinations::{Hash, HashKey};
use crate::task::Random;

/// The key, and the cookie that is made for it.
#[derive(Debug, Default)]
pub(super) struct Sticky {
    pub(super) key: Option<u64>,
    pub(super) cookie: Option<HeaderValue>,
}

/// What leads this call to its instance. A call without the key goes anywhere.
pub(super) fn sticky(hash: &Hash, headers: &HeaderMap, query: Option<&str>, source: IpAddr, random: &Random) -> Sticky {
    let of = |key: &[u8]| Sticky { key: Some(hash::of(key)), cookie: None };
    match &hash.key {
        HashKey::Header(name) => headers.get(name).map(|value| of(value.as_bytes())).unwrap_or_default(),
        HashKey::Query(name) => match query.and_then(|query| parameter(query, name)) {
            Some(value) => of(value.as_bytes()),
            None => Sticky::default(),
        },
        HashKey::Source => of(source.to_string().as_bytes()),
        HashKey::Cookie { name, made } => match (cookie(headers, name), made) {
            (Some(value), _) => of(value.as_bytes()),
            (None, Some(rest)) => {
                let value = format!("{:016x}", random.next());
                let cookie = HeaderValue::from_str(&format!("{name}={value}{rest}")).ok();
                Sticky { cookie, ..of(value.as_bytes()) }
            }
            (None, None) => Sticky::default(),
        },
    }
}

/// The value of a cookie (RFC 6265, 4.2).
pub(super) fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let lines = headers.get_all(COOKIE).into_iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(own, _)| *own == name).map(|(_, value)| value.trim_matches('"'))
}

/// A parameter of the query, as it is written there.
fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(own, _)| *own == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn keys_are_found_and_cookies_made() {
        let random = Random::new(7);
        let ask = |key: HashKey, headers: &[(&'static str, &'static str)], query: Option<&str>| {
            let headers: HeaderMap = headers
                .iter()
                .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            let hash = Hash { key, by: crate::table::destinations::HashBy::Ring(1024) };
            sticky(&hash, &headers, query, Ipv4Addr::LOCALHOST.into(), &random)
        };
        let user = || HashKey::Header(http::HeaderName::from_static("x-user"));
        let named = |made: Option<&str>| HashKey::Cookie { name: "user".into(), made: made.map(Into::into) };
        let expected = Some(hash::of(b"a b"));
        assert_eq!(ask(user(), &[("x-user", "a b")], None).key, expected);
        assert_eq!(ask(user(), &[], None).key, None);
        assert_eq!(ask(HashKey::Query("u".into()), &[], Some("x=1&u=a%20b")).key, Some(hash::of(b"a%20b")));
        assert_eq!(ask(named(None), &[("cookie", "x=1; user=a b")], None).key, expected);
        assert_eq!(ask(HashKey::Source, &[], None).key, Some(hash::of(b"127.0.0.1")));
        let none = ask(named(None), &[], None);
        assert_eq!((none.key, none.cookie), (None, None));
        let made = ask(named(Some("; Max-Age=60")), &[], None).cookie.expect("one is made");
        let text = made.to_str().expect("a text");
        let value = text.strip_prefix("user=").and_then(|rest| rest.strip_suffix("; Max-Age=60")).expect("as it is");
        let again = ask(named(Some("; Max-Age=60")), &[], None);
        assert_ne!(again.key, Some(hash::of(value.as_bytes())), "each its own");
    }
}
