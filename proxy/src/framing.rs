//! How the bytes of an HTTP/1.1 caller fall into messages. What servers are known to read in different ways is found here,
//! below the library that reads the messages and is lenient about it (RFC 9112, 2.2, 6.3 and 7.1).

use std::mem;

use http::HeaderMap;

use crate::fields::{FIELDS_MAX, HEAD_LENGTH_MAX};
use crate::reject::Reject;

/// Where in its messages a connection is.
#[derive(Debug)]
pub(crate) struct Framing {
    at: At,
    /// Heads that have passed.
    heads: u64,
    /// What is to be known of heads, by their number.
    marks: Vec<(u64, Mark)>,
}

/// What is to be known of a head beside what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mark {
    /// It is refused; what stands in its place has only its first line.
    Refused(Reject),
    /// It has these fields beside those that are in it.
    More(HeaderMap),
    /// Its target is a host without a path, and its method OPTIONS: `*` is meant (RFC 9112, 3.2.4).
    BareOptions,
}

/// What is behind the bytes that may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behind {
    /// Nothing, or a line that is not whole.
    Rest,
    /// A head that is refused.
    Refused,
    /// A head of so many bytes that has more fields than are read at once.
    Wide(usize),
    /// A body that is not framed as its head says.
    Broken,
}

/// What the next byte belongs to.
#[derive(Debug)]
enum At {
    Head(Head),
    /// So many bytes of a body, and then the next message.
    Body(u64),
    /// The line in front of a chunk.
    Size,
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The end of line behind a chunk.
    ChunkEnd,
    Trailers,
    /// No messages any more, or none that can be told apart here.
    Opaque,
}

/// A head that is being read.
#[derive(Debug, Default)]
struct Head {
    /// Bytes of its whole lines.
    length: usize,
    fields: usize,
    begun: bool,
    is_connect: bool,
    is_bare_options: bool,
    encoded: bool,
    body: Option<u64>,
}

/// A step: how many bytes it takes, none where it needs more; or what stops it.
type Step = Result<usize, Behind>;

impl Framing {
    pub(crate) fn new() -> Self {
        Self { at: At::Head(Head::default()), heads: 0, marks: Vec::new() }
    }

    /// Marks the head that has been looked at last.
    pub(crate) fn mark(&mut self, mark: Mark) {
        self.marks.push((self.heads - 1, mark));
    }

    /// Number of the head, counted from 1, whose body has not come to its end; 0 where there is none.
    pub(crate) fn unread(&self) -> u64 {
        match self.at {
            At::Head(_) | At::Opaque => 0,
            _ => self.heads,
        }
    }

    /// What has been found of heads since the last time.
    pub(crate) fn marks(&mut self) -> Vec<(u64, Mark)> {
        mem::take(&mut self.marks)
    }

    /// Looks at the bytes that come next: how many of them may pass, and what is behind those. The rest is shown again
    /// with more.
    pub(crate) fn look(&mut self, bytes: &[u8]) -> (usize, Behind) {
        let mut passed = 0;
        while passed < bytes.len() {
            match self.step(&bytes[passed..]) {
                Ok(0) => break,
                Ok(count) => passed += count,
                Err(behind) => return (passed, behind),
            }
        }
        (passed, Behind::Rest)
    }

    fn step(&mut self, rest: &[u8]) -> Step {
        let (count, next) = match &mut self.at {
            At::Opaque => (rest.len(), None),
            At::Head(head) => match head.read(rest) {
                Ok(None) => return Ok(0),
                Ok(Some(next)) => {
                    if head.is_bare_options {
                        self.marks.push((self.heads, Mark::BareOptions));
                    }
                    self.heads += 1;
                    let (length, wide) = (head.length, head.fields > FIELDS_MAX);
                    self.at = next;
                    return if wide { Err(Behind::Wide(length)) } else { Ok(length) };
                }
                Err(reject) => {
                    self.marks.push((self.heads, Mark::Refused(reject)));
                    return Err(Behind::Refused);
                }
            },
            At::Body(left) => {
                let count = take(left, rest);
                (count, (*left == 0).then(At::message))
            }
            At::Chunk(left) => {
                let count = take(left, rest);
                (count, (*left == 0).then_some(At::ChunkEnd))
            }
            At::ChunkEnd => match rest {
                [b'\r', b'\n', ..] => (2, Some(At::Size)),
                [b'\r'] => return Ok(0),
                _ => return Err(Behind::Broken),
            },
            At::Size => match line(rest)? {
                None => return Ok(0),
                Some((text, count)) => match size(text).ok_or(Behind::Broken)? {
                    0 => (count, Some(At::Trailers)),
                    size => (count, Some(At::Chunk(size))),
                },
            },
            At::Trailers => match line(rest)? {
                None => return Ok(0),
                Some((text, count)) => (count, text.is_empty().then(At::message)),
            },
        };
        if let Some(next) = next {
            self.at = next;
        }
        Ok(count)
    }
}

impl At {
    /// The beginning of a message.
    fn message() -> Self {
        Self::Head(Head::default())
    }
}

/// Takes what there is of so many bytes.
fn take(left: &mut u64, rest: &[u8]) -> usize {
    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
    *left -= count as u64;
    count
}

/// The line that begins the bytes, and how many of them it takes with its end; none where it is not whole.
fn line(rest: &[u8]) -> Result<Option<(&[u8], usize)>, Behind> {
    match rest.iter().position(|byte| *byte == b'\n') {
        None if rest.len() > LINE_LENGTH_MAX => Err(Behind::Broken),
        None => Ok(None),
        Some(end) => {
            let text = rest[..end].strip_suffix(b"\r").ok_or(Behind::Broken)?;
            Ok(Some((text, end + 1)))
        }
    }
}

/// The size in front of a chunk (RFC 9112, 7.1). Blanks are taken before an extension only.
fn size(line: &[u8]) -> Option<u64> {
    let end = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let (digits, rest) = line.split_at(end);
    let extension = rest.trim_ascii_start();
    if !(rest.is_empty() || extension.first() == Some(&b';')) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

impl Head {
    /// Goes on reading the bytes that the head begins with: what follows it, once it is whole.
    fn read(&mut self, bytes: &[u8]) -> Result<Option<At>, Reject> {
        loop {
            let rest = &bytes[self.length..];
            let end = rest.iter().position(|byte| *byte == b'\n');
            if self.length + end.unwrap_or(rest.len()) >= HEAD_LENGTH_MAX {
                return Err(Reject::HeadTooLong);
            }
            let Some(end) = end else { return Ok(None) };
            let Some(line) = rest[..end].strip_suffix(b"\r") else {
                return Err(Reject::BadRequest("a line of the request's head ends without CR"));
            };
            self.length += end + 1;
            if line.is_empty() && self.begun {
                return self.body().map(Some);
            }
            // Empty lines before a request don't count (RFC 9112, 2.2).
            if !line.is_empty() {
                self.line(line)?;
            }
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Reject> {
        if !self.begun {
            self.begun = true;
            self.is_connect = line.starts_with(b"CONNECT ");
            self.is_bare_options = line.starts_with(b"OPTIONS ") && names_host_alone(&line[8..]);
            return Ok(());
        }
        self.fields += 1;
        let named = |name: &[u8]| {
            line.len() > name.len() && line[name.len()] == b':' && line[..name.len()].eq_ignore_ascii_case(name)
        };
        if named(b"content-length") {
            let text = std::str::from_utf8(line[15..].trim_ascii()).unwrap_or_default();
            // What is no number is refused by what reads the message.
            self.body = Some(text.parse().unwrap_or(0));
        } else if named(b"transfer-encoding") {
            self.encoded = true;
        }
        Ok(())
    }

    /// What follows.
    fn body(&self) -> Result<At, Reject> {
        Ok(match (self.encoded, self.body) {
            (true, Some(_)) => {
                return Err(Reject::BadRequest("the request has both a Content-Length and a Transfer-Encoding"));
            }
            _ if self.is_connect => At::Opaque,
            // Codings other than chunked are refused by what reads the message.
            (true, None) => At::Size,
            (false, Some(length @ 1..)) => At::Body(length),
            (false, _) => At::message(),
        })
    }
}

/// Whether the rest of a request line names a host, and no path or query.
fn names_host_alone(rest: &[u8]) -> bool {
    let target = rest.split(|byte| *byte == b' ').next().unwrap_or_default();
    let scheme = target.iter().position(|byte| *byte == b':').unwrap_or(target.len());
    let Some(authority) = target[scheme..].strip_prefix(b"://") else { return false };
    !authority.is_empty() && !authority.iter().any(|byte| matches!(byte, b'/' | b'?'))
}

/// What stands in the place of a head that is refused: its own first line where that is one, and nothing else.
pub(crate) fn stand_in(refused: &[u8]) -> Vec<u8> {
    let start = refused.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(refused.len());
    let line = refused[start..].split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let sound = match words.as_slice() {
        [method, target, b"HTTP/1.1" | b"HTTP/1.0"] => {
            method.iter().all(u8::is_ascii_uppercase)
                && *method != b"CONNECT"
                && target.iter().all(u8::is_ascii_graphic)
        }
        _ => false,
    };
    [if sound { line } else { b"GET / HTTP/1.1" }, b"\r\nConnection: close\r\n\r\n"].concat()
}

/// Longest line of a size or of a trailer, in bytes.
const LINE_LENGTH_MAX: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// What passes of a text, and what is behind it, shown whole and byte by byte.
    fn looked(text: &str) -> (usize, Behind, Vec<(u64, Mark)>) {
        let mut framing = Framing::new();
        let (whole, behind) = framing.look(text.as_bytes());
        let marks = framing.marks();
        let (mut slowly, mut passed, mut last) = (Framing::new(), 0, Behind::Rest);
        for end in 1..=text.len() {
            let (count, behind) = slowly.look(&text.as_bytes()[passed..end]);
            passed += count;
            last = behind;
            if behind != Behind::Rest {
                break;
            }
        }
        assert_eq!((passed, last, slowly.marks()), (whole, behind, marks.clone()), "{text:?}");
        (whole, behind, marks)
    }

    #[test]
    fn messages_pass_whole_and_in_pieces() {
        for text in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhelloGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;a=b\r\nabc\r\n0\r\nt: 1\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5 ;a\r\nhello\r\n0\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\r\n\r\nanything\nat all",
        ] {
            assert_eq!(looked(text), (text.len(), Behind::Rest, vec![]), "{text:?}");
        }
        let begun = "GET / HTTP/1.1\r\n\r\nGET / HT";
        assert_eq!(looked(begun), (18, Behind::Rest, vec![]));
    }

    #[test]
    fn what_servers_read_differently_does_not_pass() {
        for (text, head) in [
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", 0),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", 0),
            ("GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\n", 1),
            ("\nGET / HTTP/1.1\r\n\r\n", 0),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 0),
            ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nCONTENT-LENGTH: 3\r\n\r\n", 0),
        ] {
            let (_, behind, marks) = looked(text);
            assert_eq!(behind, Behind::Refused, "{text:?}");
            assert!(matches!(marks.as_slice(), [(at, Mark::Refused(_))] if *at == head), "{text:?}: {marks:?}");
        }
        let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for body in
            ["5\nhello\r\n", "5 \r\nhello\r\n", "5\r\nhello\n", "5\r\nhelloo\r\n", "\r\n", "-1\r\n", "0\r\na: 1\n\r\n"]
        {
            assert_eq!(looked(&format!("{head}{body}")).1, Behind::Broken, "{body:?}");
        }
    }

    #[test]
    fn limits_are_named() {
        let wide = format!("GET / HTTP/1.1\r\nx: {}", "a".repeat(HEAD_LENGTH_MAX));
        let mut framing = Framing::new();
        assert_eq!(framing.look(wide.as_bytes()), (0, Behind::Refused));
        assert!(matches!(framing.marks().as_slice(), [(0, Mark::Refused(Reject::HeadTooLong))]));
        let most = format!("GET / HTTP/1.1\r\n{}\r\n", "x: 1\r\n".repeat(FIELDS_MAX));
        assert_eq!(Framing::new().look(most.as_bytes()), (most.len(), Behind::Rest));
        let more = format!("GET / HTTP/1.1\r\n{}\r\n", "x: 1\r\n".repeat(FIELDS_MAX + 1));
        assert_eq!(Framing::new().look(more.as_bytes()), (0, Behind::Wide(more.len())));
    }

    #[test]
    fn options_of_a_host_as_a_whole_are_told() {
        for (text, bare) in [
            ("OPTIONS http://a HTTP/1.1\r\n\r\n", true),
            ("OPTIONS http://a/ HTTP/1.1\r\n\r\n", false),
            ("OPTIONS http://a?b HTTP/1.1\r\n\r\n", false),
            ("OPTIONS * HTTP/1.1\r\n\r\n", false),
            ("GET http://a HTTP/1.1\r\n\r\n", false),
        ] {
            assert_eq!(looked(text).2, if bare { vec![(0, Mark::BareOptions)] } else { vec![] }, "{text:?}");
        }
    }

    #[test]
    fn a_refused_head_keeps_its_first_line_where_that_is_one() {
        for (head, expected) in [
            ("POST /a?b HTTP/1.1\nHost: a\n\n", "POST /a?b HTTP/1.1"),
            ("\r\nPUT /a HTTP/1.0\r\nHost: a\n\n", "PUT /a HTTP/1.0"),
            ("CONNECT a:1 HTTP/1.1\n", "GET / HTTP/1.1"),
            ("GET /a b HTTP/1.1\n", "GET / HTTP/1.1"),
            ("", "GET / HTTP/1.1"),
        ] {
            let text = String::from_utf8(stand_in(head.as_bytes())).expect("text");
            assert_eq!(text, format!("{expected}\r\nConnection: close\r\n\r\n"));
        }
    }
}
