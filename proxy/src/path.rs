//! One form for every request target and every host, so that what is authorized is what is forwarded.
//!
//! The path is normalised once, before it is judged, and both the judgement and the upstream see the result:
//! percent-encodings of unreserved characters are decoded and all others written in upper case (RFC 3986, 6.2.2.1
//! and 6.2.2.2), bytes that a path may not hold raw are encoded, dot segments are removed (5.2.4), and then runs of
//! `/` are merged. Dot segments go first, as with Istio: `/a//../b` is `/a/b`. Nothing is decoded twice.

use std::borrow::Cow;

use weft_proto::kinds::service::EscapedSlashes;

/// Why a request target is answered with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Neither a path, nor `*`, nor an authority.
    #[error("the request target is neither a path that starts with '/', nor '*', nor host:port")]
    Form,
    /// A control character or a space, anywhere.
    #[error("the request target holds a control character or a space")]
    Control,
    /// `#`, anywhere: a client never sends one, and servers differ on what it means.
    #[error("the request target holds a fragment ('#')")]
    Fragment,
    /// `%00` in the path.
    #[error("the path holds an encoded NUL (%00)")]
    Nul,
    /// A `%` that two hexadecimal digits don't follow.
    #[error("the path holds a '%' that is not followed by two hexadecimal digits")]
    Escape,
    /// `%2F`, `%5C` or `\` in the path of a service that has not opted out.
    #[error("the path holds %2F, %5C or '\\', which servers read in different ways; escapedSlashes: allow takes it")]
    EscapedSlash,
}

/// The normal form of a request target in origin form, `/path?query`. Borrowed means that it was normal already: one
/// scan, no allocation.
///
/// The query is never touched. `*` and authority form (`host:port`) are passed as they are; absolute form is refused,
/// so hand over the path and query of a parsed URI. Normalising a normal form changes nothing.
pub fn normalise(target: &str, slashes: EscapedSlashes) -> Result<Cow<'_, str>, Refusal> {
    if !target.starts_with('/') {
        return without_path(target).map(|()| Cow::Borrowed(target));
    }
    let end = target.find('?').unwrap_or(target.len());
    let (path, query) = target.split_at(end);
    let normal = scan(path.as_bytes(), slashes)?;
    query.bytes().try_for_each(raw_anywhere)?;
    if normal {
        return Ok(Cow::Borrowed(target));
    }
    let mut text = resolve(&canonical_text(path));
    text.push_str(query);
    Ok(Cow::Owned(text))
}

/// The host of an authority as policies and routes compare it: lower case, without user, port and trailing dot. An
/// IPv6 literal keeps its brackets.
pub fn host(authority: &str) -> Cow<'_, str> {
    let bare = authority.rsplit_once('@').map_or(authority, |(_, rest)| rest);
    let host = match bare.find(']') {
        Some(end) if bare.starts_with('[') => &bare[..=end],
        _ => bare.split(':').next().unwrap_or_default(),
    };
    let host = host.trim_end_matches('.');
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Cow::Owned(host.to_ascii_lowercase());
    }
    Cow::Borrowed(host)
}

/// Text of a path with its percent-encodings in their one form. Policies' patterns go through it too, so that
/// `/caf%c3%a9` in a policy is the `/caf%C3%A9` that is judged. A `%` that encodes nothing is left.
pub fn canonical_text(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let (byte, length) = match escape(&bytes[at..]) {
            Some(byte) => (byte, ESCAPE_LENGTH),
            None => (bytes[at], 1),
        };
        let raw = if length == 1 { matches!(byte, b'%' | b'\\') || legal(byte) } else { unreserved(byte) };
        if raw {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
        at += length;
    }
    out
}

/// Whether the path is normal already. Refuses what has no normal form.
fn scan(path: &[u8], slashes: EscapedSlashes) -> Result<bool, Refusal> {
    let (mut normal, mut at) = (true, 0);
    while at < path.len() {
        let byte = path[at];
        match byte {
            b'/' => normal &= !starts_with_slash_or_dots(&path[at + 1..]),
            b'%' => {
                let decoded = escape(&path[at..]).ok_or(Refusal::Escape)?;
                match decoded {
                    0 => return Err(Refusal::Nul),
                    b'/' | b'\\' if slashes == EscapedSlashes::Refuse => return Err(Refusal::EscapedSlash),
                    _ => {}
                }
                let lower = path[at + 1].is_ascii_lowercase() || path[at + 2].is_ascii_lowercase();
                normal &= !lower && !unreserved(decoded);
                at += ESCAPE_LENGTH - 1;
            }
            b'\\' if slashes == EscapedSlashes::Refuse => return Err(Refusal::EscapedSlash),
            b'\\' => {}
            _ if legal(byte) => {}
            _ => {
                raw_anywhere(byte)?;
                normal = false;
            }
        }
        at += 1;
    }
    Ok(normal)
}

/// Whether what follows a slash is another slash or a dot segment.
fn starts_with_slash_or_dots(rest: &[u8]) -> bool {
    matches!(rest, [b'/', ..] | [b'.'] | [b'.', b'/', ..] | [b'.', b'.'] | [b'.', b'.', b'/', ..])
}

/// Removes dot segments, never above the root, then merges slashes.
fn resolve(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let dots = matches!(segment, "." | "..");
        if segment == ".." {
            kept.pop();
        }
        if !dots {
            kept.push(segment);
        } else if segments.peek().is_none() {
            kept.push("");
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in kept.iter().filter(|segment| !segment.is_empty()) {
        out.push('/');
        out.push_str(segment);
    }
    if out.is_empty() || kept.last().is_some_and(|last| last.is_empty()) {
        out.push('/');
    }
    out
}

fn without_path(target: &str) -> Result<(), Refusal> {
    target.bytes().try_for_each(raw_anywhere)?;
    let authority = |byte: u8| unreserved(byte) || matches!(byte, b':' | b'[' | b']');
    if target == "*" || (!target.is_empty() && target.bytes().all(authority)) {
        return Ok(());
    }
    Err(Refusal::Form)
}

fn raw_anywhere(byte: u8) -> Result<(), Refusal> {
    match byte {
        b'#' => Err(Refusal::Fragment),
        0..=b' ' | 0x7F => Err(Refusal::Control),
        _ => Ok(()),
    }
}

/// The byte that an escape at the start of `rest` encodes.
fn escape(rest: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    match rest {
        [b'%', high, low, ..] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    }
}

/// RFC 3986, 2.3.
fn unreserved(byte: u8) -> bool {
    CLASS[usize::from(byte)] == Class::Unreserved
}

/// Whether a path may hold it raw: `pchar` and `/` of RFC 3986, 3.3.
fn legal(byte: u8) -> bool {
    CLASS[usize::from(byte)] != Class::Other
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Unreserved,
    Reserved,
    Other,
}

const ESCAPE_LENGTH: usize = 3;
const HEX: &[u8; 16] = b"0123456789ABCDEF";
const CLASS: [Class; 256] = classes();

const fn classes() -> [Class; 256] {
    let mut classes = [Class::Other; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        classes[byte as usize] = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => Class::Unreserved,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@' | b'/' => {
                Class::Reserved
            }
            _ => Class::Other,
        };
        byte += 1;
    }
    classes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn strict(target: &str) -> Result<String, Refusal> {
        normalise(target, EscapedSlashes::Refuse).map(Cow::into_owned)
    }

    #[test]
    fn what_is_normal_is_borrowed() {
        for target in [
            "/",
            "/a/b",
            "/a/",
            "/.well-known/x",
            "/...",
            "/a/..b/.c",
            "/a;v=1/b,c",
            "/caf%C3%A9",
            "/%25c0",
            "/a?x//../%2f%zz\\y",
            "*",
            "web.mesh:443",
            "[::1]:443",
            "/!$&'()*+,;=:@-._~",
        ] {
            let found = normalise(target, EscapedSlashes::Refuse);
            assert!(matches!(found, Ok(Cow::Borrowed(same)) if same == target), "{target}: {found:?}");
        }
    }

    #[test]
    fn has_one_form_for_what_servers_read_alike() {
        for (target, normal) in [
            // Istio's table, where slashes are merged.
            ("/app/../admin", "/admin"),
            ("/app//", "/app/"),
            ("/xyz%30..//abc", "/xyz0../abc"),
            ("/app/%2E./admin", "/admin"),
            ("/app//../admin", "/app/admin"),
            ("/app//../../admin", "/admin"),
            ("/%c0%2e%c0%2e/admin", "/%C0.%C0./admin"),
            ("/%252e%252e/admin", "/%252e%252e/admin"),
            ("/%c0%ae%c0%ae/admin", "/%C0%AE%C0%AE/admin"),
            ("/..;/admin", "/..;/admin"),
            ("/Admin", "/Admin"),
            ("/0x2e0x2e/admin", "/0x2e0x2e/admin"),
            // RFC 3986, 5.4.
            ("/b/c/.", "/b/c/"),
            ("/b/c/./", "/b/c/"),
            ("/b/c/..", "/b/"),
            ("/b/c/../..", "/"),
            ("/../../../g", "/g"),
            ("/b/c/./../g", "/b/g"),
            ("/b/c/g/./h", "/b/c/g/h"),
            ("/.", "/"),
            ("/..", "/"),
            ("//..", "/"),
            ("///", "/"),
            // Bytes that a path may not hold raw.
            ("/caf\u{e9}", "/caf%C3%A9"),
            ("/a|b", "/a%7Cb"),
            ("/{x}", "/%7Bx%7D"),
            ("/%7b", "/%7B"),
            ("/%7e%61", "/~a"),
            ("/a/../b?c=/../d", "/b?c=/../d"),
            ("/a/.?..", "/a/?.."),
        ] {
            assert_eq!(strict(target).as_deref(), Ok(normal), "{target}");
        }
    }

    #[test]
    fn every_encoded_byte_has_one_form() {
        for byte in 1..=255_u8 {
            let kept = format!("/admin%{byte:02X}");
            let expected = match byte {
                b'/' | b'\\' => Err(Refusal::EscapedSlash),
                b'.' | b'-' | b'_' | b'~' => Ok(format!("/admin{}", char::from(byte))),
                _ if byte.is_ascii_alphanumeric() => Ok(format!("/admin{}", char::from(byte))),
                _ => Ok(kept.clone()),
            };
            assert_eq!(strict(&kept), expected);
            assert_eq!(strict(&kept.to_lowercase()), expected);
        }
    }

    #[test]
    fn refuses_what_servers_read_in_different_ways() {
        for (target, refusal) in [
            ("/a%2Fb", Refusal::EscapedSlash),
            ("/a%2fb", Refusal::EscapedSlash),
            ("/a%5cb", Refusal::EscapedSlash),
            ("/a\\b", Refusal::EscapedSlash),
            ("/%2e%2e%2fadmin", Refusal::EscapedSlash),
            ("/admin%00", Refusal::Nul),
            ("/a\0b", Refusal::Control),
            ("/a\tb", Refusal::Control),
            ("/a b", Refusal::Control),
            ("/a\x7f", Refusal::Control),
            ("/a?\n", Refusal::Control),
            ("/app#foo", Refusal::Fragment),
            ("/a?b#c", Refusal::Fragment),
            ("/%", Refusal::Escape),
            ("/%4", Refusal::Escape),
            ("/%zz", Refusal::Escape),
            ("/%+1", Refusal::Escape),
            ("/a%?41", Refusal::Escape),
            ("", Refusal::Form),
            ("a/b", Refusal::Form),
            ("http://a/b", Refusal::Form),
            ("?x", Refusal::Form),
            ("u@h", Refusal::Form),
        ] {
            assert_eq!(strict(target), Err(refusal), "{target:?}");
        }
    }

    #[test]
    fn a_service_that_opts_out_gets_escaped_slashes_as_they_are() {
        for (target, normal) in [
            ("/a%2fb", "/a%2Fb"),
            ("/a%5Cb", "/a%5Cb"),
            ("/a\\..\\b", "/a\\..\\b"),
            ("/x/../a\\b", "/a\\b"),
            ("/%2f%2e%2e", "/%2F.."),
        ] {
            assert_eq!(normalise(target, EscapedSlashes::Allow).as_deref(), Ok(normal), "{target}");
        }
        assert_eq!(normalise("/%00", EscapedSlashes::Allow), Err(Refusal::Nul));
    }

    #[test]
    fn hosts_have_one_form() {
        for (authority, expected) in [
            ("web.mesh", "web.mesh"),
            ("WEB.Mesh:8080", "web.mesh"),
            ("web.mesh.", "web.mesh"),
            ("web.mesh.:80", "web.mesh"),
            ("[2001:DB8::1]:443", "[2001:db8::1]"),
            ("[::1]", "[::1]"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("user@web.mesh:1", "web.mesh"),
            ("", ""),
            (":80", ""),
        ] {
            assert_eq!(host(authority), expected, "{authority}");
            assert_eq!(host(expected), expected);
        }
    }

    fn target() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            Just("/"),
            Just("."),
            Just(".."),
            Just("%2e"),
            Just("%2F"),
            Just("%5c"),
            Just("\\"),
            Just("%c3"),
            Just("%41"),
            Just("%25"),
            Just("a"),
            Just("B"),
            Just("|"),
            Just("\u{e9}"),
            Just("?"),
            Just("%"),
            Just(";"),
            Just("2"),
            Just("%00"),
            Just("#"),
        ];
        proptest::collection::vec(part, 0..12).prop_map(|parts| format!("/{}", parts.concat()))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4_000) })]

        #[test]
        fn a_normal_form_is_its_own_normal_form(target in target(), allow: bool) {
            let slashes = if allow { EscapedSlashes::Allow } else { EscapedSlashes::Refuse };
            if let Ok(once) = normalise(&target, slashes) {
                let again = normalise(&once, slashes);
                prop_assert!(matches!(&again, Ok(Cow::Borrowed(same)) if **same == *once), "{} {:?}", once, again);
                let path = once.split('?').next().expect("split yields one at least");
                prop_assert!(!path.contains("//"));
                prop_assert!(path.split('/').all(|segment| segment != "." && segment != ".."));
            }
        }
    }
}
