//! HTTP that passes for something else. Servers take more for a request than HTTP allows: other names of a protocol, blanks
//! in front, no version at all. In a stream that was let through as opaque the fields that only Weft sets would be the
//! client's, and a server would believe them.

use crate::headers::{FORWARDED, folds_to};
use crate::speech::{Speech, told};

/// Looks at both directions of an opaque stream for HTTP.
#[derive(Debug)]
pub(crate) struct Disguise {
    /// The client's first line, until it is whole.
    line: Option<Vec<u8>>,
    /// The end of what the client has said, as long as the server is silent.
    tail: Option<Vec<u8>>,
    /// The first that the server says, until it tells.
    answer: Option<Vec<u8>>,
}

impl Disguise {
    pub(crate) fn new() -> Self {
        Self { line: Some(Vec::new()), tail: Some(Vec::new()), answer: Some(Vec::new()) }
    }

    /// More of what the client says. True where it is a request after all: by its first line, or by a field that only
    /// Weft sets in front of the server's first word.
    pub(crate) fn is_request(&mut self, more: &[u8]) -> bool {
        if let Some(line) = &mut self.line {
            line.extend_from_slice(&more[..more.len().min(LINE_SEEN_MAX)]);
            match told(line) {
                Some(Speech::Http1 | Speech::Http2) => return true,
                Some(_) => self.line = None,
                None => {}
            }
        }
        let Some(tail) = &mut self.tail else { return false };
        tail.extend_from_slice(more);
        let found = names_own_field(tail);
        drop(tail.drain(..tail.len().saturating_sub(FORWARDED.len())));
        found
    }

    /// More of what the server says. True where it answers in HTTP.
    pub(crate) fn is_answer(&mut self, more: &[u8]) -> bool {
        self.tail = None;
        let Some(answer) = &mut self.answer else { return false };
        answer.extend_from_slice(&more[..more.len().min(STATUS_LINE.len())]);
        let http = answer.starts_with(STATUS_LINE);
        if http || answer.len() >= STATUS_LINE.len() {
            self.answer = None;
        }
        http
    }
}

/// Whether the bytes hold the name of a field that only Weft sets, in any spelling that some server takes for it.
fn names_own_field(bytes: &[u8]) -> bool {
    let mut starts = bytes.iter().enumerate().filter(|(_, byte)| matches!(byte, b'x' | b'X')).map(|(at, _)| at);
    starts.any(|at| {
        let candidate = bytes.get(at..at + FORWARDED.len()).map(<[u8]>::to_ascii_lowercase);
        candidate.is_some_and(|candidate| folds_to(&candidate, FORWARDED))
    })
}

/// How every answer of HTTP/1 begins.
const STATUS_LINE: &[u8] = b"HTTP/";
/// Of one piece so much is looked at for its first line.
const LINE_SEEN_MAX: usize = 18 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_take_for_requests_is_found() {
        for first in
            ["OPTIONS / RTSP/1.0\r\nHost: x\r\n", " GET / HTTP/1.1\r\n", "GET\x0b/\x0bHTTP/1.1\r\n", "GET /\r\n"]
        {
            for name in ["X-Forwarded-Client-Cert", "x_forwarded_client_cert", "X-FORWARDED.CLIENT-CERT"] {
                let text = format!("{first}{name}: URI=spiffe://evil\r\n\r\n");
                assert!(Disguise::new().is_request(text.as_bytes()), "{text:?}");
                let mut slowly = Disguise::new();
                assert!(text.bytes().any(|byte| slowly.is_request(&[byte])), "{text:?}");
            }
            let mut plain = Disguise::new();
            assert!(!plain.is_request(first.as_bytes()), "{first:?}");
            assert!(!plain.is_answer(b"HT") && plain.is_answer(b"TP/1.1 200 OK"), "{first:?}");
        }
        assert!(Disguise::new().is_request(b"GET / HTTP/1.1\r\n"));
    }

    #[test]
    fn other_protocols_are_left_alone() {
        let mut stream = Disguise::new();
        assert!(!stream.is_request(b"\0\0\0\x08\x04\xd2\x16/") && !stream.is_answer(b"N"));
        // After the server has spoken nothing is looked for.
        assert!(
            !stream.is_request(b"insert into t values ('x-forwarded-client-cert')") && !stream.is_answer(b"HTTP/1.1")
        );
    }
}
